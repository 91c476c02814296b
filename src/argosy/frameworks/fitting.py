"""Steps of training as all frameworks take them: what a step is given and gives, and what a step of one's own may ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.exchange import Exchange
from argosy.frameworks.trees import Tree, list_leaves, take_rows
from argosy.optim.groups import match_names
from argosy.signature import Arrays

__all__ = [
    "Batch",
    "Fit",
    "FitOptions",
    "Journal",
    "Listener",
    "Precision",
    "Step",
    "TakesCallbacks",
    "check_state",
    "derive_seed",
    "fail_loss",
    "fail_not_finite",
    "read_scalars",
    "share_weights",
]

Precision = Literal["bfloat16"]

_MASK: Final = 2**64 - 1


class Batch(NamedTuple):
    """Rows that one step is taken with. Leaves are NumPy arrays, or tensors of the model's own framework."""

    inputs: Tree
    """As the model takes them; with a step of the user's own, what the loader gives, whatever it is."""
    targets: Tree = None
    """As the losses take them, in the form of the losses; None if there are none."""
    weights: Any = None
    """One number a row, of the model's floating type; None if every row counts as one."""

    @property
    def num_rows(self) -> int:
        """How many rows there are; 1 where nothing counts them."""
        inputs = self.inputs
        if hasattr(inputs, "shape"):
            return len(inputs)
        return next((len(leaf) for leaf in list_leaves(inputs) if getattr(leaf, "shape", ())), 1)

    def take(self, rows: slice | NDArray[Any]) -> Batch:
        """Give some of the rows."""
        return Batch(*(None if part is None else take_rows(part, rows) for part in self))

    def cut(self, size: int | None) -> Iterator[tuple[Batch, float]]:
        """Give pieces of so many rows (None: of all), and the share of the rows that each has."""
        num_rows = self.num_rows
        for start in range(0, num_rows, size or num_rows):
            rows = slice(start, min(start + (size or num_rows), num_rows))
            yield self.take(rows), (rows.stop - start) / num_rows


class Fit(Protocol):
    """What a step of the user's own, `step(model, batch, fit) -> loss`, may ask for."""

    @property
    def number(self) -> int:
        """Of the step, counted from 1."""
        ...

    @property
    def epoch(self) -> int:
        """Counted from 1."""
        ...

    @property
    def seed(self) -> int:
        """Of this step alone. The framework's own random numbers are seeded with it already."""
        ...

    def minimize(self, loss: Any, optimizer: str | None = None) -> float:
        """Let an optimizer take one step towards a smaller loss.

        Args:
            loss: a function that is called with the model and gives a scalar; or such a scalar, where the framework
                differentiates what was computed already (torch, TensorFlow, MXNet).
            optimizer: the name of one of several; it moves its own weights alone.

        Returns:
            The loss before the step.

        Raises:
            InputError: `bad_option`, no such optimizer; `bad_loss`, no scalar, or one that depends on no weight of it.
            ModelError: `not_finite`; the optimizer has moved nothing.
        """
        ...

    def log(self, **values: Any) -> None:
        """Show scalars by name, and keep their means over the epoch as metrics."""
        ...


@dataclass
class Journal:
    """What a step of the user's own is told of the run, and what it says."""

    epoch: int = 1
    """Set by the loop."""
    logged: dict[str, float] = field(default_factory=dict[str, float])
    """What this step logged; emptied by the loop before each."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How steps are taken, beside loss and optimizer."""

    seed: int = 0
    """Random numbers of a step (dropout's) follow from it and the step's number alone, so that a run can be resumed."""
    precision: Precision | None = None
    """bfloat16: weights stay as they are, products are computed in it where the framework sees fit. None: as the model is."""
    micro_batch_size: int | None = None
    """Rows of one forward and backward pass; a larger batch is passed in pieces whose gradients are averaged by rows."""
    loss_weights: Tree = None
    """Factors of the losses, in their form; None: all are 1."""
    is_weighted: bool = False
    """Batches bring weights of their rows: the loss is the mean over the rows of weight times loss of the row."""
    step: Callable[[Any, Any, Any], Any] | None = None
    """The user's own: `step(model, batch, fit)`; then there is no loss beside it, and no outputs are given."""
    journal: Journal = field(default_factory=Journal)
    """Of such a step."""
    frozen: frozenset[str] = frozenset()
    """Names of weights, of those that `list_trainable` gives, which stay as they are."""
    exchange: Exchange | None = None
    """Gradients pass it before weights are moved, and with them running statistics. None: there is one worker."""

    def derive_seed(self, number: int, *more: int) -> int:
        """Give the seed of a step, which is another one in each worker; see `derive_seed`."""
        rank = 0 if self.exchange is None else self.exchange.rank
        return derive_seed(self.seed, number, *more, *((-rank,) if rank else ()))


class Step(Protocol):
    """One model being fitted: each call takes one step of the optimizer."""

    def __call__(self, batch: Batch, number: int) -> tuple[float, Tree]:
        """Fit one mini-batch.

        Args:
            batch: inputs as the model takes them, targets as `train.objective` prepares them.
            number: of the step, counted from 1; it decides the learning rate and the random numbers.

        Returns:
            The loss before the step (mean over the rows) and the outputs it was computed from, as arrays in the form in which
            the model gives them; None with a step of the user's own.

        Raises:
            InputError: `bad_data`, `bad_loss`; the weights are as before the step.
            ModelError: `not_finite`, the loss or a gradient is; the weights are as before the step.
        """
        ...

    def sync(self) -> None:
        """Bring the model up to date, where a framework keeps weights elsewhere between steps."""
        ...

    def get_state(self) -> Arrays:
        """Give copies of all that the next step depends on: weights, buffers, what the optimizer remembers.

        Names are the framework's own, free of everything that changes from process to process; those of the model begin with
        `weights/`.
        """
        ...

    def set_state(self, state: Arrays) -> None:
        """Go on from what `get_state` gave, in this process or another: bit for bit.

        Raises:
            InputError: `bad_checkpoint`, names, shapes or types are not those of this model and optimizer.
        """
        ...


class Listener(Protocol):
    """Callbacks of a framework's own, in the words of the loop. Each call is told what its name says, in the loop's order."""

    def begin(self, state: Arrays | None = None) -> bool:
        """Let them begin; `state` is what `get_state` gave, if a run goes on. True if they had ended it.

        Raises:
            InputError: `bad_option`, one cannot do what it is for; `bad_checkpoint`, the state is of others.
        """
        ...

    def begin_epoch(self, epoch: int) -> None:
        """Counted from 1."""
        ...

    def begin_step(self, batch: int) -> None:
        """Of the epoch, counted from 0."""
        ...

    def end_step(self, batch: int, means: Mapping[str, float]) -> bool:
        """Take the means over the epoch so far; True if the run is to end."""
        ...

    def begin_validation(self) -> None:
        """Before validation rows are measured."""
        ...

    def end_validation(self, values: Mapping[str, float]) -> None:
        """Take what they came to."""
        ...

    def end_epoch(self, epoch: int, values: Mapping[str, float]) -> bool:
        """Take what the epoch came to; names of what belongs to validation rows begin with `validation_`. True: end."""
        ...

    def end(self) -> None:
        """After the last step."""
        ...

    def close(self) -> None:
        """Give the model back as it was, whatever happened."""
        ...

    def get_state(self) -> Arrays:
        """Give what they remember; all names begin with `callbacks/`."""
        ...

    def set_state(self, state: Arrays) -> None:
        """Have them remember it again."""
        ...


@runtime_checkable
class TakesCallbacks(Protocol):
    """What a framework has beside whose own callbacks are called."""

    def open_callbacks(
        self, callbacks: Sequence[Any], model: Any, step: Step, params: Mapping[str, Any], measured: Collection[str] | None
    ) -> Listener:
        """Check callbacks of the framework's own, and make one listener of them.

        Args:
            callbacks: as the user gave them.
            model: that is fitted.
            step: that fits it.
            params: what they are told of the run: `epochs`, `steps` of an epoch; None where only the end tells.
            measured: names of what an epoch measures, None if a step of the user's own logs more.

        Raises:
            InputError: `bad_option`, one cannot work here.
        """
        ...

    def describe_callback(self, callback: Any) -> dict[str, Any]:
        """Describe one as JSON data for a lineage."""
        ...


def share_weights(optimizers: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Give each of several optimizers, by name, the weights that it moves.

    Args:
        optimizers: their names, each a pattern of `optim.groups.match_names`.
        names: of the weights to train.

    Raises:
        InputError: `bad_option`, one has no weight, a weight has two, or none.
    """
    shares = {pattern: match_names(pattern, names) for pattern in optimizers}
    for pattern, share in shares.items():
        if not share:
            raise InputError(
                "bad_option", option="optimizer", got=pattern, expected=f"a part of the model: {list_choices(names)}"
            )
    for name in names:
        owners = [pattern for pattern, share in shares.items() if name in share]
        if len(owners) != 1:
            got = f"{' and '.join(owners) or 'no optimizer'} for {name}"
            raise InputError("bad_option", option="optimizer", got=got, expected="one optimizer for each weight, or freeze it")
    return shares


def derive_seed(seed: int, *numbers: int) -> int:
    """Give a seed of 31 bits that follows from a seed and some numbers, such as a step's; in a microsecond.

    Source: Steele et al. 2014, doi:10.1145/2714064.2660195 (SplitMix64).
    """
    mixed = seed
    for number in (0, *numbers):
        mixed = (mixed + number + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 33


def check_state(expected: Arrays, state: Arrays) -> None:
    """Hold a checkpoint's arrays against what the model and its optimizer have.

    Raises:
        InputError: `bad_checkpoint`, names, shapes or types differ.
    """
    if missing := expected.keys() - state.keys():
        raise InputError("bad_checkpoint", detail=f"it has no {list_choices(missing, limit=3)}")
    if unknown := state.keys() - expected.keys():
        raise InputError("bad_checkpoint", detail=f"it has {list_choices(unknown, limit=3)}, which this run has not")
    for name, array in expected.items():
        got = state[name]
        if (got.shape, got.dtype) != (array.shape, array.dtype):
            detail = f"{name} is {got.dtype} of shape {got.shape}, here {array.dtype} of shape {array.shape}"
            raise InputError("bad_checkpoint", detail=detail)


def fail_loss(got: object, num_rows: int | None = None) -> InputError:
    """Make the error of a loss that cannot be made small; `got` says what the loss or the step gives."""
    rows = "" if num_rows is None else f", or one number for each of the {num_rows} rows"
    return InputError("bad_loss", got=got, expected=f"a scalar that depends on weights which are trained{rows}")


def fail_not_finite(*, step: int, what: str, layer: str | None, learning_rate: object) -> ModelError:
    """Make the error of a loss, gradient or weight that is not finite.

    Args:
        step: counted from 1.
        what: such as `loss`.
        layer: where it showed first, None if no layer is to blame.
        learning_rate: of the step, for the hint; None if the framework's own optimizer keeps it to itself.
    """
    where = f" in layer {layer}" if layer else ""
    rate = "the optimizer's own" if learning_rate is None else learning_rate
    return ModelError("not_finite", step=step, what=what, where=where, kept="", learning_rate=rate)


def read_scalars(values: Mapping[str, Any], to_float: Callable[[Any], float]) -> dict[str, float]:
    """Read what a step of the user's own logs.

    Raises:
        InputError: `bad_option`, something is no scalar.
    """
    read: dict[str, float] = {}
    for name, value in values.items():
        try:
            read[name] = to_float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                "bad_option", option=f"fit.log({name})", got=type(value).__qualname__, expected="a scalar"
            ) from error
    return read
