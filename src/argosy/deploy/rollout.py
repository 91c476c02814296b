"""One rollout: check, load, verify, shift, drain, unload; or a swap where both versions do not fit.

Every step may be taken twice: a control process that starts anew runs the rollout from its beginning,
finds the workers that are loaded already, and goes on. Nothing that fails before the shift touches the
version that is live.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import traceback
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from argosy.deploy.node import Worker
from argosy.deploy.spec import DeploymentSpec, Rollout, choose_runtime
from argosy.errors import ArgosyError, ConflictError, FaultError, NotAllowedError
from argosy.runtimes.base import CODE_RUNTIMES, OWN_THREADS
from argosy.serve.wire.control_messages import AskBusy, BusyAnswer
from argosy.serve.wire.table import LaneEntry
from argosy.serve.worker.cores import count_cores
from argosy.store.manifest import GOLDEN_FILE, OWN_FILES, Version
from argosy.store.preprocess import list_step_files

if TYPE_CHECKING:
    from argosy.deploy.reconcile import Reconciler

__all__ = ["Lane", "build_worker_spec", "estimate_memory", "name_setting", "roll_out"]

LOAD_TIMEOUT_S: Final = 600.0
MAX_LOAD_DEATHS: Final = 2
_POLL_S: Final = 0.02
# A session holds its weights once more while it optimises them; the rest is the runtime itself.
_LOAD_FACTOR: Final = 1.6
_RUNTIME_BYTES: Final = 24 << 20

Message = dict[str, Any]


@dataclass
class Lane:
    """A version of a deployment that fronts know of."""

    spec: DeploymentSpec
    version: Version
    folder: Path
    """The version's files, every digest checked."""
    weight: float = 0.0
    is_draining: bool = False
    num_replicas: int = 0
    """How many it has; 0 while that is left open, and none has been measured."""
    workers: list[str] = field(default_factory=list[str])
    report: Message = field(default_factory=dict[str, Any])
    """What a worker that loaded last has shown; kept while one is being replaced."""

    def __post_init__(self) -> None:
        self.num_replicas = self.num_replicas or self.spec.replicas

    @property
    def runtime(self) -> str:
        """What runs the version here."""
        return choose_runtime(self.spec, self.version.manifest.runtime)

    def describe(self, workers: dict[str, Worker], series: int, num_fronts: int) -> LaneEntry:
        """What fronts are told."""
        reports = [worker.report for name in self.workers if (worker := workers.get(name)) is not None and worker.is_ready]
        if reports:
            # Workers on one machine agree; if not, the one that refuses counts.
            self.report = next((report for report in reports if report and report["join_refusal"]), reports[0] or {})
        manifest = self.version.manifest
        return LaneEntry(
            version=str(self.version.number),
            weight=self.weight,
            is_draining=self.is_draining,
            series=series,
            signature=manifest.signature,
            platform=self.runtime,
            workers=tuple(self.workers),
            max_batch_rows=self.spec.max_batch_rows,
            can_join=bool(self.report) and not self.report["join_refusal"],
            can_pad=self.report.get("pad_refusal") == "",
            join_refusal=self.report.get("join_refusal", ""),
            pad_refusal=self.report.get("pad_refusal", ""),
            service=tuple((rows, length, seconds) for rows, length, seconds in self.report.get("service", ())),
            is_repeatable=manifest.repeatable,
            timeout_s=self.spec.timeout_s,
            max_queue_rows=self.spec.max_queue_rows,
            max_queue_bytes=self.spec.max_queue_bytes,
            created_s=int(datetime.fromisoformat(self.version.created).timestamp()),
            max_streams=max(1, self.spec.max_streams // num_fronts) if manifest.options.get("raw") else 0,
        )


def build_worker_spec(spec: DeploymentSpec, version: Version, folder: Path, num_fronts: int) -> Message:
    """What a worker is told to load. `key` is equal where one worker can stand for another."""
    manifest = version.manifest
    runtime = choose_runtime(spec, manifest.runtime)
    worker: Message = {
        "deployment": spec.name,
        "model": version.name,
        "version": version.number,
        "digest": version.digest,
        "runtime": runtime,
        "precision": spec.precision or "",
        "folder": str(folder),
        "entry": manifest.entry,
        "signature": _strip_signature(msgspec.to_builtins(manifest.signature)),
        "golden": GOLDEN_FILE if manifest.num_golden else "",
        "options": {
            **manifest.options,
            "threads": spec.threads,
            "max_threads": 1 if runtime in OWN_THREADS or not spec.replicas else max(1, count_cores() // spec.replicas),
            "share_weights": runtime == "onnx" and _shares_weights(spec, version, folder),
            **({"precision": spec.precision} if spec.precision else {}),
        },
        "max_batch_rows": spec.max_batch_rows,
        "num_fronts": num_fronts,
    }
    worker["key"] = hashlib.sha256(json.dumps(worker, sort_keys=True).encode()).hexdigest()[:16]
    return worker


def _shares_weights(spec: DeploymentSpec, version: Version, folder: Path) -> bool:
    if spec.share_weights is not None:
        return spec.share_weights
    own = {version.manifest.entry, *OWN_FILES, *list_step_files(version.manifest.signature)}
    return any(path.name not in own for path in folder.iterdir())


def _strip_signature(signature: Message) -> Message:
    """Of a tensor its name, datatype and shape alone: labels may be many, and a worker does not need them."""
    keys = ("name", "datatype", "shape")
    tensors = {side: [{key: spec[key] for key in keys} for spec in signature[side]] for side in ("inputs", "outputs")}
    return {**signature, **tensors}


def estimate_memory(spec: DeploymentSpec, version: Version) -> int:
    """Bytes that one replica needs: as measured at an earlier load, else guessed from the artifact's size."""
    measured = version.measurements.get(f"{name_setting(spec)}memory_bytes")
    return int(measured) if measured else int(version.size_bytes * _LOAD_FACTOR) + _RUNTIME_BYTES


def name_setting(spec: DeploymentSpec) -> str:
    """What stands before the name of a measurement that was taken of another runtime than the version's own."""
    return "".join(f"{part}_" for part in (spec.runtime, spec.precision) if part)


async def roll_out(control: Reconciler, rollout: Rollout) -> None:
    """Carry out a rollout to its end, and record how it went."""
    spec = rollout.spec
    started = time.monotonic()
    control.ledger.start_rollout(rollout)
    lane: Lane | None = None
    try:
        lane = await _check(control, rollout)
        old = control.live_lane(spec.name)
        if old is not None and old.version.digest == lane.version.digest:
            await _resize(control, rollout, old, lane)
        elif _must_swap(control, rollout, lane, old):
            assert old is not None
            await _swap(control, rollout, lane, old)
        else:
            await _load(control, rollout, lane)
            await _shift(control, rollout, lane, old)
            if old is not None:
                await _retire(control, rollout, old)
        _say(control, rollout, "done", f"version {spec.version} is live after {time.monotonic() - started:.2f} s")
        control.ledger.end_rollout(rollout, "done")
    except ArgosyError as error:
        await _give_up(control, rollout, lane, str(error))
    except Exception as error:  # the edge of a rollout: whatever went wrong, its caller must not wait for ever
        traceback.print_exc()
        await _give_up(control, rollout, lane, f"Internal error: {type(error).__name__}: {error}")


async def _give_up(control: Reconciler, rollout: Rollout, lane: Lane | None, reason: str) -> None:
    """Take back what was begun; the version that is live is not touched."""
    if lane is not None:
        control.drop_lane(lane)
        await control.publish()
    _say(control, rollout, "failed", reason)
    control.ledger.end_rollout(rollout, "failed")


def _say(control: Reconciler, rollout: Rollout, step: str, detail: str) -> None:
    control.ledger.add_event(rollout, step, detail)
    control.log(f"rollout {rollout.id} of {rollout.spec.name} to version {rollout.spec.version}: {step}: {detail}")


async def _check(control: Reconciler, rollout: Rollout) -> Lane:
    """Find the version and what its runtime needs, check every digest, and unpack it."""
    spec = rollout.spec
    store = control.ledger.store
    version = await asyncio.to_thread(store.get_version, f"{spec.model}@{spec.version}")
    if version.manifest.runtime in CODE_RUNTIMES and not spec.allow_code:
        raise NotAllowedError("code_not_allowed", name=version.name, version=version.number, runtime=version.manifest.runtime)
    await _prepare(control, rollout, choose_runtime(spec, version.manifest.runtime))
    before = time.monotonic()
    folder = await asyncio.to_thread(store.open_artifact, version)
    _say(control, rollout, "check", f"{version.size_bytes} bytes verified in {time.monotonic() - before:.2f} s")
    return Lane(spec, version, folder)


async def _prepare(control: Reconciler, rollout: Rollout, runtime: str) -> None:
    """Have the interpreter of the version's workers before anything else is touched.

    Raises:
        InputError: `missing_extra`.
        FaultError: its environment cannot be built.
    """
    if control.node.find_python(runtime) is None:
        before = time.monotonic()
        _say(control, rollout, "check", f"building the environment of runtime {runtime}; this is done once")
        await control.build_environment(rollout.spec.name, runtime)
        _say(control, rollout, "check", f"environment built in {time.monotonic() - before:.1f} s")


def _must_swap(control: Reconciler, rollout: Rollout, lane: Lane, old: Lane | None) -> bool:
    """Say whether the old version has to leave before the new one can load.

    Raises:
        ConflictError: the new version does not fit at all.
    """
    needed = estimate_memory(lane.spec, lane.version) * max(1, lane.num_replicas)
    free = control.node.free_memory_bytes()
    loaded = sum(worker.memory_bytes for worker in control.node.workers.values() if worker.name in control.workers_of(lane))
    if needed - loaded <= free:
        return False
    freed = sum(control.node.workers[name].memory_bytes for name in (old.workers if old else []) if name in control.node.workers)
    if old is None or needed - loaded > free + freed:
        raise ConflictError(
            "does_not_fit",
            version=lane.version.number,
            name=lane.spec.name,
            needed=f"{needed >> 20} MiB",
            free=f"{max(0, free + freed) >> 20} MiB",
            limit=f"{control.node.memory_limit_bytes >> 20} MiB",
        )
    return True


async def _load(control: Reconciler, rollout: Rollout, lane: Lane) -> None:
    """Have all replicas loaded, verified and measured.

    Raises:
        FaultError: one cannot load, or answers its golden examples wrongly.
    """
    lane.workers = await _start(control, rollout, lane)
    report = control.node.workers[lane.workers[0]].report or {}
    control.keep_measurements(lane, report)
    _say(control, rollout, "verify", _describe_report(lane, report))
    if not lane.num_replicas:
        _say(control, rollout, "load", control.settle_replicas(lane))
        if lane.num_replicas != len(lane.workers):
            lane.workers = await _start(control, rollout, lane)


async def _start(control: Reconciler, rollout: Rollout, lane: Lane) -> list[str]:
    """Start the workers that are missing, and wait until all are ready."""
    names = control.ensure_workers(lane)
    workers = [control.node.workers[name] for name in names]
    _say(control, rollout, "load", f"{len(names)} worker(s)")
    deaths = {worker.name: worker.num_deaths for worker in workers}
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while not all(worker.is_ready for worker in workers):
        await control.node.wait_changed(1.0)
        for worker in workers:
            _check_load(rollout.spec, worker, deaths[worker.name])
        if time.monotonic() > deadline:
            raise _failed(rollout.spec, "load", f"not ready after {LOAD_TIMEOUT_S:.0f} s")
    return names


def _check_load(spec: DeploymentSpec, worker: Worker, num_deaths: int) -> None:
    report = worker.report
    if report is not None and report["state"] == "failed":
        if "tensor" in report:
            fields = {key: report[key] for key in ("tensor", "got", "allowed")}
            if spec.precision == "bfloat16":
                cosines = {"got": max(-1.0, 1.0 - fields["got"]), "allowed": 1.0 - fields["allowed"]}
                raise FaultError("golden_rounded", version=spec.version, name=spec.name, tensor=fields["tensor"], **cosines)
            raise FaultError("golden_differs", version=spec.version, name=spec.name, **fields)
        raise _failed(spec, "load", report["error"])
    if worker.is_gone or worker.num_deaths - num_deaths > MAX_LOAD_DEATHS:
        raise _failed(spec, "load", f"worker {worker.name} died with {worker.last_death}")


def _failed(spec: DeploymentSpec, step: str, detail: str) -> FaultError:
    return FaultError("rollout_failed", name=spec.name, version=spec.version, step=step, detail=detail)


def _describe_report(lane: Lane, report: Message) -> str:
    manifest = lane.version.manifest
    kind = "synthetic " if manifest.golden_is_synthetic else ""
    if "golden_difference" in report:
        golden = f"{manifest.num_golden} {kind}golden examples answered, largest difference {report['golden_difference']:.2g}"
        golden += " (1 - cosine)" if lane.spec.precision == "bfloat16" else ""
    else:
        golden = "no golden examples, nothing verified"
    joining = f"rows are not joined: {report['join_refusal']}" if report["join_refusal"] else "rows are joined"
    if report.get("pad_refusal") and not report["join_refusal"]:
        joining += f", those of different lengths not: {report['pad_refusal']}"
    runtime = " ".join(filter(None, (lane.runtime, lane.spec.precision)))
    return f"loaded by {runtime} in {report['load_s']:.2f} s, {report['threads']} thread(s); {golden}; {joining}"


async def _shift(control: Reconciler, rollout: Rollout, lane: Lane, old: Lane | None) -> None:
    """Give the new version all of the traffic, at once."""
    lane.weight = 1.0
    if old is not None:
        old.weight, old.is_draining = 0.0, True
    control.add_lane(lane)
    control.ledger.shift(rollout)
    await control.publish()
    _say(control, rollout, "shift", f"all requests go to version {lane.version.number}")


async def _retire(control: Reconciler, rollout: Rollout, old: Lane) -> None:
    """Let the old version finish what it holds, then give its memory back."""
    await _drain(control, old, [])
    _say(control, rollout, "drain", f"version {old.version.number} holds no request")
    control.drop_lane(old)
    await control.publish()
    _say(control, rollout, "unload", f"version {old.version.number} unloaded")


async def _drain(control: Reconciler, lane: Lane, workers: list[str]) -> None:
    """Wait until a lane (or some of its workers) holds nothing; never longer than its requests may take."""
    lanes = [] if workers else [(lane.spec.name, str(lane.version.number))]
    deadline = time.monotonic() + lane.spec.timeout_s + 1.0
    while time.monotonic() < deadline:
        answers = await control.node.ask_fronts(AskBusy(tuple(lanes), tuple(workers)), BusyAnswer)
        if not any(answer.is_busy for answer in answers.values()):
            return
        await asyncio.sleep(_POLL_S)


async def _swap(control: Reconciler, rollout: Rollout, lane: Lane, old: Lane) -> None:
    """Unload the old version, then load the new one; requests queue meanwhile, bounded and by deadline."""
    free, needed = control.node.free_memory_bytes(), estimate_memory(lane.spec, lane.version) * max(1, lane.num_replicas)
    _say(
        control,
        rollout,
        "swap",
        f"both versions do not fit ({needed >> 20} MiB needed, {max(0, free) >> 20} MiB free): requests wait while they change",
    )
    lane.weight, old.weight, old.is_draining = 1.0, 0.0, True
    control.add_lane(lane)
    await control.publish()
    await _drain(control, old, [])
    await control.stop_lane_workers(old)
    try:
        await _load(control, rollout, lane)
    except ArgosyError:
        _say(control, rollout, "restore", f"loading version {old.version.number} again")
        # First the table, so that what waits moves to the old version before the new one's queue is gone.
        old.weight, old.is_draining = 1.0, False
        control.drop_lane(lane)
        await control.publish()
        await control.stop_lane_workers(lane)
        await _load(control, rollout, old)
        await control.publish()
        raise
    control.ledger.shift(rollout)
    control.drop_lane(old)
    await control.publish()
    _say(control, rollout, "shift", f"all requests go to version {lane.version.number}")


async def _resize(control: Reconciler, rollout: Rollout, old: Lane, lane: Lane) -> None:
    """The version stays, its settings change: add, replace or remove workers."""
    await _load(control, rollout, lane)
    surplus = [name for name in old.workers if name not in lane.workers]
    old.spec, old.workers, old.num_replicas = lane.spec, lane.workers, lane.num_replicas
    control.ledger.shift(rollout)
    await control.publish()
    _say(control, rollout, "shift", f"{len(lane.workers)} replica(s), {len(surplus)} of the old ones leave")
    if surplus:
        await _drain(control, old, surplus)
        control.node.stop_workers(surplus)
