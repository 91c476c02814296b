"""The node that a control process runs on: its workers, through the supervisor; its fronts, by their links."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from argosy.environment import find_interpreter, get_environment, is_importable, lives_apart
from argosy.errors import FaultError, InputError, MessageError
from argosy.runtimes.base import PACKAGES
from argosy.serve.wire.channel import Channel, read_message, write_message
from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import (
    MAX_ERRANDS,
    Accuse,
    Answer,
    Ask,
    ErrandDone,
    LoadModel,
    Ready,
    Report,
    StartWorker,
    StopWorker,
    UnloadModel,
    WorkerDied,
    WorkerGone,
    WorkerState,
)
from argosy.serve.wire.control_messages import Message as WireMessage

__all__ = ["LocalNode", "Worker"]

_ASK_TIMEOUT_S: Final = 10.0

Message = dict[str, Any]
A = TypeVar("A", bound=Answer)


@dataclass
class Worker:
    """A worker process as the control process knows it."""

    name: str
    spec: Message
    pid: int = 0
    report: Message | None = None
    num_deaths: int = 0
    last_death: str = ""
    """How it died last, with the end of its log."""
    is_gone: bool = False
    """It will not be started again."""

    @property
    def is_ready(self) -> bool:
        """True when it has loaded and verified its model."""
        return self.pid != 0 and self.report is not None and self.report["state"] == "ready"

    @property
    def memory_bytes(self) -> int:
        """What it holds, as measured after its load; 0 before."""
        return int(self.report.get("memory_bytes", 0)) if self.report is not None else 0


@dataclass
class _FrontLink:
    """A front's end of the control link."""

    name: str
    pid: int
    writer: asyncio.StreamWriter
    pending: dict[int, tuple[type[Answer], asyncio.Future[Any]]] = field(
        default_factory=dict[int, "tuple[type[Answer], asyncio.Future[Any]]"]
    )
    num_errands: int = 0
    """That it waits for."""


class LocalNode:
    """Workers and fronts of this machine.

    Args:
        channel: to the supervisor.
        memory_limit_bytes: what all workers may use together; 0 stands for 90 % of what there is.
        on_front: called with a front's name when it has connected, so that it gets a table.
        on_errand: carries out what a client asked a front for, and returns the answer.
    """

    def __init__(
        self,
        channel: Channel,
        memory_limit_bytes: int,
        on_front: Callable[[str], None],
        on_errand: Callable[[LoadModel | UnloadModel], Awaitable[ErrandDone]],
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.fronts: dict[str, _FrontLink] = {}
        self.changed = asyncio.Event()
        self.memory_limit_bytes = memory_limit_bytes or int(0.9 * _total_memory_bytes())
        self._channel = channel
        self._on_front = on_front
        self._on_errand = on_errand
        self._errands: set[asyncio.Task[None]] = set()
        self._next_id = 0

    # interpreters

    def find_python(self, runtime: str) -> str | None:
        """The interpreter of a runtime's workers; None while its environment is not built.

        Raises:
            InputError: `missing_extra`, the runtime's package is neither here nor has an environment.
            NotAllowedError: `unsafe_cache`, other users may change what would be run.
        """
        package = PACKAGES.get(runtime)
        if package is None or is_importable(package):
            return sys.executable
        if not lives_apart(package):
            raise InputError("missing_extra", feature=f"Runtime {runtime}", package=package, extra=runtime)
        return str(find_interpreter(package)) if get_environment(package).is_built else None

    async def build_environment(self, runtime: str) -> None:
        """Build the environment of a runtime; this process does its other work meanwhile.

        Raises:
            NotAllowedError: as `find_python`.
            FaultError: `environment_failed`, `environment_python`.
        """
        await asyncio.to_thread(find_interpreter, PACKAGES[runtime])

    # workers

    def start_worker(self, deployment: str, version: int, spec: Message) -> str:
        """Have the supervisor start a worker; returns its name.

        Raises:
            FaultError: `environment_failed`, the environment of its runtime is not there any more; else as `find_python`.
            InputError: `spec_too_large`, no message holds the spec.
        """
        python = self.find_python(spec["runtime"])
        if python is None:
            raise FaultError("environment_failed", name=spec["runtime"], detail="it was removed while it was in use")
        if python != sys.executable:
            spec = {**spec, "python": python}
        name = f"w-{deployment}-{version}-{secrets.token_hex(4)}"
        try:
            self._channel.send(StartWorker(name, spec))
        except MessageError as error:
            if error.key != "message_too_large":
                raise
            got, limit = error.fields["got"], error.fields["limit"]
            raise InputError("spec_too_large", name=deployment, got=got, limit=limit) from None
        self.workers[name] = Worker(name, spec)
        return name

    def stop_workers(self, names: Iterable[str]) -> None:
        """Have the supervisor end workers; they are known until they have gone."""
        for name in names:
            if name in self.workers:
                self._channel.send(StopWorker(name))

    def take_supervisor_message(self, message: WireMessage) -> None:
        """Follow what the supervisor says of a worker."""
        match message:
            case WorkerState(name, pid, spec, deaths, report):
                worker = self.workers.setdefault(name, Worker(name, spec))
                worker.pid, worker.report, worker.num_deaths = pid, _describe(report), deaths
            case WorkerGone(name):
                self._bury(name, "stopped; its log ends: ", None, is_final=True)
            case WorkerDied(name, how, log, is_final, report):
                self._bury(name, f"{how}; its log ends: {log[-600:].strip()}", _describe(report), is_final=is_final)
            case _:
                pass
        self.changed.set()

    def _bury(self, name: str, last_death: str, report: Message | None, *, is_final: bool) -> None:
        worker = self.workers.get(name)
        if worker is None:
            return
        worker.pid = 0
        worker.num_deaths += 1
        worker.report = report if is_final else None
        worker.last_death = last_death
        if is_final:
            worker.is_gone = True
            del self.workers[name]

    async def wait_changed(self, timeout_s: float) -> None:
        """Wait until something about a worker changed, at most `timeout_s`."""
        self.changed.clear()
        try:
            await asyncio.wait_for(self.changed.wait(), timeout_s)
        except TimeoutError:
            pass

    def free_memory_bytes(self) -> int:
        """What further workers may use."""
        used = sum(worker.memory_bytes for worker in self.workers.values())
        return min(self.memory_limit_bytes - used, _available_memory_bytes())

    # fronts

    async def add_front(self, name: str, pid: int, sock: socket.socket) -> None:
        """A front is linked: read what it says until it is gone. One that says what it may not is ended."""
        reader, writer = await asyncio.open_connection(sock=sock)
        front = _FrontLink(name, pid, writer)
        self.fronts[name] = front
        self._on_front(name)
        try:
            while (message := await read_message(reader, "control", "front")) is not None:
                self._take_front_message(front, message)
        except MessageError as error:
            self._channel.send(Accuse(name, pid, error.message))
        if self.fronts.get(name) is front:
            del self.fronts[name]
        for _, future in front.pending.values():
            if not future.done():
                future.set_exception(ConnectionError(f"{name} is gone"))
        writer.close()

    def _take_front_message(self, front: _FrontLink, message: WireMessage) -> None:
        if isinstance(message, (LoadModel, UnloadModel)):
            if front.num_errands >= MAX_ERRANDS:
                refuse(f"more than {MAX_ERRANDS} loads and unloads wait")
            front.num_errands += 1
            task = asyncio.create_task(self._run_errand(front, message))
            self._errands.add(task)
            task.add_done_callback(self._errands.discard)
        elif isinstance(message, Answer):
            kind, future = front.pending.pop(message.id, (type(message), None))
            if kind is not type(message):
                refuse(f"{kind.__name__} was to come, not {type(message).__name__}")
            if future is not None and not future.done():
                future.set_result(message)

    async def _run_errand(self, front: _FrontLink, message: LoadModel | UnloadModel) -> None:
        answer = await self._on_errand(message)
        front.num_errands -= 1
        if not front.writer.is_closing():
            write_message(front.writer, answer)

    async def ask_fronts(self, ask: Ask, kind: type[A]) -> dict[str, A]:
        """Ask every front; answers of this kind by front. A front that dies meanwhile is left out: it holds nothing any more.

        Raises:
            MessageError: `message_too_large`.
        """
        asked = [(front.name, self._ask(front, ask, kind)) for front in list(self.fronts.values())]
        answers: dict[str, A] = {}
        for name, future in asked:
            try:
                answers[name] = await asyncio.wait_for(future, _ASK_TIMEOUT_S)
            except (ConnectionError, TimeoutError):
                continue
        return answers

    def _ask(self, front: _FrontLink, ask: Ask, kind: type[A]) -> asyncio.Future[A]:
        self._next_id += 1
        write_message(front.writer, replace(ask, id=self._next_id))
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        front.pending[self._next_id] = kind, future
        return future


def _describe(report: Report | None) -> Message | None:
    """What a worker said of its model, without what it said nothing of; `service_s` by rows."""
    if report is None:
        return None
    fields = {name: value for name, value in vars(report).items() if value is not None}
    if isinstance(report, Ready):
        return {"state": "ready", **fields, "service_s": dict(report.service_s)}
    # A difference that no number says is as large as can be.
    return {"state": "failed", **({"got": math.inf} if report.tensor is not None else {}), **fields}


def _total_memory_bytes() -> int:
    """The machine's memory, or the control group's limit where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _available_memory_bytes() -> int:
    """What the kernel could give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
