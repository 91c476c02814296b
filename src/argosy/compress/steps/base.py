"""What a step is, and what those on ONNX files share: the file read, its nodes named, another one written."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows, stack_answers
from argosy.compress.kind import Meaning
from argosy.compress.step_process import StepProcess
from argosy.errors import InputError, list_choices
from argosy.signature import Arrays

__all__ = [
    "FEW_WEIGHTS",
    "HEAVY",
    "LayerStep",
    "Step",
    "Workshop",
    "blame_library",
    "check_excluded",
    "join_alike",
    "list_heavy",
    "name_nodes",
    "read_model",
    "write_model",
]

HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights, which make the file and the time."""
_CHUNK_ROWS: Final = 64
"""Of one run of rows that are joined."""
FEW_WEIGHTS: Final = 1_000_000
"""Networks with fewer train best on one core."""
_MAX_DETAIL: Final = 300
_FREE_WEIGHTS: Final = 4
"""Version of the format from which on weights need not be inputs."""
_LARGE_BYTES: Final = 1 << 30
"""From so many bytes on, weights stand in a file of their own: a message of protobuf ends at 2 GiB."""


@dataclass
class Workshop:
    """What steps work with."""

    folder: Path
    """For what they make."""
    calibration: Rows = ()
    """Requests that are like those to come; never those that the result is judged on."""
    training: Rows = ()
    """More of them, for steps that train; those to calibrate with may be among them, those to judge on never."""
    targets: Arrays = field(default_factory=dict[str, Any])
    """What is right for the training rows, by output; empty where that is not known."""
    meaning: Meaning = field(default_factory=lambda: Meaning("unknown", "nothing is known of it"))
    """Of the first output."""
    student: Any = None
    """A live model of any framework that the user gave, to be taught what the original knows."""
    deadline: float = float("inf")
    """Of `time.monotonic`, after which steps that train end with what they have."""
    say: Callable[[str], None] = lambda text: None
    """Is told how long work goes on."""
    step_s: float = 300.0
    """That a step may take which does not train; one that trains takes that beside its training."""
    process: StepProcess = field(default_factory=StepProcess)
    """Where files are read; copies of a workshop share it."""
    answers: Rows = ()
    """To the training rows, of the artifact that a step is given; empty where that is asked by the step."""
    answered: dict[Path, Rows] = field(default_factory=dict[Path, Rows])
    """The same, by the artifact's folder: several steps learn from one original."""
    made: dict[tuple[Path, Step], Artifact] = field(default_factory=dict[Any, Any])
    """What steps that train have made, by the artifact's folder and the step: several recipes may begin alike."""

    def make_folder(self) -> Path:
        """Give a new, empty folder."""
        # Not counted: copies of a workshop with other rows share the folder.
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="made-", dir=self.folder))


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to compress; its fields are its parameters."""

    name: ClassVar[str]
    """As in `recipe.STEPS`."""
    needs_calibration: ClassVar[bool] = False
    """It looks at rows."""
    retrains: ClassVar[bool] = False
    """It fits weights to training rows."""
    keeps_rows: ClassVar[bool] = True
    """Rows that do not influence one another do not do so afterwards either."""

    @property
    def is_apart(self) -> bool:
        """It reads nothing of an artifact's files itself, but has confined processes do so."""
        return False

    @property
    def precision(self) -> str:
        """What most weights are afterwards, such as `int8`; "" where they stay as they are. For the lineage."""
        return ""

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """Make another artifact: same inputs and outputs.

        Raises:
            InputError: `nothing_to_compress`, `missing_extra`; `step_unfit`, it takes no such artifact; `step_failed`, the step's
                library cannot do this model.
        """
        raise NotImplementedError


class LayerStep(Step, frozen=True, kw_only=True):
    """A step that changes layers, each of which it can leave out."""

    exclude: tuple[str, ...] = ()
    """Names of layers that stay as they are, of those that `list_layers` gives."""

    def list_layers(self, artifact: Artifact, workshop: Workshop) -> list[str]:
        """Name the layers that it would change.

        Raises:
            InputError: as `Step.apply`.
        """
        raise NotImplementedError


def read_model(artifact: Artifact, step: str) -> Any:
    """Read an artifact's ONNX file, with its weights, which all stand among the graph's initializers.

    Raises:
        InputError: `step_unfit`, it is none; `step_failed`, it cannot be read.
    """
    if artifact.runtime not in ("onnx", "openvino") or artifact.path.suffix != ".onnx":
        raise InputError("step_unfit", method=step, runtime=artifact.runtime, expected="an ONNX file")
    onnx: Any = importlib.import_module("onnx")
    with blame_library(step):
        model = onnx.load(str(artifact.path))
    _store_constants(model.graph)
    _fix_weights(model)
    return model


def _fix_weights(model: Any) -> None:
    """Take weights from among the inputs, where files of old list them, and converters lose them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _FREE_WEIGHTS)


def _store_constants(graph: Any) -> None:
    """Make weights of the nodes Constant that some exporters write them as: quantizers look for these alone."""
    results = {output.name for output in graph.output}
    kept: list[Any] = []
    for node in graph.node:
        tensor = next((each.t for each in node.attribute if each.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is None or node.output[0] in results:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def write_model(model: Any, artifact: Artifact, workshop: Workshop, **changes: Any) -> Artifact:
    """Write an ONNX file into a new folder, and give it as an artifact; its name stays.

    Args:
        model: the parsed file.
        artifact: that it was made of.
        workshop: has the folder.
        changes: to the fields of the artifact, such as its runtime.
    """
    onnx: Any = importlib.import_module("onnx")
    folder, name = workshop.make_folder(), Path(artifact.entry).name
    is_large = model.ByteSize() > _LARGE_BYTES
    where = {"save_as_external_data": True, "location": f"{name}.data"} if is_large else {}
    onnx.save(model, str(folder / name), **where)
    return replace(artifact, folder=folder, entry=name, **changes)


def name_nodes(model: Any) -> None:
    """Give each node a name that no other has: exclusions are by name, and exporters leave some without."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def join_alike(rows: Rows) -> list[Arrays]:
    """Put rows of one shape together, up to 64: one run for all of them, whose memory stays bounded."""
    groups: dict[tuple[object, ...], list[Arrays]] = {}
    for row in rows:
        groups.setdefault(tuple((name, array.shape, array.dtype.str) for name, array in row.items()), []).append(row)
    joined: list[Arrays] = []
    for alike in groups.values():
        for start in range(0, len(alike), _CHUNK_ROWS):
            part = alike[start : start + _CHUNK_ROWS]
            whole = stack_answers(part)
            joined += part if whole is None else [whole]
    return joined


def list_heavy(model: Any, kinds: Collection[str] = HEAVY) -> list[str]:
    """Names of the nodes with weights of their own, in the graph's order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in kinds and weights & set(node.input)]


def check_excluded(exclude: Collection[str], known: Collection[str], step: str) -> None:
    """See that each layer that is to be left out is there.

    Raises:
        InputError: `bad_option`.
    """
    unknown = sorted(set(exclude) - set(known))
    if unknown:
        raise InputError(
            "bad_option", option=f"{step}.exclude", got=list_choices(unknown[:5]), expected=f"layers: {list_choices(known)}"
        )


@contextlib.contextmanager
def blame_library(step: str) -> Generator[None, None, None]:
    """Turn what a library raises into an error that names the step; its bars, tables and advice are not shown.

    Raises:
        InputError: `step_failed`.
    """
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except InputError:
        raise
    except Exception as error:  # the edge of a library: quantizers raise anything, KeyError and RuntimeError among them
        told = " ".join(str(error).split()) or "it says no more"
        raise InputError("step_failed", method=step, detail=f"{type(error).__name__}: {told}"[:_MAX_DETAIL]) from error
    finally:
        logging.disable(disabled)
