"""`argosy push` and `argosy pull` as people use them, and what is pulled being served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import argosy
from argosy.cli.main import main
from argosy.errors import ArgosyError
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store
from tests.registry.registry_server import FakeRegistry, start_registry

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
CODE = "class Model:\n    def load(self, folder): ...\n    def infer(self, inputs): ...\n"


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with start_registry() as registry:
        yield registry


@pytest.fixture
def call(store: Store) -> Callable[..., Result]:
    """Run a command in a home: the store's, unless another one is given."""

    def call(*arguments: object, where: Path = store.home) -> Result:
        return CliRunner().invoke(main, [*map(str, arguments), "--home", str(where)])

    return call


def test_commands_say_what_moved(registry: FakeRegistry, store: Store, make_onnx: Any, call: Callable[..., Result]) -> None:
    version = import_onnx(store, make_onnx(), "iris")
    place, other = f"{registry.address}/team/iris", store.home.with_name("other")
    pushed = call("push", "iris@1", f"{place}:1")
    assert pushed.stdout.splitlines()[0] == f"iris@1  {place}:1@{version.digest}"
    assert sorted(line.split()[-1] for line in pushed.stderr.splitlines()) == [
        "argosy.json",
        "config",
        "golden.npz",
        "model.onnx",
    ]
    again = json.loads(call("push", "iris", f"{place}:1", "--json").stdout)
    assert (again["moved_bytes"], again["tag"], again["location"]) == (0, "1", f"{place}:1@{version.digest}")
    pulled = json.loads(call("pull", f"{place}:1", "--json", where=other).stdout)
    assert (pulled["name"], pulled["version"], pulled["is_new"], pulled["digest"]) == ("iris", 1, True, version.digest)
    assert "already; no other was made" in call("pull", f"{place}:1", where=other).stdout
    assert call("pull", f"{place}:1", "--name", "flower", where=other).stdout.startswith("flower@1  onnx, ")
    (listed,) = json.loads(call("models", "iris", "--json", where=other).stdout)
    assert listed["pulled_from"] == f"{place}:1@{version.digest}"
    assert f"pulled from {place}:1@" in call("models", "iris", where=other).stdout


def test_files_alone_make_no_version(
    registry: FakeRegistry, store: Store, make_onnx: Any, call: Callable[..., Result], tmp_path: Path
) -> None:
    import_onnx(store, make_onnx(), "iris")
    call("push", "iris@1", f"{registry.address}/iris")
    done = call("pull", f"{registry.address}/iris", "--files", tmp_path / "files", where=store.home.with_name("other"))
    assert done.stdout.split() == [str(tmp_path / "files" / name) for name in ("argosy.json", "golden.npz", "model.onnx")]
    assert not store.home.with_name("other").exists()
    assert call("pull", f"{registry.address}/iris", "--files", tmp_path / "more", "--name", "x").exit_code == 2


def test_failure_is_told_with_a_hint(registry: FakeRegistry, call: Callable[..., Result]) -> None:
    registry.basic = "me:secret"
    done = call("pull", f"{registry.address}/iris")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "hint: log in with docker" in done.stderr
    assert json.loads(call("pull", "iris", "--json").stdout)["key"] == "bad_location"


def test_pulled_version_is_served_and_code_only_if_allowed(
    registry: FakeRegistry, store: Store, make_onnx: Any, tmp_path: Path
) -> None:
    import_onnx(store, make_onnx(), "iris")
    (tmp_path / "code.py").write_text(CODE)
    publish_python(store, tmp_path / "code.py", "code", signature=SIGNATURE)
    other = Store(store.home.with_name("other"))
    for name in ("iris", "code"):
        argosy.push(name, f"{registry.address}/{name}", store=store)
        argosy.pull(f"{registry.address}/{name}", store=other)
    with argosy.serve("iris@1", home=other.home) as server, server.client() as client:
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        # Small integers: the sums are exact in float32.
        np.testing.assert_array_equal(client.predict("iris", {"x": x})["y"], x @ np.arange(8, dtype=np.float32).reshape(4, 2))
        with pytest.raises(ArgosyError, match="may run code of its maker"):
            server.deploy("code@1")
