"""Fit a Gluon model: one mini-batch a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, fail_not_finite
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.mxnet.exchange import share_gradients
from argosy.frameworks.mxnet.graph import call_block, draws_random, mix_precision
from argosy.frameworks.mxnet.library import FAILURES, explain, mx, to_tensor
from argosy.frameworks.mxnet.losses import backpropagate, open_loss
from argosy.frameworks.mxnet.movers import TapeEngine, open_movers
from argosy.frameworks.mxnet.optimizer import RuleOptimizer, measure_norm
from argosy.frameworks.mxnet.still import Still
from argosy.frameworks.mxnet.weights import check_initialized, get_weights, list_parameters, set_weights
from argosy.frameworks.own_step import OwnFit, take_own_step
from argosy.frameworks.trees import Tree, is_array, join_rows, list_leaves, map_tree
from argosy.signature import Arrays

__all__ = ["MxnetStep", "to_tensors"]


class MxnetStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        check_initialized(model)
        self._model = model
        self._options = options
        known = {name: own for name, own in list_parameters(model).items() if own.grad_req != "null"}
        self._trained = {name: own for name, own in known.items() if name not in options.frozen}
        if not self._trained:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        frozen = [own for name, own in known.items() if name in options.frozen]
        self._loss = open_loss(loss, options) if options.step is None else None
        self._still = Still(model, frozen)
        self._forward = partial(call_block, model) if options.precision is None else self._mix(model)
        self._movers = open_movers(optimizer, self._trained, frozen, has_step=options.step is not None)
        self._mover = next(iter(self._movers.values()))
        self._engine = TapeEngine(model, options.exchange)
        parts = (*list_leaves(loss), *(mover.trainer.optimizer for mover in self._movers.values()))
        self._is_random = options.step is not None or draws_random(model) or any(map(_may_draw, parts))

    def _mix(self, model: Any) -> Callable[[Any], Any]:
        self._still.hold()
        try:
            return mix_precision(model)
        finally:
            self._still.release()

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        self._still.hold()
        try:
            if self._options.step is not None:
                return self._take_own(self._options.step, batch, number), None
            return self._take(batch, number)
        except BaseException:
            self._still.release()
            raise

    def _take(self, batch: Batch, number: int) -> tuple[float, Tree]:
        self._seed(number)
        given = Batch(*(None if part is None else to_tensors(part) for part in batch))
        try:
            value, outputs = self._differentiate(given)
            if self._options.exchange is not None and math.isfinite(value):
                share_gradients(self._options.exchange, value, [*self._trained.values()], list_parameters(self._model).values())
            fresh = self._mover.list_fresh()
            if not fresh:
                raise fail_loss("one that depends on no weight which is trained")
            norm = measure_norm([own.grad() for own in fresh]) if math.isfinite(value) else value
        except FAILURES as error:
            shown = (
                " and ".join(f"{leaf.dtype} {leaf.shape}" for leaf in list_leaves(part)) for part in (batch.inputs, batch.targets)
            )
            detail = f"the model or its loss fails on x of {next(shown)} and y of {next(shown)}: {explain(error)}"
            raise InputError("bad_data", detail=detail) from error
        if not math.isfinite(norm):
            raise self._fail(number, given.inputs, value)
        self._mover.trainer.step()
        return value, outputs

    def _take_own(self, function: Callable[[Any, Any, Any], Any], batch: Batch, number: int) -> float:
        """Take a step of the user's own."""
        self._seed(number)
        fit = OwnFit(self._engine, self._movers, self._options.journal, number, self._options.derive_seed(number))

        def run() -> Any:
            with mx.autograd.record():
                return function(self._model, to_tensors(batch.inputs), fit)

        return take_own_step(fit, self._engine, self._movers, run)

    def sync(self) -> None:
        """Let frozen layers be as they were; the model itself is fitted."""
        self._still.release()

    def get_state(self) -> Arrays:
        weights = {f"weights/{name}": array for name, array in get_weights(self._model).items()}
        for mover in self._movers.values():
            weights |= mover.trainer.get_state()
        return weights

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        weights = {name.removeprefix("weights/"): array for name, array in state.items() if name.startswith("weights/")}
        set_weights(self._model, weights)
        for mover in self._movers.values():
            mover.trainer.set_state(state)

    def _seed(self, number: int) -> None:
        # Seeding takes 1.5 ms, longer than the whole step of a small model.
        if self._is_random:
            mx.random.seed(self._options.derive_seed(number))

    def _differentiate(self, batch: Batch) -> tuple[float, Tree]:
        """Leave the gradients of the mean loss in the parameters; give that loss, and the outputs."""
        size = self._options.micro_batch_size
        if size is None or size >= batch.num_rows:
            loss, outputs = self._pass(batch, 1.0)
            return float(loss.asscalar()), map_tree(_to_array, outputs)
        value, parts = 0.0, list[Tree]()
        totals: dict[str, Any] = {}
        for piece, share in batch.cut(size):
            loss, outputs = self._pass(piece, share)
            value += float(loss.asscalar())
            parts.append(map_tree(_to_array, outputs))
            for name, own in self._trained.items():
                if own.data()._fresh_grad:
                    totals[name] = totals[name] + own.grad() if name in totals else own.grad().copy()
                    own.data()._fresh_grad = False
        for name, total in totals.items():
            total.copyto(self._trained[name].grad())
            self._trained[name].data()._fresh_grad = True
        return value, join_rows(parts)

    def _pass(self, batch: Batch, share: float) -> tuple[Any, Any]:
        """Go forward and back with some rows; give their share of the loss, and their outputs."""
        assert self._loss is not None
        for own in self._trained.values():
            if own.grad_req == "add":
                own.zero_grad()
        with mx.autograd.record():
            outputs = self._forward(batch.inputs)
            loss = self._loss(outputs, batch.targets, batch.weights)
            if share != 1.0:
                loss = loss * share
        backpropagate(loss)
        return loss, outputs

    def _fail(self, number: int, inputs: Tree, value: float) -> ModelError:
        is_loss = not math.isfinite(value)
        layer = self._find_bad_layer(number, inputs) if is_loss else self._mover.find_bad_gradient()
        self._mover.clear()
        return fail_not_finite(
            step=number, what="loss" if is_loss else "gradient", layer=layer, learning_rate=self._mover.rate_at(number)
        )

    def _find_bad_layer(self, number: int, inputs: Tree) -> str | None:
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
                call_block(self._model, inputs)
        finally:
            for block in compiled:
                block._active = True
            for hook in hooks:
                hook.detach()
        return (bad or ran[-1:] or [None])[0]


def _list_layers(block: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give the innermost blocks that a user would call a layer; a dense layer's activation belongs to it."""
    if block._reg_params or not block._children:
        yield path or type(block).__name__, block
        return
    for name, child in block._children.items():
        yield from _list_layers(child, f"{path}.{name}" if path else name)


def to_tensors(tree: Tree) -> Any:
    """Give the same with its arrays as tensors; what holds none is given back as it is, whatever it is."""
    if is_array(tree):
        return to_tensor(tree)
    if tree is None or not any(is_array(leaf) for leaf in list_leaves(tree)):
        return tree
    return map_tree(lambda leaf: to_tensor(leaf) if is_array(leaf) and leaf.dtype.kind in "fiub" else leaf, tree)


def _to_array(leaf: Any) -> Any:
    return leaf.asnumpy() if isinstance(leaf, mx.nd.NDArray) else leaf


def _may_draw(part: Any) -> bool:
    """Say whether a loss or an optimizer may draw random numbers: one of MXNet's optimizers does, and a user's own might."""
    is_known = isinstance(part, str | RuleOptimizer) or type(part).__module__.startswith("mxnet.")
    return not is_known or isinstance(part, mx.optimizer.SGLD)
