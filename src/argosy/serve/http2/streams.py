"""A stream of an HTTP/2 connection: a request from its headers to its answer, which may come and go in parts."""

from __future__ import annotations

from typing import Any, Protocol

from argosy.serve.http2.uploads import Upload

__all__ = ["DuplexStream", "DuplexToken", "Head", "Http2Stream"]


class Head:
    """What a subclass of the connection makes of a request's headers, once for all requests with the same header block.

    Attributes:
        content_length: of the header of that name.
        is_early: hand the request over without waiting for its body; `on_request` must answer it before it returns.
        is_duplex: the body is taken while it comes, and answered in parts (`duplex.py`).
    """

    __slots__ = ("content_length", "is_duplex", "is_early")

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.is_early = False
        self.is_duplex = False


class Http2Stream:
    """A request that is not answered yet.

    Attributes:
        id: odd, and higher than those of all requests before it.
        head: of the request.
        send_window: bytes of an answer's body that the client takes now; negative when it took some back.
        is_received: the request is complete.
        token: what `on_request` or `on_duplex` returned.
        upload: its body, while that comes in several frames.
        unsent: what the windows have not let out of the answer's body; None while there is no answer.
        trailers: of the answer.
        seen_s: when a sweep last saw it move.
        seen_unsent: size of `unsent` at that time.
    """

    __slots__ = ("head", "id", "is_received", "seen_s", "seen_unsent", "send_window", "token", "trailers", "unsent", "upload")

    def __init__(self, stream_id: int, head: Head, send_window: int) -> None:
        self.id = stream_id
        self.head = head
        self.send_window = send_window
        self.is_received = False
        self.token: Any = None
        self.upload: Upload | None = None
        self.unsent: memoryview | None = None
        self.trailers = b""
        self.seen_s = 0.0
        self.seen_unsent = 0


class DuplexToken(Protocol):
    """What a subclass of the connection keeps of a `DuplexStream`, and is told what happens to it."""

    def advance(self) -> None:
        """More has come, the input has ended (`is_received`), or what was unsent has gone. May end the stream."""
        ...

    def drain(self) -> None:
        """The connection ends soon: take no more, and end the stream when what is under way is answered."""
        ...

    def check_deadline(self, now: float) -> None:
        """A sweep comes by, at `time.monotonic()`. May end the stream."""
        ...


class DuplexStream(Http2Stream):
    """A request whose body is taken while it comes, and answered in parts.

    Attributes:
        outbox: parts of the answer that wait for those in `unsent`.
        outbox_bytes: their size.
        is_over: when all parts have gone, the trailers follow.
        num_open: requests in it that are not answered; the subclass counts them.
        progress: counts bytes that came, or were given to send.
    """

    __slots__ = ("is_over", "num_open", "outbox", "outbox_bytes", "progress")

    def __init__(self, stream_id: int, head: Head, send_window: int, first_window: int) -> None:
        super().__init__(stream_id, head, send_window)
        self.upload = Upload(first_window)
        self.outbox: list[bytes] = []
        self.outbox_bytes = 0
        self.is_over = False
        self.num_open = 0
        self.progress = 0

    @property
    def unsent_bytes(self) -> int:
        """Size of what the client's windows hold back."""
        return self.outbox_bytes + (0 if self.unsent is None else len(self.unsent))
