"""Learning rates of a run beyond what a schedule knows: lowered on a plateau of a measure, or after a rescue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import Framework
from argosy.frameworks.trees import is_named
from argosy.optim import GradientOptimizer
from argosy.optim.schedules import ReduceOnPlateau, Steering
from argosy.train.result import Epoch

__all__ = ["Pace"]


class _Plateau:
    """What one schedule has seen."""

    def __init__(self, plan: ReduceOnPlateau, steering: Steering) -> None:
        self.plan = plan
        self.steering = steering
        self.best: float | None = None
        self.num_bad = 0

    def see(self, value: float) -> None:
        """Take in the value of an epoch."""
        if self.plan.is_better(value, self.best):
            self.best, self.num_bad = value, 0
            return
        self.num_bad += 1
        if self.num_bad >= self.plan.patience:
            self.num_bad = 0
            self.steering.factor = max(self.steering.factor * self.plan.factor, self.plan.end / self.plan.learning_rate)


class Pace:
    """The factors of all learning rates of a run."""

    def __init__(self, framework: Framework, optimizer: Any) -> None:
        """Take what the user chose: an optimizer, or several by name; `optimizer` is what steps are taken with."""
        self._framework = framework
        self._rescued = Steering()
        self._plateaus: list[_Plateau] = []
        self._own: list[Any] = []
        if is_named(optimizer):
            self.optimizer: Any = {str(name): self._steer(one) for name, one in optimizer.items()}
        else:
            self.optimizer = self._steer(optimizer)

    def _steer(self, optimizer: Any) -> Any:
        if not isinstance(optimizer, GradientOptimizer):
            self._own.append(optimizer)
            return optimizer
        if isinstance(optimizer.learning_rate, ReduceOnPlateau):
            plateau = _Plateau(optimizer.learning_rate, Steering())
            self._plateaus.append(plateau)
            return optimizer.steer(plateau.steering).steer(self._rescued)
        return optimizer.steer(self._rescued)

    def check(self, measured: Collection[str]) -> None:
        """See that what schedules watch is measured.

        Raises:
            InputError: `bad_option`.
        """
        for plateau in self._plateaus:
            watch = plateau.plan.watch
            if watch is not None and watch not in measured:
                expected = f"what the run measures: {list_choices(measured)}"
                raise InputError("bad_option", option="reduce_on_plateau.watch", got=watch, expected=expected)

    def end_epoch(self, epoch: Epoch) -> None:
        """Let schedules see what an epoch came to."""
        if not self._plateaus:
            return
        seen = epoch.list_values()
        for plateau in self._plateaus:
            watch = plateau.plan.watch or ("validation_loss" if "validation_loss" in seen else "loss")
            if watch in seen:
                plateau.see(seen[watch])

    def lower(self, factor: float) -> bool:
        """Multiply all learning rates by a factor; False if one of the framework's own stays."""
        self._rescued.factor *= factor
        scaled = [self._framework.scale_rate(one, factor) for one in self._own]
        return all(scaled)

    def get_state(self) -> dict[str, Any]:
        """Give it as JSON data; the rates of the framework's own optimizers are in the state of the step."""
        seen = [[plateau.best, plateau.num_bad, plateau.steering.factor] for plateau in self._plateaus]
        return {"rescued": self._rescued.factor, "plateaus": seen}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` gave; what another run's schedules saw is left."""
        self._rescued.factor = state.get("rescued", 1.0)
        seen = state.get("plateaus", [])
        if len(seen) == len(self._plateaus):
            for plateau, (best, num_bad, factor) in zip(self._plateaus, seen, strict=True):
                plateau.best, plateau.num_bad, plateau.steering.factor = best, num_bad, factor
