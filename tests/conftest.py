"""Models and servers that the tests share."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import argosy
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.store.local import Store

WIDTH = 4
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, WIDTH)),))


def make_scale_model(path: Path, factor: float, *, bias: float = 0.0) -> Path:
    """Write an ONNX file that answers y = factor * x + bias."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["scaled"]), helper.make_node("Add", ["scaled", "bias"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [
            helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
            helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


class Home:
    """One ARGOSY_HOME with its store, and ways to fill it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "files"
        self.files.mkdir(parents=True)
        self.store = argosy.Store(path / "home")

    def publish_scale(self, name: str = "scale", factor: float = 2.0) -> argosy.Version:
        """Publish y = factor * x as the next version."""
        return import_onnx(self.store, make_scale_model(self.files / f"{factor}.onnx", factor), name)

    def publish_code(
        self,
        body: str,
        name: str = "code",
        *,
        repeatable: bool = True,
        golden: Golden | None = None,
        signature: Signature = SIGNATURE,
    ) -> argosy.Version:
        """Publish a Python model whose `infer` has this body; `x` is its input."""
        lines = "\n        ".join(body.strip().splitlines())
        source = (
            "import os, time\nimport numpy as np\n\n\nclass Model:\n    def load(self, folder):\n        self.count = 0\n\n"
            f"    def infer(self, inputs):\n        x = inputs['x']\n        {lines}\n"
        )
        path = self.files / "model.py"
        path.write_text(source)
        return publish_python(self.store, path, name, signature=signature, golden=golden, repeatable=repeatable)

    def serve(self, *references: str, **settings: Any) -> Any:
        """Start a server on free ports."""
        return argosy.serve(*references, home=self.store.home, **settings)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty ARGOSY_HOME."""
    return Home(tmp_path)


def golden_scale(factor: float = 2.0, rows: int = 4) -> Golden:
    """Examples of y = factor * x."""
    x = np.arange(rows * WIDTH, dtype=np.float32).reshape(rows, WIDTH)
    return Golden({"x": x}, {"y": x * np.float32(factor)})


def row(value: float, rows: int = 1) -> np.ndarray:
    """A request's input: rows filled with one value."""
    return np.full((rows, WIDTH), value, np.float32)


def find_workers(server: Server, name: str) -> list[int]:
    """Process ids of a deployment's workers that are ready."""
    with server.admin() as admin:
        status = admin.status()
    lanes = [lane for dep in status["deployments"] if dep["spec"]["name"] == name for lane in dep["lanes"]]
    return [worker["pid"] for lane in lanes for worker in lane["workers"] if worker["is_ready"] and worker["pid"]]


def find_child(server: Server, module: str) -> int:
    """Process id of the supervisor's child that runs a module; 0 while there is none."""
    for pid in list_children(server.pid):
        # One that has just ended has no file any more.
        with contextlib.suppress(OSError):
            if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
    return 0


def list_children(pid: int) -> list[int]:
    """Children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Wait for a condition; its last value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("the condition did not come true in time")


class Load:
    """Clients that send requests without pause and check every answer.

    Args:
        server: where to.
        name: of the deployment.
        check: called with the row's value, the answer and the version; says whether the answer is right.
        num_clients: threads.
    """

    def __init__(self, server: Server, name: str, check: Callable[[float, np.ndarray, str], bool], num_clients: int = 8) -> None:
        self.sent = 0
        self.failures: list[str] = []
        self.versions: set[str] = set()
        self._server, self._name, self._check = server, name, check
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        value = float(index)
        with self._server.client() as client:
            while not self._stop.is_set():
                value += 1.0
                try:
                    answer = client.predict(self._name, {"x": row(value)})
                    problem = "" if self._check(value, answer["y"], answer.version) else f"wrong answer {answer['y']} for {value}"
                    version = answer.version
                except argosy.ArgosyError as error:
                    problem, version = str(error), ""
                with self._lock:
                    self.sent += 1
                    if problem:
                        self.failures.append(problem)
                    else:
                        self.versions.add(version)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the ARGOSY_HOME of the person who runs it."""
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path / "unused-home"))
    yield


def read_state(server: Server) -> dict[str, Any]:
    """The server's ports and token."""
    return json.loads((server.home / "run" / "serve.json").read_text())


def is_alive(pid: int) -> bool:
    """True while a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


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
