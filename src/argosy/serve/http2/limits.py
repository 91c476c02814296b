"""What an HTTP/2 connection may use, and what it may waste."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from argosy.serve.http2.frames import ErrorCode, Fault

__all__ = ["CONNECTION_WINDOW", "FRAMES_PER_ANSWER", "Budget", "Limits"]

CONNECTION_WINDOW: Final = 1 << 30
"""Streams' windows bound what is held; the connection's only has to be there, so that none waits for another."""
FRAMES_PER_ANSWER: Final = 16
"""Frames without a request or data that an answer pays for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may use."""

    max_connections: int = 4096
    max_body_bytes: int = 64 << 20
    max_streams: int = 256
    """Requests that may be open at once on a connection."""
    stream_window_bytes: int = 256 << 10
    """What a client may send of a body before it is given more credit; at least 65,535."""
    upload_pool_bytes: int = 32 << 20
    """Credit beyond that for all of a connection's bodies but the oldest."""
    max_unsent_bytes: int = 64 << 20
    """New requests are refused while answers of this size wait for a client to open its window."""
    max_header_bytes: int = 16 << 10
    """Size of a request's headers as RFC 9113 counts them, and of a header block on the wire."""
    max_continuations: int = 8
    aborts_burst: int = 512
    """Streams that a client may cancel, or make us cancel, beyond one for each that is answered."""
    aborts_per_s: int = 128
    frames_burst: int = 20_000
    """Frames that carry no request and no data, beyond `FRAMES_PER_ANSWER` for each answer."""
    frames_per_s: int = 2_000
    request_timeout_s: float = 30.0
    """Time for a request, header or frame that was begun, and for an answer that the client does not read."""
    min_upload_bytes_per_s: int = 64 << 10
    """A body may take longer by its size over this."""
    idle_timeout_s: float = 600.0


class Budget:
    """What a client may still do that is work for us and none for it. Answers earn it, and time.

    Attributes:
        frames_left: frames that carry no request and no data.
        aborts_left: streams that end without an answer.
    """

    __slots__ = ("_limits", "aborts_left", "frames_left")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.frames_left = limits.frames_burst
        self.aborts_left = limits.aborts_burst

    def charge(self, cost: int) -> None:
        """Pay for a frame that carries no request and no data."""
        self.frames_left -= cost
        if self.frames_left < 0:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def charge_abort(self) -> None:
        """Pay for a stream that ends without an answer."""
        self.aborts_left -= 1
        if self.aborts_left < 0:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "too many cancelled streams")

    def refill(self) -> None:
        """Add what a second earns."""
        limits = self._limits
        self.frames_left = min(self.frames_left + limits.frames_per_s, limits.frames_burst)
        self.aborts_left = min(self.aborts_left + limits.aborts_per_s, limits.aborts_burst)
