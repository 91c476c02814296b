"""What a front does with all of its HTTP/2 connections at once: sweep, drain, and one flush a turn of the event loop.

Time is looked at here alone, once a second: what has been stuck for too long ends, and the idle are dismissed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from argosy.serve.dispatch.intake import Intake
from argosy.serve.http2.duplex import DuplexStream, is_duplex_stuck
from argosy.serve.http2.frames import ErrorCode, Fault
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.streams import Stream

if TYPE_CHECKING:
    from argosy.serve.http2.connection import Http2Connection

__all__ = ["Http2Server", "Watch"]

_DRAIN_S: Final = 1.0
"""Time for a client to answer the PING with which draining begins."""


class Http2Server:
    """What the connections of a front share.

    Attributes:
        connections: those that are open.
        limits: for each of them.
        intake: the account of bodies that are not complete yet.
        is_draining: no new connections or requests.
    """

    def __init__(self, limits: Limits, intake: Intake | None = None) -> None:
        self.limits = limits
        self.intake = intake or Intake()
        self.connections: set[Http2Connection] = set()
        self.is_draining = False
        self._dirty: list[Http2Connection] = []

    def sweep(self, now: float) -> None:
        """Close what has been stuck for too long, and refill budgets; called every second with `time.monotonic()`."""
        for connection in list(self.connections):
            connection.sweep(now)

    def drain(self) -> None:
        """Take no more requests, answer those that came, then close each connection; `connections` empties."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()

    def flush_later(self, connection: Http2Connection) -> None:
        """Write what a connection has to send at the end of this turn of the event loop."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush_all)
        self._dirty.append(connection)

    def _flush_all(self) -> None:
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            connection.flush()


class Watch:
    """When a connection was last seen to move; times are those of the sweeps that saw it, 0 is never.

    Attributes:
        paused_s: since when the client has not read its answers; the connection sets it back when it does.
    """

    __slots__ = ("_active_s", "_drain_s", "_seen_id", "_seen_progress", "_stuck_s", "paused_s")

    def __init__(self) -> None:
        self._seen_progress = -1
        self._stuck_s = 0.0
        self._seen_id = 0
        self._active_s = 0.0
        self._drain_s = 0.0
        self.paused_s = 0.0

    def check(self, connection: Http2Connection, now: float) -> None:
        """End what has been stuck for too long.

        Raises:
            Fault: that is the connection itself.
        """
        limits = connection.limits
        if not connection.is_begun or connection.is_held or self._seen_progress != connection.progress:
            self._seen_progress = connection.progress
            self._stuck_s = now
        elif now - self._stuck_s > limits.request_timeout_s:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "a frame or header block was begun and not ended")
        if connection.is_paused:
            self.paused_s = self.paused_s or now
            if now - self.paused_s > limits.request_timeout_s:
                connection.abort()
        if connection.streams or connection.last_id != self._seen_id or not self._active_s:
            self._active_s = now
            self._seen_id = connection.last_id
        elif now - self._active_s > limits.idle_timeout_s:
            connection.say_goaway()
        if connection.is_draining:
            self._drain_s = self._drain_s or now
            if now - self._drain_s >= _DRAIN_S:
                connection.say_goaway()
        for stream in list(connection.streams.values()):
            if _is_stuck(connection, stream, now):
                connection.reset(stream, ErrorCode.CANCEL)


def _is_stuck(connection: Http2Connection, stream: Stream, now: float) -> bool:
    """Say whether a request has not come, or its answer has not gone, in time."""
    if isinstance(stream, DuplexStream):
        return is_duplex_stuck(connection, stream, now)
    limits = connection.limits
    upload = stream.upload
    timeout_s = limits.request_timeout_s
    if not stream.is_received:
        if not stream.seen_s or (upload is not None and (upload.is_waiting or connection.is_held)):
            stream.seen_s = now
        if upload is not None:
            timeout_s += len(upload.body) / limits.min_upload_bytes_per_s
    elif stream.unsent is None:
        # The model works.
        return False
    elif stream.seen_unsent != len(stream.unsent):
        stream.seen_unsent = len(stream.unsent)
        stream.seen_s = now
    return now - stream.seen_s > timeout_s
