"""MXNet itself: imported quietly, its threads, its tensors, and what it says when it fails."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError

__all__ = ["FAILURES", "copy_tensor", "count_threads", "explain", "mx", "set_threads", "to_tensor", "view_tensor"]

with warnings.catch_warnings():
    # It uses distutils and names that NumPy has deprecated: nothing that its user can do anything about.
    warnings.simplefilter("ignore")
    mx: Any = importlib.import_module("mxnet")

FAILURES: Final = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What a model's code, and MXNet with it (MXNetError is a RuntimeError), raises on data or a trace that it cannot take."""

_TYPES: Final = ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")
_PLACE: Final = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
"""When and where in MXNet's source something was said."""
_CPU: Final = 1
"""MXNet's number of the kind of device."""

_Callback: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("number", ctypes.c_int)]


def to_tensor(array: NDArray[Any]) -> Any:
    """Show an array to MXNet without a copy; it must not change before what is computed from it is known.

    Raises:
        InputError: `bad_data`, MXNet has no such type; `bad_option`, its NumPy interface is switched on.
    """
    if mx.util.is_np_array():
        expected = "off (mx.npx.reset_np()): models are those of mx.nd and mx.sym"
        raise InputError("bad_option", option="mx.npx.set_np", got="on", expected=expected)
    if array.dtype.name not in _TYPES:
        raise InputError("bad_data", detail=f"the data has type {array.dtype}, MXNet has only {', '.join(_TYPES)}")
    if array.dtype.name == "int8":  # The one type that MXNet has and its import does not.
        return copy_tensor(array)
    # A view, since MXNet makes what it is given read-only.
    return mx.nd.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).view())


def copy_tensor(array: NDArray[Any]) -> Any:
    """Give a tensor of its own to an array whose type MXNet has."""
    tensor = mx.nd.empty(array.shape, dtype=array.dtype)
    tensor[:] = array
    return tensor


def view_tensor(tensor: Any) -> NDArray[Any]:
    """Show a dense tensor to NumPy without a copy, flat, once it is computed; for as long as the tensor lives."""
    tensor.wait_to_read()
    address = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(tensor.handle, ctypes.byref(address)))
    dtype = np.dtype(tensor.dtype)
    buffer = (ctypes.c_char * (tensor.size * dtype.itemsize)).from_address(address.value or 0)
    return np.frombuffer(buffer, dtype)


def explain(error: BaseException) -> str:
    """Give what an error says, without the trace through MXNet's own source that comes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("MXNetError: ")), lines[-1] if lines else type(error).__name__)
    return _PLACE.sub("", said.removeprefix("MXNetError: "))


def count_threads() -> int:
    """Give the number of threads of one operator."""
    return _run_in_engine(mx.base._LIB.omp_get_max_threads)


def set_threads(num_threads: int) -> None:
    """Set the number of threads of one operator.

    MXNet's own call for it reaches the thread that calls, and operators run in the engine's.

    Raises:
        InputError: `bad_option`, the engine has several threads.
    """
    num_workers = os.environ.get("MXNET_CPU_WORKER_NTHREADS", "1")
    if num_workers != "1":
        expected = f"None while MXNET_CPU_WORKER_NTHREADS is {num_workers}; unset it before mxnet is imported"
        raise InputError("bad_option", option="num_threads", got=num_threads, expected=expected)
    _run_in_engine(lambda: mx.base._LIB.omp_set_num_threads(num_threads))


def _run_in_engine(function: Callable[[], Any]) -> Any:
    """Call a function in the thread that runs operators, after those that wait there."""
    results: list[Any] = []

    def run(context: object, argument: object) -> None:
        results.append(function())

    callback = _Callback(run)
    changed = mx.nd.zeros((1,))
    handles = (ctypes.c_void_p * 1)(changed.handle)
    device = _Device(_CPU, 0)
    mx.base.check_call(
        mx.base._LIB.MXEnginePushSyncND(
            callback, None, None, ctypes.byref(device), None, 0, handles, 1, None, 0, b"argosy_threads"
        )
    )
    changed.wait_to_read()
    return results[0]
