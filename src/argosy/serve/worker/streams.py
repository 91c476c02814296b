"""The worker's side of raw requests: a thread for each stream, so that batches go on beside them.

`argosy.serve.wire.stream_frames` says what travels. Fronts open no more streams than the deployment allows (`max_streams`). Where
one has cancelled, a generator is closed at its next item, an asynchronous one at once.

The standard library only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import json
import select
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from argosy.raw import EVENT_STREAM, Request, Response, encode_item
from argosy.serve.wire import stream_frames as frames

__all__ = ["StreamThreads"]

_WHOLE: Final = (bytes, bytearray, memoryview, str, Mapping)
"""Can be iterated over, but is not meant so; of a mapping `encode_item` says that it is no answer."""
_NOTHING: Final = object()

T = TypeVar("T")


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


class StreamThreads:
    """Answers the raw requests of all fronts.

    Args:
        raw: the model's method; called in several threads at once.
    """

    def __init__(self, raw: Callable[[Request], Any]) -> None:
        self._raw = raw
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def accept(self, sock: socket.socket) -> None:
        """Serve the streams that a front passes on this socket, until it is gone."""
        threading.Thread(target=self._accept, args=(sock,), name="streams", daemon=True).start()

    def _accept(self, sock: socket.socket) -> None:
        with sock:
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
                except OSError:
                    return
                if not data:
                    return
                if not fds:
                    continue  # this process had no room for it, and its other end is closed
                stream = _StreamEnd(socket.socket(fileno=fds[0]))
                threading.Thread(target=self._serve, args=(stream,), name="stream", daemon=True).start()

    def _serve(self, stream: _StreamEnd) -> None:
        with stream.sock:
            try:
                while (request := stream.read()) is not None:
                    self._answer(stream, request)
            except _GoneError:
                pass
            except (OSError, ValueError) as error:
                print(f"stream closed: {error}", file=sys.stderr, flush=True)

    def _answer(self, stream: _StreamEnd, request: Request) -> None:
        try:
            answer = self._raw(request)
            if inspect.isawaitable(answer):
                answer = self._run(stream, _finish(answer))
            response = answer if isinstance(answer, Response) else Response(answer)
            body = response.body
            if isinstance(body, AsyncIterable):
                self._run(stream, _send_items_async(stream, request, response, body))
            elif isinstance(body, Iterable) and not isinstance(body, _WHOLE):
                _send_items(stream, request, response, body)
            else:
                _send_whole(stream, request, response)
                return
            # Last of all: what the front sends next would be taken for the end of this answer.
            stream.send(frames.END_FRAME)
        except _GoneError:
            raise
        except BaseException as error:  # the model's own code: whatever it raises belongs to this request alone
            traceback.print_exc()
            sys.stderr.flush()
            text = f"{type(error).__name__}: {error}".encode(errors="replace")[: frames.MAX_ERROR_BYTES]
            stream.send(frames.pack_frame(frames.ERROR, text))

    def _run(self, stream: _StreamEnd, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop that all streams share; cancelled as soon as the front cancels."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="stream-loop", daemon=True).start()
        try:
            return asyncio.run_coroutine_threadsafe(_watch(stream.sock, work), self._loop).result()
        except concurrent.futures.CancelledError:
            raise _GoneError from None


class _StreamEnd:
    """One socket, and the request that it carries."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)

    def is_cancelled(self) -> bool:
        """True when the front has closed its side: it sends nothing else before the end of an answer."""
        return bool(self._poll.poll(0))

    def read(self) -> Request | None:
        """The next request; None when the front has closed the stream."""
        head = self._receive(frames.OPEN.size)
        if not head:
            return None
        head_bytes, body_bytes = frames.OPEN.unpack(head)
        if head_bytes > frames.MAX_HEAD_BYTES:
            raise ValueError("a stream's request has an impossible head")
        fields = json.loads(self._receive(head_bytes))
        return Request(**fields, body=self._receive(body_bytes), is_cancelled=self.is_cancelled)

    def _receive(self, size_bytes: int) -> bytes:
        parts: list[bytes] = []
        missing = size_bytes
        while missing and (part := self.sock.recv(missing, socket.MSG_WAITALL)):
            parts.append(part)
            missing -= len(part)
        if missing and (parts or size_bytes != frames.OPEN.size):
            raise _GoneError  # cancelled before all of it was here
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def send(self, data: bytes) -> None:
        """Send whole frames; waits while the front takes none.

        Raises:
            _GoneError: the front has cancelled, or is gone.
        """
        if self.is_cancelled():
            raise _GoneError
        try:
            self.sock.sendall(data)
        except OSError:
            raise _GoneError from None

    async def send_async(self, data: bytes) -> None:
        """As `send`, on the loop."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError:
            raise _GoneError from None


async def _finish(answer: Any) -> Any:
    return await answer


async def _watch(sock: socket.socket, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and cancel it as soon as the front has closed its side."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        loop.remove_reader(sock)
        task.cancel()

    sock.setblocking(False)
    loop.add_reader(sock, cancel)
    try:
        return await work
    finally:
        loop.remove_reader(sock)
        sock.setblocking(True)


def _send_whole(stream: _StreamEnd, request: Request, response: Response) -> None:
    data, content_type = encode_item(response.body)
    head = _pack_head(response, content_type, len(data))
    if request.method == "HEAD":
        data = b""
    if len(data) <= frames.MAX_DATA_BYTES:
        stream.send(b"".join((head, *frames.pack_data(data), frames.END_FRAME)))
        return
    stream.send(head)
    for frame in frames.pack_data(data):
        stream.send(frame)
    stream.send(frames.END_FRAME)


def _send_items(stream: _StreamEnd, request: Request, response: Response, body: Iterable[Any]) -> None:
    """Send an answer as it is made; its iterator is closed at the end, whatever happens."""
    items = iter(body)
    try:
        # The first item comes before the head: until then an error can be answered as one.
        start, is_open = _start(request, response, next(items, _NOTHING))
        stream.send(start)
        if is_open:
            for item in items:
                for frame in frames.pack_data(encode_item(item)[0]):
                    stream.send(frame)
    finally:
        if hasattr(items, "close"):
            cast(Any, items).close()


async def _send_items_async(stream: _StreamEnd, request: Request, response: Response, body: AsyncIterable[Any]) -> None:
    """As `_send_items`, in one task from beginning to end: timeouts and groups of tasks may span several items."""
    items = aiter(body)
    try:
        start, is_open = _start(request, response, await anext(items, _NOTHING))
        await stream.send_async(start)
        if is_open:
            async for item in items:
                for frame in frames.pack_data(encode_item(item)[0]):
                    await stream.send_async(frame)
    finally:
        if hasattr(items, "aclose"):
            await cast(Any, items).aclose()


def _start(request: Request, response: Response, first: Any) -> tuple[bytes, bool]:
    """The head and the first item; and whether more may follow."""
    data, content_type = (b"", "application/octet-stream") if first is _NOTHING else encode_item(first)
    head = _pack_head(response, content_type, None)
    if request.method == "HEAD" or first is _NOTHING:
        return head, False
    return b"".join((head, *frames.pack_data(data))), True


def _pack_head(response: Response, content_type: str, length: int | None) -> bytes:
    """What stands before the body; the front checks it, and writes it out."""
    given: Any = response.headers
    headers: list[tuple[str, str]] = [*(given.items() if isinstance(given, Mapping) else given)]
    names = {str(name).lower() for name, _ in headers}
    chosen = response.content_type or content_type
    if "content-type" not in names:
        headers.append(("content-type", chosen))
    if chosen.startswith(EVENT_STREAM) and "cache-control" not in names:
        headers.append(("cache-control", "no-cache"))
    head = json.dumps({"status": response.status, "headers": headers, "length": length}).encode()
    if len(head) > frames.MAX_HEAD_BYTES:
        raise ValueError(f"the answer's headers have {len(head)} bytes, at most {frames.MAX_HEAD_BYTES} are taken")
    return frames.pack_frame(frames.HEAD, head)
