"""The node that a control process runs on: its workers, through the supervisor; its fronts, by their links."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from argosy.environment import find_interpreter, get_environment, is_importable, lives_apart
from argosy.errors import FaultError, InputError
from argosy.runtimes.base import PACKAGES
from argosy.serve.wire.channel import Channel, read_message, write_message

__all__ = ["LocalNode", "Worker"]

_ASK_TIMEOUT_S: Final = 10.0

Message = dict[str, Any]


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
class _Front:
    """A front's end of the control link."""

    name: str
    writer: asyncio.StreamWriter
    pending: dict[int, asyncio.Future[Message]] = field(default_factory=dict[int, "asyncio.Future[Message]"])


class LocalNode:
    """Workers and fronts of this machine.

    Args:
        channel: to the supervisor.
        memory_limit_bytes: what all workers may use together; 0 stands for 90 % of what there is.
        on_front: called with a front's name when it has connected, so that it gets a table.
        on_hung: called with a worker's name when a front says that it does not answer.
        on_errand: carries out what a client asked a front for, and returns the answer.
    """

    def __init__(
        self,
        channel: Channel,
        memory_limit_bytes: int,
        on_front: Callable[[str], None],
        on_hung: Callable[[str], None],
        on_errand: Callable[[Message], Awaitable[Message]],
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.fronts: dict[str, _Front] = {}
        self.changed = asyncio.Event()
        self.memory_limit_bytes = memory_limit_bytes or int(0.9 * _total_memory_bytes())
        self._channel = channel
        self._on_front = on_front
        self._on_hung = on_hung
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
        """
        python = self.find_python(spec["runtime"])
        if python is None:
            raise FaultError("environment_failed", name=spec["runtime"], detail="it was removed while it was in use")
        if python != sys.executable:
            spec = {**spec, "python": python}
        name = f"w-{deployment}-{version}-{secrets.token_hex(4)}"
        self.workers[name] = Worker(name, spec)
        self._channel.send({"op": "start_worker", "name": name, "spec": spec})
        return name

    def stop_workers(self, names: Iterable[str]) -> None:
        """Have the supervisor end workers; they are known until they have gone."""
        for name in names:
            if name in self.workers:
                self._channel.send({"op": "stop_worker", "name": name})

    def kill_worker(self, name: str) -> None:
        """Kill a worker that hangs; the supervisor starts it again."""
        self._channel.send({"op": "kill_worker", "name": name})

    def take_supervisor_message(self, message: Message) -> None:
        """Follow what the supervisor says of a worker."""
        if message["op"] == "worker":
            worker = self.workers.setdefault(message["name"], Worker(message["name"], message["spec"]))
            worker.pid, worker.report = message["pid"], message["report"]
            worker.num_deaths = message["deaths"]
        elif message["op"] in ("died", "gone") and (worker := self.workers.get(message["name"])) is not None:
            worker.pid = 0
            worker.num_deaths += 1
            worker.report = message.get("report") if message.get("is_final") else None
            worker.last_death = f"{message.get('how', 'stopped')}; its log ends: {message.get('log', '')[-600:].strip()}"
            if message["op"] == "gone" or message["is_final"]:
                worker.is_gone = True
                del self.workers[worker.name]
        self.changed.set()

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

    async def add_front(self, name: str, sock: socket.socket) -> None:
        """A front is linked: read what it says until it is gone."""
        reader, writer = await asyncio.open_connection(sock=sock)
        front = _Front(name, writer)
        self.fronts[name] = front
        self._on_front(name)
        while (message := await read_message(reader)) is not None:
            if (identifier := message.get("id")) is not None:
                future = front.pending.pop(identifier, None)
                if future is not None and not future.done():
                    future.set_result(message)
            elif message["op"] == "hung":
                self._on_hung(message["worker"])
            elif "errand" in message:
                task = asyncio.create_task(self._run_errand(front, message))
                self._errands.add(task)
                task.add_done_callback(self._errands.discard)
        if self.fronts.get(name) is front:
            del self.fronts[name]
        for future in front.pending.values():
            if not future.done():
                future.set_exception(ConnectionError(f"{name} is gone"))
        writer.close()

    async def _run_errand(self, front: _Front, message: Message) -> None:
        answer = await self._on_errand(message)
        if not front.writer.is_closing():
            write_message(front.writer, {**answer, "op": "errand", "errand": message["errand"]})

    async def ask_fronts(self, message: Message) -> dict[str, Message]:
        """Ask every front; answers by front. A front that dies meanwhile is left out: it holds nothing any more."""
        asked = [(front.name, self._ask(front, message)) for front in list(self.fronts.values())]
        answers: dict[str, Message] = {}
        for name, future in asked:
            try:
                answers[name] = await asyncio.wait_for(future, _ASK_TIMEOUT_S)
            except (ConnectionError, TimeoutError):
                continue
        return answers

    def _ask(self, front: _Front, message: Message) -> asyncio.Future[Message]:
        self._next_id += 1
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        front.pending[self._next_id] = future
        write_message(front.writer, {**message, "id": self._next_id})
        return future


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
