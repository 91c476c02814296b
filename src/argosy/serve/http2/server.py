"""What a front does with all of its HTTP/2 connections at once: sweep, drain, and one flush a turn of the event loop.

Time is looked at here alone, once a second: what has been stuck for too long ends, and the idle are dismissed.
"""

from __future__ import annotations

import asyncio
from typing import Final

from argosy.serve.dispatch.intake import Intake
from argosy.serve.http2.duplex import is_duplex_stuck
from argosy.serve.http2.frames import ErrorCode, Fault
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.streams import DuplexStream, Http2Stream

__all__ = ["Http2Server"]

_DRAIN_S: Final = 1.0
"""Time for a client to answer the PING with which draining begins."""


class Http2Server:
    """What the connections of a front share.

    Attributes:
        connections: those that are open.
        limits: for each of them.
        intake: the account of bodies that are not complete yet.
        is_draining: the server is about to end, and says so on each connection soon after it was opened.
        is_over: no new connections or requests.
    """

    def __init__(self, limits: Limits, intake: Intake | None = None) -> None:
        self.limits = limits
        self.intake = intake or Intake()
        self.connections: set[Http2State] = set()
        self.is_draining = self.is_over = False
        self._dirty: list[Http2State] = []

    def sweep(self, now: float) -> None:
        """Close what has been stuck for too long, and refill budgets; called every second with `time.monotonic()`."""
        for connection in list(self.connections):
            if self.is_draining and connection.is_open:
                connection.drain()
            _sweep(connection, now)

    def begin_drain(self) -> None:
        """Say goodbye on each connection, and go on answering; a new one is served until the next sweep, and told then."""
        self.is_draining = True
        for connection in list(self.connections):
            if connection.is_open:
                connection.drain()

    def drain(self) -> None:
        """Take no more requests, answer those that came, then close each connection; `connections` empties."""
        self.is_draining = self.is_over = True
        for connection in list(self.connections):
            connection.drain()

    def flush_later(self, connection: Http2State) -> None:
        """Write what a connection has to send at the end of this turn of the event loop."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush_all)
        self._dirty.append(connection)

    def _flush_all(self) -> None:
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            connection.flush()


def _sweep(connection: Http2State, now: float) -> None:
    """Refill the budget of a connection; end what has been stuck for too long."""
    if connection.is_dead:
        return
    connection.budget.refill()
    try:
        _check_connection(connection, now)
        for stream in list(connection.streams.values()):
            if _is_stuck(connection, stream, now):
                connection.reset(stream, ErrorCode.CANCEL)
            elif isinstance(stream, DuplexStream):
                stream.token.check_deadline(now)
    except Fault as fault:
        connection.die(fault.code, fault.detail)


def _check_connection(connection: Http2State, now: float) -> None:
    """Say goodbye to a connection that is idle, or has drained for long enough; end one that is stuck.

    Raises:
        Fault: what was begun on it has not ended in time.
    """
    limits, watch = connection.limits, connection.watch
    if not connection.is_begun or connection.is_held or watch.seen_progress != connection.progress:
        watch.seen_progress = connection.progress
        watch.stuck_s = now
    elif now - watch.stuck_s > limits.request_timeout_s:
        raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "a frame or header block was begun and not ended")
    if connection.is_paused:
        watch.paused_s = watch.paused_s or now
        if now - watch.paused_s > limits.request_timeout_s:
            connection.abort()
    if connection.streams or connection.last_id != watch.seen_id or not watch.active_s:
        watch.active_s = now
        watch.seen_id = connection.last_id
    elif now - watch.active_s > limits.idle_timeout_s:
        connection.say_goaway()
    if connection.is_draining:
        watch.drain_s = watch.drain_s or now
        if now - watch.drain_s >= _DRAIN_S:
            connection.say_goaway()


def _is_stuck(connection: Http2State, stream: Http2Stream, now: float) -> bool:
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
