"""What all tests share: homes and stores of their own, ONNX files, other processes."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.store.golden import Golden
from argosy.store.local import Store
from tests.home import Home

# Folders and files that compute for most of their time, the longest first.
HEAVY = (
    *("frameworks/test_keras_backends.py", "frameworks/test_trajectories.py", "frameworks/", "importers/", "test_readme.py"),
    *("test_classic.py", "test_tutorials.py", "demo/", "train/", "compress/", "cli/", "test_environment.py", "confine/"),
)
COMPILED = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_CURRENT_TEST" in os.environ:
        return  # A test has started this run, which uses what that one has compiled.
    # What JAX has compiled once in a worker is not compiled again, nor in the processes that its tests start.
    config.stash[COMPILED] = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[COMPILED].name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_unconfigure(config: pytest.Config) -> None:
    if COMPILED in config.stash:
        config.stash[COMPILED].cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that compute begin, the longest first, in turn with those that wait for processes: the cores are shared then."""

    def find_place(file: str) -> int:
        return next((place for place, name in enumerate(HEAVY) if file.startswith(f"tests/{name}")), len(HEAVY))

    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in items))
    heavy = sorted((file for file in files if find_place(file) < len(HEAVY)), key=find_place)
    light = [file for file in files if find_place(file) == len(HEAVY)]
    in_turn = [file for pair in itertools.zip_longest(heavy, light) for file in pair]
    items.sort(key=lambda item: in_turn.index(item.nodeid.partition("::")[0]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")


def pytest_collection_finish() -> None:
    # The frameworks' modules are a million objects, which every collection of garbage would look at again.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the ARGOSY_HOME of the person who runs it."""
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path / "unused-home"))
    yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty ARGOSY_HOME."""
    return Home(tmp_path)


@pytest.fixture
def store() -> Iterator[Store]:
    """A store in memory where there is such a file system: hundreds of fsyncs on a shared disk take half a minute."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Store(Path(folder) / "home")


@pytest.fixture
def golden() -> Golden:
    rng = np.random.default_rng(0)
    return Golden({"x": rng.standard_normal((3, 4)).astype(np.float32)}, {"y": rng.standard_normal((3, 2)).astype(np.float32)})


@pytest.fixture
def make_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Write an ONNX file: by default y = x @ w, with x of shape (N, 4) and y of shape (N, 2)."""

    def make(
        nodes: list[Any] | None = None,
        inputs: list[Any] | None = None,
        outputs: list[Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
        *,
        file_name: str = "model.onnx",
        external: str | None = None,
    ) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
        arrays = {"w": np.arange(8, dtype=np.float32).reshape(4, 2)} if weights is None else weights
        graph = helper.make_graph(
            nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "graph",
            inputs or [x],
            outputs or [y],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
        path = tmp_path / "export" / file_name
        path.parent.mkdir(exist_ok=True)
        if external:
            onnx.save_model(model, path, save_as_external_data=True, location=external, size_threshold=0)
        else:
            onnx.save_model(model, path)
        return path

    return make


@pytest.fixture
def blob_of(store: Store) -> Callable[[str], Path]:
    """Find the file of a blob by its digest."""
    return lambda digest: store.home / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")


@pytest.fixture
def start_python() -> Callable[..., subprocess.Popen[str]]:
    """Start another Python process that can import argosy."""
    source = Path(sys.modules["argosy.store.local"].__file__ or "").parents[2]

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
