"""ModelStreamInfer, as Triton defines it: requests come on one stream, and each is answered on it as soon as that can be done.

Answers come in the order of their completion and carry the id of their request; an error of one request is an answer too.
A stream has at most `MAX_OPEN` requests under way, and takes no more while its client does not read.
"""

from __future__ import annotations

import time
from typing import Any, Final

from numpy.typing import NDArray

from argosy.errors import ArgosyError, DeadlineError, FaultError, InputError, TooLargeError, UnavailableError
from argosy.serve.dispatch.call import Call
from argosy.serve.grpc import messages
from argosy.serve.grpc.replies import OK_TRAILERS, encode_reply, encode_status, encode_stream_error
from argosy.serve.grpc.requests import PREFIX_BYTES, InferCall, MessageBytes, submit_request, unpack_message
from argosy.serve.grpc.server import GrpcServer
from argosy.serve.http2.duplex import end_duplex, extend_input, send_part, take_input
from argosy.serve.http2.state import Http2State
from argosy.serve.http2.streams import DuplexStream

__all__ = ["MAX_OPEN", "InferStream", "StreamedCall"]

MAX_OPEN: Final = 256
"""Requests of a stream that wait for their answers; the same bound as that on calls of a connection."""
MAX_UNSENT_BYTES: Final = 1 << 20
"""Answers that the client has not read, beyond which no more requests are taken."""


class StreamedCall(InferCall):
    """An inference request that is a message of a stream."""

    __slots__ = ()

    owner: InferStream

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the answer, or the error that its deadline has passed."""
        try:
            if time.monotonic() > self.deadline_s:
                self.fail(DeadlineError("deadline_passed", timeout_s=self.deadline_s - self.started_s))
                return
            part = encode_reply(self.lane, outputs, self.request_id, self.wanted, is_streamed=True)
        except Exception as error:  # the batcher must not suffer from one answer
            self.owner.server.report(error)
            part = encode_stream_error(FaultError("internal", detail=type(error).__name__), self.request_id)
        self.owner.close_call(self, part)

    def fail(self, error: ArgosyError) -> None:
        """Send an error; the stream goes on."""
        self.owner.close_call(self, encode_stream_error(error, self.request_id))


class InferStream:
    """One stream: takes its messages apart, and submits each as a call of its own.

    Args:
        server: of the front.
        connection: that the stream came on.
        stream: in that.
        encoding: of its compressed messages.
        timeout_s: of the whole stream; None for none.
    """

    __slots__ = ("_calls", "_connection", "_deadline_s", "_encoding", "_end", "_stream", "server")

    def __init__(
        self, server: GrpcServer, connection: Http2State, stream: DuplexStream, encoding: bytes, timeout_s: float | None
    ) -> None:
        self.server = server
        self._connection = connection
        self._stream = stream
        self._encoding = encoding
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._calls: set[Call] = set()
        self._end: ArgosyError | None = None

    @property
    def timeout_s(self) -> float | None:
        """Time that is left for a request which begins now."""
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def advance(self) -> None:
        """Take the requests that have come, as far as there is room for them; end the stream when nothing is left to do."""
        stream, upload = self._stream, self._stream.upload
        if upload is None or stream.is_over:
            return
        missing = 0
        while self._end is None and not (is_full := self._is_full()):
            body = upload.body
            if len(body) < PREFIX_BYTES:
                break
            end = PREFIX_BYTES + int.from_bytes(body[1:PREFIX_BYTES], "big")
            if end > self._connection.limits.max_body_bytes:
                self.stop(TooLargeError("body_too_large", limit=self._connection.limits.max_body_bytes - PREFIX_BYTES))
            elif end > len(body):
                missing = end - len(body)
                break
            else:
                self._submit(body[0], take_input(self._connection, stream, PREFIX_BYTES, end))
        else:
            is_full = True
        if self._end is not None:
            if stream.upload is not None:
                self._connection.body_bytes -= len(upload.body)
            upload.body.clear()
        elif stream.is_received and not is_full and upload.body:
            self.stop(InputError("bad_grpc", detail="the stream ends within a message"))
        elif not is_full:
            extend_input(self._connection, stream, missing)
        self._finish_if_done()

    def _is_full(self) -> bool:
        return len(self._calls) >= MAX_OPEN or self._stream.unsent_bytes > MAX_UNSENT_BYTES

    def _finish_if_done(self) -> None:
        stream = self._stream
        if self._calls or stream.is_over or stream.upload is None:
            return
        if self._end is not None:
            end_duplex(self._connection, stream, encode_status(self._end, is_trailing=True))
        elif stream.is_received and not stream.upload.body:
            end_duplex(self._connection, stream, OK_TRAILERS)

    def _submit(self, flag: int, message: MessageBytes) -> None:
        """Take one request. Whatever is wrong with it is answered, and the stream goes on."""
        stream = self._stream
        try:
            if flag:
                message = unpack_message(flag, message, self._encoding, self.server.admit.max_body_bytes)
            call = submit_request(self.server, message, self.timeout_s, StreamedCall, self, stream.id)
            self._calls.add(call)
            stream.num_open = len(self._calls)
            return
        except ArgosyError as error:
            fault = error
        except messages.DecodeError as error:
            fault = InputError("bad_grpc", detail=str(error) or "the message cannot be parsed")
        except Exception as error:  # the edge of the process: one request must not end its connection
            self.server.report(error)
            fault = FaultError("internal", detail=type(error).__name__)
        send_part(self._connection, stream, encode_stream_error(fault, _find_id(message)))

    def close_call(self, call: StreamedCall, part: bytes) -> None:
        """Send a call's answer, and take what waited for it."""
        if call in self._calls:
            self._calls.discard(call)
            self._stream.num_open = len(self._calls)
            send_part(self._connection, self._stream, part)
            self.advance()

    def stop(self, error: ArgosyError) -> None:
        """Take no more requests; when those under way are answered, the stream ends with this error."""
        self._end = self._end or error
        self._finish_if_done()

    def drain(self) -> None:
        """The connection ends soon: as `stop`."""
        self.stop(UnavailableError("draining", retry_after_s=1.0))

    def check_deadline(self, now: float) -> None:
        """End the stream, with what is under way, if its own deadline has passed."""
        if self._deadline_s is not None and now > self._deadline_s:
            self.cancel()
            self.stop(DeadlineError("deadline_passed", timeout_s=0.0))

    def cancel(self) -> None:
        """Nobody waits for the answers: the batcher drops the requests."""
        calls, self._calls = self._calls, set()
        for call in calls:
            call.is_done = True


def _find_id(message: MessageBytes) -> str:
    """The id of a request that was refused; empty where it cannot be read."""
    try:
        return messages.parse_infer_request(message)[0].id
    except (ArgosyError, messages.DecodeError):
        return ""
