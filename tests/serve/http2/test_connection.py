"""The HTTP/2 connection without a socket: headers under every encoding, any bytes in any pieces, its invariants."""

import asyncio
import functools
import random
import struct

import hpack
import pytest
from hpack import HeaderTuple, NeverIndexedHeaderTuple

from argosy.serve.http2 import connection as http2
from argosy.serve.http2 import read as http2_read
from argosy.serve.http2 import state as http2_state
from argosy.serve.http2 import windows as http2_windows
from argosy.serve.http2.connection import Http2Connection
from argosy.serve.http2.frames import PREFACE
from argosy.serve.http2.headers import check_request
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.server import Http2Server
from argosy.serve.http2.streams import Head
from tests.serve.http2.random_frames import check_invariants, frame, make_frame

HEADERS = b"\x88"
PAIRS = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"h")]


class KeptHead(Head):
    __slots__ = ("headers",)


class Connection(Http2Connection):
    """Keeps what it is asked, and answers with `answer` or, when that is None, later or never."""

    answer = b"answer"

    def __init__(self, server):
        super().__init__(server)
        self.server = server
        self.transport = Transport()
        self.requests = []
        self.cancelled = []

    def read_head(self, headers):
        head = KeptHead()
        head.headers = headers
        head.is_early = headers[b":path"] == b"/early"
        return head

    def on_request(self, stream_id, head, body):
        self.requests.append((stream_id, head.headers, bytes(body)))
        if self.answer is not None or head.is_early:
            self.respond(stream_id, HEADERS, self.answer or b"early", HEADERS)
        return stream_id

    def on_too_large(self, stream_id, head):
        self.respond(stream_id, HEADERS)

    def on_cancel(self, token):
        assert token not in self.cancelled
        self.cancelled.append(token)


class Transport:
    """Takes what is written."""

    def __init__(self):
        self.data = b""
        self.is_ended = False

    def write(self, data):
        assert not self.is_ended
        self.data += data

    def write_eof(self):
        self.is_ended = True

    def abort(self):
        self.is_ended = True

    def can_write_eof(self):
        return True

    def is_closing(self):
        return False

    def set_write_buffer_limits(self, high):
        pass

    def resume_reading(self):
        pass

    pause_reading = resume_reading


def connect(limits=None, cls=Connection, is_greeted=True):
    connection = cls(Http2Server(limits or Limits()))
    connection.connection_made(connection.transport)
    if is_greeted:
        connection.data_received(PREFACE + frame(4))
        assert not connection.is_dead
    return connection


def in_loop(function):
    """Run a test inside an event loop, which the connection needs for its ends."""

    @functools.wraps(function)
    def run(**arguments):
        async def main():
            function(**arguments)

        asyncio.run(main())

    return run


@in_loop
@pytest.mark.parametrize("seed", range(12))
def test_headers_are_what_the_client_sent(seed):
    """Blocks that were seen before are not decoded again: they must mean what decoding would give, whatever came between."""
    rng = random.Random(seed)
    connection = connect(Limits(frames_burst=1 << 30))
    encoder = hpack.Encoder()
    extra = [(b"x-%d" % index, rng.randbytes(rng.choice((0, 5, 40))).hex().encode()) for index in range(8)]
    stream = 1
    sent = []
    for _ in range(1500):
        if rng.random() < 0.02:
            encoder.header_table_size = rng.choice((0, 64, 200, 4096))
        fields = [HeaderTuple(*pair) for pair in PAIRS]
        for name, value in rng.sample(extra, rng.choice((0, 0, 1, 2, 5))):
            fields.append((NeverIndexedHeaderTuple if rng.random() < 0.3 else HeaderTuple)(name, value))
        if rng.random() < 0.05:
            fields.append(HeaderTuple(b"x-unique", str(rng.random()).encode()))
        sent.append({bytes(name): bytes(value) for name, value in fields})
        block = encoder.encode(fields, huffman=rng.random() < 0.5)
        connection.data_received(frame(1, 5, stream, block))
        stream += 2
    assert [headers for _, headers, _ in connection.requests] == sent
    assert not connection.is_dead


@in_loop
def test_repeated_block_is_looked_up_and_a_changing_one_is_not():
    connection = connect()
    encoder = hpack.Encoder()
    first, again = encoder.encode(PAIRS), encoder.encode(PAIRS)
    connection.data_received(frame(1, 5, 1, first) + frame(1, 5, 3, again) + frame(1, 5, 5, again))
    assert list(connection.blocks.heads) == [again]
    assert connection.requests[1][1] is connection.requests[2][1]
    connection.data_received(frame(1, 5, 7, encoder.encode([*PAIRS, (b"x", b"1")])))
    assert list(connection.blocks.heads) == []
    connection.data_received(frame(1, 5, 9, again))
    assert connection.is_dead or connection.requests[-1][1] != connection.requests[1][1]


@in_loop
def test_blocks_kept_are_bounded():
    connection = connect(Limits(frames_burst=1 << 30))
    for index in range(500):
        block = b"\x83\x86\x04\x06/%05d" % index
        connection.data_received(frame(1, 5, 4 * index + 1, block))
        connection.data_received(frame(1, 5, 4 * index + 3, block + b"\x00\x01a\x7f\xe1\x07" + b"v" * 1120))
        assert len(connection.blocks.heads) <= 64
        assert all(len(kept) <= 1024 for kept in connection.blocks.heads)
    assert len(connection.requests) == 1000
    assert connection.blocks.heads


@pytest.mark.parametrize(
    ("fields", "is_valid"),
    [
        (PAIRS, True),
        (PAIRS[:3], True),
        ([*PAIRS, (b"te", b"trailers"), (b"content-length", b"12")], True),
        ([*PAIRS, (b"a", b""), (b"a", b"x y")], True),
        (PAIRS[1:], False),
        ([*PAIRS, (b":path", b"/b")], False),
        ([(b"a", b"b"), *PAIRS], False),
        ([*PAIRS, (b"A", b"b")], False),
        ([*PAIRS, (b"te", b"gzip")], False),
        ([*PAIRS, (b"upgrade", b"h2c")], False),
        ([*PAIRS, (b"content-length", b"1, 1")], False),
        ([*PAIRS, (b"content-length", b"1"), (b"content-length", b"1")], False),
        ([*PAIRS, (b"a", b"x ")], False),
        ([*PAIRS, (b"a", b"x\ny")], False),
        ([*PAIRS[:2], (b":path", b"/a\r\nb"), PAIRS[3]], False),
    ],
)
def test_malformed_headers_are_none(fields, is_valid):
    assert (check_request(fields) is not None) == is_valid


def test_values_of_one_name_are_joined():
    assert check_request([*PAIRS, (b"a", b"1"), (b"a", b"2")])[b"a"] == b"1,2"


class LateConnection(Connection):
    answer = None


@in_loop
@pytest.mark.parametrize("cls", [Connection, LateConnection])
@pytest.mark.parametrize("seed", range(6))
def test_no_frames_break_a_connection(seed, cls):
    rng = random.Random(seed)
    num_dead = num_requests = num_unsent = 0
    limits = {"stream_window_bytes": 65536, "upload_pool_bytes": 100_000, "max_body_bytes": 200_000}
    for _ in range(150):
        connection = connect(Limits(max_streams=5, max_unsent_bytes=1000, **limits), cls)
        connection.data_received(frame(1, 4, 1, b"\x83\x86\x84"))
        for _ in range(60):
            # A closed stream takes little: mostly talk of one that is open.
            last = rng.choice([*connection.streams, connection.last_id])
            data = make_frame(rng, last)
            if last in connection.streams or data[3] in (1, 4, 6) or rng.random() < 0.02:
                connection.data_received(data)
            check_invariants(connection)
            if cls is LateConnection and rng.random() < 0.2 and connection.streams:
                stream = rng.choice(list(connection.streams))
                connection.respond(stream, HEADERS, bytes(rng.choice((0, 10, 70_000))), HEADERS)
                check_invariants(connection)
            num_unsent += bool(connection.sending)
            if rng.random() < 0.02:
                connection.server.sweep(rng.random() * 100)
                if rng.random() < 0.1:
                    connection.drain()
        num_dead += connection.is_dead
        num_requests += len(connection.requests)
        connection.connection_lost(None)
        check_invariants(connection)
    assert 10 < num_dead < 140
    assert num_requests > 150
    assert num_unsent > 100 or cls is Connection


@in_loop
@pytest.mark.parametrize("seed", range(4))
def test_pieces_make_no_difference(seed):
    rng = random.Random(seed)
    for _ in range(40):
        data = PREFACE + frame(4)
        for number in range(1, 30, 2):
            data += frame(1, 4, number, b"\x83\x86\x84") + frame(0, 1, number, bytes(rng.choice((0, 10, 3000))))
            if rng.random() < 0.3:
                data += make_frame(rng, number)
        whole, pieces = connect(is_greeted=False), connect(is_greeted=False)
        whole.data_received(data)
        pos = 0
        while pos < len(data):
            size = rng.choice((1, 3, 9, 10, 100, 5000))
            pieces.data_received(data[pos : pos + size])
            pos += size
        assert pieces.requests == whole.requests
        assert pieces.transport.data == whole.transport.data
        assert pieces.is_dead == whole.is_dead


@in_loop
def test_random_bytes_end_a_connection():
    rng = random.Random(0)
    for _ in range(300):
        connection = connect(is_greeted=rng.random() < 0.5)
        connection.data_received(rng.randbytes(rng.choice((1, 9, 100, 20_000))))
        connection.data_received(rng.randbytes(20_000))
        assert connection.is_dead or connection._rest or not connection._is_open
        assert len(connection._rest) < 40_000


@in_loop
def test_answers_of_one_turn_leave_in_one_write():
    connection = connect()
    writes = []
    connection.transport.write = writes.append
    connection.data_received(b"".join(frame(1, 5, number, b"\x83\x86\x84") for number in range(1, 41, 2)))
    assert len(writes) == 1


def test_late_answers_of_one_turn_leave_in_one_write():
    async def main():
        connection = connect(cls=LateConnection)
        connection.data_received(b"".join(frame(1, 5, number, b"\x83\x86\x84") for number in range(1, 41, 2)))
        writes = []
        connection.transport.write = writes.append
        for number in range(1, 41, 2):
            connection.respond(number, HEADERS, b"late", HEADERS)
        assert writes == []
        await asyncio.sleep(0)
        assert len(writes) == 1

    asyncio.run(main())


@in_loop
def test_muted_streams_are_forgotten_in_the_end():
    connection = connect(Limits(frames_burst=1 << 30, aborts_burst=1 << 30))
    for number in range(1, 20_001, 2):
        connection.data_received(frame(1, 4, number, b"\x83\x86\x44\x06/early"))
    assert len(connection.requests) == 10_000
    assert len(connection.muted) <= 4096
    connection.data_received(frame(0, 1, 19_999, b"late"))
    assert not connection.is_dead


@in_loop
def test_window_of_the_connection_is_filled_up_again(monkeypatch):
    for module in (http2, http2_read, http2_state, http2_windows):
        monkeypatch.setattr(module, "CONNECTION_WINDOW", 100_000)
    connection = connect()
    for number in range(1, 41, 2):
        connection.data_received(frame(1, 4, number, b"\x83\x86\x84") + frame(0, 0, number, bytes(3000)))
        connection.data_received(frame(0, 1, number, bytes(3000)))
    updates = connection.transport.data.count(struct.pack(">IBI", 4 << 8 | 8, 0, 0))
    assert updates == 1 + 2
    assert len(connection.requests) == 20
    assert connection.recv_window + 20 * 6000 - 2 * 51_000 == 100_000


class BrokenConnection(Connection):
    def on_request(self, stream_id, head, body):
        raise RuntimeError("a fault of ours")


@in_loop
def test_fault_of_ours_ends_the_connection_and_is_raised():
    connection = connect(cls=BrokenConnection)
    with pytest.raises(RuntimeError):
        connection.data_received(frame(1, 5, 1, b"\x83\x86\x84"))
    assert connection.transport.data.endswith(struct.pack(">II", 1, 2) + b"internal error")
    assert connection.transport.is_ended
    connection.data_received(frame(6, 0, 0, bytes(8)))


@in_loop
def test_client_of_a_server_that_ends_soon_is_served_and_told_at_the_next_sweep():
    connection = connect(is_greeted=False)
    connection.server.begin_drain()
    connection.data_received(PREFACE + frame(4) + frame(1, 5, 1, b"\x83\x86\x84"))
    goodbye = struct.pack(">IBIII", 8 << 8 | 7, 0, 0, (1 << 31) - 1, 0)
    assert b"answer" in connection.transport.data
    assert goodbye not in connection.transport.data
    connection.server.sweep(0.0)
    connection.flush()
    assert goodbye in connection.transport.data


@in_loop
def test_client_that_greets_a_draining_server_is_told():
    connection = connect(is_greeted=False)
    connection.server.is_over = True
    connection.data_received(PREFACE + frame(4) + frame(1, 5, 1, b"\x83\x86\x84"))
    assert struct.pack(">IBIII", 8 << 8 | 7, 0, 0, (1 << 31) - 1, 0) in connection.transport.data
    assert len(connection.requests) == 1
    connection.data_received(frame(6, 1, 0, b"argosy:d"))
    assert connection.transport.data.endswith(struct.pack(">IBIII", 8 << 8 | 7, 0, 0, 1, 0))
    assert connection.transport.is_ended


@in_loop
def test_answer_to_a_stream_that_is_gone_is_dropped():
    connection = connect(cls=LateConnection)
    connection.data_received(frame(1, 5, 1, b"\x83\x86\x84") + frame(3, 0, 1, bytes(4)))
    before = connection.transport.data
    connection.respond(1, HEADERS, b"late", HEADERS)
    connection.respond(9, HEADERS, b"never asked", HEADERS)
    connection.flush()
    assert connection.transport.data == before
    assert connection.cancelled == [1]
