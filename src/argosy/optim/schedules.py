"""Learning rates that change while a model trains: a function of the step, the same in every framework."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from argosy.errors import InputError

__all__ = [
    "CosineDecay",
    "LinearDecay",
    "OneCycle",
    "ReduceOnPlateau",
    "Schedule",
    "Steered",
    "Steering",
    "StepDecay",
    "check_count",
    "check_number",
]


def check_number(
    option: str, value: Any, expected: str, *, lowest: float, below: float = math.inf, is_open: bool = False
) -> None:
    """Check a parameter of a rule or a schedule.

    Args:
        option: its name, for the message.
        value: any object; a boolean is no number.
        expected: in words.
        lowest: the smallest value allowed; not itself if `is_open`.
        below: every allowed value is smaller.
        is_open: `lowest` itself is refused.

    Raises:
        InputError: `bad_option`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not lowest <= value < below or (is_open and value == lowest):
        raise InputError("bad_option", option=option, got=value, expected=expected)


def check_count(option: str, value: Any, lowest: int = 1) -> None:
    """Check a parameter that counts.

    Raises:
        InputError: `bad_option`, not an integer, or below `lowest`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < 2**63:
        raise InputError("bad_option", option=option, got=value, expected=f"an integer, at least {lowest}")


@dataclass(frozen=True)
class Schedule(ABC):
    """A learning rate for every step, counted from 1."""

    name: ClassVar[str]

    learning_rate: float
    """The highest rate."""

    @abstractmethod
    def rate_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 1."""

    def _check(self, steps: int, warmup_steps: int = 0, end: float = 0.0) -> None:
        check_number(f"{self.name}.learning_rate", self.learning_rate, "a finite number above 0", lowest=0.0, is_open=True)
        check_count(f"{self.name}.steps", steps)
        check_count(f"{self.name}.warmup_steps", warmup_steps, 0)
        check_number(f"{self.name}.end", end, "a finite number, at least 0", lowest=0.0)


@dataclass(frozen=True)
class _Decay(Schedule):
    """From `learning_rate` to `end` over `steps`, where it stays."""

    steps: int
    """Of the fall, after the warm-up."""
    end: float = 0.0
    warmup_steps: int = 0
    """Steps over which the rate rises linearly first."""

    def __post_init__(self) -> None:
        self._check(self.steps, self.warmup_steps, self.end)

    def rate_at(self, step: int) -> float:
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self._fall(min(1.0, (step - 1 - self.warmup_steps) / self.steps))

    def _fall(self, part: float) -> float:
        """Give the rate when this part of the fall is over, 0 to 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearDecay(_Decay):
    """Falls linearly from `learning_rate` to `end` over `steps`, where it stays.

    >>> [LinearDecay(0.1, steps=4).rate_at(step) for step in (1, 3, 5, 6)]
    [0.1, 0.05, 0.0, 0.0]
    """

    name: ClassVar[str] = "linear_decay"

    def _fall(self, part: float) -> float:
        return self.learning_rate * (1.0 - part) + self.end * part


@dataclass(frozen=True)
class CosineDecay(_Decay):
    """Falls along half a cosine from `learning_rate` to `end` over `steps`, where it stays.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """

    name: ClassVar[str] = "cosine_decay"

    def _fall(self, part: float) -> float:
        return self.end + (self.learning_rate - self.end) * 0.5 * (1.0 + math.cos(math.pi * part))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplied by `factor` after every `steps` steps.

    >>> [StepDecay(0.1, steps=2, factor=0.5).rate_at(step) for step in (1, 2, 3, 5)]
    [0.1, 0.1, 0.05, 0.025]
    """

    name: ClassVar[str] = "step_decay"

    steps: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        self._check(self.steps)
        check_number(f"{self.name}.factor", self.factor, "a number above 0 and below 1", lowest=0.0, below=1.0, is_open=True)

    def rate_at(self, step: int) -> float:
        return self.learning_rate * self.factor ** ((step - 1) // self.steps)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Rises along half a cosine from `learning_rate / start_factor` to `learning_rate`, then falls to nearly nothing.

    >>> [round(OneCycle(0.1, steps=6, rising=0.5).rate_at(step), 4) for step in (1, 3, 6, 9)]
    [0.004, 0.1, 0.0, 0.0]

    Source: Smith and Topin 2019, arXiv:1708.07120, with cosines for lines, as PyTorch's OneCycleLR has it by default.
    """

    name: ClassVar[str] = "one_cycle"

    steps: int
    """Of the whole run; see `train.run.count_steps`."""
    rising: float = 0.3
    """Part of the steps over which the rate rises."""
    start_factor: float = 25.0
    end_factor: float = 1e4
    """The last step's rate is `learning_rate / start_factor / end_factor`."""

    def __post_init__(self) -> None:
        self._check(self.steps)
        expected = "a number above 0 and below 1"
        check_number(f"{self.name}.rising", self.rising, expected, lowest=0.0, below=1.0, is_open=True)
        for option in ("start_factor", "end_factor"):
            check_number(f"{self.name}.{option}", getattr(self, option), "a finite number, at least 1", lowest=1.0)

    def rate_at(self, step: int) -> float:
        start = self.learning_rate / self.start_factor
        done, last = min(step, self.steps) - 1, self.steps - 1
        peak = max(self.rising * self.steps - 1.0, 0.0)
        if done < peak:
            return _bend(start, self.learning_rate, done / peak)
        return _bend(self.learning_rate, start / self.end_factor, (done - peak) / max(last - peak, 1e-9))


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """`learning_rate`, multiplied by `factor` whenever a measure of the epochs has not got better for `patience` of them.

    The training loop watches; what it has seen is kept in checkpoints.
    """

    name: ClassVar[str] = "reduce_on_plateau"

    factor: float = 0.1
    patience: int = 5
    """Epochs without a better value before the rate falls."""
    watch: str | None = None
    """`loss`, `validation_loss`, or a metric by name, of validation rows `validation_NAME`; None: the validation loss, without
    validation rows the loss."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    threshold: float = 1e-4
    """By which part of itself a value must be better than the best."""
    end: float = 0.0
    """The rate never falls below it."""

    def __post_init__(self) -> None:
        self._check(1, end=self.end)
        check_number(f"{self.name}.factor", self.factor, "a number above 0 and below 1", lowest=0.0, below=1.0, is_open=True)
        check_count(f"{self.name}.patience", self.patience)
        check_number(f"{self.name}.threshold", self.threshold, "a number in [0, 1)", lowest=0.0, below=1.0)
        if self.mode not in ("min", "max"):
            raise InputError("bad_option", option=f"{self.name}.mode", got=self.mode, expected="min or max")

    def rate_at(self, step: int) -> float:
        return self.learning_rate

    def is_better(self, value: float, best: float | None) -> bool:
        """Say whether a value of an epoch is better than the best before."""
        if best is None:
            return True
        margin = self.threshold * abs(best)
        return value < best - margin if self.mode == "min" else value > best + margin


@dataclass
class Steering:
    """A factor of learning rates that may be changed between steps."""

    factor: float = 1.0


class Steered(Schedule):
    """Another learning rate, times a factor that may change."""

    name: ClassVar[str] = "steered"

    def __init__(self, rate: float | Schedule, steering: Steering) -> None:
        object.__setattr__(self, "learning_rate", rate.learning_rate if isinstance(rate, Schedule) else float(rate))
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "steering", steering)

    def rate_at(self, step: int) -> float:
        own: Any = self
        rate = own.rate.rate_at(step) if isinstance(own.rate, Schedule) else float(own.rate)
        return rate * own.steering.factor


def _bend(start: float, end: float, part: float) -> float:
    """Give what lies on half a cosine between two numbers."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * part))
