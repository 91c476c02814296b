"""A front process: accepts requests, and owns the loop on which they travel. It never runs a model."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import time
from functools import partial
from typing import Any, Final

import msgspec
import uvloop

from argosy.config import ServeConfig
from argosy.errors import ArgosyError
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.errands import Errands
from argosy.serve.dispatch.link import Link
from argosy.serve.dispatch.recorder import Recorder
from argosy.serve.dispatch.router import Router
from argosy.serve.front.metrics import render_metrics
from argosy.serve.front.metrics_page import MetricsConnection
from argosy.serve.grpc.connection import make_grpc_protocol
from argosy.serve.http.connection import HttpConnection
from argosy.serve.http.routes import HttpServer
from argosy.serve.v2.json_body import prepare_front
from argosy.serve.wire.channel import Channel, follow, open_channel, read_message, write_message
from argosy.serve.wire.control_messages import (
    Accuse,
    Answer,
    ArrivalsAnswer,
    Ask,
    AskArrivals,
    AskBusy,
    AskLink,
    AskStats,
    BusyAnswer,
    ErrandDone,
    LaneStats,
    Message,
    NewLink,
    PutTable,
    StartFront,
    StatsAnswer,
    TableTaken,
    fit_text,
)
from argosy.serve.wire.counters import CLOSED, Counters
from argosy.serve.wire.table import Table
from argosy.version import __version__

__all__ = ["Front", "main"]

_EXPIRE_PERIOD_S: Final = 0.05
_SWEEP_PERIOD_S: Final = 1.0
_DRAIN_S: Final = 12.0
_MAX_REASON: Final = 300
_DEATH_S: Final = 1.0
"""Within which the supervisor knows that a worker has died whose link has ended."""


class Front:
    """Wires the steps of a request's walk together, and follows the control process.

    Args:
        loop: this process' event loop.
        channel: to the supervisor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        self.loop = loop
        self.channel = channel
        self.is_started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._hung: set[tuple[str, float]] = set()
        self._pids: dict[str, int] = {}
        """Of the workers that are linked."""
        self._lost_links: set[str] = set()
        """Siblings to which a link came without its descriptor, as this process had too many."""
        self._control: asyncio.StreamWriter | None = None
        self.done = asyncio.Event()
        loop.add_reader(channel.fileno(), follow, channel, self._take_message)

    def _take_message(self, message: Message, fds: list[int]) -> None:
        match message:
            case StartFront():
                self._prepare(message, fds)
            case NewLink() if not fds:
                self._lost_links.add(message.peer)
            case NewLink(kind="control"):
                self._spawn(self._follow_control(socket.socket(fileno=fds[0]), message.pid))
            case NewLink():
                self._pids[message.peer] = message.pid
                on_down = partial(self._lose_worker, message.pid)
                Link(self.loop, socket.socket(fileno=fds[0]), message.peer, self.router.add_link, on_down)
            case _:
                pass

    def _lose_worker(self, pid: int, link: Link) -> None:
        self.router.remove_link(link)
        if self._pids.get(link.worker) == pid:
            del self._pids[link.worker]
        if link.fault:
            self._accuse(link.worker, pid, link.fault)
        else:
            # A worker that dies closes its link; one that lives on without it would never be linked again.
            self.loop.call_later(_DEATH_S, self._accuse, link.worker, pid, "it closed its link")

    def _accuse(self, name: str, pid: int, reason: str) -> None:
        """Have the supervisor end a process that hangs or breaks a rule, unless it has ended already."""
        try:
            self.channel.send(Accuse(name, pid, fit_text(reason, _MAX_REASON)))
        except OSError:
            pass  # the supervisor is gone, and the kernel ends this process as well

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _prepare(self, message: StartFront, fds: list[int]) -> None:
        config = msgspec.convert(message.config, ServeConfig)
        self.config = config
        counters_fd, *listeners = fds
        self.counters = Counters(counters_fd, message.index)
        self.router = Router(self.loop, self.counters, config.num_fronts)
        self.admit = Admit(self.counters, config.max_body_bytes, config.num_fronts, config.max_intake_bytes)
        self.recorder = Recorder(self.admit)
        self.errands = Errands()
        self.http = HttpServer(self.router, self.admit, self.errands, __version__, config.max_connections)
        self.grpc, self._grpc_server = make_grpc_protocol(
            self.router, self.admit, self.errands, version=__version__, max_connections=config.max_connections
        )
        self._sockets = {name: socket.socket(fileno=fd) for name, fd in zip(message.listeners, listeners, strict=True)}

    async def _follow_control(self, sock: socket.socket, pid: int) -> None:
        """Serve by the tables that the control process sends; keep the last one while it is away."""
        reader, writer = await asyncio.open_connection(sock=sock)
        self._control = writer
        self.errands.connect(writer)
        while True:
            try:
                message = await read_message(reader, "front", "control")
                table = msgspec.convert(message.table, Table) if isinstance(message, PutTable) else None
            except (ArgosyError, msgspec.ValidationError) as error:
                self._accuse("control", pid, str(error))
                break
            # One that was started in its place says what holds, whatever its predecessor had sent and is read late.
            if self._control is not writer:
                break
            if table is not None:
                self.router.apply(table)
                if self.router.epoch:
                    await self._listen()
            if isinstance(message, ErrandDone):
                self.errands.take(message)
            elif isinstance(message, Ask):
                write_message(writer, self._answer(message))
            else:
                break
        if self._control is writer:
            self._control = None
            self.errands.disconnect()
        writer.close()

    def _answer(self, ask: Ask) -> Answer:
        match ask:
            case AskBusy():
                return BusyAnswer(ask.id, self.router.is_busy(list(ask.lanes), list(ask.workers)))
            case AskStats():
                return StatsAnswer(ask.id, tuple(self._describe_lanes()))
            case AskArrivals():
                return ArrivalsAnswer(ask.id, **self.recorder.take(ask.recording, ask.name))
            case _:
                # Where this is not the table's own, it was a change of a table that is not there, and the whole one comes.
                return TableTaken(ask.id, self.router.epoch)

    def _describe_lanes(self) -> list[LaneStats]:
        return [
            LaneStats(
                name=lane.name,
                version=lane.version,
                replicas=len(lane.links),
                queued_rows=lane.queued_rows,
                open_requests=lane.num_open,
                rows_per_s=lane.rows_per_s,
                can_join=lane.can_join,
                join_refusal=lane.join_refusal,
                joining=lane.joining,
                pad_refusal=lane.pad_refusal,
                limit_rows=lane.plan.limit,
                limit_reason=CLOSED[lane.plan.cause],
                limit_s=lane.plan.limit_s,
            )
            for lane in self.router.list_lanes()
        ]

    async def _listen(self) -> None:
        """Accept, once the first table is there: until then connections wait in the listeners' backlogs."""
        if self.is_started:
            return
        self.is_started = True
        # What there is by now stays: no collection need look at it again.
        gc.collect()
        gc.freeze()
        factories: dict[str, Any] = {
            "http": lambda: HttpConnection(self.http),
            "grpc": self.grpc,
            "metrics": lambda: MetricsConnection(lambda: render_metrics(self.counters, self.router.count_ready())),
        }
        for name, sock in self._sockets.items():
            self._servers.append(await self.loop.create_server(factories[name], sock=sock))

    async def run(self) -> None:
        """Serve until told to stop, then finish what is under way."""
        self.loop.add_signal_handler(signal.SIGTERM, self.done.set)
        ticker = self.loop.create_task(self._tick())
        await self.done.wait()
        if self.is_started:
            await self._drain()
        ticker.cancel()

    async def _tick(self) -> None:
        """What no request triggers: deadlines in idle queues, silent clients, workers that hang."""
        next_sweep = 0.0
        while True:
            await asyncio.sleep(_EXPIRE_PERIOD_S)
            if not self.is_started:
                continue
            now = time.monotonic()
            for lane in self.router.list_lanes():
                if lane.queued_rows or lane.num_open:
                    lane.expire(now)
                    lane.flush()
                lane.series.set_queued(lane.queued_rows + lane.streams.num_waiting)
                lane.series.note_time(time.time())
            self.router.expire_streams(now)
            if now < next_sweep:
                continue
            next_sweep = now + _SWEEP_PERIOD_S
            self.http.sweep(now)
            self._grpc_server.sweep(now)
            self.recorder.expire(now)
            self._report_hung()
            self._ask_links()

    def _report_hung(self) -> None:
        hung = self.router.find_hung(time.monotonic(), self.config.hang_timeout_s)
        for worker, _ in hung - self._hung:
            self._accuse(worker, self._pids[worker], f"it has not answered for {self.config.hang_timeout_s:g} s")
        self._hung = hung

    def _ask_links(self) -> None:
        lost, self._lost_links = self._lost_links, set()
        for peer in lost:
            self.channel.send(AskLink(peer))

    async def _drain(self) -> None:
        for server in self._servers:
            server.close()
        self.http.drain()
        self._grpc_server.drain()
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            is_open = any(lane.num_open for lane in self.router.list_lanes())
            if not is_open and not self.http.connections and not self._grpc_server.connections:
                return
            await asyncio.sleep(0.02)


async def _serve() -> None:
    front = Front(asyncio.get_running_loop(), open_channel("front"))
    await front.run()


def main() -> None:
    """Run as `python -m argosy.serve.front.front`, started by the supervisor."""
    prepare_front()
    uvloop.run(_serve())
    sys.exit(0)


if __name__ == "__main__":
    main()
