"""Fit a Gluon model: one mini-batch a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, derive_seed, fail_not_finite
from argosy.frameworks.mxnet.graph import draws_random, mix_precision
from argosy.frameworks.mxnet.library import FAILURES, explain, mx, to_tensor
from argosy.frameworks.mxnet.optimizer import RuleOptimizer, measure_norm
from argosy.frameworks.mxnet.trainer import KeptTrainer
from argosy.frameworks.mxnet.weights import check_initialized, get_weights, list_parameters, set_weights
from argosy.signature import Arrays

__all__ = ["MxnetStep"]


def _binary_cross_entropy(ops: Any, outputs: Any, targets: Any) -> Any:
    return ops.mean(ops.relu(outputs) - outputs * targets + ops.Activation(-ops.abs(outputs), act_type="softrelu"))


def _cross_entropy(ops: Any, outputs: Any, targets: Any) -> Any:
    # MXNet's own log_softmax is 3e-6 off, thirty times as much as float32 has to be.
    shifted = ops.broadcast_sub(outputs, ops.BlockGrad(ops.max(outputs, axis=1, keepdims=True)))
    return ops.mean(ops.log(ops.sum(ops.exp(shifted), axis=1)) - ops.pick(shifted, targets))


def _half_mse(ops: Any, outputs: Any, targets: Any) -> Any:
    return 0.5 * ops.mean(ops.sum(ops.square(outputs - targets), axis=0, exclude=True))


def _mse(ops: Any, outputs: Any, targets: Any) -> Any:
    return ops.mean(ops.square(outputs - targets))


_LOSSES: Final[dict[str, Callable[[Any, Any, Any], Any]]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "half_mse": _half_mse,
    "mse": _mse,
}


class _NamedLoss(mx.gluon.HybridBlock):
    """One of ours, compiled."""

    def __init__(self, name: str) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._compute = _LOSSES[name]
        self.hybridize(static_alloc=True)

    def hybrid_forward(self, ops: Any, outputs: Any, targets: Any) -> Any:
        return self._compute(ops, outputs, targets)


class MxnetStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        check_initialized(model)
        self._model = model
        self._options = options
        self._trained = {name: own for name, own in list_parameters(model).items() if own.grad_req != "null"}
        if not self._trained:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._loss = _NamedLoss(loss) if isinstance(loss, str) else _average(loss)
        self._forward = model if options.precision is None else mix_precision(model)
        self._trainer = KeptTrainer(optimizer, self._trained)
        self._is_random = draws_random(model) or _may_draw(loss) or _may_draw(self._trainer.optimizer)

    def __call__(self, batch: Batch, number: int) -> tuple[float, NDArray[Any]]:
        x, y = batch.inputs, batch.targets
        self._seed(number)
        try:
            value, outputs = self._differentiate(to_tensor(x), to_tensor(y))
            norm = measure_norm([own.grad() for own in self._list_fresh()]) if math.isfinite(value) else value
        except FAILURES as error:
            detail = f"the model or its loss fails on x of {x.dtype} {x.shape} and y of {y.dtype} {y.shape}: {explain(error)}"
            raise InputError("bad_data", detail=detail) from error
        if not math.isfinite(norm):
            raise self._fail(number, to_tensor(x), value)
        self._trainer.step()
        return value, outputs

    def sync(self) -> None:
        """Do nothing: the model itself is fitted."""

    def get_state(self) -> Arrays:
        weights = {f"weights/{name}": array for name, array in get_weights(self._model).items()}
        return weights | self._trainer.get_state()

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        weights = {name.removeprefix("weights/"): array for name, array in state.items() if name.startswith("weights/")}
        set_weights(self._model, weights)
        self._trainer.set_state(state)

    def _seed(self, number: int) -> None:
        # Seeding takes 1.5 ms, longer than the whole step of a small model.
        if self._is_random:
            mx.random.seed(derive_seed(self._options.seed, number))

    def _differentiate(self, inputs: Any, targets: Any) -> tuple[float, NDArray[Any]]:
        """Leave the gradients of the mean loss in the parameters; give that loss, and the outputs."""
        num_rows = len(inputs)
        size = self._options.micro_batch_size or num_rows
        if size >= num_rows:
            loss, outputs = self._pass(inputs, targets, 1.0)
            return float(loss.asscalar()), outputs.asnumpy()
        value, parts = 0.0, list[NDArray[Any]]()
        totals: dict[str, Any] = {}
        for start in range(0, num_rows, size):
            end = min(start + size, num_rows)
            loss, outputs = self._pass(inputs[start:end], targets[start:end], (end - start) / num_rows)
            value += float(loss.asscalar())
            parts.append(outputs.asnumpy())
            for name, own in self._trained.items():
                if own.data()._fresh_grad:
                    totals[name] = totals[name] + own.grad() if name in totals else own.grad().copy()
                    own.data()._fresh_grad = False
        for name, total in totals.items():
            total.copyto(self._trained[name].grad())
            self._trained[name].data()._fresh_grad = True
        return value, np.concatenate(parts)

    def _pass(self, inputs: Any, targets: Any, share: float) -> tuple[Any, Any]:
        """Go forward and back with some rows; give their share of the loss, and their outputs."""
        for own in self._trained.values():
            if own.grad_req == "add":
                own.zero_grad()
        with mx.autograd.record():
            outputs = self._forward(inputs)
            loss = self._loss(outputs, targets)
            if share != 1.0:
                loss = loss * share
        loss.backward()
        return loss, outputs

    def _list_fresh(self) -> list[Any]:
        """Give the parameters that the last pass went through."""
        return [own for own in self._trained.values() if own.data()._fresh_grad]

    def _fail(self, number: int, inputs: Any, value: float) -> ModelError:
        is_loss = not math.isfinite(value)
        layer = self._find_bad_layer(number, inputs) if is_loss else self._find_bad_gradient()
        for own in self._trained.values():
            own.data()._fresh_grad = False
        return fail_not_finite(
            step=number, what="loss" if is_loss else "gradient", layer=layer, learning_rate=self._trainer.rate_at(number)
        )

    def _find_bad_layer(self, number: int, inputs: Any) -> str | None:
        """Run the forward pass again and watch the layers.

        At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
        """
        ran: list[str] = []
        bad: list[str] = []

        def watch(name: str) -> Callable[[Any, Any, Any], None]:
            def look(layer: Any, given: Any, output: Any) -> None:
                ran.append(name)
                parts: list[Any] = [*output] if isinstance(output, list | tuple) else [output]
                if any(isinstance(part, mx.nd.NDArray) and not np.isfinite(part.asnumpy()).all() for part in parts):
                    bad.append(name)

            return look

        layers = list(_list_layers(self._model, ""))
        hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers]
        # A compiled block calls none of the blocks inside.
        blocks: list[Any] = []
        self._model.apply(blocks.append)
        compiled = [block for block in blocks if getattr(block, "_active", False)]
        for block in compiled:
            block._active = False
        self._seed(number)
        try:
            with mx.autograd.train_mode():
                self._model(inputs)
        finally:
            for block in compiled:
                block._active = True
            for hook in hooks:
                hook.detach()
        return (bad or ran[-1:] or [None])[0]

    def _find_bad_gradient(self) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        fresh = {name: own for name, own in self._trained.items() if own.data()._fresh_grad}
        names = [name for name, own in fresh.items() if not np.isfinite(own.grad().asnumpy()).all()]
        return names[-1].rpartition(".")[0] or names[-1] if names else None


def _list_layers(block: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give the innermost blocks that a user would call a layer; a dense layer's activation belongs to it."""
    if block._reg_params or not block._children:
        yield path or type(block).__name__, block
        return
    for name, child in block._children.items():
        yield from _list_layers(child, f"{path}.{name}" if path else name)


def _average(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Gluon's losses give one value a row."""
    return lambda outputs, targets: loss(outputs, targets).mean()


def _may_draw(part: Any) -> bool:
    """Say whether a loss or an optimizer may draw random numbers: one of MXNet's optimizers does, and a user's own might."""
    is_known = isinstance(part, str | RuleOptimizer) or type(part).__module__.startswith("mxnet.")
    return not is_known or isinstance(part, mx.optimizer.SGLD)
