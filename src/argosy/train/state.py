"""All that the next step of a run depends on, as arrays by name: of its step, of averaged weights, of callbacks."""

from __future__ import annotations

from typing import Final

from argosy.frameworks.base import Step
from argosy.frameworks.fitting import Listener
from argosy.signature import Arrays
from argosy.train.average import Average

__all__ = ["RunState"]

_WEIGHTS: Final = "weights/"
"""Before the names of a model's arrays in the state of a step."""
_CALLBACKS: Final = "callbacks/"
"""Before the names of what a framework's callbacks remember."""


class RunState:
    """The state of one run, which its checkpoints hold."""

    def __init__(self, step: Step, average: Average | None, listener: Listener | None, *, is_own_rule: bool) -> None:
        """Take what has a state; `is_own_rule` says that an optimizer is the framework's own."""
        self._step = step
        self._average = average
        self._listener = listener
        self._is_own_rule = is_own_rule
        self._is_inherited = False
        self.heard: Arrays | None = None
        """What callbacks remembered where the run went on; None where it began."""

    def get(self) -> Arrays:
        """Give copies of all of it."""
        state = self._step.get_state()
        if self._listener is not None:
            state = {**state, **self._listener.get_state()}
        return state if self._average is None else {**state, **self._average.get_state()}

    def set(self, state: Arrays) -> None:
        """Go on from what `get` gave, but for callbacks, which go on where they begin.

        Raises:
            InputError: `bad_checkpoint`.
        """
        self._step.set_state({n: array for n, array in Average.leave_out(state).items() if not n.startswith(_CALLBACKS)})
        if self._average is not None:
            if self._is_inherited and not Average.is_in(state):
                self._step.sync()
                self._average.restart()
            else:
                self._average.set_state(state)

    def resume(self, state: Arrays, best: Arrays | None, *, is_inherited: bool) -> Arrays | None:
        """Go on from a checkpoint, of this run or of another whose state is inherited; gives what is to be taken for the best.

        Raises:
            InputError: `bad_checkpoint`.
        """
        self._is_inherited = is_inherited
        self.heard = None if is_inherited else {n: array for n, array in state.items() if n.startswith(_CALLBACKS)}
        best = best and self._adopt(best)
        self.set(self._adopt(state))
        return best

    def _adopt(self, state: Arrays) -> Arrays:
        """Leave of a parent's state what this run takes over."""
        if not (self._is_inherited and self._is_own_rule):
            return state
        # Frameworks keep settings, such as the learning rate, in what their optimizers remember: those of another run.
        fresh = {name: array for name, array in self.get().items() if not name.startswith(_WEIGHTS)}
        return fresh | {name: array for name, array in state.items() if name.startswith(_WEIGHTS)}
