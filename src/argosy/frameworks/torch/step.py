"""Fit a torch model: one mini-batch a call."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import FitOptions, check_state, derive_seed, fail_not_finite, name_kind
from argosy.frameworks.torch.optimizer import RuleOptimizer
from argosy.optim import GradientOptimizer
from argosy.signature import Arrays

__all__ = ["TorchStep", "get_weights", "set_weights"]

torch: Any = importlib.import_module("torch")


def get_weights(model: Any) -> Arrays:
    """Give copies of the weights and buffers of a model."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def set_weights(model: Any, weights: Arrays) -> None:
    """Set some or all of them."""
    own = model.state_dict()
    with torch.no_grad():
        for name, array in weights.items():
            own[name].copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(own[name].shape))


def _half_mse(outputs: Any, targets: Any) -> Any:
    return 0.5 * (outputs - targets).square().sum() / len(outputs)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
    "cross_entropy": torch.nn.functional.cross_entropy,
    "half_mse": _half_mse,
    "mse": torch.nn.functional.mse_loss,
}


class TorchStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if not weights:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._model = model
        self._options = options
        self._loss = _LOSSES[loss] if isinstance(loss, str) else loss
        reduction = getattr(loss, "reduction", "mean")
        if options.micro_batch_size and reduction != "mean":
            raise InputError("bad_option", option="loss", got=f"reduction {reduction}", expected="mean, with micro-batches")
        self._rule = optimizer if isinstance(optimizer, GradientOptimizer) else None
        self._optimizer: Any = RuleOptimizer(weights, self._rule) if self._rule else _check_owner(optimizer, weights)
        self._generator = torch.default_generator

    def __call__(self, x: NDArray[Any], y: NDArray[Any], number: int) -> tuple[float, NDArray[Any]]:
        self._generator.manual_seed(derive_seed(self._options.seed, number))
        self._model.train()
        self._optimizer.zero_grad()
        inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
        size = self._options.micro_batch_size or len(x)
        value, parts = 0.0, list[Any]()
        for start in range(0, len(x), size):
            piece = slice(start, start + size)
            part_value, outputs = self._pass(inputs[piece], targets[piece], min(size, len(x) - start) / len(x), number)
            value += part_value
            parts.append(outputs)
        norm = self._measure_norm()
        if not math.isfinite(norm):
            raise self._fail(number, "gradient", self._find_bad_gradient())
        if self._rule:
            self._optimizer.step(norm=norm)
        else:
            self._optimizer.step()
        return value, (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy()

    def _pass(self, inputs: Any, targets: Any, share: float, number: int) -> tuple[float, Any]:
        """Go forward and back with some rows; give their share of the loss, and their outputs."""
        is_mixed = self._options.precision is not None
        with torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext():
            outputs = self._model(inputs)
            loss = self._loss(outputs.float() if is_mixed else outputs, targets)
        if share != 1.0:
            loss = loss * share
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._fail(number, "loss", self._find_bad_layer(inputs))
        loss.backward()
        return value, (outputs.detach().float() if is_mixed else outputs.detach())

    def sync(self) -> None:
        """Do nothing: the model itself is fitted."""

    def get_state(self) -> Arrays:
        state = {f"weights/{name}": tensor for name, tensor in get_weights(self._model).items()}
        for name, weight in self._named():
            for slot, value in self._optimizer.state.get(weight, {}).items():
                if value is not None:
                    state[f"optimizer/{name}/{slot}"] = (
                        value.detach().numpy().copy() if torch.is_tensor(value) else np.array(value)
                    )
        return state

    def set_state(self, state: Arrays) -> None:
        weights = {name: array for name, array in state.items() if name.startswith("weights/")}
        expected = self.get_state()
        if self._rule:
            check_state(expected, state)
        else:
            # torch's own optimizers make their slots in the first step, so that there is nothing to compare yet.
            check_state({name: array for name, array in expected.items() if name.startswith("weights/")}, weights)
        set_weights(self._model, {name.removeprefix("weights/"): array for name, array in weights.items()})
        for name, weight in self._named():
            prefix = f"optimizer/{name}/"
            slots = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
            if self._rule:
                restored = {
                    slot: int(array) if slot == "step" else torch.from_numpy(array.copy()) for slot, array in slots.items()
                }
                self._optimizer.state[weight] = restored
            elif slots:
                self._optimizer.state[weight] = {slot: torch.from_numpy(array.copy()) for slot, array in slots.items()}

    def _named(self) -> list[tuple[str, Any]]:
        return [(name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad]

    def _measure_norm(self) -> float:
        if self._rule:
            return self._optimizer.measure_norm()
        gradients = [weight.grad for _, weight in self._named() if weight.grad is not None]
        return math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))

    def _fail(self, number: int, what: str, layer: str | None) -> ModelError:
        rate = self._rule.rate_at(number) if self._rule else self._optimizer.param_groups[0].get("lr")
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=rate)

    def _find_bad_layer(self, inputs: Any) -> str | None:
        """Run the forward pass again and watch the layers.

        At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
        """
        ran: list[str] = []
        bad: list[str] = []

        def watch(name: str) -> Callable[[Any, Any, Any], None]:
            def look(layer: Any, given: Any, output: Any) -> None:
                ran.append(name)
                if torch.is_tensor(output) and not bool(torch.isfinite(output).all()):
                    bad.append(name)

            return look

        leaves = [(name, layer) for name, layer in self._model.named_modules() if not any(layer.children())]
        hooks = [layer.register_forward_hook(watch(name or type(layer).__name__)) for name, layer in leaves]
        with torch.no_grad():
            self._model(inputs)
        for hook in hooks:
            hook.remove()
        return (bad or ran[-1:] or [None])[0]

    def _find_bad_gradient(self) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        names = [name for name, w in self._named() if w.grad is not None and not bool(w.grad.isfinite().all())]
        return names[-1].rpartition(".")[0] or names[-1] if names else None


def _check_owner(optimizer: Any, weights: list[Any]) -> Any:
    """Refuse an optimizer that was made for another model's weights: it would train nothing."""
    own = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not own & {id(weight) for weight in weights}:
        raise InputError(
            "bad_option", option="optimizer", got=name_kind(optimizer), expected="one over this model's parameters()"
        )
    return optimizer
