"""Pruning with training afterwards: channels that go altogether, or single weights that become 0. The card is `prune.md`."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from argosy.bench.artifact import Artifact
from argosy.compress.retrain import RetrainingStep, Trainee, ask_original, fit, narrow, open_trainee
from argosy.compress.steps.base import HEAVY, Workshop, write_model
from argosy.errors import InputError

__all__ = ["Prune"]

_EARLY_EPOCHS: Final = 0.2
"""Of the epochs, those that training between two rounds may take."""
_EARLY_TIME: Final = 0.15
_LEAST: Final = 1e-300


class Prune(RetrainingStep, frozen=True, kw_only=True):
    """Remove what has the smallest weights, a little at a time, and train what is left to answer as the original.

    Source: Li et al. 2017, arXiv:1608.08710 (filters); Han et al. 2015, arXiv:1506.02626 (weights); Fang et al. 2023,
    arXiv:2301.12900 (what must go together).
    """

    keep: float = 0.25
    """Part of the weights that stays, in (0, 1)."""
    structured: bool = True
    """Whole channels go, and the network becomes smaller and faster. Else single weights become 0: for runtimes that make use
    of it; the file stays as large as it was."""
    rounds: int = 2
    """In so many steps weights go, with training after each."""

    name: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        self.check_numbers()
        if not 0.0 < self.keep < 1.0:
            raise InputError("bad_option", option="prune.keep", got=self.keep, expected="above 0 and below 1")
        if self.rounds < 1:
            raise InputError("bad_option", option="prune.rounds", got=self.rounds, expected="at least 1")

    def apply(self, artifact: Artifact, workshop: Workshop) -> Artifact:
        """See `Step`."""
        trainee = open_trainee(artifact, workshop, self.name)
        if self.structured:
            # What cannot be reached is said before the work.
            narrow(trainee, self._count(trainee, 1.0), workshop, self.name)
        answers, deadline = ask_original(artifact, workshop, self.name), self.find_deadline(workshop)
        whole, masks = trainee, dict[str, NDArray[Any]]()
        for number in range(1, self.rounds + 1):
            part, is_last = number / self.rounds, number == self.rounds
            if self.structured:
                trainee = narrow(trainee, self._count(whole, part), workshop, self.name)
            else:
                masks = _choose_zeros(trainee, self.keep**part)
            epochs = self.epochs if is_last else math.ceil(_EARLY_EPOCHS * self.epochs)
            until = deadline if is_last else time.monotonic() + _EARLY_TIME * max(0.0, deadline - time.monotonic())
            fit(trainee, answers, artifact, workshop, self, epochs=epochs, deadline=until, masks=masks)
        return write_model(trainee.model, artifact, workshop)

    def _count(self, whole: Trainee, part: float) -> int:
        return int(whole.num_weights * self.keep**part)


def _choose_zeros(trainee: Trainee, part: float) -> dict[str, NDArray[Any]]:
    """Choose the weights that become 0: those whose square is small beside the sum of all larger ones of their layer.

    So that no layer loses nearly all. Source: Lee et al. 2021, arXiv:2010.07611 (LAMP).

    Raises:
        InputError: `nothing_to_compress`.
    """
    names = {name for node in trainee.model.graph.node if node.op_type in HEAVY for name in node.input}
    weights = {name: weight.detach().numpy() for name, weight in trainee.network.weights.items() if name in names}
    scores = {name: _score(weight) for name, weight in weights.items() if weight.ndim > 1}
    if not scores:
        raise InputError("nothing_to_compress", method="prune", what=f"an operator of {', '.join(HEAVY)} with weights")
    limit = np.quantile(np.concatenate([score.ravel() for score in scores.values()]), 1.0 - part)
    return {name: np.asarray(score >= limit, np.float32) for name, score in scores.items()}


def _score(weight: NDArray[Any]) -> NDArray[np.float64]:
    squares = np.square(weight.ravel().astype(np.float64))
    order = np.argsort(squares)
    # Of the sorted squares, each beside the sum of itself and those after it.
    sums = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(sums, _LEAST)
    return scores.reshape(weight.shape)
