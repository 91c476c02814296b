"""Run what `jax.export` wrote, on the CPU: a function as StableHLO, and its weights beside it.

    ENTRY                the function, of (list of weights, array, array ...)
    ENTRY.weights.npz    arr_0, arr_1 ... in the order of the list

Neither is a pickle. But a program may call whatever is registered in the process under a name, JAX's way back into Python
among it; `jax.export` looks at that when it writes, not when it reads. So every operation is looked at here first. The
reader itself is C++, and a damaged file can crash it (2 of 400 with a few random bytes did): then a worker dies, alone.
"""

from __future__ import annotations

import importlib
import os
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import BadInput

__all__ = ["RUNTIME", "WEIGHTS_SUFFIX", "JaxRuntime", "begin", "count_threads", "narrow"]

jax: Any = importlib.import_module("jax")
export: Any = importlib.import_module("jax.export")
backend: Any = importlib.import_module("jax.extend.backend")
mlir: Any = importlib.import_module("jax.interpreters.mlir")

WEIGHTS_SUFFIX: Final = ".weights.npz"

_DIALECTS: Final = frozenset({"builtin", "chlo", "func", "stablehlo"})
_FORBIDDEN: Final = frozenset({"stablehlo.infeed", "stablehlo.outfeed", "stablehlo.recv", "stablehlo.send"})
"""They wait for a host that never answers."""
_CALL: Final = "stablehlo.custom_call"
_ASSERTION: Final = "shape_assertion"
"""The one call that is no call: it is checked, and removed, when the number of rows is known."""

_THREAD_NAME: Final = "tf_XLAEigen"


class JaxRuntime:
    """One program with its weights.

    Options: `threads` (of XLA, in the whole process; default: as it runs, or its own choice), `inputs` and `outputs` (names
    of the tensors that go in and come out, in the order in which the program has them), `has_rows` (default true: the first
    axis of every tensor counts rows).

    A program is compiled for each number of rows, which takes a tenth of a second and more. So a batch is filled up to the
    next power of two, and the answers to the filling are cut off. Along other axes of any length it is compiled for each.
    """

    _begun: ClassVar[int] = 0
    """Threads that a runtime let XLA begin with; 0 if another part of the process did, or none."""

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Read the program and its weights.

        Raises:
            ValueError: the file is no such program, reaches out of itself, or does not fit its weights or the names.
        """
        if "threads" in options:
            self._take_threads(int(options["threads"]))
        inputs, self._outputs, self._has_rows = options["inputs"], [*options["outputs"]], bool(options.get("has_rows", True))
        program = _read_program(folder / entry)
        num_weights = len(program.in_avals) - len(inputs)
        if len(program.out_avals) != len(self._outputs) or num_weights < 0:
            got = f"{entry} gives {len(program.out_avals)} outputs for {len(program.in_avals)} inputs, weights included"
            raise ValueError(f"{got}, expected {len(self._outputs)} for {len(inputs)}")
        weights, given = program.in_avals[:num_weights], program.in_avals[num_weights:]
        self._inputs = {name: (np.dtype(aval.dtype), _show_shape(aval)) for name, aval in zip(inputs, given, strict=True)}
        # JAX cuts numbers to 32 bits unless it is told not to.
        self._is_wide = any(np.dtype(aval.dtype).itemsize == 8 for aval in (*program.in_avals, *program.out_avals))
        with jax.enable_x64(self._is_wide):
            self._weights = _read_weights(folder / f"{entry}{WEIGHTS_SUFFIX}", weights)
        self._answer = jax.jit(program.call)

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """XLA is begun anew with another number."""
        return False

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch of at least one row.

        Raises:
            BadInput: integers lie beyond the type in which JAX computes.
        """
        given = {name: self._take(name, inputs[name]) for name in self._inputs}
        num_rows = len(next(iter(given.values()))) if self._has_rows else 0
        missing = (1 << (num_rows - 1).bit_length()) - num_rows if num_rows else 0
        filled = [np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows for rows in given.values()]
        with jax.enable_x64(self._is_wide):
            answers = [np.asarray(answer) for answer in jax.tree.leaves(self._answer(self._weights, *filled))]
        return {
            name: np.asarray(answer[:num_rows] if missing else answer, order="C")
            for name, answer in zip(self._outputs, answers, strict=True)
        }

    def _take(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        dtype, shape = self._inputs[name]
        rows = narrow(array, dtype)
        fits = rows.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, rows.shape, strict=True))
        if not fits or (self._has_rows and not len(rows)):
            told = f"at least one row of shape {shape[1:]}" if self._has_rows else f"shape {shape}"
            raise ValueError(f"{name!r} has shape {rows.shape}, expected {told}")
        return rows

    @classmethod
    def _take_threads(cls, num_threads: int) -> None:
        """Let XLA run with a number of threads; a worker tries more than one, and holds nothing else of JAX's."""
        if cls._begun and cls._begun != num_threads:
            backend.clear_backends()
            _start(num_threads)
            cls._begun = num_threads
        elif not cls._begun:
            is_first = not count_threads()
            begin(num_threads)
            cls._begun = num_threads if is_first else 0


def _show_shape(aval: Any) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else -1 for dim in aval.shape)


def _read_program(path: Path) -> Any:
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
        with mlir.make_ir_context():
            calls = _list_operations(program.mlir_module(serialized=False))
    except Exception as error:  # The reader of a damaged file fails with anything.
        raise ValueError(f"{path.name} is no program of jax.export: {error}") from error
    for name, target in sorted(calls):
        if name.partition(".")[0] not in _DIALECTS or name in _FORBIDDEN or target not in ("", _ASSERTION):
            raise ValueError(f"{path.name} reaches out of itself by {name} {target}".rstrip() + ", which no model may")
    return program


def _list_operations(module: Any) -> set[tuple[str, str]]:
    """Give the kinds of operations in a program, each with what it calls by name."""
    found: set[tuple[str, str]] = set()

    def look(operation: Any) -> Any:
        is_call = operation.name == _CALL
        found.add((operation.name, operation.attributes["call_target_name"].value if is_call else ""))
        return mlir.ir.WalkResult.ADVANCE

    module.operation.walk(look)
    return found


def _read_weights(path: Path, avals: list[Any]) -> list[Any]:
    device = jax.devices("cpu")[0]
    weights: list[Any] = []
    try:
        file: Any = np.load(path, allow_pickle=False)
        with file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):
                raise ValueError("it is compressed, and may unfold to any size")
            for index, aval in enumerate(avals):
                array: NDArray[Any] = file[f"arr_{index}"]
                dtype = np.dtype(aval.dtype)
                if dtype.kind == "V" and array.dtype == f"u{dtype.itemsize}":
                    array = array.view(dtype)  # bfloat16 and its like, which NumPy has no name for.
                if (array.shape, array.dtype) != (aval.shape, dtype):
                    raise ValueError(
                        f"arr_{index} is {array.dtype} of shape {array.shape}, expected {dtype} of shape {aval.shape}"
                    )
                weights.append(jax.device_put(array, device))
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} does not hold the weights of the program: {error}") from error
    return weights


def count_threads() -> int:
    """Count the threads that XLA computes with in this process; 0 if it has not begun."""
    return sum(_read_name(path) == _THREAD_NAME for path in Path("/proc/self/task").glob("*/comm"))


def _read_name(path: Path) -> str | None:
    """Give the name of a thread; None of one that has ended since it was listed."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def begin(num_threads: int) -> None:
    """Let XLA begin with a number of threads. It stays, for one process's whole life.

    Raises:
        ValueError: it has begun with another.
    """
    if not count_threads():
        _start(num_threads)
    if (got := count_threads()) != num_threads:
        raise ValueError(f"JAX computes with {got} threads in this process, and cannot change to {num_threads}")


def _start(num_threads: int) -> None:
    before = os.environ.get("PJRT_NPROC")
    os.environ["PJRT_NPROC"] = str(num_threads)
    try:
        jax.devices("cpu")
    finally:
        if before is None:
            del os.environ["PJRT_NPROC"]
        else:
            os.environ["PJRT_NPROC"] = before


def narrow(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Give an array in the type that JAX takes; integers may be of another size, if all of them fit.

    Raises:
        ValueError: it is of another kind.
        BadInput: the numbers would not stay what they are.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iu" or np.dtype(dtype).kind not in "iu":
        raise ValueError(f"it is {array.dtype}, expected {dtype}")
    cut = array.astype(dtype)
    if not np.array_equal(cut, array):
        raise BadInput(f"it holds integers beyond {np.dtype(dtype)}, the widest type that JAX takes here")
    return cut


RUNTIME: Final = JaxRuntime
