"""Batches that would ruin a run, as their loss is not finite or rises out of nowhere.

The run goes back to where it was before such a batch, leaves it out, and goes on with a lower rate to the end of the epoch. A
state is kept in memory at the beginning of each epoch and every `KEPT_STEPS` steps of it. From there the steps are taken again up
to the batch, which gives the very state before it, wherever the kept one stood: a resumed run ends as an undisturbed one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from argosy.errors import ModelError
from argosy.signature import Arrays

__all__ = ["KEPT_STEPS", "Kept", "Rescue", "Skip", "Verdict", "is_due"]

_LOG = logging.getLogger(__name__)

KEPT_STEPS: Final = 100
_HUGE: Final = 20.0
"""A loss so many times the largest that the run had rises out of nowhere: bad rows of clean data stay far below."""
_SEEN_STEPS: Final = 3
"""So many steps must have been taken before that is said: the first ones of a high rate leap."""
_HUGE_AT_FIRST: Final = 1000.0
"""Before, the loss must be so many times the largest."""
_SMALL: Final = 1.0
"""The largest loss counts as this at least: one that begins at nothing, as some do, may grow."""
_FACTOR: Final = 0.5
"""By which rates are multiplied at each batch that is left out."""
Locate = Callable[[int, int], list[str] | None]
"""Says where the rows of a batch of an epoch stand; None where that is not known."""

_IN_A_ROW: Final = 3
"""So many bad batches are no accident: the weights are at fault."""


@dataclass(frozen=True)
class Skip:
    """A batch that was left out."""

    epoch: int
    batch: int
    """Of the epoch, counted from 0."""
    step: int
    """Number of the step that was not taken with it; the next batch takes it."""
    loss: float | str
    """`nan` and infinities by their names, as JSON has none."""
    rate_factor: float = _FACTOR
    """By which learning rates were multiplied there."""
    rows: list[str] | None = None
    """Of a stream: the files that the batch was of, and the numbers of its rows there."""


class Verdict(Enum):
    """What a loss says of its batch."""

    GOOD = 0
    BAD = 1
    DOUBTFUL = 2
    """It is the first, and large: the next batch is to tell at the same weights, which takes its step for nothing."""
    USUAL = 3
    """That of the next batch is as large: the first one's step is to be taken."""


@dataclass
class Kept:
    """A state to go back to."""

    state: Arrays
    standing: Any
    pace: dict[str, Any]


def is_due(kept: Kept | None, epoch: int, step: int) -> bool:
    """Say whether the state before the step after this one is to be kept."""
    return kept is None or kept.standing.epoch != epoch or step - kept.standing.step >= KEPT_STEPS


class Rescue:
    """Judges losses, and remembers what was left out."""

    factor: Final = _FACTOR

    def __init__(self) -> None:
        self.skipped: list[Skip] = []
        self._blamed: set[tuple[int, int]] = set()
        self._first: ModelError | None = None
        self.doubted: float | None = None
        """The first loss, which the next batch is to tell of."""
        self._is_usual = False

    def is_skipped(self, epoch: int, batch: int) -> bool:
        """Say whether a batch is left out."""
        return any(skip.epoch == epoch and skip.batch == batch for skip in self.skipped)

    def judge(self, loss: float, largest: float, num_steps: int) -> Verdict:
        """Say whether a loss is not finite, or rises out of nowhere.

        Args:
            loss: of a step.
            largest: magnitude of the losses before.
            num_steps: taken before.
        """
        if self.doubted is not None:
            is_bad = self.doubted > _HUGE_AT_FIRST * max(abs(loss), _SMALL)
            self.settle()
            return Verdict.BAD if is_bad else Verdict.USUAL
        if not math.isfinite(loss):
            return Verdict.BAD
        if num_steps == 0:
            is_doubtful = not self._is_usual and loss > _HUGE_AT_FIRST * _SMALL
            self.doubted = loss if is_doubtful else None
            return Verdict.DOUBTFUL if is_doubtful else Verdict.GOOD
        times = _HUGE if num_steps >= _SEEN_STEPS else _HUGE_AT_FIRST
        return Verdict.BAD if loss > times * max(largest, _SMALL) else Verdict.GOOD

    def settle(self) -> None:
        """Take the first loss that was doubted as usual."""
        self.doubted, self._is_usual = None, True

    def blame(
        self,
        epoch: int,
        batch: int,
        step: int,
        loss: float,
        error: ModelError | None,
        first: int,
        locate: Locate | None = None,
    ) -> None:
        """Leave a batch out from now on.

        Args:
            epoch: of the batch.
            batch: of the epoch, counted from 0.
            step: that would have been taken with it.
            loss: of it.
            error: that it met.
            first: batch of the epoch from which on the steps are taken again.
            locate: says where the rows of a batch stand.

        Raises:
            ModelError: `not_finite`, `loss_rose`, too many in a row.
        """
        self._first = self._first or error
        row = [batch - back for back in range(1, _IN_A_ROW) if self.is_skipped(epoch, batch - back)]
        if len(row) == _IN_A_ROW - 1:
            before = batch - _IN_A_ROW
            if (epoch, before) in self._blamed or before < first or self.is_skipped(epoch, before):
                raise self.make_error(step, loss, error)
            # The batch before all of these may have ruined the weights, though not its own loss.
            self.skipped = [skip for skip in self.skipped if skip.epoch != epoch or skip.batch not in row]
            batch = before
        self._blamed.add((epoch, batch))
        rows = None if locate is None else locate(epoch, batch)
        self.skipped.append(Skip(epoch, batch, step, loss if math.isfinite(loss) else str(loss), rows=rows))
        _LOG.warning(
            "step %d: the loss is %g; batch %d of epoch %d is left out%s, and learning rates are multiplied by %g in this epoch",
            step, loss, batch, epoch, f" ({'; '.join(rows)})" if rows else "", _FACTOR,
        )  # fmt: skip

    def make_error(self, step: int, loss: float, error: ModelError | None) -> ModelError:
        """Make the error of a run that cannot be rescued."""
        return self._first or error or ModelError("loss_rose", step=step, loss=loss)

    @property
    def first_error(self) -> ModelError | None:
        """The first error that a batch met which was left out."""
        return self._first
