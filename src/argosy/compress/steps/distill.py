"""Knowledge distillation: a smaller network learns to answer as the original. The card is `distill.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from argosy.bench.artifact import Artifact
from argosy.compress.retrain import RetrainingStep, ask_original, check_rows, fit, narrow, open_trainee
from argosy.compress.steps.base import Step, Workshop, write_model
from argosy.compress.student import Student, teach_student
from argosy.errors import InputError

__all__ = ["Distill", "take_student"]


class Distill(RetrainingStep, frozen=True, kw_only=True):
    """Teach a student what the original answers: one that the user gives, or the original with narrower layers.

    Source: Hinton et al. 2015, arXiv:1503.02531; Ba and Caruana 2014, arXiv:1312.6184 (scores rather than probabilities).
    """

    keep: float = 0.25
    """Of the original's weights the part that a student has which is made of it, in (0, 1)."""
    student: str = ""
    """Names the student that was given; "" for one that is made of the original."""
    digest: str = ""
    """Of what makes the given student."""

    name: ClassVar[str] = "distill"

    @property
    def is_apart(self) -> bool:
        """A given student is a live model of this process, and learns from what the original answers in another one."""
        return bool(self.student)

    def __post_init__(self) -> None:
        self.check_numbers()
        if not 0.0 < self.keep < 1.0:
            raise InputError("bad_option", option="distill.keep", got=self.keep, expected="above 0 and below 1")

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`.

        Raises:
            InputError: besides, `needs_student`, `student_unfit`.
        """
        if self.student:
            student = workshop.student
            if not isinstance(student, Student) or (student.name, student.digest) != (self.student, self.digest):
                got = f"{student.name} ({student.digest})" if isinstance(student, Student) else "none"
                raise InputError("needs_student", student=f"{self.student} ({self.digest})", got=got)
            check_rows(workshop, self.name)
            return teach_student(student, ask_original(artifact, workshop, self.name), artifact, workshop, self)
        trainee = open_trainee(artifact, workshop, self.name)
        thin = narrow(trainee, int(trainee.num_weights * self.keep), workshop, self.name)
        answers = ask_original(artifact, workshop, self.name)
        fit(thin, answers, artifact, workshop, self, epochs=self.epochs, deadline=self.find_deadline(workshop))
        return write_model(thin.model, artifact, workshop)


def take_student(recipe: Sequence[Step], student: Student) -> tuple[Step, ...]:
    """Give a recipe whose step `distill` teaches this student.

    Raises:
        InputError: `bad_option`, it has no such step.
    """
    if not any(isinstance(step, Distill) for step in recipe):
        raise InputError("bad_option", option="student", got=student.name, expected="none without the step distill")
    return tuple(
        msgspec.structs.replace(step, student=student.name, digest=student.digest)
        if isinstance(step, Distill) and not step.student
        else step
        for step in recipe
    )
