"""What a study knows of its trials, and what follows from it: the front, the best, the hypervolume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from argosy.errors import InputError, list_choices
from argosy.search.space import Value, is_finite, is_text

__all__ = [
    "Direction",
    "Record",
    "check_objectives",
    "choose_best",
    "find_front",
    "list_ancestry",
    "measure_hypervolume",
    "measure_violation",
]

Direction = Literal["minimize", "maximize"]
State = Literal["waiting", "running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Record:
    """One trial, as the journal has it."""

    number: int
    """Counted from 0."""
    parameters: dict[str, Value]
    state: State
    values: dict[str, float] = field(default_factory=dict[str, float])
    """By objective, once it is done."""
    violation: float = 0.0
    """How far it breaks the guard: 0 if it holds, and more the farther."""
    constraint: float = 0.0
    """The part of it that was told beside the guard."""
    steps: dict[int, float] = field(default_factory=dict[int, float])
    """What was reported on the way, by step."""
    reason: str = ""
    """Why it failed or was stopped."""
    attempts: int = 1
    """More than 1: so often a process began it that was killed before it was told."""
    same_as: int | None = None
    """An earlier trial that has the same parameters, and goes on from the same weights."""
    parent: int | None = None
    """The trial of a population from whose weights it goes on; None: it begins anew."""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Whatever else was told of it."""
    seconds: float | None = None
    """From asking to telling."""

    @property
    def is_valid(self) -> bool:
        """It is done, and holds the guard."""
        return self.state == "done" and self.violation <= 0.0

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {
            "number": self.number,
            "parameters": self.parameters,
            "state": self.state,
            "values": self.values,
            "violation": self.violation,
            "constraint": self.constraint,
            "steps": {str(step): value for step, value in self.steps.items()},
            "reason": self.reason,
            "attempts": self.attempts,
            "same_as": self.same_as,
            "parent": self.parent,
            "notes": self.notes,
            "seconds": self.seconds,
        }


def check_objectives(objectives: Mapping[str, str]) -> dict[str, Direction]:
    """Give objectives as they were given.

    Raises:
        InputError: `bad_option`, none, or another direction.
    """
    expected = "names, each with `minimize` or `maximize`"
    given = cast("object", objectives)
    if not isinstance(given, Mapping) or not objectives:
        raise InputError("bad_option", option="objectives", got=str(objectives), expected=expected)
    found: dict[str, Direction] = {}
    for name, direction in objectives.items():
        if not (is_text(name) and name) or direction not in ("minimize", "maximize"):
            raise InputError("bad_option", option="objectives", got={name: direction}, expected=expected)
        found[name] = direction
    return found


def measure_violation(values: Mapping[str, float], guard: Mapping[str, float], objectives: Mapping[str, Direction]) -> float:
    """Say how far values break a guard, relative to its bounds; 0 if they hold it."""
    broken = 0.0
    for name, bound in guard.items():
        lack = values[name] - bound if objectives[name] == "minimize" else bound - values[name]
        broken += max(0.0, lack) / (abs(bound) or 1.0)
    return broken


def find_front(records: Sequence[Record], objectives: Mapping[str, Direction]) -> list[Record]:
    """Give those that hold the guard and that no other is as good as in everything and better in something.

    Of trials that are the same the first that holds it; by the first objective, the best first.
    """
    valid = _list_distinct([record for record in records if record.is_valid])
    costs = {record.number: _cost(record, objectives) for record in valid}
    front = [one for one in valid if not any(_dominates(costs[other.number], costs[one.number]) for other in valid)]
    return sorted(front, key=lambda record: (costs[record.number], record.number))


def choose_best(
    records: Sequence[Record], objectives: Mapping[str, Direction], guard: Mapping[str, float], objective: str | None
) -> Record | None:
    """Give the best trial within a guard; None if there is none.

    Args:
        records: all of them.
        objectives: and their directions.
        guard: what values must reach, by objective.
        objective: what is to be best; None: the first that the guard does not name.

    Raises:
        InputError: `unknown_choice`; `bad_option`, a bound is no finite number.
    """
    if not isinstance(cast("object", guard), Mapping) or not all(map(is_finite, guard.values())):
        raise InputError("bad_option", option="guard", got=guard, expected="finite bounds by the names of objectives")
    for name in (*guard, *([] if objective is None else [objective])):
        if name not in objectives:
            raise InputError("unknown_choice", kind="objective", got=name, known=list_choices(objectives))
    free = [name for name in objectives if name not in guard]
    first = objective or (free or list(objectives))[0]
    order: dict[str, Direction] = {first: objectives[first], **objectives}
    done = [one for one in records if one.state == "done" and one.constraint <= 0.0]
    held = _list_distinct([one for one in done if measure_violation(one.values, guard, objectives) <= 0.0])
    return min(held, key=lambda one: (_cost(one, order), one.number), default=None)


def measure_hypervolume(records: Sequence[Record], objectives: Mapping[str, Direction], reference: Mapping[str, float]) -> float:
    """Give the volume between the front and a point that is worse than all of it: the larger, the better the front.

    Args:
        records: all of them.
        objectives: and their directions.
        reference: by objective; a trial that is not better than it in everything adds nothing.

    Raises:
        InputError: `bad_option`, the reference has no value for an objective, or too many.
    """
    given = cast("object", reference)
    if not isinstance(given, Mapping) or reference.keys() != objectives.keys() or not all(map(is_finite, reference.values())):
        expected = f"a finite value for each of {list_choices(objectives)}"
        raise InputError("bad_option", option="reference", got=reference, expected=expected)
    point = _cost(Record(0, {}, "done", dict(reference)), objectives)
    costs = [_cost(record, objectives) for record in find_front(records, objectives)]
    inside = [cost for cost in costs if all(value < limit for value, limit in zip(cost, point, strict=True))]
    return _measure_volume(inside, point)


def list_ancestry(records: Sequence[Record], record: Record) -> list[Record]:
    """Give the trials that led to one, itself the last: each goes on from the weights of the one before it."""
    known = {one.number: one for one in records}
    way = [record]
    while way[0].parent is not None:
        way.insert(0, known[way[0].parent])
    return way


def _list_distinct(records: Sequence[Record]) -> list[Record]:
    """Give of those with the same parameters, from the same weights on, the first."""
    found: dict[tuple[Value | None, ...], Record] = {}
    for record in records:
        found.setdefault((record.parent, *record.parameters.values()), record)
    return list(found.values())


def _cost(record: Record, objectives: Mapping[str, Direction]) -> tuple[float, ...]:
    """Give the values, the less the better."""
    return tuple(record.values[name] * (1 if way == "minimize" else -1) for name, way in objectives.items())


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _measure_volume(costs: Sequence[tuple[float, ...]], point: tuple[float, ...]) -> float:
    """Slice along the last axis: the volume of each slice is that of the points at or below it, one axis less."""
    if not costs:
        return 0.0
    if len(point) == 1:
        return point[0] - min(cost[0] for cost in costs)
    ordered = sorted(set(costs), key=lambda cost: cost[-1])
    total = 0.0
    for place, cost in enumerate(ordered):
        end = ordered[place + 1][-1] if place + 1 < len(ordered) else point[-1]
        if end > cost[-1]:
            total += (end - cost[-1]) * _measure_volume([below[:-1] for below in ordered[: place + 1]], point[:-1])
    return total
