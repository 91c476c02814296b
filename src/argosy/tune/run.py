"""Tune a model: the whole of `argosy tune` but its command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from argosy.environment import is_importable
from argosy.errors import ConflictError, NotAllowedError
from argosy.home import find_server
from argosy.runtimes.base import ALSO_RUNS, CODE_RUNTIMES, PACKAGES
from argosy.serve.worker.cores import count_cores
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.store.temporary import work_folder
from argosy.tune.bench import Bench, Measurement
from argosy.tune.candidate import Candidate, Engine, list_engines
from argosy.tune.engine import EngineBench, EngineResult
from argosy.tune.journal import Journal, describe_machine
from argosy.tune.search import Goal, Outcome, Search
from argosy.tune.traffic import Requests, Traffic, build_requests

__all__ = ["tune"]


class _Measures:
    """What the search measures with."""

    def __init__(self, engines: EngineBench, servers: Bench, reference: Engine, goal: Goal) -> None:
        self._engines, self._servers, self._reference, self._goal = engines, servers, reference, goal

    def engine(self, engine: Engine) -> EngineResult:
        return self._engines.measure(engine, self._reference, self._goal.min_cosine)

    def server(self, candidate: Candidate, seconds: float) -> Measurement:
        return self._servers.measure(candidate, seconds)


def tune(
    store: Store,
    version: Version,
    traffic: Traffic,
    goal: Goal,
    *,
    allow_code: bool = False,
    share: bool = False,
    restart: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Find the settings that serve a version best on this machine. Nothing is deployed.

    Servers of its own, with homes of their own, are started for it, and stopped.

    Args:
        store: holds the version.
        version: what to serve.
        traffic: who asks, and for what.
        goal: what is wanted, and how long may be looked for it.
        allow_code: run a version that may run code of its maker.
        share: measure although a server of this home runs, which takes part of the machine.
        restart: measure anew what an interrupted run has measured already.
        say: is told what happens.

    Raises:
        ConflictError: `tune_while_serving`, without `share`.
        NotAllowedError: `code_not_allowed`.
        NotFoundError: `no_golden`, there are no examples to send, nor to hold answers against.
        InputError: `bad_option`, the traffic does not fit the version's signature.
        FaultError: `engine_failed`, the version's own runtime cannot run it; `server_failed`, `load_failed`.
    """
    running = find_server(store.home)
    if running is not None and not share:
        raise ConflictError("tune_while_serving", pid=running["pid"], home=store.home)
    manifest = version.manifest
    if manifest.runtime in CODE_RUNTIMES and not allow_code:
        raise NotAllowedError("code_not_allowed", name=version.name, version=version.number, runtime=manifest.runtime)
    golden = store.load_golden(version)
    requests = build_requests(manifest.signature, golden, traffic, version.name)
    available = [name for name in ALSO_RUNS.get(manifest.runtime, ()) if is_importable(PACKAGES[name])]
    engines = list_engines(manifest.runtime, available, count_cores())
    journal = Journal(store.home / "tune" / f"{version.name}.jsonl", _name_subject(version, traffic, goal), is_new=restart)
    if journal.num_resumed:
        say(f"going on with an interrupted run, which has left {journal.num_resumed} measurements")
    for name in set(ALSO_RUNS.get(manifest.runtime, ())) - set(available):
        say(f"runtime {name} is not tried, for it is not installed: pip install 'argosy[{name}]'")
    folder = store.open_artifact(version)
    with work_folder("argosy-tune-") as work:
        alone = EngineBench(version, folder, golden, requests, work / "engines", goal.p99_s)
        with Bench(version, folder, golden, traffic, requests, work, goal.p99_s) as servers:
            return Search(
                _Measures(alone, servers, engines[0], goal),
                engines,
                goal,
                rows=traffic.rows,
                num_cores=count_cores(),
                joins=_joins(version, requests),
                is_open=traffic.is_open,
                journal=journal,
                say=say,
            ).run()


def _name_subject(version: Version, traffic: Traffic, goal: Goal) -> dict[str, Any]:
    # Of a longer search the measurements are longer, too; but how much time it has does not change what they say.
    wanted = {"p99_s": str(goal.p99_s), "min_cosine": goal.min_cosine, "trial_s": goal.trial_s}
    return {"digest": version.digest, "machine": describe_machine(), "traffic": msgspec.to_builtins(traffic), "goal": wanted}


def _joins(version: Version, requests: Requests) -> bool:
    """Say whether requests can share a batch: all are alike but for their rows, or the version says how they are padded."""
    signature = version.manifest.signature
    shapes = {tuple(array.shape[1:] for array in arrays.values()) for arrays in requests.arrays}
    return signature.is_batched and (signature.ragged is not None or len(shapes) < len(requests.arrays))
