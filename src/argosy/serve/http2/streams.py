"""A stream of an HTTP/2 connection: a request from its headers to its answer."""

from __future__ import annotations

from typing import Any

from argosy.serve.http2.frames import MAX_WINDOW

__all__ = ["Head", "Stream", "Upload"]


class Head:
    """What a subclass of the connection makes of a request's headers, once for all requests with the same header block.

    Attributes:
        content_length: of the header of that name.
        is_early: hand the request over without waiting for its body; `on_request` must answer it before it returns.
        is_duplex: the body is taken while it comes, and answered in parts (`http2_duplex.py`).
    """

    __slots__ = ("content_length", "is_duplex", "is_early")

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.is_early = False
        self.is_duplex = False


class Upload:
    """A body that takes more than one frame.

    Attributes:
        body: what came of it.
        window: what the client may send of it until it gets more credit.
        granted: credit that it got beyond its first window.
        is_waiting: for credit, which the pool does not have now.
        wanted: credit that it can use at most.
    """

    __slots__ = ("body", "granted", "is_waiting", "wanted", "window")

    def __init__(self, window: int) -> None:
        # Not a list of chunks: a client that sends bytes one by one must not make us keep an object for each.
        self.body = bytearray()
        self.window = window
        self.granted = 0
        self.is_waiting = False
        self.wanted = MAX_WINDOW


class Stream:
    """A request that is not answered yet.

    Attributes:
        id: odd, and higher than those of all requests before it.
        head: of the request.
        send_window: bytes of an answer's body that the client takes now; negative when it took some back.
        is_received: the request is complete.
        token: what `on_request` returned.
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
