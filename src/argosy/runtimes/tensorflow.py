"""Run SavedModels with TensorFlow on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import re
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import blame_input

__all__ = ["INPUT_ERRORS", "RUNTIME", "TensorFlowRuntime", "set_threads"]

tf: Any = importlib.import_module("tensorflow")

INPUT_ERRORS: Final = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, ValueError)
"""What operators raise of their inputs; of a shape already where the function is traced."""

_SIGNATURE: Final = "serving_default"

_REFUSED: Final = re.compile(
    "Checkpoint|DataService|Debug|Dump|File|FixedUnigram|ImmutableConst|ImportEvent|LMDB|LoadAndRemap|Print|PyFunc|Reader|Record"
    "|Recv|RemoteCall|Restore|Rpc|Save|Send|Snapshot|Sql|Summary|VocabRemapping"
)
"""In the names of operators that reach outside of the model: a SavedModel is a program, and may come from anybody."""


class TensorFlowRuntime:
    """The signature `serving_default` of one SavedModel.

    Options: `threads` (of one operator; default 1), `inputs` and `outputs` (names of the version's tensors, in order). A
    model with one tensor may call it as it likes; with more, the names must be its own, or its own must be `argosy_input_0`,
    `argosy_input_1` and so on, which are in order.
    """

    def load(self, folder: Path, entry: str, options: dict[str, Any]) -> None:
        """Load it, with as many threads as asked for."""
        set_threads(int(options.get("threads", 1)))
        self.open(folder, entry, options["inputs"], options["outputs"])

    def open(self, folder: Path, entry: str, inputs: list[str], outputs: list[str]) -> None:
        """Load it with the threads that there are.

        Raises:
            RuntimeError: it has no such signature, other tensors, or operators that reach outside of it.
        """
        _check_operators((folder / entry).read_bytes())
        with _lay_out(folder) as seen:
            # The object must live as long as its functions.
            self._model = tf.saved_model.load(str(seen))
        if _SIGNATURE not in self._model.signatures:
            known = ", ".join(sorted(self._model.signatures)) or "none"
            raise RuntimeError(f"The SavedModel has no signature {_SIGNATURE}; it has: {known}")
        self._call = self._model.signatures[_SIGNATURE]
        self._inputs = _match("inputs", inputs, self._call.structured_input_signature[1])
        self._outputs = _match("outputs", outputs, self._call.structured_outputs)

    @staticmethod
    def fixes_threads(folder: Path) -> bool:
        """TensorFlow does not change their number once it has begun."""
        return True

    def infer(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Raises:
            BadInput: an operator cannot compute with what it gets.
        """
        try:
            answer = self._call(**{own: tf.convert_to_tensor(inputs[name]) for name, own in self._inputs.items()})
            return {name: np.asarray(answer[own].numpy(), order="C") for name, own in self._outputs.items()}
        except INPUT_ERRORS as error:
            raise blame_input(error) from error


def set_threads(num_threads: int) -> None:
    """Let an operator have so many threads, and operators run one after the other.

    Raises:
        RuntimeError: TensorFlow has started with another number, and does not change it any more.
    """
    threading = tf.config.threading
    for get, change, wanted in (
        (threading.get_intra_op_parallelism_threads, threading.set_intra_op_parallelism_threads, num_threads),
        (threading.get_inter_op_parallelism_threads, threading.set_inter_op_parallelism_threads, 1),
    ):
        try:
            change(wanted)
        except RuntimeError as error:
            detail = (
                f"TensorFlow runs with {get() or 'all'} threads in this process, which cannot be changed to {wanted} any more"
            )
            raise RuntimeError(detail) from error


@contextlib.contextmanager
def _lay_out(folder: Path) -> Generator[Path, None, None]:
    """Give the folder as TensorFlow wants it: of a flat artifact, `variables.index` is `variables/variables.index`."""
    if not any(folder.glob("variables.*")):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="argosy-saved-model-") as name:
        for file in (file for file in folder.rglob("*") if file.is_file()):
            inner = "variables" if file.name.startswith("variables.") and file.parent == folder else ""
            link = Path(name, inner, file.relative_to(folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(name)


def _match(kind: str, names: list[str], known: Iterable[str]) -> dict[str, str]:
    own = sorted(known)
    if set(names) == set(own):
        return dict(zip(names, names, strict=True))
    if len(names) == len(own) == 1:
        return {names[0]: own[0]}
    numbered = [f"argosy_{kind[:-1]}_{number}" for number in range(len(names))]
    if set(numbered) == set(own):
        return dict(zip(names, numbered, strict=True))
    raise RuntimeError(f"The version has the {kind} {', '.join(names)}, the SavedModel {', '.join(own)}")


def _check_operators(data: bytes) -> None:
    """Refuse a file whose functions reach outside; those that only save and restore it are never run."""
    saved = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    saved.ParseFromString(data)
    for graph in saved.meta_graphs:
        functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
        # Without an object graph the file is of TensorFlow 1, and its main graph is what is run.
        roots = set(graph.object_graph_def.concrete_functions)
        nodes = list(_walk(roots, functions)) if roots else [*graph.graph_def.node, *_walk(set(functions), functions)]
        if found := sorted({node.op for node in nodes if _REFUSED.search(node.op)}):
            raise RuntimeError(f"The SavedModel has operators that reach outside of it, which is refused: {', '.join(found)}")


def _walk(names: set[str], functions: dict[str, Any]) -> Iterator[Any]:
    """Give the operators of some functions and of all that they call."""
    waiting, seen = list(names), set(names)
    while waiting:
        for node in functions.get(waiting.pop(), ()):
            yield node
            called = {node.op}
            for value in node.attr.values():
                called |= {value.func.name, *(function.name for function in value.list.func)}
            fresh = called & functions.keys() - seen
            seen |= fresh
            waiting += fresh


RUNTIME: Final = TensorFlowRuntime
