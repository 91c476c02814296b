"""Train a network to give what another model gives."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from argosy.frameworks.torch.graph.network import Network
from argosy.signature import Arrays

__all__ = ["Lesson", "Outcome", "teach"]

torch: Any = importlib.import_module("torch")

_HELD_OUT: Final = 0.1
"""Part of the rows that is not trained on, and says which weights are best and when to end."""
_MOST_HELD_OUT: Final = 1000
_TRIAL_STEPS: Final = 3
"""After which it is known how many fit into the time."""
_LEAST_PART: Final = 0.25
"""Of the steps, which have to fit into the time: with fewer, nothing comes of it."""
_SAY_S: Final = 10.0
_LEAST_SPREAD: Final = 1e-12


@dataclass(frozen=True)
class Lesson:
    """What is taught, and how."""

    rows: Sequence[Arrays]
    """Requests."""
    answers: Sequence[Arrays]
    """What is to be given to each, by output."""
    is_batched: bool
    """Requests are single rows that can be joined."""
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    """At the beginning; it falls to 0 along half a cosine."""
    patience: int = 8
    """Epochs without a better result after which it ends."""
    seed: int = 0


class Outcome(NamedTuple):
    """What a lesson came to."""

    error: float
    """On rows that were held out: the squared distance to what is to be given, beside its spread; of probabilities the
    Kullback-Leibler divergence."""
    epochs: int
    """That were taken."""


class _Group(NamedTuple):
    """Requests of one shape."""

    inputs: dict[str, Any]
    answers: dict[str, Any]
    size: int


def teach(
    network: Network, lesson: Lesson, deadline: float, *, masks: Mapping[str, NDArray[Any]] = {}, say: Callable[[str], None]
) -> Outcome:
    """Train a network in place; it has the weights of the epoch that was best on rows that were held out.

    Args:
        network: whose outputs are those of the answers, at least.
        lesson: what to teach.
        deadline: of `time.monotonic`, after which no step is taken.
        masks: weights that stay 0, by name: 0 where they do, else 1.
        say: is told how it goes.

    Raises:
        ValueError: no output has numbers with a fraction; there are too few rows, or there is too little time.
    """
    random = np.random.default_rng(lesson.seed)
    order = random.permutation(len(lesson.rows))
    count = max(1, min(_MOST_HELD_OUT, int(len(order) * _HELD_OUT)))
    if len(order) < 2:
        raise ValueError("there are too few rows to train on")
    kept = [torch.from_numpy(np.array(mask, np.float32)) for mask in masks.values()]
    masked = [(network.weights[name], mask) for name, mask in zip(masks, kept, strict=True)]
    _keep_zeros(masked)
    held, training = _group(lesson, order[:count]), _group(lesson, order[count:])
    measure = _Measure(lesson)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lesson.learning_rate, weight_decay=0.0)
    best, best_weights, since = _validate(network, held, lesson, measure), _copy(network), 0
    per_epoch = sum(math.ceil(group.size / lesson.batch_size) for group in training)
    total, step, epoch = lesson.epochs * per_epoch, 0, 0
    started = told = time.monotonic()
    while step < total and since < lesson.patience and time.monotonic() < deadline:
        for group, places in _draw(training, lesson.batch_size, random):
            if step >= total or time.monotonic() >= deadline:
                break
            for entry in optimizer.param_groups:
                entry["lr"] = lesson.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            loss = measure(_run(network, group, places, lesson), {name: made[places] for name, made in group.answers.items()})
            if not torch.isfinite(loss):
                raise ValueError("the loss became no number")
            loss.backward()
            optimizer.step()
            _keep_zeros(masked)
            step += 1
            if step == _TRIAL_STEPS:
                each = (time.monotonic() - started) / step
                total = _fit_into(total, (deadline - started) / each, each)
        epoch, since = epoch + 1, since + 1
        error = _validate(network, held, lesson, measure)
        if error < best:
            best, best_weights, since = error, _copy(network), 0
        if time.monotonic() - told > _SAY_S:
            told = time.monotonic()
            say(f"epoch {epoch}: error {error:.4g}, best {best:.4g}")
    with torch.no_grad():
        for name, weight in network.weights.items():
            weight.copy_(best_weights[name])
    return Outcome(best, epoch)


def _fit_into(total: int, possible: float, each_s: float) -> int:
    """Give how many steps are taken: those that there is time for."""
    if possible < _LEAST_PART * total:
        raise ValueError(f"training would take {total * each_s:.0f} s, and there are {max(0.0, possible * each_s):.0f}")
    return min(total, int(possible))


class _Measure:
    """The loss: of each output by its own spread, so that none outweighs the others."""

    def __init__(self, lesson: Lesson) -> None:
        self._kinds: dict[str, float] = {}
        for name, first in lesson.answers[0].items():
            if first.dtype.kind != "f":
                continue
            numbers = np.concatenate([answer[name].ravel() for answer in lesson.answers]).astype(np.float64)
            is_distribution = (
                first.ndim > 1 and first.shape[-1] > 1 and all(_is_distribution(one[name]) for one in lesson.answers)
            )
            self._kinds[name] = 0.0 if is_distribution else max(float(np.var(numbers)), _LEAST_SPREAD)
        if not self._kinds:
            raise ValueError("no output has numbers with a fraction, which training could bring nearer")

    def __call__(self, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
        losses: list[Any] = []
        for name, spread in self._kinds.items():
            right = wanted[name]
            if spread > 0.0:
                losses.append(torch.mean(torch.square(got[name] - right)) / spread)
                continue
            # Probabilities: a square would hardly move one that is near 0.
            logs = torch.log(got[name].clamp_min(1e-12))
            entropy = torch.special.xlogy(right, right) - right * logs
            losses.append(entropy.sum(-1).mean())
        return torch.stack(losses).mean()


def _is_distribution(answer: NDArray[Any]) -> bool:
    return bool((answer >= 0).all() and np.allclose(answer.sum(axis=-1, dtype=np.float64), 1.0, atol=1e-3))


def _group(lesson: Lesson, places: NDArray[np.int64]) -> list[_Group]:
    """Put requests of one shape together, so that they run as one batch."""
    groups: dict[object, list[int]] = {}
    for place in list[int](places.tolist()):
        groups.setdefault((_list_shapes(lesson.rows[place]), _list_shapes(lesson.answers[place])), []).append(place)
    join = np.concatenate if lesson.is_batched else np.stack

    def gather(source: Sequence[Arrays], members: list[int]) -> dict[str, Any]:
        return {name: torch.from_numpy(join([source[place][name] for place in members])) for name in source[members[0]]}

    return [_Group(gather(lesson.rows, members), gather(lesson.answers, members), len(members)) for members in groups.values()]


def _list_shapes(arrays: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape) for name, array in arrays.items())


def _draw(groups: Sequence[_Group], batch_size: int, random: np.random.Generator) -> list[tuple[_Group, Any]]:
    """Give an epoch's batches in an order of chance."""
    batches: list[tuple[_Group, Any]] = []
    for group in groups:
        order = random.permutation(group.size)
        batches += [(group, torch.from_numpy(order[start : start + batch_size])) for start in range(0, group.size, batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


def _run(network: Network, group: _Group, places: Any, lesson: Lesson) -> dict[str, Any]:
    if lesson.is_batched:
        return network({name: array[places] for name, array in group.inputs.items()})
    made = [network({name: array[place] for name, array in group.inputs.items()}) for place in places]
    return {name: torch.stack([one[name] for one in made]) for name in made[0]}


def _validate(network: Network, groups: Sequence[_Group], lesson: Lesson, measure: _Measure) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for group in groups:
            for places in torch.arange(group.size).split(256):
                answers = {name: made[places] for name, made in group.answers.items()}
                total += float(measure(_run(network, group, places, lesson), answers)) * len(places)
                count += len(places)
    error = total / count
    return error if math.isfinite(error) else float("inf")


def _keep_zeros(masked: Sequence[tuple[Any, Any]]) -> None:
    with torch.no_grad():
        for weight, mask in masked:
            weight.mul_(mask)


def _copy(network: Network) -> dict[str, Any]:
    return {name: weight.detach().clone() for name, weight in network.weights.items()}
