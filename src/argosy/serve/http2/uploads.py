"""Bodies of an HTTP/2 connection that take more than one frame, and the credit with which their clients send on."""

from __future__ import annotations

from argosy.serve.http2.frames import DEFAULT_WINDOW, MAX_WINDOW
from argosy.serve.http2.limits import Limits

__all__ = ["Upload", "UploadPool"]


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
        step = min(max(limits.stream_window_bytes, len(upload.body)), upload.wanted)
        if next(iter(uploads)) != stream_id:
            least = min(step, limits.stream_window_bytes)
            step = min(step, limits.upload_pool_bytes - self.granted)
            if step < least:
                upload.is_waiting = True
                return 0
            self.granted += step
        else:
            # Not far beyond the limit: just so that what is too large is seen to be so, and answered.
            least = min(step, limits.stream_window_bytes)
            step = max(min(step, limits.max_body_bytes - len(upload.body)), least)
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
