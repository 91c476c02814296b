"""Measure versions as they will be used: behind a real server, by clients of another process, in turn with their original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from argosy.bench.artifact import Artifact
from argosy.bench.rows import Rows
from argosy.compress.measure import Cost, Overhead, Served
from argosy.compress.publish import answer_golden, judge_joining
from argosy.compress.recipe import Recipe
from argosy.compress.result import Tried
from argosy.compress.sample import thin_rows
from argosy.deploy.spec import Arrival
from argosy.errors import ArgosyError
from argosy.server import Server, serve
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.tune.client import run_client, write_requests
from argosy.tune.load import Job
from argosy.tune.traffic import Requests, build_mix

__all__ = ["Candidate", "Stage", "serve_finalists"]

_ORIGINAL: Final = "original"
_NUM_REQUESTS: Final = 64
"""Different bodies."""
_NUM_GOLDEN: Final = 4
_CLIENTS: Final = 32
_LEAST_CLIENTS: Final = 4
_PATIENCE_S: Final = 2.0
"""Where many clients would wait longer, fewer ask."""
_LEAST_S, _MOST_S = 0.3, 3.0
"""A measurement takes so long, by how long a request takes."""
_LEAST_REQUESTS: Final = 10
"""That a client should send in it."""
_WARM_S: Final = 0.1
_MAX_FAILED: Final = 0.01
_ROUNDS: Final = 5
_MOST_ROUNDS: Final = 9
_CALM: Final = 0.05
"""Where rounds differ by a larger part, there are more than `_ROUNDS`."""
_FIRST_ROUNDS: Final = 3
"""After which those that are behind are out."""
_BEHIND: Final = 0.05
_RACES: Final = ("latency", "throughput")
"""Objectives in which clients see who is ahead."""
_MAX_TOLD: Final = 400


class Candidate(NamedTuple):
    """What is served beside its original."""

    recipe: Recipe
    artifact: Artifact
    threads: int
    """Of one operator. A worker finds them itself, and may find others when it is asked again: here all are as they were."""


@dataclass
class _Lane:
    """A deployment of the private server, and what clients saw of it."""

    sizes: list[int]
    alone: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    load: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    problem: str = ""


class Stage:
    """A context: a private server on free ports with the original, which starts when it is needed.

    Args:
        artifact: the original's.
        parent: the original.
        rows: real ones, of which requests are made.
        folder: for files; new.
        trace: requests are of as many rows, and as long, as its are; none: of one row each, as the rows are.

    Raises:
        InputError: `bad_option`, the trace does not fit the signature.
    """

    def __init__(self, artifact: Artifact, parent: Version, rows: Rows, folder: Path, trace: Sequence[Arrival] = ()) -> None:
        self._artifact, self._parent, self._folder = artifact, parent, folder
        # Texts and pictures were made tensors once, for all versions alike: the model is what is measured.
        self._signature = msgspec.structs.replace(parent.manifest.signature, preprocess=())
        self._golden = _pick_golden(rows, is_batched=self._signature.is_batched)
        self._requests = self._make_requests(rows, trace)
        self._server: Server | None = None
        self._stack = ExitStack()
        self._original = _Lane([])
        self._num_candidates = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def problem(self) -> str:
        """Why the original cannot be served, so that nothing can be measured beside it; "" where it can, as far as is known."""
        return self._original.problem

    def race(self, candidates: Sequence[Candidate], before: Cost, objective: str) -> list[tuple[Served, Served] | str]:
        """Serve candidates and their original, and send all of them requests in turn; who is far behind is soon left out.

        Args:
            candidates: at least one.
            before: the original's cost without a server, by which the number of clients is chosen.
            objective: in `latency` or `throughput` a candidate may be behind another.

        Returns:
            For each what clients saw of the original and of itself, in the same rounds; or why it cannot be served.

        Raises:
            FaultError: `server_failed`, `load_failed`: the server, or the client, did not do its work.
        """
        self._start(before)
        names = {place: f"candidate{self._num_candidates + place}" for place in range(len(candidates))}
        self._num_candidates += len(candidates)
        self._original.alone.clear()
        self._original.load.clear()
        lanes = {place: self._deploy(names[place], candidate) for place, candidate in enumerate(candidates)}
        is_race = objective in _RACES
        try:
            for number in range(_MOST_ROUNDS):
                running = [(_ORIGINAL, self._original)]
                running += [
                    (names[place], lane) for place, lane in lanes.items() if len(lane.load) == number and not lane.problem
                ]
                if is_race and number >= _FIRST_ROUNDS:
                    running = _drop_behind(running, objective)
                if len(running) == 1 or self.problem or (number >= _ROUNDS and (not is_race or _are_calm(running))):
                    break
                # Who comes first has what the last one left: caches, a clock that is up or down.
                for name, lane in running if number % 2 else running[::-1]:
                    self._measure(name, lane, before)
        finally:
            for name in names.values():
                self._remove(name)
        return [lane.problem or self.problem or self._compare(lane) for lane in lanes.values()]

    def measure_overhead(self, before: Cost) -> Overhead | None:
        """Give what serving adds to the original's own cost; None where nothing was measured.

        Args:
            before: the original's own cost, measured without a server.
        """
        if self.problem or not self._original.load:
            return None
        served = _sum_up(self._original, len(self._original.load))
        row_s = 1 / served.rows_per_s - before.batch_row_s
        return Overhead(served.p50_s - before.latency_s, row_s, served.memory_bytes - before.memory_bytes)

    def _start(self, before: Cost) -> None:
        if self._server is None:
            self._folder.mkdir(parents=True)
            home = self._folder / "home"
            self._server = self._stack.enter_context(serve(home=home, num_fronts=1, host="127.0.0.1"))
            original = Candidate((), self._artifact, before.threads)
            self._original = self._deploy(_ORIGINAL, original)

    def _deploy(self, name: str, candidate: Candidate) -> _Lane:
        """Publish a candidate in the private home and have it served with the settings of `argosy deploy`."""
        assert self._server is not None
        recipe, artifact, threads = candidate
        lane = _Lane(write_requests(self._folder / name, self._requests.arrays, self._signature, name))
        manifest = self._parent.manifest
        own = replace(artifact, signature=self._signature)
        try:
            Store(self._server.home).publish(
                name,
                artifact.files,
                signature=self._signature,
                runtime=artifact.runtime,
                entry=artifact.entry,
                repeatable=manifest.repeatable,
                golden=answer_golden(own, self._golden),
                options=artifact.options,
                joining=judge_joining(self._parent, own, recipe) if recipe else manifest.joining,
            )
            # The version's code was allowed, or it would not have come here.
            self._server.deploy(name, threads=threads, allow_code=True)
        except ArgosyError as error:
            lane.problem = f"it cannot be served: {error.message}"[:_MAX_TOLD]
        return lane

    def _remove(self, name: str) -> None:
        """Give the memory of a deployment back."""
        assert self._server is not None
        (self._folder / name).unlink(missing_ok=True)
        with self._server.admin() as admin:
            if any(one["spec"]["name"] == name for one in admin.status()["deployments"]):
                admin.undeploy(name)

    def _measure(self, name: str, lane: _Lane, before: Cost) -> None:
        """Have one client send requests, and then many."""
        row_s = before.batch_row_s * float(np.mean(self._requests.rows))
        clients = int(min(_CLIENTS, max(_LEAST_CLIENTS, _PATIENCE_S / row_s)))
        for found, connections, request_s in ((lane.alone, 1, before.latency_s), (lane.load, clients, clients * row_s)):
            seconds = min(_MOST_S, max(_LEAST_S, _LEAST_REQUESTS * request_s))
            found.append(self._send(name, lane, connections, seconds))
            lane.problem = _find_problem(found[-1])
            if lane.problem:
                return

    def _send(self, name: str, lane: _Lane, connections: int, seconds: float) -> dict[str, Any]:
        assert self._server is not None
        job: Job = {
            "port": int(self._server.url.rpartition(":")[2]),
            "file": str(self._folder / name),
            "sizes": lane.sizes,
            "rows": self._requests.rows,
            "connections": connections,
            "warm_s": _WARM_S,
            "seconds": seconds,
            "schedule": [],
            "limit_s": float("inf"),
        }
        found = run_client(job)
        with self._server.admin() as admin:
            lanes = [lane for one in admin.status()["deployments"] if one["spec"]["name"] == name for lane in one["lanes"]]
        memory = sum(worker["memory_bytes"] for lane in lanes for worker in lane["workers"])
        return {**found, "connections": connections, "memory_bytes": memory}

    def _make_requests(self, rows: Rows, trace: Sequence[Arrival]) -> Requests:
        if trace:
            return build_mix(self._signature, self._golden, trace, self._parent.name)
        few = thin_rows(rows, _NUM_REQUESTS)
        return Requests(list(few), [1] * len(few), {})

    def _compare(self, lane: _Lane) -> tuple[Served, Served]:
        rounds = len(lane.load)
        return _sum_up(self._original, rounds), _sum_up(lane, rounds)


def serve_finalists(
    stage: Stage | None,
    tried: list[Tried],
    made: Mapping[int, Artifact],
    places: Sequence[int],
    objective: str,
    say: Callable[[str], None],
) -> None:
    """Measure finalists as served, and write into `tried` what was found of them; of the others, what is to be expected.

    Args:
        stage: None measures nothing.
        tried: all that was tried.
        made: what came of it, by its place.
        places: of the finalists.
        objective: a name of `OBJECTIVES`; "" for none.
        say: is told what happens.

    Raises:
        FaultError: as `Stage.race`.
    """
    left = [place for place in places if not tried[place].problem]
    while stage is not None and left and not stage.problem:
        # A size is known: only those that may be chosen by it are served.
        racing = _list_smallest(left, tried) if objective == "size" else left
        _race(stage, tried, made, racing, objective, say)
        left = [] if any(not tried[place].problem for place in racing) else [place for place in left if place not in racing]


def _race(
    stage: Stage, tried: list[Tried], made: Mapping[int, Artifact], racing: list[int], objective: str, say: Callable[[str], None]
) -> None:
    before = tried[racing[0]].before
    assert before is not None
    say(f"serving the original and {', '.join(tried[place].title for place in racing)} ...")
    candidates = [
        Candidate(tried[place].recipe, made[place], cost.threads) for place in racing if (cost := tried[place].after) is not None
    ]
    found = stage.race(candidates, before, objective)
    if stage.problem:
        say(f"the original: {stage.problem}")
        return
    overhead = stage.measure_overhead(before)
    for place, one in enumerate(tried):
        if one.before is not None and one.after is not None:
            costs = {"before": replace(one.before, overhead=overhead), "after": replace(one.after, overhead=overhead)}
            tried[place] = replace(one, **costs)
    for place, seen in zip(racing, found, strict=True):
        tried[place] = _add_served(tried[place], seen)
        say(f"served: {tried[place].title}: {seen if isinstance(seen, str) else _describe(*seen)}")


def _list_smallest(places: Sequence[int], tried: Sequence[Tried]) -> list[int]:
    sizes = {place: cost.size_bytes for place in places if (cost := tried[place].after) is not None}
    return [place for place, size in sizes.items() if size <= min(sizes.values()) * (1 + _BEHIND)]


def _describe(old: Served, new: Served) -> str:
    parts = [(new.p50_s / old.p50_s, "an answer to one client takes"), (new.load_p99_s / old.load_p99_s, "p99 under load is")]
    told = [f"{words} {ratio:.2f} of the original's" for ratio, words in parts]
    return f"{', '.join(told)}, {new.rows_per_s / old.rows_per_s:.2f} times the rows a second"


def _add_served(one: Tried, seen: tuple[Served, Served] | str) -> Tried:
    assert one.before is not None and one.after is not None
    if isinstance(seen, str):
        return replace(one, problem=seen)
    return replace(one, before=replace(one.before, served=seen[0]), after=replace(one.after, served=seen[1]))


def _drop_behind(running: list[tuple[str, _Lane]], objective: str) -> list[tuple[str, _Lane]]:
    """Leave out candidates that are behind the best one; the original stays, for all are held against it."""
    original, *others = running
    took = {name: _take_s(lane, objective) for name, lane in others}
    least = min(took.values(), default=0.0)
    return [original, *((name, lane) for name, lane in others if took[name] <= least * (1 + _BEHIND))]


def _are_calm(running: Sequence[tuple[str, _Lane]]) -> bool:
    return all(_sum_up(lane, len(lane.load)).noise <= _CALM for _, lane in running)


def _take_s(lane: _Lane, objective: str) -> float:
    served = _sum_up(lane, len(lane.load))
    return served.p50_s if objective == "latency" else 1 / served.rows_per_s


def _find_problem(found: Mapping[str, Any]) -> str:
    """Say why what a client saw is no measurement; "" if it is one."""
    if found["error"] or found["failed"] > _MAX_FAILED or found["p99_s"] is None:
        detail = found["error"] or "not answered in time"
        return f"as served, {found['failed']:.0%} of the requests of {found['connections']} client(s) failed: {detail}"[
            :_MAX_TOLD
        ]
    return ""


def _sum_up(lane: _Lane, rounds: int) -> Served:
    """Give the medians of the first rounds."""

    def take(found: Sequence[Mapping[str, Any]], name: str) -> float:
        return float(median(one[name] for one in found[:rounds]))

    return Served(
        p50_s=take(lane.alone, "p50_s"),
        p99_s=take(lane.alone, "p99_s"),
        load_p50_s=take(lane.load, "p50_s"),
        load_p99_s=take(lane.load, "p99_s"),
        rows_per_s=take(lane.load, "rows_per_s"),
        connections=lane.load[0]["connections"],
        memory_bytes=round(take(lane.load, "memory_bytes")),
        rounds=rounds,
        noise=max(_spread(lane.alone[:rounds], "p50_s"), _spread(lane.load[:rounds], "rows_per_s")),
        tail_noise=_spread(lane.load[:rounds], "p99_s"),
    )


def _spread(found: Sequence[Mapping[str, Any]], name: str) -> float:
    low, middle, high = np.quantile([one[name] for one in found], (0.25, 0.5, 0.75))
    return float((high - low) / 2 / middle)


def _pick_golden(rows: Rows, *, is_batched: bool) -> Golden:
    """Put some rows of the shape that most have into examples, without answers."""
    shapes = [tuple(array.shape for array in row.values()) for row in rows]
    common = max(set(shapes), key=shapes.count)
    alike = [row for row, shape in zip(rows, shapes, strict=True) if shape == common][:_NUM_GOLDEN]
    join = np.concatenate if is_batched else np.stack
    return Golden({name: join([row[name] for row in alike]) for name in alike[0]}, {})
