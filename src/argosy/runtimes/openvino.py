"""Run ONNX files and OpenVINO's own (IR: `.xml` with `.bin`) with OpenVINO on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import BadInput, blame_input

__all__ = ["RUNTIME", "OpenvinoRuntime"]

openvino: Any = importlib.import_module("openvino")

_HINTS: Final = {"float32": "f32", "bfloat16": "bf16"}

# OpenVINO's CPU kernels have no elements of 64 bits: a larger integer would come out as another one, and no error with it.
_CACHE_ENTRIES: Final = 100
"""Kernels that are kept for shapes that come again, for each kind of operator. With OpenVINO's own 5000 a transformer of 6
layers took 2 MiB more with each shape, and went on so; with 100, 35 MiB for 128 shapes, and 32 lengths in turn ran as fast."""
_REFUSED: Final = {"string": "text (BYTES)", "f64": "float64 (FP64)", "bf16": "bfloat16 (BF16)"}
_NARROWED: Final = frozenset({"i64", "u64", "u32"})
_INT32: Final = np.iinfo(np.int32)


class OpenvinoRuntime:
    """One compiled model with one infer request, which runs on the caller's thread and `threads` - 1 others.

    Any shape that the signature allows runs without compiling anew. A shape that differs from the last call's costs some
    microseconds for each operator, one that was never seen a few times as many (kernels are generated for it): 2 to 3 and 5 ms
    on a transformer of 6 layers. What is kept of seen shapes is bounded.

    Options: `threads` (of one operator; default 1), `precision` (`float32`, the default, or `bfloat16`: matrix products and
    convolutions in bfloat16, everything that goes in or comes out as it was), `inputs` and `outputs` (names of the tensors in
    the order of the file, which in IR need not name them).
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Compile the model.

        Raises:
            ValueError: it has tensors of text, float64 or bfloat16; or this machine has no instructions for the precision.
        """
        precision = options.get("precision") or "float32"
        core = openvino.Core()
        model = core.read_model(str(folder / entry))
        for port in [*model.inputs, *model.outputs]:
            _refuse_datatype(port, port.element_type.get_type_name())
        compiled = core.compile_model(model, "CPU", _build_settings(int(options.get("threads", 1)), precision))
        if (got := compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) != _HINTS[precision]:
            raise ValueError(f"this machine's processor does not compute in {precision}: OpenVINO would take {got} instead")
        names: list[str] = options.get("inputs") or [port.any_name for port in model.inputs]
        self._inputs = {name: index for index, name in enumerate(names)}
        for index, port in enumerate(model.inputs):
            self._inputs |= dict.fromkeys(port.names, index)
        self._narrowed = [index for index, port in enumerate(model.inputs) if port.element_type.get_type_name() in _NARROWED]
        self._outputs: list[list[str]] = [sorted(port.names) for port in model.outputs]
        for found, name in zip(self._outputs, options.get("outputs", ()), strict=False):
            found.append(name)
        self._request = compiled.create_infer_request()

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """Each model has threads of its own."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: an integer lies beyond int32, in which OpenVINO would compute it; or an operator cannot compute.
        """
        feed = {self._inputs[name]: array for name, array in inputs.items()}
        for index in self._narrowed:
            _check_integers(feed[index])
        try:
            answers = self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise blame_input(error) from error
        return {name: array for names, array in zip(self._outputs, answers.values(), strict=True) for name in names}


def _build_settings(threads: int, precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        # Pinned threads of several workers would share one core while others idle.
        "ENABLE_CPU_PINNING": False,
        # Answers in 8 bits are another version, which somebody measured; not a setting that this machine happens to choose.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "CPU_RUNTIME_CACHE_CAPACITY": _CACHE_ENTRIES,
    }


def _refuse_datatype(port: Any, kind: str) -> None:
    if (shown := _REFUSED.get(kind)) is not None:
        name = ", ".join(sorted(port.names)) or "without a name"
        raise ValueError(f"tensor {name} is {shown}, which OpenVINO does not compute; deploy the version with runtime onnx")


def _check_integers(array: NDArray[Any]) -> None:
    if array.size and not (_INT32.min <= array.min() and array.max() <= _INT32.max):
        raise BadInput(f"an integer lies beyond {_INT32.min} to {_INT32.max}, in which OpenVINO computes")


RUNTIME: Final = OpenvinoRuntime
