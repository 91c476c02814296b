"""Versions that their framework serves, compressed by what that framework has: Keras' int8, and int8 weights in a torch program.

Frameworks are not imported here: `native_child.py` does the work in a confined process, as an importer does.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any, ClassVar, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.steps.base import Step, Workshop
from argosy.confine.confine import run_confined
from argosy.errors import InputError, ModelError
from argosy.frameworks.base import import_extra

__all__ = ["KerasInt8", "TorchInt8"]

_TIMEOUT_S: Final = 600.0
_MEMORY_BYTES: Final = 8 << 30
"""Address space beside that for the weights; frameworks reserve more than they use."""
_MEMORY_TIMES: Final = 6
_MAX_DETAIL: Final = 300


class _NativeStep(Step, frozen=True, kw_only=True):
    """A step that a framework does in a confined process of its own."""

    @property
    def is_apart(self) -> bool:
        """It is."""
        return True

    @property
    def precision(self) -> str:
        """Of the weights."""
        return "int8"


class KerasInt8(_NativeStep, frozen=True, kw_only=True):
    """Matrices of a Keras model in int8, one scale an output; what is multiplied with them is rounded to 8 bits row by row.

    Keras' own `Model.quantize`: layers Dense, EinsumDense and Embedding; convolutions stay. No calibration.
    """

    name: ClassVar[str] = "keras-int8"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        return _ask(self, "keras", artifact, workshop, "a layer Dense, EinsumDense or Embedding")


class TorchInt8(_NativeStep, frozen=True, kw_only=True):
    """Matrices of a torch program in int8, one scale an output; what is multiplied with them stays float32. No calibration.

    Of programs of torch.export: every linear layer of at least `least_weights`. TorchScript has its weights in its code.
    """

    least_weights: int = 1024
    """Of a matrix; a smaller one saves nothing."""

    def __post_init__(self) -> None:
        if self.least_weights < 1:
            raise InputError("bad_option", option="torch-int8.least_weights", got=self.least_weights, expected="at least 1")

    name: ClassVar[str] = "torch-int8"

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        return _ask(self, "torch", artifact, workshop, f"a linear layer of {self.least_weights} weights or more")


def _ask(step: Step, runtime: str, artifact: Artifact, workshop: Workshop, needed: str) -> Artifact:
    """Have the framework do it in a confined process, and give what it wrote."""
    if artifact.runtime != runtime:
        raise InputError("step_unfit", method=step.name, runtime=artifact.runtime, expected=f"a version that {runtime} serves")
    import_extra(runtime, feature=f"Compression {step.name}", extra=runtime)
    folder = workshop.make_folder()
    for name, path in artifact.files.items():
        if name != artifact.entry:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    job = {
        "entry": artifact.entry,
        "folder": str(artifact.folder),
        "out": str(folder),
        "inputs": [msgspec.to_builtins(spec) for spec in artifact.signature.inputs],
        "options": msgspec.to_builtins(step),
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    try:
        done = run_confined(
            ["argosy.compress.steps.native_child", runtime, str(file)],
            read=[artifact.folder],
            write=[folder],
            timeout_s=_TIMEOUT_S,
            memory_bytes=_MEMORY_BYTES + _MEMORY_TIMES * artifact.size_bytes,
            env=_read_environment(artifact, runtime),
            title=f"The process that compresses by {step.name}",
        )
    except ModelError as error:
        raise InputError("step_failed", method=step.name, detail=error.message) from error
    file.unlink(missing_ok=True)
    told: dict[str, Any] = _read_last(done.stdout)
    if told.get("count") == 0:
        raise InputError("nothing_to_compress", method=step.name, what=needed)
    if done.returncode != 0 or "count" not in told or not (folder / artifact.entry).is_file():
        last = done.stderr.strip().splitlines()[-1:] or [f"its process ended with code {done.returncode}"]
        detail = " ".join(str(told.get("error", last[0])).split())[:_MAX_DETAIL]
        raise InputError("step_failed", method=step.name, detail=detail)
    return replace(artifact, folder=folder)


def _read_environment(artifact: Artifact, runtime: str) -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if runtime != "keras":
        return quiet
    # Read again, and checked, by the process itself.
    backend = json.loads((artifact.folder / "backend.json").read_text()).get("backend")
    return {**quiet, "KERAS_BACKEND": backend if backend in ("tensorflow", "jax", "torch") else "tensorflow"}


def _read_last(stdout: bytes) -> dict[str, Any]:
    """Read what the process says in its last line, as hostile as the file."""
    lines = stdout.decode(errors="replace").strip().splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
