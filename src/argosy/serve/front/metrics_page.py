"""The Prometheus page, on a listener of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final, cast

__all__ = ["MetricsConnection"]

MAX_REQUEST_BYTES: Final = 32 * 1024
MAX_CONNECTIONS: Final = 64
"""More are closed at once: each holds a descriptor of the process that answers inference."""
TIMEOUT_S: Final = 10.0
"""Time for all of a connection."""


class MetricsConnection(asyncio.Protocol):
    """Answers every GET with the metrics page; one request a connection."""

    num_open: ClassVar[int] = 0

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        MetricsConnection.num_open += 1
        if MetricsConnection.num_open > MAX_CONNECTIONS:
            self._transport.abort()
        self._timer = asyncio.get_running_loop().call_later(TIMEOUT_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        MetricsConnection.num_open -= 1
        self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._seen += data
        if len(self._seen) > MAX_REQUEST_BYTES:
            self._transport.close()
        elif b"\r\n\r\n" in self._seen:
            is_known = self._seen.startswith((b"GET /metrics ", b"GET /metrics?"))
            status, body = (b"200 OK", self._render()) if is_known else (b"404 Not Found", b"metrics are at /metrics\n")
            self._transport.write(
                b"HTTP/1.1 %b\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%b" % (status, len(body), body)
            )
            self._transport.close()
