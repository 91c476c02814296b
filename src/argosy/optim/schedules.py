"""Learning rates that change while a model trains: a function of the step, the same in every framework."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from argosy.errors import InputError

__all__ = ["CosineDecay", "LinearDecay", "Schedule", "StepDecay", "check_count", "check_number"]


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
