"""The public names are pinned: each change of the API is a visible diff. Importing stays light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import argosy
from tests.home import make_scale_model

EXPORTED = [
    "AdminClient",
    "ArgosyError",
    "AsyncClient",
    "Checkpoints",
    "Client",
    "CompressResult",
    "DeploymentSpec",
    "Ema",
    "Guard",
    "Prediction",
    "Server",
    "Signature",
    "Start",
    "Store",
    "TensorSpec",
    "TrainResult",
    "Version",
    "compress",
    "publish",
    "pull",
    "push",
    "search",
    "serve",
    "train",
]


def test_exported_names_are_these() -> None:
    assert sorted(argosy.__all__) == EXPORTED
    for name in EXPORTED:
        assert getattr(argosy, name) is not None


def test_verbs_are_packages_and_can_be_called() -> None:
    for name in ("train", "search", "compress", "serve"):
        assert callable(getattr(argosy, name))
        assert getattr(argosy, name).__name__ == f"argosy.{name}"


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(argosy, "no_such_name")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout


def list_loaded(code: str) -> list[str]:
    """Modules of ours that are there after a program."""
    printed = run(f"import sys; {code}; print(sorted(m for m in sys.modules if m.startswith('argosy.')))")
    return eval(printed.splitlines()[-1])


def test_importing_argosy_imports_no_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import argosy; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    allowed = set(sys.stdlib_module_names) | {"argosy"}
    assert set(eval(run(code))) <= allowed


def test_supervisor_imports_the_standard_library_only() -> None:
    code = (
        "import sys; import argosy.serve.node.supervisor; "
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'argosy', '__main__'}))"
    )
    extra = [name for name in eval(run(code)) if not name.startswith(("_", "sitecustomize", "google", "mpl_toolkits"))]
    assert extra == []


def test_worker_needs_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys; import argosy.serve.worker.worker; "
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'argosy', '__main__'}))"
    )
    extra = [name for name in eval(run(code)) if not name.startswith(("_", "sitecustomize", "google", "mpl_toolkits"))]
    assert extra == ["numpy"]


def test_import_of_an_onnx_file_loads_nothing_of_other_files(tmp_path: Path) -> None:
    path = make_scale_model(tmp_path / "scale.onnx", 2.0)
    loaded = list_loaded(
        f"from argosy.cli.main import main; main(['import', {str(path)!r}, '--name', 'scale'], standalone_mode=False); "
        "assert not {'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    assert "argosy.importers.onnx" in loaded
    others = (
        "serve",
        "frameworks",
        "environment",
        "importers.f",
        "importers.c",
        "rows",
        "runtimes.mxnet",
        "runtimes.preprocess",
    )
    assert [name for name in loaded if name.removeprefix("argosy.").startswith(others)] == []


def test_training_loads_nothing_of_serving() -> None:
    data = "np.ones((8, 4), np.float32), np.arange(8) % 2"
    loaded = list_loaded(
        f"import numpy as np, torch, argosy; argosy.train(torch.nn.Linear(4, 2), ({data}), epochs=1, progress=False)"
    )
    assert "argosy.frameworks.torch.step" in loaded
    others = ("confine", "serve", "importers", "deploy", "client", "runtimes.preprocess", "runtimes.mxnet", "frameworks.mxnet")
    assert [name for name in loaded if name.removeprefix("argosy.").startswith(others)] == []
