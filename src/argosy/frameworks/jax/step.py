"""Fit a flax.nnx model: one mini-batch a call, compiled once for each number of rows."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.base import Batch, FitOptions, check_state, derive_seed, fail_not_finite, name_kind
from argosy.frameworks.jax.optimizer import RuleOptimizer, measure_norm, sum_squares
from argosy.frameworks.jax.state import Leaves, is_key, list_trained, open_precision, pack, prepare, take_apart, unpack
from argosy.optim import GradientOptimizer
from argosy.signature import Arrays

__all__ = ["JaxStep"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")
optax: Any = importlib.import_module("optax")

State = tuple[Leaves, Leaves, Leaves]
"""Trained weights, the rest of a model (see `state.Parts`), and what the optimizer remembers."""


def _mse(outputs: Any, targets: Any) -> Any:
    return jnp.square(outputs - targets)


def _half_mse(outputs: Any, targets: Any) -> Any:
    return 0.5 * jnp.square(outputs - targets).reshape(len(outputs), -1).sum(axis=1)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": optax.sigmoid_binary_cross_entropy,
    "cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
    "half_mse": _half_mse,
    "mse": _mse,
}
"""Each gives a number for every row, or for every output of a row."""


class JaxStep:
    """Fits one model, a mini-batch a call; see `base.Step`.

    The weights are held here twice: a step reads one set and writes the other, so that the old ones are there still when
    the new ones turn out to be useless, and no memory is asked for. `sync` copies them to the model.
    """

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        if options.precision is not None:
            expected = "None with flax, whose layers take their type when they are made (dtype=jnp.bfloat16)"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        if isinstance(loss, str) and loss not in _LOSSES:
            raise InputError("unknown_choice", kind="loss", got=loss, known=list_choices(_LOSSES))
        if not isinstance(optimizer, GradientOptimizer | optax.GradientTransformation):
            raise InputError("bad_option", option="optimizer", got=name_kind(optimizer), expected="a transformation of optax")
        parts = take_apart(model, is_training=True)
        if not parts.trained:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._model = model
        self._parts = parts
        self._options = options
        self._loss = _LOSSES[loss] if isinstance(loss, str) else loss
        self._optimizer: Any = RuleOptimizer(optimizer) if isinstance(optimizer, GradientOptimizer) else optimizer
        self._rule: GradientOptimizer | None = getattr(self._optimizer, "rule", None)
        with self._open_precision():
            memory: Any = self._optimizer.init(self._pure(parts.trained))
            self._memory_tree = jax.tree.structure(memory)
            self._weights_tree = jax.tree.structure(self._pure(parts.trained))
            # Copies, also of the model's own arrays: what is written over must be nobody else's.
            self._now: State = (_copy(parts.trained), _copy(parts.rest), _copy(jax.tree.leaves(memory)))
            self._spare: State = (_copy(self._now[0]), _copy(self._now[1]), _copy(self._now[2]))
        self._take = jax.jit(self._compute, donate_argnums=0, keep_unused=True)
        self._take_gradient = jax.jit(self._differentiate)
        self._take_move = jax.jit(self._move)

    def __call__(self, batch: Batch, number: int) -> tuple[float, NDArray[Any]]:
        x, y = batch.inputs, batch.targets
        with self._open_precision():
            rows = prepare(x, "x"), prepare(y, "y"), np.uint32(derive_seed(self._options.seed, number))
            scalars = self._read_scalars(number)
            # What comes back lies where the spare arrays were.
            self._spare, measured, outputs = self._take(self._spare, self._now, *rows, scalars)
            loss, norm = np.asarray(measured).tolist()
            if not math.isfinite(loss):
                raise self._fail(number, "loss", self._find_bad_layer(*rows))
            if not math.isfinite(norm):
                self._spare = self._move_far(rows, scalars, number)
            self._now, self._spare = self._spare, self._now
            return loss, np.asarray(outputs)

    def sync(self) -> None:
        with self._open_precision():
            self._parts.write(self._model, _copy(self._now[0]), _copy(self._now[1]))

    def get_state(self) -> Arrays:
        return {name: pack(leaf) for name, leaf in self._list_state()}

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        with self._open_precision():
            leaves = iter([unpack(state[name], leaf) for name, leaf in self._list_state()])
        trained, rest, memory = ([next(leaves) for _ in group] for group in self._now)
        self._now = trained, rest, memory
        self.sync()

    def _list_state(self) -> list[tuple[str, Any]]:
        trained, rest, memory = self._now
        names = [f"weights/{name}" for name in self._parts.trained_names + self._parts.rest_names]
        paths = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(self._memory_tree, memory))[0]
        names += [f"optimizer/{jax.tree_util.keystr(path)}" for path, _ in paths]
        return list(zip(names, trained + rest + memory, strict=True))

    def _open_precision(self) -> Any:
        return open_precision(is_double=self._parts.is_double)

    def _pure(self, trained: Leaves) -> Any:
        """Give weights as `nnx.Optimizer` gives them to optax, so that masks and labels for parts of a model fit."""
        return nnx.as_pure(jax.tree.unflatten(self._parts.structure.trees[0], trained))

    def _read_scalars(self, number: int) -> NDArray[Any]:
        values = self._rule.scalars_at(number) if self._rule else (0.0, 0.0, 0.0)
        return np.array(values, np.float64 if self._parts.is_double else np.float32)

    # What is compiled.

    def _compute(self, spare: State, now: State, x: Any, y: Any, seed: Any, scalars: Any) -> tuple[State, Any, Any]:
        """Give what the next step begins with, in the memory of `spare`; (loss, norm of the gradients); and the outputs."""
        loss, outputs, gradients, rest = self._differentiate(*now[:2], x, y, seed)
        # Overflows for huge gradients; a norm that does not would take another pass over all of them.
        norm = jnp.sqrt(sum_squares(gradients))
        return self._move(now, loss, gradients, rest, norm, scalars), jnp.stack([loss.astype(norm.dtype), norm]), outputs

    def _move(self, now: State, loss: Any, gradients: Leaves, rest: Leaves, norm: Any, scalars: Any) -> State:
        """Let the optimizer move the weights; give them, `rest`, and what it remembers."""
        trained, _, memory = now
        weights, slopes = self._pure(trained), self._weights_tree.unflatten(gradients)
        extra = {"scalars": scalars, "norm": norm} if self._rule else {"value": loss, "grad": slopes}
        transformation = optax.with_extra_args_support(self._optimizer)
        updates, after = transformation.update(slopes, self._memory_tree.unflatten(memory), weights, **extra)
        return jax.tree.leaves(optax.apply_updates(weights, updates)), rest, jax.tree.leaves(after)

    def _differentiate(self, trained: Leaves, rest: Leaves, x: Any, y: Any, seed: Any) -> tuple[Any, Any, Leaves, Leaves]:
        """Go forward and back with all rows, in pieces; give loss, outputs, gradients, and what the passes left of `rest`."""
        size = self._options.micro_batch_size or len(x)
        if size >= len(x):
            return self._pass(trained, rest, x, y, seed, 0)

        def add(total: Any, piece: Any) -> tuple[Any, Any]:
            number, x_piece, y_piece = piece
            loss, outputs, gradients, after = self._pass(trained, total[2], x_piece, y_piece, seed, number)
            share = len(x_piece) / len(x)
            sums = [whole + part * share for whole, part in zip(total[1], gradients, strict=True)]
            return (total[0] + loss * share, sums, after), outputs

        num_whole = len(x) // size
        cut = num_whole * size
        pieces = (jnp.arange(num_whole), *(rows[:cut].reshape(num_whole, size, *rows.shape[1:]) for rows in (x, y)))
        # A loop, not its body again and again: memory is that of one piece, and compiling takes no longer for many.
        dtype = jax.eval_shape(self._pass, trained, rest, x[:size], y[:size], seed, 0)[0].dtype
        total, outputs = jax.lax.scan(add, (jnp.zeros((), dtype), [jnp.zeros_like(leaf) for leaf in trained], rest), pieces)
        outputs = outputs.reshape(cut, *outputs.shape[2:])
        if cut < len(x):
            total, last = add(total, (num_whole, x[cut:], y[cut:]))
            outputs = jnp.concatenate([outputs, last])
        return total[0], outputs, total[1], total[2]

    def _pass(self, trained: Leaves, rest: Leaves, x: Any, y: Any, seed: Any, piece: Any) -> tuple[Any, Any, Leaves, Leaves]:
        """Go forward and back with some rows."""
        random = self._draw_random(seed, piece)

        def measure(trained: Leaves) -> tuple[Any, Any]:
            outputs, after = self._parts.structure.run(trained, random, rest, x)
            return jnp.mean(self._loss(outputs, y)), (outputs, after)

        (loss, (outputs, after)), gradients = jax.value_and_grad(measure, has_aux=True)(trained)
        return loss, outputs, gradients, after

    def _draw_random(self, seed: Any, piece: Any) -> Leaves:
        """Begin each random stream of the model anew, so that the step's seed alone decides what it gives."""
        leaves: Leaves = []
        for index, leaf in enumerate(self._parts.random):
            if not is_key(leaf):
                leaves.append(jnp.zeros_like(leaf))
                continue
            key = jax.random.key(seed, impl=jax.random.key_impl(leaf))
            key = jax.random.fold_in(jax.random.fold_in(key, piece), index)
            leaves.append(jax.random.split(key, leaf.shape) if leaf.shape else key)
        return leaves

    # Who is to blame.

    def _fail(self, number: int, what: str, layer: str | None) -> ModelError:
        rate = self._rule.rate_at(number) if self._rule else None
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=rate)

    def _find_bad_layer(self, x: Any, y: Any, seed: Any) -> str | None:
        """Run the forward pass again, uncompiled, and watch the layers.

        At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
        """
        ran: list[tuple[str, bool]] = []
        model = self._parts.structure.build(self._now[0], self._draw_random(seed, 0), _copy(self._now[1]))
        modules = list(nnx.iter_modules(model))
        for path, module in modules:
            is_leaf = not any(other[: len(path)] == path and other != path for other, _ in modules)
            if is_leaf and callable(module):
                _watch(module, ".".join(map(str, path)) or type(module).__name__, ran)
        model(jnp.asarray(x))
        return next((name for name, is_finite in ran if not is_finite), ran[-1][0] if ran else None)

    def _move_far(self, rows: tuple[Any, Any, Any], scalars: Any, number: int) -> State:
        """Take a step whose gradients are huge, if they are finite."""
        loss, _, gradients, rest = self._take_gradient(*self._now[:2], *rows)
        norm = measure_norm(gradients)
        if not bool(jnp.isfinite(norm)):
            raise self._fail(number, "gradient", self._find_bad_gradient(gradients))
        return self._take_move(self._now, loss, gradients, rest, norm, scalars)

    def _find_bad_gradient(self, gradients: Leaves) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        found = zip(self._parts.trained_names, gradients, strict=True)
        bad = {name for name, gradient in found if not bool(jnp.isfinite(gradient).all())}
        names = [name for name in list_trained(self._model) if name in bad]
        return names[-1].rpartition(".")[0] or names[-1] if names else None


def _copy(leaves: Leaves) -> Leaves:
    return [jnp.array(leaf) for leaf in leaves]


def _watch(module: Any, name: str, ran: list[tuple[str, bool]]) -> None:
    """Let one layer note each call of it: its name, and whether the output is finite."""
    kind: Any = module.__class__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        for leaf in jax.tree.leaves(output):
            if isinstance(leaf, jax.core.Tracer):
                return output  # Within a loop that JAX traces; the layer around it is watched.
            ran.append((name, bool(jnp.isfinite(leaf).all())))
        return output

    # A class of its own: the call of an object is looked up in its class, and others of that class must not be watched.
    object.__setattr__(module, "__class__", type(kind)(kind.__name__, (kind,), {"__call__": call}))
