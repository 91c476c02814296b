"""What steps that train have in common: what is to be learnt, and an ONNX file whose weights learn it."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import Rows, write_rows
from argosy.compress.kind import Meaning
from argosy.compress.steps.base import FEW_WEIGHTS, Step, Workshop, blame_library, read_model
from argosy.errors import InputError
from argosy.frameworks.base import get_framework, import_extra
from argosy.serve.worker.cores import count_cores
from argosy.signature import Arrays

__all__ = [
    "LEAST_ROWS",
    "RetrainingStep",
    "Trainee",
    "ask_original",
    "check_rows",
    "fit",
    "make_answers",
    "narrow",
    "open_trainee",
]

LEAST_ROWS: Final = 200
"""Fewer training rows say too little of what is to be learnt."""
_AGREEMENT: Final = 1e-3
"""By which torch's answers may differ from those of the artifact's runtime, relative to their largest magnitude."""
_FLOATS: Final = (1, 10, 11, 16)
"""ONNX's numbers for FLOAT, FLOAT16, DOUBLE, BFLOAT16."""
_NUM_COMPARED: Final = 8


class RetrainingStep(Step, frozen=True, kw_only=True):
    """A step that fits weights to what the original answers to training rows, and to what is right where that is known."""

    epochs: int = 30
    """Passes over the training rows at most; it ends before where nothing is gained."""
    learning_rate: float = 1e-3
    """Of Adam, at the beginning; it falls to 0."""
    max_seconds: float = 300.0
    """After which training ends with what it has."""
    seed: int = 0

    retrains: ClassVar[bool] = True

    def check_numbers(self) -> None:
        """See that the parameters that all such steps have are in their ranges.

        Raises:
            InputError: `bad_option`.
        """
        for option in ("epochs", "learning_rate", "max_seconds"):
            if not getattr(self, option) > 0:
                raise InputError("bad_option", option=f"{self.name}.{option}", got=getattr(self, option), expected="more than 0")

    def find_deadline(self, workshop: Workshop) -> float:
        """Give when training must have ended, on the clock of `time.monotonic`."""
        return min(workshop.deadline, time.monotonic() + self.max_seconds)


def check_rows(workshop: Workshop, step: str) -> None:
    """See that there are enough training rows.

    Raises:
        InputError: `too_few_training_rows`.
    """
    if len(workshop.training) < LEAST_ROWS:
        raise InputError("too_few_training_rows", method=step, got=len(workshop.training), needed=LEAST_ROWS)


def ask_original(artifact: Artifact, workshop: Workshop, step: str) -> list[Arrays]:
    """Give what a trained model is to answer to the training rows.

    Raises:
        InputError: `too_few_training_rows`.
        FaultError: `engine_failed`.
    """
    check_rows(workshop, step)
    answers = workshop.answers or run_original(artifact, workshop)
    return make_answers(answers, workshop.targets, workshop.meaning)


def run_original(artifact: Artifact, workshop: Workshop) -> Rows:
    """Give what an artifact answers to the training rows; it is run once.

    Raises:
        FaultError: `engine_failed`.
    """
    if artifact.folder not in workshop.answered:
        with Probe(artifact, threads=count_cores(), title="the original") as probe:
            workshop.answered[artifact.folder] = probe.answer(write_rows(workshop.training, probe.work / "training"))
    return workshop.answered[artifact.folder]


def make_answers(answers: Sequence[Arrays], targets: Arrays, meaning: Meaning) -> list[Arrays]:
    """Make what is to be learnt of the original's answers and of what is right.

    - Where the original takes a row for another class than the right one, the two scores change places: what it knows of the
      other classes stays. Source: Wen et al. 2019, arXiv:1911.07471 (probability shift).
    - A wrong yes or no is mirrored.
    - Of values it is the mean of both, which is to minimise the sum of both squared errors.

    Args:
        answers: the original's, by output.
        targets: what is right, by output, one a row.
        meaning: of the first output; targets of others are not looked at.
    """
    name = next(iter(answers[0]))
    right = targets.get(name)
    if right is None or answers[0][name].dtype.kind != "f":
        return list(answers)
    return [{**answer, name: _mend(answer[name], np.asarray(right[row]), meaning)} for row, answer in enumerate(answers)]


def _mend(answer: NDArray[Any], right: NDArray[Any], meaning: Meaning) -> NDArray[Any]:
    if meaning.kind == "values" and right.size == answer.size:
        return ((answer.astype(np.float64) + right.reshape(answer.shape)) / 2).astype(answer.dtype)
    if meaning.kind == "yes_no" and right.size == answer.size:
        is_wrong = (answer > meaning.threshold) != (right.reshape(answer.shape) > 0.5)
        return np.where(is_wrong, answer.dtype.type(2 * meaning.threshold) - answer, answer)
    if meaning.kind == "classes" and answer.size == answer.shape[meaning.class_axis]:
        scores = answer.ravel().copy()
        label = int(right) if right.size == 1 else int(right.argmax()) if right.size == scores.size else -1
        if 0 <= label < scores.size:
            best = int(scores.argmax())
            scores[[best, label]] = scores[[label, best]]
        return scores.reshape(answer.shape)
    return answer


class Trainee(NamedTuple):
    """An ONNX file in torch."""

    model: Any
    """The parsed file."""
    network: Any
    """Of `frameworks.torch.graph`."""

    @property
    def num_weights(self) -> int:
        """Numbers in weights, of all that the file holds."""
        return sum(math.prod(tensor.dims) for tensor in self.model.graph.initializer if tensor.data_type in _FLOATS)

    def follow(self, model: Any) -> Trainee:
        """Give another graph in its place, with weights of its own."""
        return Trainee(model, type(self.network)(model))


def open_trainee(artifact: Artifact, workshop: Workshop, step: str) -> Trainee:
    """Open an ONNX file for training.

    Raises:
        InputError: `step_unfit`, it is no ONNX file; `step_failed`, it has operators or weights that cannot be trained, or torch
            answers otherwise than ONNX Runtime; `missing_extra`.
    """
    import_extra("torch", feature=f"Compression {step}", extra="torch")
    model = read_model(artifact, step)
    with blame_library(step):
        model = _lift_constants(_simplify(model))
        graph: Any = importlib.import_module("argosy.frameworks.torch.graph.network")
        trainee = Trainee(model, graph.Network(model))
        with _session(0, trainee):
            _check_agreement(trainee, workshop)
    return trainee


def _simplify(model: Any) -> Any:
    """Fold what is constant, so that weights are constants, and shapes numbers."""
    import_extra("onnxslim", feature="Compression with training", extra="compress")
    onnxslim: Any = importlib.import_module("onnxslim")
    return onnxslim.slim(model)


def _lift_constants(model: Any) -> Any:
    """Make constants of nodes that give them."""
    helper: Any = importlib.import_module("onnx.numpy_helper")
    nodes: list[Any] = []
    for node in model.graph.node:
        value = next((item for item in node.attribute if item.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            nodes.append(node)
            continue
        tensor = helper.from_array(helper.to_array(value.t), node.output[0])
        model.graph.initializer.append(tensor)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _check_agreement(trainee: Trainee, workshop: Workshop) -> None:
    """Hold torch's answers against ONNX Runtime's."""
    torch: Any = importlib.import_module("torch")
    opened: Any = importlib.import_module("argosy.frameworks.onnx")
    runtime = opened.OnnxModel(trainee.model.SerializeToString())
    for row in workshop.training[:_NUM_COMPARED]:
        with torch.no_grad():
            made = trainee.network({name: torch.from_numpy(np.array(array)) for name, array in row.items()})
        for name, right in runtime.run(row).items():
            got = made[name].numpy()
            if got.shape != right.shape or got.dtype != right.dtype:
                raise ValueError(f"torch gives {got.dtype} of shape {got.shape}, ONNX Runtime {right.dtype} of {right.shape}")
            if right.dtype.kind == "f" and right.size:
                far, scale = float(np.abs(got - right).max()), float(np.abs(right).max())
                if not far <= _AGREEMENT * max(scale, 1e-6):
                    raise ValueError(f"torch answers otherwise than ONNX Runtime, by {far:.3g} of {scale:.3g}")


def _session(seed: int, trainee: Trainee) -> Any:
    count = sum(int(weight.numel()) for weight in trainee.network.weights.values())
    return get_framework("torch").session(seed, 1 if count < FEW_WEIGHTS else count_cores())


def narrow(trainee: Trainee, count: int, workshop: Workshop, step: str) -> Trainee:
    """Give a network with fewer channels in each layer, those with the largest weights.

    Args:
        trainee: the network.
        count: of weights that it may have at most.
        workshop: has a row to run it with.
        step: for messages.

    Raises:
        InputError: `nothing_to_compress`, it has more without its channels; `step_failed`.
    """
    cuts: Any = importlib.import_module("argosy.compress.channels.cut")
    with blame_library(step):
        channels = cuts.Channels(trainee.model, trainee.network.trace(workshop.training[0]))
        gone = channels.choose(count)
        left = channels.count_left(gone)
        if left > count:
            what = f"channels that can go: of {channels.count_left(set())} weights {left} stay at least, wanted {count}"
            raise InputError("nothing_to_compress", method=step, what=what)
        return trainee.follow(channels.cut(gone))


def fit(
    trainee: Trainee,
    answers: Sequence[Arrays],
    artifact: Artifact,
    workshop: Workshop,
    step: RetrainingStep,
    *,
    epochs: int,
    deadline: float,
    masks: Mapping[str, NDArray[Any]] = {},
) -> None:
    """Train the weights, and write them into the file.

    Args:
        trainee: what learns.
        answers: to the training rows.
        artifact: whose signature tells whether rows can be joined.
        workshop: has the rows.
        step: has the settings.
        epochs: passes at most.
        deadline: of `time.monotonic`.
        masks: weights that stay 0, by name.

    Raises:
        InputError: `step_failed`.
    """
    lessons: Any = importlib.import_module("argosy.frameworks.torch.graph.lesson")
    lesson = lessons.Lesson(
        workshop.training,
        answers,
        artifact.signature.is_batched,
        epochs=epochs,
        learning_rate=step.learning_rate,
        seed=step.seed,
    )
    with blame_library(step.name), _session(step.seed, trainee):
        outcome = lessons.teach(trainee.network, lesson, deadline, masks=masks, say=workshop.say)
    workshop.say(f"{step.name}: trained for {outcome.epochs} epochs, {trainee.num_weights} weights, error {outcome.error:.4g}")
    trainee.network.write_to(trainee.model)
