"""Fit a flax.nnx model: one mini-batch a call, compiled once for each number of rows."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError
from argosy.frameworks.base import Batch, FitOptions, check_state, fail_not_finite
from argosy.frameworks.fitting import fail_loss, read_scalars
from argosy.frameworks.jax.exchange import share_gradients
from argosy.frameworks.jax.losses import has_gradient, has_own_code, open_loss
from argosy.frameworks.jax.movers import Mover, open_movers
from argosy.frameworks.jax.optimizer import measure_norm, sum_squares
from argosy.frameworks.jax.own import Numbers, take_own, to_arrays
from argosy.frameworks.jax.state import Leaves, is_key, list_trained, open_precision, pack, prepare, take_apart, unpack
from argosy.frameworks.trees import Tree, map_tree, spread, take_rows
from argosy.signature import Arrays

__all__ = ["JaxStep"]

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")
nnx: Any = importlib.import_module("flax.nnx")

Rows = tuple[Any, Any, Any]
"""Inputs, targets and weights of rows."""

State = tuple[Leaves, Leaves, Leaves]
"""Trained weights, the rest of a model (see `state.Parts`), and what the optimizers remember."""

_LOG = logging.getLogger(__name__)

_CONCRETE: Final = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where code looks at numbers that are not there while it is traced."""


class JaxStep:
    """Fits one model, a mini-batch a call; see `base.Step`.

    The weights are held here twice: a step reads one set and writes the other, so that the old ones are there still when
    the new ones turn out to be useless, and no memory is asked for. `sync` copies them to the model.
    """

    def __init__(self, model: Any, loss: Any, optimizer: Any, options: FitOptions) -> None:
        if options.precision is not None:
            expected = "None with flax, whose layers take their type when they are made (dtype=jnp.bfloat16)"
            raise InputError("bad_option", option="precision", got=options.precision, expected=expected)
        parts = take_apart(model, is_training=True, frozen=options.frozen)
        if not parts.trained:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._model = model
        self._parts = parts
        self._options = options
        self._loss = None if options.step is not None else open_loss(loss, options)
        with self._open_precision():
            self._movers = open_movers(optimizer, parts, has_step=options.step is not None)
            self._mover = next(iter(self._movers.values()))
            memory = [leaf for mover in self._movers.values() for leaf in mover.memory]
            # Copies, also of the model's own arrays: what is written over must be nobody else's.
            self._now: State = (_copy(parts.trained), _copy(parts.rest), _copy(memory))
            self._spare: State = (_copy(self._now[0]), _copy(self._now[1]), _copy(self._now[2]))
        self._is_checked = not (options.step is None and has_own_code(loss))
        self._is_compiled = True
        self._take_own = jax.jit(self._compute_own, donate_argnums=0, keep_unused=True)
        self._take = jax.jit(self._compute, donate_argnums=0, keep_unused=True)
        self._take_gradient = jax.jit(self._differentiate)
        self._take_move = jax.jit(self._move)

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        with self._open_precision():
            seed = np.uint32(self._options.derive_seed(number))
            if self._options.step is not None:
                return self._run_own(batch.inputs, number, seed), None
            rows = _prepare(batch.inputs, "x"), _prepare(batch.targets, "y"), batch.weights
            if not self._is_checked:
                self._check_loss(rows, seed)
            scalars = self._cast(self._mover.scalars_at(number))
            # What comes back lies where the spare arrays were.
            self._spare, measured, outputs = self._take(self._spare, self._now, rows, seed, scalars)
            loss, norm = np.asarray(measured).tolist()
            if not math.isfinite(loss):
                raise self._fail(number, "loss", self._find_bad_layer(rows[0], seed))
            if not math.isfinite(norm):
                self._spare = self._move_far(rows, seed, scalars, number)
            self._now, self._spare = self._spare, self._now
            if isinstance(outputs, jax.Array):
                return loss, np.asarray(outputs)
            return loss, map_tree(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, outputs)

    def _check_loss(self, rows: Rows, seed: Any) -> None:
        """See that a function changes with the weights: JAX takes one that does not as one whose gradients are zero."""
        now = self._now
        if not has_gradient(lambda trained: self._measure(trained, now[1], rows, seed, 0)[0], now[0]):
            raise fail_loss("a number without a gradient")
        self._is_checked = True

    def _run_own(self, inputs: Any, number: int, seed: Any) -> float:
        """Take a step of the user's own."""
        batch, has_arrays = to_arrays(inputs)
        memories = self._split(self._now[2])
        scalars = [
            self._cast(mover.scalars_at(mover.count(memory) + 1))
            for mover, memory in zip(self._movers.values(), memories, strict=True)
        ]
        epoch = self._options.journal.epoch
        after: State | None = None
        measured, logged = None, dict[str, Any]()
        if self._is_compiled and has_arrays:
            numbers = Numbers(np.int32(number), np.int32(epoch), seed, scalars)
            try:
                after, measured, logged = self._take_own(self._spare, self._now, batch, numbers)
            except _CONCRETE as error:
                _LOG.warning(
                    "the step looks at numbers from Python, so that it is not compiled: %s", str(error).partition("\n")[0]
                )
        if after is None:
            self._is_compiled = False  # From now on: what comes back may be what was there, which nothing may lie over.
            numbers = Numbers(number, epoch, int(seed), scalars)
            after, measured, logged = self._compute_own((), self._now, batch, numbers)
        self._spare = after
        value, made_small, norm = np.asarray(measured).tolist()
        if not (math.isfinite(value) and math.isfinite(made_small)):
            raise self._fail(number, "loss", None)
        if not math.isfinite(norm):
            raise self._fail(number, "gradient", None)
        self._now, self._spare = self._spare, self._now
        self._options.journal.logged.update(read_scalars(logged, float))
        return value

    def sync(self) -> None:
        with self._open_precision():
            self._parts.write(self._model, _copy(self._now[0]), _copy(self._now[1]))

    def get_state(self) -> Arrays:
        state = {name: pack(leaf) for name, leaf in self._list_state()}
        return state | {mover.rate_name: np.array(mover.factor) for mover in self._list_scaled()}

    def set_state(self, state: Arrays) -> None:
        check_state(self.get_state(), state)
        with self._open_precision():
            leaves = iter([unpack(state[name], leaf) for name, leaf in self._list_state()])
        trained, rest, memory = ([next(leaves) for _ in group] for group in self._now)
        self._now = trained, rest, memory
        for mover in self._list_scaled():
            mover.factor = float(state[mover.rate_name])
        self.sync()

    def _list_state(self) -> list[tuple[str, Any]]:
        trained, rest, memory = self._now
        names = [f"weights/{name}" for name in self._parts.trained_names + self._parts.rest_names]
        names += [name for mover in self._movers.values() for name in mover.memory_names]
        return list(zip(names, trained + rest + memory, strict=True))

    def _list_scaled(self) -> list[Mover]:
        return [mover for mover in self._movers.values() if mover.is_own]

    def _split(self, memory: Leaves) -> list[Leaves]:
        """Give what each mover remembers."""
        left = iter(memory)
        return [[next(left) for _ in mover.memory_names] for mover in self._movers.values()]

    def _open_precision(self) -> Any:
        return open_precision(is_double=self._parts.is_double)

    def _cast(self, scalars: NDArray[Any]) -> NDArray[Any]:
        return scalars.astype(np.float64 if self._parts.is_double else np.float32)

    # What is compiled.

    def _compute(self, spare: State, now: State, rows: Rows, seed: Any, scalars: Any) -> tuple[State, Any, Any]:
        """Give what the next step begins with, in the memory of `spare`; (loss, norm of the gradients); and the outputs."""
        loss, outputs, gradients, rest = self._differentiate(*now[:2], rows, seed)
        gradients, rest = self._share(loss, gradients, rest)
        # Overflows for huge gradients; a norm that does not would take another pass over all of them.
        norm = jnp.sqrt(sum_squares(gradients))
        return self._move(now, loss, gradients, rest, norm, scalars), jnp.stack([loss.astype(norm.dtype), norm]), outputs

    def _share(self, loss: Any, gradients: Leaves, rest: Leaves) -> tuple[Leaves, Leaves]:
        exchange = self._options.exchange
        return (gradients, rest) if exchange is None else share_gradients(exchange, loss, gradients, rest)

    def _move(self, now: State, loss: Any, gradients: Leaves, rest: Leaves, norm: Any, scalars: Any) -> State:
        """Let the optimizer move the weights; give them, `rest`, and what it remembers."""
        weights, memory = self._mover.move(now[0], gradients, now[2], loss, norm, scalars)
        return weights, rest, memory

    def _compute_own(self, spare: Any, now: State, batch: Any, numbers: Numbers) -> tuple[State, Any, dict[str, Any]]:
        """Take a step of the user's own; give what the next begins with, what was measured, and what was logged."""
        assert self._options.step is not None
        parts, (trained, rest, memory) = self._parts, now

        def build() -> Any:
            return parts.structure.build(trained, self._draw_random(numbers.seed, 0), rest)

        taken = take_own(
            self._options.step, build, parts, rest, self._movers, self._split(memory), batch, numbers, self._options.exchange
        )
        return (taken.trained, taken.rest, [leaf for one in taken.memories for leaf in one]), taken.measured, taken.logged

    def _differentiate(self, trained: Leaves, rest: Leaves, rows: Rows, seed: Any) -> tuple[Any, Any, Leaves, Leaves]:
        """Go forward and back with all rows, in pieces; give loss, outputs, gradients, and what the passes left of `rest`."""
        num_rows = Batch(*rows).num_rows
        size = self._options.micro_batch_size or num_rows
        if size >= num_rows:
            return self._pass(trained, rest, rows, seed, 0)

        def add(total: Any, piece: Any) -> tuple[Any, Any]:
            number, part = piece
            loss, outputs, gradients, after = self._pass(trained, total[2], part, seed, number)
            share = Batch(*part).num_rows / num_rows
            sums = [whole + part * share for whole, part in zip(total[1], gradients, strict=True)]
            return (total[0] + loss * share, sums, after), outputs

        num_whole = num_rows // size
        cut = num_whole * size

        def cut_rows(leaf: Any) -> Any:
            return leaf[:cut].reshape(num_whole, size, *leaf.shape[1:])

        def join(leaf: Any, *last: Any) -> Any:
            return jnp.concatenate([leaf.reshape(cut, *leaf.shape[2:]), *last])

        pieces = jnp.arange(num_whole), jax.tree.map(cut_rows, rows)
        first = tuple(part if part is None else take_rows(part, slice(size)) for part in rows)
        # A loop, not its body again and again: memory is that of one piece, and compiling takes no longer for many.
        dtype = jax.eval_shape(self._pass, trained, rest, first, seed, 0)[0].dtype
        total, outputs = jax.lax.scan(add, (jnp.zeros((), dtype), [jnp.zeros_like(leaf) for leaf in trained], rest), pieces)
        if cut == num_rows:
            return total[0], jax.tree.map(join, outputs), total[1], total[2]
        left = tuple(part if part is None else take_rows(part, slice(cut, None)) for part in rows)
        total, last = add(total, (num_whole, left))
        return total[0], jax.tree.map(join, outputs, last), total[1], total[2]

    def _pass(self, trained: Leaves, rest: Leaves, rows: Rows, seed: Any, piece: Any) -> tuple[Any, Any, Leaves, Leaves]:
        """Go forward and back with some rows."""

        def measure(trained: Leaves) -> tuple[Any, Any]:
            return self._measure(trained, rest, rows, seed, piece)

        (loss, (outputs, after)), gradients = jax.value_and_grad(measure, has_aux=True)(trained)
        return loss, outputs, gradients, after

    def _measure(self, trained: Leaves, rest: Leaves, rows: Rows, seed: Any, piece: Any) -> tuple[Any, tuple[Any, Leaves]]:
        """Go forward with some rows; give the loss, and the outputs with what the pass left of `rest`."""
        assert self._loss is not None
        inputs, targets, weights = rows
        outputs, after = self._parts.structure.run(trained, self._draw_random(seed, piece), rest, inputs)
        return self._loss(outputs, targets, weights), (outputs, after)

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
        return fail_not_finite(step=number, what=what, layer=layer, learning_rate=self._mover.rate_at(number))

    def _find_bad_layer(self, inputs: Tree, seed: Any) -> str | None:
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
        given, named = spread(map_tree(jnp.asarray, inputs))
        model(*given, **named)
        return next((name for name, is_finite in ran if not is_finite), ran[-1][0] if ran else None)

    def _move_far(self, rows: Rows, seed: Any, scalars: Any, number: int) -> State:
        """Take a step whose gradients are huge, if they are finite."""
        loss, _, gradients, rest = self._take_gradient(*self._now[:2], rows, seed)
        gradients, rest = self._share(loss, gradients, rest)
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


def _prepare(tree: Tree, what: str) -> Tree:
    return map_tree(lambda leaf: prepare(np.asarray(leaf), what), tree)


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
