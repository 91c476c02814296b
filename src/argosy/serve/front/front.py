"""A front process: accepts requests, and owns the loop on which they travel. It never runs a model."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from importlib.metadata import version
from typing import Any, Final

import msgspec
import uvloop

from argosy.config import ServeConfig
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.errands import Errands
from argosy.serve.dispatch.link import Link
from argosy.serve.dispatch.recorder import Recorder
from argosy.serve.dispatch.router import Router
from argosy.serve.front.metrics_page import MetricsConnection
from argosy.serve.grpc.connection import make_grpc_protocol
from argosy.serve.http.connection import HttpConnection
from argosy.serve.http.routes import HttpServer
from argosy.serve.v2.json_body import prepare_front
from argosy.serve.wire.channel import Channel, open_channel, read_message, write_message
from argosy.serve.wire.counters import CLOSED, Counters, render_metrics
from argosy.serve.wire.table import Table

__all__ = ["Front", "main"]

_EXPIRE_PERIOD_S: Final = 0.05
_SWEEP_PERIOD_S: Final = 1.0
_DRAIN_S: Final = 12.0

Message = dict[str, Any]


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
        self._control: asyncio.StreamWriter | None = None
        self.done = asyncio.Event()
        channel.sock.setblocking(False)
        loop.add_reader(channel.fileno(), self._on_channel)

    def _on_channel(self) -> None:
        received = self.channel.receive()
        if received is None:
            # The supervisor is gone; the kernel ends this process as well.
            os._exit(1)
        message, fds = received
        if message["op"] == "start":
            self._prepare(message, fds)
        elif message["op"] == "link":
            sock = socket.socket(fileno=fds[0])
            if message["kind"] == "control":
                self._spawn(self._follow_control(sock))
            else:
                Link(self.loop, sock, message["peer"], self.router.add_link, self.router.remove_link)

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _prepare(self, message: Message, fds: list[int]) -> None:
        config = msgspec.convert(message["config"], ServeConfig)
        self.config = config
        counters_fd, *listeners = fds
        self.counters = Counters(counters_fd, message["index"])
        self.router = Router(self.loop, self.counters, config.num_fronts)
        self.admit = Admit(self.counters, config.max_body_bytes, config.num_fronts, config.max_intake_bytes)
        self.recorder = Recorder(self.admit)
        self.errands = Errands()
        self.http = HttpServer(self.router, self.admit, self.errands, version("argosy"), config.max_connections)
        self.grpc, self._grpc_server = make_grpc_protocol(
            self.router, self.admit, self.errands, version=version("argosy"), max_connections=config.max_connections
        )
        self._sockets = {name: socket.socket(fileno=fd) for name, fd in zip(message["listeners"], listeners, strict=True)}

    async def _follow_control(self, sock: socket.socket) -> None:
        """Serve by the tables that the control process sends; keep the last one while it is away."""
        reader, writer = await asyncio.open_connection(sock=sock)
        self._control = writer
        self.errands.connect(writer)
        # A control process that was started in its place says what holds, whatever its predecessor had sent and is read late.
        while (message := await read_message(reader)) is not None and self._control is writer:
            if message["op"] == "errand":
                self.errands.take(message)
                continue
            reply: Message = {"id": message["id"]}
            if message["op"] == "table":
                self.router.apply(msgspec.convert(message["table"], Table))
                # Where this is not the table's own, it was a change of a table that is not there, and the whole one comes.
                reply["epoch"] = self.router.epoch
                if self.router.epoch:
                    await self._listen()
            elif message["op"] == "busy":
                reply["busy"] = self.router.is_busy([(name, version_) for name, version_ in message["lanes"]], message["workers"])
            elif message["op"] == "stats":
                reply["lanes"] = self._describe_lanes()
            elif message["op"] == "arrivals":
                reply |= self.recorder.take(message["recording"], message["name"])
            write_message(writer, reply)
        if self._control is writer:
            self._control = None
            self.errands.disconnect()
        writer.close()

    def _describe_lanes(self) -> list[Message]:
        return [
            {
                "name": lane.name,
                "version": lane.version,
                "replicas": len(lane.links),
                "queued_rows": lane.queued_rows,
                "open_requests": lane.num_open,
                "rows_per_s": lane.rows_per_s,
                "can_join": lane.can_join,
                "join_refusal": lane.join_refusal,
                "pad_refusal": lane.pad_refusal,
                "limit_rows": lane.plan.limit,
                "limit_reason": CLOSED[lane.plan.cause],
                "limit_s": lane.plan.limit_s,
            }
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

    def _report_hung(self) -> None:
        hung = self.router.find_hung(self.loop.time(), self.config.hang_timeout_s)
        for worker, _ in hung - self._hung:
            if self._control is not None:
                write_message(self._control, {"op": "hung", "worker": worker})
        self._hung = hung

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
    front = Front(asyncio.get_running_loop(), open_channel())
    await front.run()


def main() -> None:
    """Run as `python -m argosy.serve.front.front`, started by the supervisor."""
    prepare_front()
    uvloop.run(_serve())
    sys.exit(0)


if __name__ == "__main__":
    main()
