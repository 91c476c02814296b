"""What moves the weights of a torch model: an optimizer, or several, each for its part; and steps of the user's own by them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import check_state, name_kind
from argosy.frameworks.fitting import fail_loss, fail_not_finite
from argosy.frameworks.own_step import open_shares
from argosy.frameworks.torch.losses import check_scalar
from argosy.frameworks.torch.optimizer import RuleOptimizer
from argosy.optim import GradientOptimizer
from argosy.signature import Arrays

__all__ = ["Mover", "TapeEngine", "open_movers", "scale_rate"]

torch: Any = importlib.import_module("torch")

Share = Callable[[float, Sequence[Any]], None]


class Mover:
    """One optimizer and its weights."""

    def __init__(self, optimizer: Any, named: Mapping[str, Any], *, is_alone: bool, share: Share | None = None) -> None:
        """Take an optimizer and its weights.

        Args:
            optimizer: of ours, or of torch's.
            named: its weights.
            is_alone: no others have gradients, so that none has to be left out.
            share: gives weights the gradients of all workers' rows; None where there is one worker.
        """
        self._is_alone = is_alone
        self._share = share
        self.named = dict(named)
        self.weights = list(named.values())
        self.rule = optimizer if isinstance(optimizer, GradientOptimizer) else None
        self.optimizer: Any = RuleOptimizer(self.weights, self.rule, [*named]) if self.rule else _check_owner(optimizer, named)

    def clear(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def backpropagate(self, loss: Any, number: int, find_layer: Callable[[], str | None] = lambda: None) -> float:
        """Leave the gradients of a loss in the weights, and give the loss.

        Args:
            loss: a scalar.
            number: of the step.
            find_layer: says where a loss that is not finite began.

        Raises:
            ModelError: `not_finite`.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise fail_not_finite(step=number, what="loss", layer=find_layer(), learning_rate=self.rate_at(number))
        if self._is_alone:
            loss.backward()
        else:
            loss.backward(inputs=self.weights)
        return value

    def move(self, number: int, loss: float) -> None:
        """Move the weights by the gradients that are in them, which are those of this loss.

        Raises:
            InputError: `bad_loss`, no weight has one.
            ModelError: `not_finite`.
        """
        if self.weights[0].grad is None and all(weight.grad is None for weight in self.weights):
            raise fail_loss("one that depends on no weight which is trained")
        if self._share is not None:
            self._share(loss, self.weights)
        norm = self._measure_norm()
        if not math.isfinite(norm):
            layer = self._find_bad_gradient()
            raise fail_not_finite(step=number, what="gradient", layer=layer, learning_rate=self.rate_at(number))
        if self.rule:
            self.optimizer.move(norm)
        else:
            self.optimizer.step()

    def _measure_norm(self) -> float:
        """Give the Euclidean norm of all its gradients together."""
        if self.rule:
            return self.optimizer.measure_norm()
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        return math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))

    def rate_at(self, number: int) -> object:
        """Give the learning rate, for a message."""
        return self.rule.rate_at(number) if self.rule else self.optimizer.param_groups[0].get("lr")

    def _find_bad_gradient(self) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        names = [name for name, w in self.named.items() if w.grad is not None and not bool(w.grad.isfinite().all())]
        return names[-1].rpartition(".")[0] or names[-1] if names else None

    def get_state(self) -> Arrays:
        """Give what it remembers; of torch's own also the rates, which `scale_rate` changes."""
        state: Arrays = {}
        for name, weight in self.named.items():
            for slot, value in self.optimizer.state.get(weight, {}).items():
                if value is not None:
                    tensor = torch.is_tensor(value)
                    state[f"optimizer/{name}/{slot}"] = value.detach().numpy().copy() if tensor else np.array(value)
        if not self.rule:
            first = next(iter(self.named))
            for index, group in enumerate(self.optimizer.param_groups):
                state[f"rate/{first}/{index}"] = np.array(float(group["lr"]))
        return state

    def check_state(self, state: Arrays) -> None:
        """See that a state is that of such an optimizer.

        Raises:
            InputError: `bad_checkpoint`.
        """
        if self.rule:  # torch's own make their slots in the first step, so that there is nothing to compare yet.
            prefixes = tuple(f"optimizer/{name}/" for name in self.named)
            check_state(self.get_state(), {name: array for name, array in state.items() if name.startswith(prefixes)})

    def set_state(self, state: Arrays) -> None:
        """Remember what `get_state` gave."""
        for name, weight in self.named.items():
            prefix = f"optimizer/{name}/"
            slots = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
            if self.rule:
                self.optimizer.state[weight] = {
                    slot: int(array) if slot == "step" else torch.from_numpy(array.copy()) for slot, array in slots.items()
                }
            elif slots:
                self.optimizer.state[weight] = {slot: torch.from_numpy(array.copy()) for slot, array in slots.items()}
            else:
                self.optimizer.state.pop(weight, None)
        first = next(iter(self.named))
        for index, group in enumerate(self.optimizer.param_groups):
            if (rate := state.get(f"rate/{first}/{index}")) is not None:
                _set_rate(group, float(rate))


def open_movers(
    optimizer: Any, named: Mapping[str, Any], *, has_frozen: bool, has_step: bool, share: Share | None = None
) -> dict[str | None, Mover]:
    """Give the movers of a model's weights by name; None names the only one.

    Args:
        optimizer: see `base.Framework.build_step`.
        named: the weights to train.
        has_frozen: the model has others.
        has_step: there is a step of the user's own.
        share: see `Mover`.

    Raises:
        InputError: `bad_option`, see `own_step.open_shares`.
    """
    shares = open_shares(optimizer, [*named], has_step=has_step)
    is_alone = len(shares) == 1 and not has_frozen
    return {
        key: Mover(one, {name: named[name] for name in names}, is_alone=is_alone, share=share)
        for key, (one, names) in shares.items()
    }


class TapeEngine:
    """Makes losses of a step of the user's own small; see `own_step.Engine`. What the step computes, torch records."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def minimize(self, loss: Any, mover: Mover, number: int) -> float:
        """See `own_step.Engine`."""
        mover.clear()
        scalar = check_scalar(loss if torch.is_tensor(loss) or not callable(loss) else loss(self._model))
        value = mover.backpropagate(scalar, number)
        mover.move(number, value)
        return value

    def to_float(self, value: Any) -> float:
        """See `own_step.Engine`."""
        return float(value.detach()) if torch.is_tensor(value) else float(value)


def scale_rate(optimizer: Any, factor: float) -> bool:
    """See `base.Framework.scale_rate`."""
    for group in optimizer.param_groups:
        _set_rate(group, float(group["lr"]) * factor)
    return True


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _check_owner(optimizer: Any, named: Mapping[str, Any]) -> Any:
    """Refuse an optimizer that was made for other weights: it would train nothing, or what is to stay as it is."""
    own = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not own & {id(weight) for weight in named.values()}:
        expected = "one over this model's parameters()"
        raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected=expected)
    return optimizer
