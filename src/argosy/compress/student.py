"""A student that the user gives: a live model of any framework, taught to answer as the original."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from argosy.bench.artifact import Artifact
from argosy.bench.rows import stack_answers
from argosy.compress.steps.base import FEW_WEIGHTS, Workshop
from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Framework, count_weights, framework_of
from argosy.frameworks.ports import Ports
from argosy.optim import Adam, LinearDecay
from argosy.serve.worker.cores import count_cores
from argosy.signature import Arrays
from argosy.train.data import check_rows
from argosy.train.lineage import describe_code
from argosy.train.program import call_function, is_program
from argosy.train.publish import pick_sample, write_files
from argosy.train.run import count_steps, train

if TYPE_CHECKING:
    from argosy.compress.retrain import RetrainingStep

__all__ = ["Student", "open_student", "teach_student"]

_BATCH_SIZE: Final = 32
_HELD_OUT: Final = 0.1
_PATIENCE: Final = 8


@dataclass(frozen=True, eq=False)
class Student:
    """A live model, and what names it in a recipe."""

    framework: Framework
    model: Any
    """Trained in place."""
    name: str
    """Of the program's file and function, or of the model's class; no path."""
    digest: str
    """Of the program's file, or of what the framework says of all of the model but its weights."""


def open_student(given: object) -> Student:
    """Open what a user gives as a student.

    Args:
        given: a live model; or `FILE.py:FUNCTION`, a function without parameters that makes one.

    Raises:
        InputError: `bad_program`; `bad_option`, it is no model of a framework.
    """
    if not isinstance(given, str):
        framework = framework_of(given)
        told = json.dumps(framework.describe_program(given), sort_keys=True, default=str)
        return Student(framework, given, describe_code(type(given))["name"], _digest(told.encode()))
    if not is_program(given):
        raise InputError("bad_program", target=given, detail="a student is FILE.py:FUNCTION, a function that makes a model")
    model: object = call_function(given)
    path, _, function = given.rpartition(":")
    return Student(framework_of(model), model, f"{Path(path).name}:{function}", _digest(Path(path).read_bytes()))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def teach_student(
    student: Student, answers: Sequence[Arrays], artifact: Artifact, workshop: Workshop, step: RetrainingStep
) -> Artifact:
    """Train a student by `argosy.train` on what the original answers, and write it as an artifact with its signature.

    Args:
        student: trained in place.
        answers: to the training rows.
        artifact: the original.
        workshop: has the rows.
        step: has the settings.

    Raises:
        InputError: `student_unfit`; and as `argosy.train`.
    """
    signature, deadline = artifact.signature, step.find_deadline(workshop)
    framework, model = student.framework, student.model
    rows, right = stack_answers(workshop.training), stack_answers(answers)
    if not signature.is_batched or len(signature.inputs) != 1 or len(signature.outputs) != 1 or rows is None or right is None:
        raise _refuse(student, "it has one input and one output of rows of one shape, which the version has not")
    (given,), (made,) = signature.inputs, signature.outputs
    x, y = check_rows(rows[given.name], framework.float_dtype(model)), right[made.name]
    shape = framework.predict(model, x[:1]).shape
    if (shape[1:], x.dtype) != (y.shape[1:], given.dtype):
        raise _refuse(student, f"it gives {shape[1:]} to a row of {x.dtype}, the version {y.shape[1:]} to one of {given.dtype}")
    if y.dtype.kind != "f":
        raise _refuse(student, f"the version answers with {y.dtype}, which has no fractions to learn")
    steps = count_steps(len(x), batch_size=_BATCH_SIZE, epochs=step.epochs, validation_split=_HELD_OUT)
    fit = partial(
        train,
        model,
        (x, y),
        loss="mse",
        metrics=("mse",),
        optimizer=Adam(learning_rate=LinearDecay(step.learning_rate, max(steps, 1))),
        batch_size=_BATCH_SIZE,
        epochs=step.epochs,
        patience=_PATIENCE,
        validation_split=_HELD_OUT,
        seed=step.seed,
        progress=False,
        on_epoch=lambda epoch: time.monotonic() >= deadline,
    )
    try:
        fit(num_threads=1 if count_weights(framework, model) < FEW_WEIGHTS else count_cores())
    except InputError as error:
        if error.fields.get("option") != "num_threads":
            raise
        fit()  # Of a framework that has begun to run, the number cannot be changed any more.
    folder = workshop.make_folder()
    free = [axis for axis, length in enumerate(given.shape) if axis and length < 0]
    ports = Ports(inputs=given.name, outputs=made.name, free={given.name: free})
    try:
        files = write_files(framework, model, {given.name: pick_sample(x)}, folder, ports)
    except ModelError as error:
        raise _refuse(student, error.message) from error
    return replace(artifact, folder=files.files[0].parent, entry=files.entry, runtime=files.runtime, options=files.options)


def _refuse(student: Student, detail: str) -> InputError:
    return InputError("student_unfit", student=student.name, detail=detail)
