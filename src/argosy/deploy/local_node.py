"""The machine that a control process runs on, as a node: its workers, through the supervisor; its fronts, by their links."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from argosy.deploy.front_link import SILENT_S, FrontLink
from argosy.deploy.node import Asked, WorkerHandle, Workers
from argosy.deploy.table_log import TableLog
from argosy.environment import find_interpreter, get_environment, is_importable, lives_apart
from argosy.errors import FaultError, InputError, MessageError
from argosy.runtimes.base import PACKAGES
from argosy.serve.node.pulse import is_stopped
from argosy.serve.wire.channel import Channel, read_message, write_message
from argosy.serve.wire.control_messages import (
    Accuse,
    Answer,
    ArrivalsAnswer,
    AskArrivals,
    AskBusy,
    AskLinks,
    AskStats,
    BusyAnswer,
    ErrandDone,
    LaneStats,
    LinksAnswer,
    LoadModel,
    Ready,
    Report,
    StartWorker,
    StatsAnswer,
    StopWorker,
    UnloadModel,
    WorkerDied,
    WorkerGone,
    WorkerState,
    encode,
)
from argosy.serve.wire.control_messages import Message as WireMessage

__all__ = ["LocalNode"]

_LOOK_S: Final = 0.1
"""How often it is looked at whether a process that does not answer is stopped."""
Message = dict[str, Any]
Found = TypeVar("Found")


class LocalNode:
    """Workers and fronts of this machine; see `Node`.

    Args:
        channel: to the supervisor.
        memory_limit_bytes: what all workers may use together; 0 stands for 90 % of what there is.
        on_errand: carries out what a client asked a front for, and returns the answer.
    """

    def __init__(
        self,
        channel: Channel,
        memory_limit_bytes: int,
        on_errand: Callable[[LoadModel | UnloadModel], Awaitable[ErrandDone]],
    ) -> None:
        self.workers = Workers()
        self.fronts: dict[str, FrontLink] = {}
        self.changed = asyncio.Event()
        self.memory_limit_bytes = memory_limit_bytes or int(0.9 * _total_memory_bytes())
        self._channel = channel
        self._on_errand = on_errand
        self._tasks: set[asyncio.Task[None]] = set()
        self._log: TableLog | None = None
        self._outbox: deque[bytes] = deque()

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
        python = self.find_python(spec["runtime"])
        if python is None:
            raise FaultError("environment_failed", name=spec["runtime"], detail="it was removed while it was in use")
        if python != sys.executable:
            spec = {**spec, "python": python}
        # What is mapped of its own files counts as well, and is no memory that another could have.
        mapped = _count_file_bytes(Path(spec["folder"]))
        limits = {"free_bytes": max(0, self.free_memory_bytes()), "most_bytes": self.memory_limit_bytes}
        spec = {**spec, **{name: limit + mapped for name, limit in limits.items()}}
        name = f"w-{deployment}-{version}-{secrets.token_hex(4)}"
        try:
            self._send(StartWorker(name, spec))
        except MessageError as error:
            if error.key != "message_too_large":
                raise
            got, limit = error.fields["got"], error.fields["limit"]
            raise InputError("spec_too_large", name=deployment, got=got, limit=limit) from None
        self.workers.add(WorkerHandle(name, spec))
        return name

    def stop_workers(self, names: Iterable[str]) -> None:
        for name in names:
            if (worker := self.workers.get(name)) is not None:
                worker.is_stopping = True
                self._send(StopWorker(name))

    def say(self, message: WireMessage) -> None:
        """Tell the supervisor something."""
        self._send(message)

    def _send(self, message: WireMessage) -> None:
        """Tell the supervisor, which starts one worker after the other: what it has no room for yet waits here."""
        self._outbox.append(encode(message))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._channel.send_bytes(self._outbox[0], ())
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(self._channel.fileno(), self._flush_rest)
                return
            self._outbox.popleft()

    def _flush_rest(self) -> None:
        asyncio.get_running_loop().remove_writer(self._channel.fileno())
        self._flush()

    def take_supervisor_message(self, message: WireMessage) -> None:
        """Follow what the supervisor says of a worker."""
        match message:
            case WorkerState(name):
                worker = self.workers.get(name) or WorkerHandle(name, message.spec)
                worker.pid, worker.report = message.pid, _describe(message.report)
                worker.num_deaths = message.deaths
                worker.is_stopping = worker.is_stopping or message.is_stopping
                self.workers.add(worker)
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
        worker.num_seen_deaths += 1
        worker.num_failed_loads = 0 if report is not None and report["state"] == "ready" else worker.num_failed_loads + 1
        worker.report = report if is_final else None
        worker.last_death = last_death
        self.workers.note(worker)
        if is_final:
            worker.is_gone = True
            self.workers.remove(worker)

    async def wait_changed(self, timeout_s: float) -> None:
        self.changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
        except TimeoutError:
            pass

    def free_memory_bytes(self) -> int:
        used = sum(worker.memory_bytes for worker in self.workers.values())
        return min(self.memory_limit_bytes - used, _available_memory_bytes())

    # fronts

    async def add_front(self, name: str, pid: int, sock: socket.socket) -> None:
        """A front is linked: it is told the table, and heard until it is gone. One that says what it may not is ended."""
        reader, writer = await asyncio.open_connection(sock=sock)
        front = self.fronts[name] = FrontLink(name, pid, writer)
        if self._log is not None:
            front.tell(self._log)
        self._spawn(self._hear(front, reader))

    async def _hear(self, front: FrontLink, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await read_message(reader, "control", "front")) is not None:
                if isinstance(message, (LoadModel, UnloadModel)):
                    front.begin_errand()
                    self._spawn(self._run_errand(front, message))
                elif isinstance(message, Answer):
                    front.take_answer(message)
        except MessageError as error:
            self._send(Accuse(front.name, front.pid, error.message))
        if self.fronts.get(front.name) is front:
            del self.fronts[front.name]
        front.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_errand(self, front: FrontLink, message: LoadModel | UnloadModel) -> None:
        answer = await self._on_errand(message)
        front.end_errand()
        if not front.writer.is_closing():
            write_message(front.writer, answer)

    def tell_table(self, log: TableLog) -> None:
        self._log = log
        for front in self.fronts.values():
            front.tell(log)

    async def wait_told(self) -> tuple[str, ...]:
        epoch = self._log.epoch if self._log is not None else 0
        return (await self._gather(lambda front: front.reach(epoch))).silent

    async def ask_busy(self, lanes: Iterable[tuple[str, str]], workers: Iterable[str]) -> Asked[bool]:
        epoch = self._log.epoch if self._log is not None else 0
        question = AskBusy(tuple(lanes), tuple(workers))

        async def ask(front: FrontLink) -> bool:
            await front.reach(epoch)
            return (await front.ask(question, BusyAnswer)).is_busy

        return await self._gather(ask)

    async def ask_links(self, name: str, workers: Iterable[str], *, is_raw: bool) -> Asked[tuple[str, ...]]:
        question = AskLinks(name, tuple(workers), is_raw)

        async def ask(front: FrontLink) -> tuple[str, ...]:
            return (await front.ask(question, LinksAnswer)).lacking

        return await self._gather(ask)

    async def ask_stats(self) -> Asked[tuple[LaneStats, ...]]:
        async def ask(front: FrontLink) -> tuple[LaneStats, ...]:
            return (await front.ask(AskStats(), StatsAnswer)).lanes

        return await self._gather(ask)

    async def ask_arrivals(self, recording: str, name: str) -> Asked[ArrivalsAnswer]:
        async def ask(front: FrontLink) -> ArrivalsAnswer:
            return await front.ask(AskArrivals(recording, name), ArrivalsAnswer)

        return await self._gather(ask)

    async def _gather(self, ask: Callable[[FrontLink], Coroutine[Any, Any, Found]]) -> Asked[Found]:
        """Ask all fronts at once; one that dies meanwhile is left out."""
        answers: dict[str, Found] = {}
        silent: list[str] = []

        async def hear(front: FrontLink) -> None:
            # One that is known to be silent is not waited for, and finds no further questions when it comes back.
            if _is_silent(front):
                silent.append(front.name)
                return
            asked = asyncio.ensure_future(ask(front))
            try:
                while not (await asyncio.wait({asked}, timeout=min(_LOOK_S, front.patience_s)))[0]:
                    if _is_silent(front):
                        silent.append(front.name)
                        return
                answers[front.name] = asked.result()
            except ConnectionError:
                pass
            finally:
                asked.cancel()

        await asyncio.gather(*(hear(front) for front in list(self.fronts.values())))
        return Asked(answers, tuple(sorted(silent)))


def _is_silent(front: FrontLink) -> bool:
    """Say whether a front has not answered, and need not be waited for: for long, or as its process is stopped."""
    left_s = front.patience_s
    return not left_s or (left_s < SILENT_S and is_stopped(front.pid))


def _describe(report: Report | None) -> Message | None:
    """What a worker said of its model, without what it said nothing of; `service_s` by rows."""
    if report is None:
        return None
    fields = {name: value for name, value in vars(report).items() if value is not None}
    if isinstance(report, Ready):
        return {"state": "ready", **fields, "service_s": dict(report.service_s)}
    return {"state": "failed", **fields}


def _total_memory_bytes() -> int:
    """The machine's memory, or the control group's limit where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _count_file_bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*"))
    return 0  # the worker will say what is missing


def _available_memory_bytes() -> int:
    """What the kernel could give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
