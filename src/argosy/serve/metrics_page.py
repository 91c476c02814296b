"""The Prometheus page, on a listener of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

__all__ = ["MetricsConnection"]

MAX_REQUEST_BYTES: Final = 32 * 1024


class MetricsConnection(asyncio.Protocol):
    """Answers every GET with the metrics page; one request a connection."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
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
