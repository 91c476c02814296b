"""Fit a torch model: one mini-batch a call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from argosy.errors import InputError
from argosy.frameworks.base import Batch, FitOptions, check_state
from argosy.frameworks.fitting import fail_loss
from argosy.frameworks.own_step import OwnFit, take_own_step
from argosy.frameworks.torch.exchange import open_share
from argosy.frameworks.torch.losses import open_loss
from argosy.frameworks.torch.movers import TapeEngine, open_movers
from argosy.frameworks.trees import Tree, is_array, join_rows, list_leaves, map_tree, spread
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


class TorchStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: Tree, optimizer: Any, options: FitOptions) -> None:
        named = {name: w for name, w in model.named_parameters() if w.requires_grad and name not in options.frozen}
        if not named:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._model = model
        self._options = options
        self._loss = open_loss(loss, options) if options.step is None else None
        has_step = options.step is not None
        share = open_share(options.exchange, model)
        self._movers = open_movers(optimizer, named, has_frozen=bool(options.frozen), has_step=has_step, share=share)
        self._mover = next(iter(self._movers.values()))
        self._engine = TapeEngine(model)
        self._still = _list_still(model, options.frozen)
        self._generator = torch.default_generator

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        seed = self._options.derive_seed(number)
        self._generator.manual_seed(seed)
        if not self._model.training or self._still:
            self._model.train()
        for layer in self._still:
            layer.eval()
        if self._options.step is not None:
            return self._take_own(self._options.step, batch, number, seed), None
        mover = self._mover
        mover.clear()
        batch = Batch(*(_to_tensors(part) for part in batch))
        size = self._options.micro_batch_size
        if size is None or size >= batch.num_rows:
            value, outputs = self._pass(batch, 1.0, number)
        else:
            value, outputs = self._fit_pieces(batch, size, number)
        mover.move(number, value)
        return value, outputs

    def _fit_pieces(self, batch: Batch, size: int, number: int) -> tuple[float, Tree]:
        value, parts = 0.0, list[Any]()
        for piece, share in batch.cut(size):
            part_value, outputs = self._pass(piece, share, number)
            value += part_value
            parts.append(outputs)
        return value, join_rows(parts)

    def _pass(self, batch: Batch, share: float, number: int) -> tuple[float, Tree]:
        """Go forward and back with some rows; give their share of the loss, and their outputs."""
        assert self._loss is not None
        if self._options.precision is not None:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = map_tree(lambda leaf: leaf.float() if torch.is_tensor(leaf) else leaf, self._run(batch.inputs))
                loss = self._loss(outputs, batch.targets, batch.weights)
        else:
            outputs = self._run(batch.inputs)
            loss = self._loss(outputs, batch.targets, batch.weights)
        if not loss.requires_grad:
            raise fail_loss("a number without a gradient")
        if share != 1.0:
            loss = loss * share
        value = self._mover.backpropagate(loss, number, lambda: self._find_bad_layer(batch.inputs))
        if torch.is_tensor(outputs):
            return value, outputs.detach().numpy()
        return value, map_tree(lambda leaf: leaf.detach().numpy() if torch.is_tensor(leaf) else leaf, outputs)

    def _run(self, inputs: Tree) -> Any:
        if torch.is_tensor(inputs):
            return self._model(inputs)
        given, named = spread(inputs)
        return self._model(*given, **named)

    def _take_own(self, function: Callable[[Any, Any, Any], Any], batch: Batch, number: int, seed: int) -> float:
        """Take a step of the user's own."""
        fit = OwnFit(self._engine, self._movers, self._options.journal, number, seed)
        is_mixed = self._options.precision is not None

        def run() -> Any:
            with torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext():
                return function(self._model, _to_tensors(batch.inputs), fit)

        return take_own_step(fit, self._engine, self._movers, run)

    def sync(self) -> None:
        """Do nothing: the model itself is fitted."""

    def get_state(self) -> Arrays:
        state = {f"weights/{name}": tensor for name, tensor in get_weights(self._model).items()}
        for mover in self._movers.values():
            state |= mover.get_state()
        return state

    def set_state(self, state: Arrays) -> None:
        weights = {name: array for name, array in state.items() if name.startswith("weights/")}
        check_state({f"weights/{name}": tensor for name, tensor in get_weights(self._model).items()}, weights)
        owned = tuple(f"optimizer/{name}/" for mover in self._movers.values() for name in mover.named)
        for mover in self._movers.values():
            mover.check_state(state)
        strange = {name: array for name, array in state.items() if name.startswith("optimizer/") and not name.startswith(owned)}
        check_state({}, strange)
        set_weights(self._model, {name.removeprefix("weights/"): array for name, array in weights.items()})
        for mover in self._movers.values():
            mover.set_state(state)

    def _find_bad_layer(self, inputs: Tree) -> str | None:
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
        try:
            with torch.no_grad():
                self._run(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return (bad or ran[-1:] or [None])[0]


def _to_tensors(tree: Tree) -> Any:
    """Give the same with its arrays as tensors; what holds none is given back as it is, whatever it is."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if tree is None or torch.is_tensor(tree) or not any(isinstance(leaf, np.ndarray) for leaf in list_leaves(tree)):
        return tree
    return map_tree(_to_tensor, tree)


def _to_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if is_array(leaf) and leaf.dtype.kind in "fiubc" else leaf


def _list_still(model: Any, frozen: frozenset[str]) -> list[Any]:
    """Give the layers all of whose own weights are frozen: they run as they are served, so that their statistics stay, too."""
    if not frozen:
        return []
    still: list[Any] = []
    for path, layer in model.named_modules():
        own = [f"{path}.{name}".lstrip(".") for name, _ in layer.named_parameters(recurse=False)]
        if own and frozen.issuperset(own):
            still.append(layer)
    return still
