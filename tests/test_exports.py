"""The public names are pinned: each change of the API is a visible diff. Importing stays light."""

from __future__ import annotations

import subprocess
import sys

import argosy

EXPORTED = [
    "AdminClient",
    "ArgosyError",
    "AsyncClient",
    "Checkpoints",
    "Client",
    "CompressResult",
    "DeploymentSpec",
    "Guard",
    "Prediction",
    "Server",
    "Signature",
    "Store",
    "TensorSpec",
    "TrainResult",
    "Version",
    "compress",
    "publish",
    "pull",
    "push",
    "serve",
    "train",
]


def test_exported_names_are_these() -> None:
    assert sorted(argosy.__all__) == EXPORTED
    for name in EXPORTED:
        assert getattr(argosy, name) is not None


def test_verbs_are_packages_and_can_be_called() -> None:
    for name in ("train", "compress", "serve"):
        assert callable(getattr(argosy, name))
        assert getattr(argosy, name).__name__ == f"argosy.{name}"


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(argosy, "no_such_name")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


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
