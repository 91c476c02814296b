"""A front process: accepts requests, and owns the loop on which they travel. It never runs a model."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
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
from argosy.serve.node.listeners import SETTLE_S
from argosy.serve.v2.json_body import prepare_front
from argosy.serve.wire.channel import Channel, follow, open_channel, read_message, write_message
from argosy.serve.wire.control_messages import (
    Accuse,
    Alive,
    Answer,
    ArrivalsAnswer,
    Ask,
    AskArrivals,
    AskBusy,
    AskLink,
    AskLinks,
    AskStats,
    Beat,
    BusyAnswer,
    ErrandDone,
    Held,
    LaneStats,
    LinksAnswer,
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

__all__ = ["Front", "count_connections", "main"]

_EXPIRE_PERIOD_S: Final = 0.05
_SWEEP_PERIOD_S: Final = 1.0
_DRAIN_S: Final = 12.0
"""For requests that are under way when nothing new is taken any more."""
_MAX_REASON: Final = 300
_MAX_CONNECTIONS: Final = 4096
_RESERVED_DESCRIPTORS: Final = 160
"""For all but the connections of clients, where the limit is low; an eighth of one that is high."""
_DEATH_S: Final = 1.0
"""Within which the supervisor knows that a process has died whose link has ended."""


class Front:
    """Wires the steps of a request's walk together, and follows the control process.

    Args:
        loop: this process' event loop.
        channel: to the supervisor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        self.loop = loop
        self.channel = channel
        self.is_started = asyncio.Event()
        """It accepts."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sockets: dict[str, socket.socket] = {}
        self._links: dict[Link, int] = {}
        """With the process ids of their workers; also those whose worker has not said anything yet."""
        self._lost_links: set[str] = set()
        """Siblings to which a link came without its descriptor, as this process had too many."""
        self._narrow_links: set[Link] = set()
        """Links to workers that take batches, and with which no arenas are shared yet."""
        self._control: asyncio.StreamWriter | None = None
        self.done = asyncio.Event()
        """The server ends."""
        self._drain_s = 0.0
        """How long to serve new connections from then on."""
        loop.add_reader(channel.fileno(), follow, channel, self._take_message)

    def _take_message(self, message: Message, fds: list[int]) -> None:
        match message:
            case StartFront():
                self._prepare(message, fds)
            case Beat():
                self.channel.send(Alive())
            case NewLink() if not fds:
                self._lost_links.add(message.peer)
                self.router.lose_link(message.peer)
            case NewLink(kind="control"):
                self._spawn(self._follow_control(socket.socket(fileno=fds[0]), message.pid))
            case NewLink():
                sock = socket.socket(fileno=fds[0])
                is_loaded = message.is_loaded
                link = Link(self.loop, sock, message.peer, self._open_link, self._lose_worker, is_loaded=is_loaded)
                self._links[link] = message.pid
            case _:
                pass

    def _open_link(self, link: Link) -> None:
        """A worker takes batches. It is given some once it has arenas for them: other replicas may have those already."""
        if link.make_room():
            self._narrow_links.discard(link)
            self.router.add_link(link)
        else:
            self._narrow_links.add(link)

    def _lose_worker(self, link: Link) -> None:
        pid = self._links.pop(link)
        self._narrow_links.discard(link)
        self.router.remove_link(link)
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
        max_connections = config.max_connections or count_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.http = HttpServer(self.router, self.admit, self.errands, __version__, max_connections)
        self.grpc, self._grpc_server = make_grpc_protocol(
            self.router, self.admit, self.errands, version=__version__, max_connections=max_connections
        )
        self._sockets = {name: socket.socket(fileno=fd) for name, fd in zip(message.listeners, listeners, strict=True)}
        self._drain_s = config.drain_s
        if message.drain_s is not None:
            # In the place of one that died meanwhile: those that have connected to it wait.
            self._drain_s = message.drain_s
            self.done.set()

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
                # A control process that dies closes its stream; one that lives on without it would never be heard again.
                self.loop.call_later(_DEATH_S, self._accuse, "control", pid, "it closed its stream")
                break
        if self._control is writer:
            self._control = None
            self.errands.disconnect()
        writer.close()

    def _answer(self, ask: Ask) -> Answer:
        match ask:
            case AskBusy():
                return BusyAnswer(ask.id, self.router.is_busy(list(ask.lanes), list(ask.workers)))
            case AskLinks():
                return LinksAnswer(ask.id, tuple(self.router.make_room(ask.name, ask.workers, is_raw=ask.is_raw)))
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
        if self.is_started.is_set():
            return
        self.is_started.set()
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
        self.loop.add_signal_handler(signal.SIGINT, self._end_soon)
        ticker = self.loop.create_task(self._tick())
        await self.done.wait()
        await self._drain()
        ticker.cancel()

    def _end_soon(self) -> None:
        """The server ends, and takes nobody in any more."""
        self._drain_s = 0.0
        self.done.set()

    async def _tick(self) -> None:
        """What no request triggers: deadlines in idle queues, silent clients, workers that hang."""
        next_sweep = 0.0
        while True:
            await asyncio.sleep(_EXPIRE_PERIOD_S)
            if not self.is_started.is_set():
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
            self._report_held(now)
            self._ask_links()

    def _report_held(self, now: float) -> None:
        """Tell the supervisor which workers have been at something for a while; where there is one front, which hang."""
        for link, pid in self._links.items():
            unknown_s = self.config.hang_timeout_s
            held = link.watch(now, unknown_s if link.num_slots else self.router.find_late_s(link.worker, unknown_s))
            if held is not None and (held.is_given_up or (self.config.num_fronts > 1 and held.held_s > _SWEEP_PERIOD_S)):
                with suppress(OSError):  # the supervisor is gone, and the kernel ends this process as well
                    self.channel.send(Held(link.worker, pid, held.is_given_up, held.held_s))

    def _ask_links(self) -> None:
        lost, self._lost_links = self._lost_links, set()
        for peer in lost:
            self.channel.send(AskLink(peer))
        for link in list(self._narrow_links):
            # One that has only not said yet whether it has room, as it is busy or stopped, is waited for.
            if link.lacks_room:
                self.router.lose_link(link.worker)
            self._open_link(link)

    async def _drain(self) -> None:
        """Serve on for a while, as not everybody knows yet that this server ends; then end what is under way.

        Whoever connects after that is refused, or waits for the server's successor: see `Supervisor`.
        """
        if not self._sockets:
            return  # another takes its place, which finds those that wait
        until_s = time.monotonic() + self._drain_s
        settle_s = min(SETTLE_S, self.config.drain_s)
        self.http.is_draining = True
        self._grpc_server.begin_drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_s):
                # Those that connected to a front which has no table yet wait as well.
                await self.is_started.wait()
        # By then the supervisor lets no further connection begin.
        await asyncio.sleep(max(0.0, until_s - time.monotonic()) + settle_s)
        for server in self._servers:
            server.close()
        await asyncio.sleep(settle_s)
        self._grpc_server.drain()
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            self.http.close_idle()
            is_open = any(lane.num_open for lane in self.router.list_lanes())
            if not is_open and not self.http.connections and not self._grpc_server.connections:
                return
            await asyncio.sleep(0.02)


def count_connections(num_descriptors: int) -> int:
    """How many connections of each protocol leave descriptors for links, arenas, streams and metrics.

    Args:
        num_descriptors: that this process may have; -1 for any number.
    """
    if num_descriptors == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    reserved = min(num_descriptors // 2, max(num_descriptors // 8, _RESERVED_DESCRIPTORS))
    return max(1, min(_MAX_CONNECTIONS, (num_descriptors - reserved) // 2))


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
