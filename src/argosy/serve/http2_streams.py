"""The streams of an HTTP/2 connection: a request from its headers to its answer, and how large bodies take turns."""

from __future__ import annotations

from typing import Any

from argosy.serve.http2_frames import DEFAULT_WINDOW
from argosy.serve.http2_limits import Limits

__all__ = ["Head", "Stream", "Upload", "UploadPool"]


class Head:
    """What a subclass of the connection makes of a request's headers, once for all requests with the same header block.

    Attributes:
        content_length: of the header of that name.
        is_early: hand the request over without waiting for its body; `on_request` must answer it before it returns.
    """

    __slots__ = ("content_length", "is_early")

    def __init__(self) -> None:
        self.content_length: int | None = None
        self.is_early = False


class Upload:
    """A body that takes more than one frame.

    Attributes:
        body: what came of it.
        window: what the client may send of it until it gets more credit.
        granted: credit that it got beyond its first window.
        is_waiting: for credit, which the pool does not have now.
    """

    __slots__ = ("body", "granted", "is_waiting", "window")

    def __init__(self, window: int) -> None:
        # Not a list of chunks: a client that sends bytes one by one must not make us keep an object for each.
        self.body = bytearray()
        self.window = window
        self.granted = 0
        self.is_waiting = False


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


class UploadPool:
    """Credit beyond the first window for the bodies of a connection. The oldest of them needs none of the pool's.

    Attributes:
        first_window: what a client may send of each body at once.
        uploads: stream -> its body, of those that got credit or wait for it, the oldest first.
        granted: sum of what all but the oldest got; never over `upload_pool_bytes`.
    """

    __slots__ = ("_limits", "first_window", "granted", "uploads")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.first_window = max(limits.stream_window_bytes, DEFAULT_WINDOW)
        self.uploads: dict[int, Upload] = {}
        self.granted = 0

    def extend(self, stream_id: int, upload: Upload) -> int:
        """Let a client send more of a body: double what came, if the pool has it or the body is the oldest.

        Returns:
            The credit to tell the client of; 0 when the body has to wait.
        """
        uploads = self.uploads
        uploads.setdefault(stream_id, upload)
        limits = self._limits
        step = max(limits.stream_window_bytes, len(upload.body))
        if next(iter(uploads)) != stream_id:
            step = min(step, limits.upload_pool_bytes - self.granted)
            if step < limits.stream_window_bytes:
                upload.is_waiting = True
                return 0
            self.granted += step
        else:
            # Not far beyond the limit: just so that what is too large is seen to be so, and answered.
            step = max(min(step, limits.max_body_bytes - len(upload.body)), limits.stream_window_bytes)
        upload.is_waiting = False
        upload.granted += step
        upload.window += step
        return step

    def release(self, stream_id: int) -> list[tuple[int, int]]:
        """Take back the credit of a body that is complete or dropped.

        Returns:
            Stream and credit of each body that waited for it and now may go on.
        """
        uploads = self.uploads
        if stream_id not in uploads:
            return []
        was_oldest = next(iter(uploads)) == stream_id
        upload = uploads.pop(stream_id)
        if not was_oldest:
            self.granted -= upload.granted
        elif uploads:
            self.granted -= next(iter(uploads.values())).granted
        waiting = [(other_id, other) for other_id, other in uploads.items() if other.is_waiting]
        return [(other_id, step) for other_id, other in waiting if (step := self.extend(other_id, other))]

    def clear(self) -> None:
        """Forget all bodies: the connection ends."""
        self.uploads.clear()
        self.granted = 0
