"""The front's side of raw requests: which wait, which replica takes them, and what comes back.

Each replica answers at most `max_streams` at once; further requests wait here, where their deadlines are kept and any replica
can take them. `argosy.serve.wire.stream_frames` says what travels. A request whose worker died is sent again once, if nothing of
an answer was there and the version is repeatable; an answer that was begun is cut.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from argosy.errors import ArgosyError, DeadlineError, FaultError, ModelError, UnavailableError
from argosy.serve.dispatch.call import Clock, Lane
from argosy.serve.wire import stream_frames as frames

__all__ = ["RawCall", "RawStream", "StreamPool", "StreamQueue"]

_READ_BYTES: Final = 256 * 1024
_DEATH_S: Final = 0.05
"""Within which the link of a dead worker ends after the first of its streams: a machine that is busy takes milliseconds."""


class RawCall:
    """One raw request, and how far its answer is. A protocol derives from it, and says how an answer is written.

    Args:
        queue: of the lane that answers it.
        head: what the worker is told beside the body.
        body: as received.
        now: the moment when the request was complete.

    Attributes:
        queue: of the lane that answers it; changes when it waited and is routed again.
        started_s: moment when the request was complete.
        sent_s: when it was handed to a worker.
        deadline_s: after which the answer, all of it, is not waited for.
        lost_by: the worker that died while it answered it, or had no room to.
        has_begun: the head of the answer was written: it can only be ended or cut.
        is_done: answered, failed, or its client went away.
        stream: what carries it, while a worker has it.
    """

    __slots__ = ("body", "deadline_s", "has_begun", "head", "is_done", "lost_by", "queue", "sent_s", "started_s", "stream")

    def __init__(self, queue: StreamQueue, head: bytes, body: bytes | memoryview, now: float) -> None:
        self.queue = queue
        self.head = head
        self.body = body
        self.started_s = self.sent_s = now
        self.deadline_s = now + queue.lane.timeout_s
        self.lost_by = ""
        self.has_begun = self.is_done = False
        self.stream: RawStream | None = None

    def begin(self, data: bytes) -> None:
        """Check the head of the answer, and write it.

        Raises:
            ModelError: it is none that can be written.
        """
        raise NotImplementedError

    def add(self, data: bytes) -> None:
        """Write a part of the body.

        Raises:
            ModelError: the body is longer than its head said.
        """
        raise NotImplementedError

    def end(self, now: float) -> None:
        """End the answer.

        Raises:
            ModelError: the body is shorter than its head said.
        """
        raise NotImplementedError

    def fail(self, error: ArgosyError) -> None:
        """Answer with an error; or cut the answer that was begun, so that its client sees that it is not whole."""
        raise NotImplementedError

    def spoil(self, detail: str) -> ModelError:
        """The error for an answer that cannot be sent."""
        lane = self.queue.lane
        return ModelError("bad_raw_answer", model=lane.name, version=lane.version, detail=detail)

    def expire(self) -> None:
        """Fail, for the deadline has passed."""
        self.fail(DeadlineError("deadline_passed", timeout_s=self.deadline_s - self.started_s))

    def abandon(self) -> None:
        """The client went away."""
        self.is_done = True
        if self.stream is not None:
            self.stream.cancel()

    def pause(self) -> None:
        """The client takes no more for now."""
        if self.stream is not None:
            self.stream.pause()

    def resume(self) -> None:
        """The client takes more."""
        if self.stream is not None:
            self.stream.resume()


class StreamQueue:
    """The raw requests of one lane that no replica has taken.

    Args:
        lane: whose replicas take them.

    Attributes:
        pools: the streams of those replicas.
        max_streams: how many a replica answers at once for this front; 0 where the version has no raw endpoint.
        waiting_bytes: of their bodies.
    """

    __slots__ = ("_waiting", "lane", "max_streams", "pools", "waiting_bytes")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.pools: list[StreamPool] = []
        self.max_streams = 0
        self.waiting_bytes = 0
        self._waiting: deque[RawCall] = deque()

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def put(self, call: RawCall) -> None:
        """Take a request in; it starts now if a replica has a stream to spare."""
        self.lane.num_open += 1
        self._wait(call)
        self.flush()

    def _wait(self, call: RawCall) -> None:
        self._waiting.append(call)
        self.waiting_bytes += len(call.body)

    def _take(self) -> RawCall:
        call = self._waiting.popleft()
        self.waiting_bytes -= len(call.body)
        return call

    def flush(self) -> None:
        """Hand requests over while replicas can take them."""
        while self._waiting:
            if self._waiting[0].is_done:
                self._take()
                self.release()
                continue
            stream = self._pick_stream(self._waiting[0].lost_by)
            if stream is None:
                return
            stream.send(self._take())

    def _pick_stream(self, lost_by: str) -> RawStream | None:
        """A stream of the replica that answers the fewest; of the one that has lost the request only where there is no other."""
        for pool in sorted(self.pools, key=lambda pool: (pool.worker == lost_by, pool.num_busy)):
            if (stream := pool.take(self.max_streams)) is not None:
                return stream
        return None

    def take_waiting(self) -> list[RawCall]:
        """Remove and return every request that waits, oldest first."""
        calls = [self._take() for _ in range(len(self._waiting))]
        self.lane.num_open -= len(calls)
        return [call for call in calls if not call.is_done]

    def expire(self, now: float) -> None:
        """Refuse requests that have waited beyond their deadline; try the others again."""
        for _ in range(len(self._waiting)):
            call = self._take()
            if not call.is_done and call.deadline_s < now:
                call.expire()
            if call.is_done:
                self.release()
            else:
                self._wait(call)
        self.flush()

    def release(self) -> None:
        """A request is answered, refused, or nobody waits for it and the worker has let it go."""
        self.lane.num_open -= 1

    def lose(self, call: RawCall, worker: str) -> None:
        """The worker that answered a request is gone."""
        lane = self.lane
        if call.is_done:
            self.release()
        elif not self.max_streams:
            self.release()
            call.fail(UnavailableError("no_replica", model=lane.name, retry_after_s=1.0))
        elif call.has_begun or not lane.is_repeatable:
            self.release()
            call.fail(FaultError("not_repeatable", model=lane.name, version=lane.version, worker=worker))
        elif call.lost_by:
            self.release()
            call.fail(FaultError("lost_twice", model=lane.name, version=lane.version, worker=worker))
        else:
            call.lost_by = worker
            self._wait(call)


class StreamPool:
    """The streams of one link, each a socket to a thread of the worker; made when first needed, and kept.

    Args:
        loop: the front's event loop.
        worker: the worker's id.
        pass_streams: gives the worker its end of the socket on which streams are passed; raises OSError while it takes nothing.
        clock: tells when requests are sent, answered and cancelled.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: str, pass_streams: Callable[[socket.socket], None], clock: Clock
    ) -> None:
        self.loop = loop
        self.clock = clock
        self.worker = worker
        self._pass_streams = pass_streams
        self._sock: socket.socket | None = None
        self._streams: set[RawStream] = set()
        self._idle: list[RawStream] = []
        self._limit = 0
        self._lost: list[RawCall] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_busy(self) -> int:
        """Streams that carry a request, one that nobody waits for included."""
        return len(self._streams) - len(self._idle)

    def take(self, limit: int) -> RawStream | None:
        """A stream that is free; None while `limit` are busy, or no more can be made now."""
        self._limit = limit
        if self.num_busy >= limit or self._timer is not None:
            return None
        if self._idle:
            return self._idle.pop()
        try:
            return self._open()
        except OSError:
            # No descriptor is left, or the worker has not taken those on their way: the next tick tries again.
            return None

    def _open(self) -> RawStream:
        if self._sock is None:
            self._sock = self._connect()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                socket.send_fds(self._sock, [b"s"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                if isinstance(error, ConnectionError):
                    # The worker had no room for its end.
                    self._sock.close()
                    self._sock = None
                raise
        stream = RawStream(self, ours)
        self._streams.add(stream)
        return stream

    def _connect(self) -> socket.socket:
        """The socket on which streams are passed, once the worker has its end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        with theirs:
            try:
                self._pass_streams(theirs)
            except OSError:
                ours.close()
                raise
        return ours

    def make_room(self) -> bool:
        """Have a stream before a request needs it; False where none can be made now."""
        if not self._streams:
            try:
                self.put_back(self._open())
            except OSError:
                return False
        return True

    def put_back(self, stream: RawStream) -> None:
        """A stream is free again."""
        self._idle.append(stream)

    def drop(self, stream: RawStream) -> None:
        """A stream is closed."""
        self._streams.discard(stream)
        if stream in self._idle:
            self._idle.remove(stream)

    def suspect(self, call: RawCall | None) -> None:
        """A stream that nobody cancelled has ended: find out whether the worker dies, and hand over nothing before.

        The kernel closes a dead process' sockets one after the other, and the link is not the first.
        """
        if call is not None:
            self._lost.append(call)
        if self._timer is None:
            self._timer = self.loop.call_later(_DEATH_S, self._clear)

    def _clear(self) -> None:
        """The worker lives: a thread of it alone has ended."""
        self._timer = None
        for queue in self._lose(()):
            queue.flush()

    def _lose(self, streams: Iterable[RawStream]) -> set[StreamQueue]:
        calls, self._lost = self._lost, []
        calls += [call for stream in streams if (call := stream.close()) is not None]
        for call in calls:
            call.queue.lose(call, self.worker)
        return {call.queue for call in calls}

    def expire(self, now: float) -> None:
        """Refuse, or cut, what has taken longer than its deadline."""
        for stream in list(self._streams):
            if (call := stream.call) is not None and not call.is_done and call.deadline_s < now:
                call.expire()
                stream.cancel()

    @property
    def stuck_since_s(self) -> float | None:
        """Since when no stream is left to anyone, for the worker lets none go."""
        since = [stream.cancelled_s for stream in self._streams if stream.cancelled_s is not None]
        return max(since) if self._limit and len(since) >= self._limit else None

    def close(self) -> set[StreamQueue]:
        """The worker is gone: its requests are sent again, refused or cut; returns the queues that they belong to."""
        streams, self._streams, self._idle = self._streams, set(), []
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._timer is not None:
            self._timer.cancel()
        return self._lose(streams)


class RawStream:
    """One socket to one thread of a worker. Carries a request and its answer, then the next.

    Attributes:
        call: whom it answers.
        cancelled_s: since when nobody waits for what the worker still does.
    """

    __slots__ = ("_data", "_fd", "_is_paused", "_loop", "_out", "_pool", "_sock", "call", "cancelled_s")

    def __init__(self, pool: StreamPool, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.call: RawCall | None = None
        self.cancelled_s: float | None = None
        self._pool = pool
        self._loop = pool.loop
        self._sock = sock
        self._fd = sock.fileno()
        self._data = b""
        self._out: deque[memoryview] = deque()
        self._is_paused = False
        self._loop.add_reader(self._fd, self._on_readable)

    def send(self, call: RawCall) -> None:
        """Hand a request to the worker."""
        self.call = call
        call.stream = self
        call.sent_s = self._pool.clock()
        head = frames.OPEN.pack(len(call.head), len(call.body)) + call.head
        self._out.extend(memoryview(part) for part in (head, call.body) if part)
        self._write()
        if self._out:
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._write()
        if not self._out:
            self._loop.remove_writer(self._fd)

    def _write(self) -> None:
        try:
            while self._out:
                sent = self._sock.sendmsg(self._out)
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                if sent:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            # The worker is gone, and reading tells so.
            self._out.clear()

    def pause(self) -> None:
        """The client takes no more for now: let the kernel's buffers fill, and the worker wait."""
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """The client takes more."""
        if self._is_paused:
            self._is_paused = False
            self._loop.add_reader(self._fd, self._on_readable)

    def cancel(self) -> None:
        """Nobody waits any more: tell the worker, and throw away what still comes until it closes the stream."""
        self.cancelled_s = self._pool.clock()
        self._data = b""
        if self._out:
            self._out.clear()
            self._loop.remove_writer(self._fd)
        self.resume()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the worker is gone already

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        call = self.call
        if not data or call is None:
            self._end()
        elif self.cancelled_s is None:
            try:
                self._feed(data, call)
            except ModelError as error:
                call.fail(error)
                self.cancel()

    def _end(self) -> None:
        """The worker has closed the stream: because it was cancelled, or it dies. Or it said what nobody asked."""
        call = self.close()
        self._pool.drop(self)
        if self.cancelled_s is None:
            self._pool.suspect(call)
        elif call is not None:
            call.queue.release()
            call.queue.flush()

    def _feed(self, data: bytes, call: RawCall) -> None:
        """Take the frames of an answer.

        Raises:
            ModelError: they are none, or none that can be sent.
        """
        data = self._data + data if self._data else data
        pos = 0
        while len(data) - pos >= frames.FRAME.size and self.cancelled_s is None:
            kind, length = frames.FRAME.unpack_from(data, pos)
            if length > (frames.MAX_DATA_BYTES if kind == frames.DATA else frames.MAX_HEAD_BYTES):
                raise call.spoil("it is no sequence of frames")
            start = pos + frames.FRAME.size
            if len(data) - start < length:
                break
            pos = start + length
            self._take(kind, data[start:pos], call, is_last=pos == len(data))
        self._data = data[pos:] if self.cancelled_s is None else b""

    def _take(self, kind: int, payload: bytes, call: RawCall, *, is_last: bool) -> None:
        if kind == frames.HEAD and not call.has_begun:
            call.begin(payload)
        elif kind == frames.DATA and call.has_begun:
            call.add(payload)
        elif kind == frames.END and call.has_begun and is_last:
            call.end(self._pool.clock())
            self._finish(call)
        elif kind == frames.ERROR and is_last:
            detail = payload.decode(errors="replace")
            lane = call.queue.lane
            call.fail(ModelError("model_failed", model=lane.name, version=lane.version, detail=detail))
            self._finish(call)
        else:
            raise call.spoil("its frames do not follow each other")

    def _finish(self, call: RawCall) -> None:
        self.resume()
        self.call = call.stream = None
        self._pool.put_back(self)
        call.queue.release()
        call.queue.flush()

    def close(self) -> RawCall | None:
        """Close the socket; returns whom it answered."""
        if not self._is_paused:
            self._loop.remove_reader(self._fd)
        if self._out:
            self._loop.remove_writer(self._fd)
        self._sock.close()
        call, self.call = self.call, None
        if call is not None:
            call.stream = None
        return call
