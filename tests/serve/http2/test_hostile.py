"""Hostile and odd clients of the gRPC front, on raw sockets: what the server does, and that it then serves others."""

import time

import pytest

from argosy.serve.grpc.messages import ModelInferResponse
from argosy.serve.http2.limits import Limits
from tests.serve.grpc.echo import EchoServer
from tests.serve.http2.requests import INFER_BLOCK, U32, floods, h2, infer, make_message, read_answer, read_status


@pytest.fixture(scope="module")
def server():
    running = EchoServer()
    yield running
    running.stop()
    assert running.errors == []


@pytest.fixture
def start():
    """Start servers with limits of their own."""
    running = []

    def run(max_body_bytes=64 << 20, **limits):
        running.append(EchoServer(Limits(**limits), max_body_bytes))
        return running[-1]

    yield run
    for one in running:
        assert h2.is_serving(one.address)
        one.stop()
        assert one.errors == []


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# the cases of attacks/


@pytest.mark.parametrize("case", h2.CASES, ids=lambda case: case.name)
def test_frames(server, case):
    assert h2.run_case(server.address, case) in case.expected
    assert h2.is_serving(server.address)


@pytest.mark.parametrize("case", floods.CASES, ids=lambda case: case.name)
def test_floods(server, case):
    assert floods.run_flood(server.address, case) in case.expected
    assert h2.is_serving(server.address)


def test_a_neighbour_is_served_during_a_flood(server):
    with h2.Peer(server.address) as flooder, h2.Peer(server.address) as neighbour:
        for stream in range(1, 400, 2):
            flooder.send(50 * h2.frame(h2.PING, 0, 0, bytes(8)))
            neighbour.send(infer(stream))
            assert read_status(read_answer(neighbour, stream)[2]) == 0


# streams that are half closed


def test_frames_on_a_stream_whose_request_is_complete(server):
    for data in (h2.frame(h2.DATA, 0, 1, b"x"), h2.headers(1, INFER_BLOCK, end=True)):
        with h2.Peer(server.address) as peer:
            server.admit.calls.clear()
            peer.send(infer(model="slow") + data)
            assert peer.outcome() == "RST_STREAM STREAM_CLOSED"
            assert server.admit.calls[0].is_done


def test_reset_makes_the_call_done(server):
    server.admit.calls.clear()
    with h2.Peer(server.address) as peer:
        peer.send(infer(model="slow"))
        wait_for(lambda: server.admit.calls)
        peer.send(h2.frame(h2.RST_STREAM, 0, 1, U32(8)))
        wait_for(lambda: server.admit.calls[0].is_done, 0.25)
        peer.send(infer(3))
        assert read_status(read_answer(peer, 3)[2]) == 0


def test_connection_error_makes_calls_done(server):
    server.admit.calls.clear()
    with h2.Peer(server.address) as peer:
        peer.send(infer(model="slow"))
        wait_for(lambda: server.admit.calls)
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, U32(0)))
        wait_for(lambda: server.admit.calls[0].is_done, 0.25)
        assert peer.outcome() == "GOAWAY PROTOCOL_ERROR"


# delivery


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_bytes_may_come_in_any_pieces(server, step):
    with h2.Peer(server.address, preface=b"") as peer:
        data = h2.PREFACE + h2.frame(h2.SETTINGS) + infer(1) + h2.frame(h2.PING, 0, 0, bytes(8)) + infer(3, 100)
        for pos in range(0, len(data), step):
            peer.send(data[pos : pos + step])
        for stream in (1, 3):
            assert read_status(read_answer(peer, stream)[2]) == 0


def test_body_may_come_in_many_frames_with_padding_and_trailers(server):
    message = make_message(1000)
    frames = [
        h2.frame(h2.DATA, h2.PADDED, 1, b"\x09" + message[pos : pos + 100] + bytes(9)) for pos in range(0, len(message), 100)
    ]
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, INFER_BLOCK) + b"".join(frames) + h2.headers(1, h2.literal(b"x-end", b"1"), end=True))
        body, _, trailers = read_answer(peer)
        assert read_status(trailers) == 0
        assert len(ModelInferResponse.FromString(body[5:]).raw_output_contents[0]) == 4000


def test_http1_client_is_told_and_closed(server):
    with h2.Peer(server.address, preface=b"POST /v2/models/any/infer HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert peer.read() is None
        assert peer.is_closed
        assert peer.buffer.startswith(b"HTTP/1.1 505 ")
        head, _, body = peer.buffer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head


def test_goaway_of_the_client_waits_for_its_answers(server):
    with h2.Peer(server.address) as peer:
        peer.send(infer(model="slow") + h2.frame(h2.GOAWAY, 0, 0, bytes(8)))
        assert read_status(read_answer(peer)[2]) == 0
        assert peer.read() is None
        assert peer.is_closed


# answers within the client's windows


def test_answer_follows_the_windows_of_the_client(server):
    with h2.Peer(server.address, h2.PREFACE + h2.setting(4, 1)) as peer:
        peer.send(infer(num_floats=1000))
        assert peer.find(h2.DATA).payload == b"\0"
        assert peer.read(0.1) is None
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, U32(10)))
        assert len(peer.find(h2.DATA).payload) == 10
        peer.send(h2.setting(4, 101))
        assert len(peer.find(h2.DATA).payload) == 100
        peer.send(h2.setting(4, 1))  # the window is -100 now
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, U32(100)))
        assert peer.find(h2.DATA, timeout_s=0.1) is None
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, U32(1)))
        assert len(peer.find(h2.DATA).payload) == 1
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, U32(1 << 20)))
        body, _, trailers = read_answer(peer)
        assert read_status(trailers) == 0
        assert len(body) > 3800


def test_connection_window_is_shared(server):
    with h2.Peer(server.address, h2.PREFACE + h2.setting(4, 1 << 20)) as peer:
        for stream in (1, 3, 5):
            peer.send(infer(stream, num_floats=10_000))
        total = 0
        while total < 65535:
            total += len(peer.find(h2.DATA).payload)
        assert total == 65535
        assert peer.find(h2.DATA, timeout_s=0.1) is None
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, U32(1 << 20)))
        assert read_status(read_answer(peer, 5)[2]) == 0


def test_frames_are_no_larger_than_the_client_takes(server):
    for size in (16384, 20000):
        with h2.Peer(server.address, h2.PREFACE + h2.setting(4, 1 << 20) + h2.setting(5, size)) as peer:
            peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, U32(1 << 20)))
            peer.send(infer(num_floats=16_000))
            assert max(read_answer(peer)[1]) == size


def test_table_that_the_client_shrinks_is_acknowledged_in_the_next_block(server):
    with h2.Peer(server.address, h2.PREFACE + h2.setting(1, 0)) as peer:
        peer.send(infer(1))
        assert peer.find(h2.HEADERS).payload[:2] == b"\x20\x88"
        peer.send(infer(3))
        assert peer.find(h2.HEADERS, stream=3).payload[0] == 0x88


def test_new_requests_are_refused_while_answers_wait_for_windows(start):
    server = start(max_unsent_bytes=100_000)
    with h2.Peer(server.address, h2.PREFACE + h2.setting(4, 0)) as peer:
        peer.send(infer(1, 15_000 // 4) * 1)
        for stream in range(3, 41, 2):
            peer.send(infer(stream, 15_000 // 4))
            time.sleep(0.01)
        assert peer.find(h2.RST_STREAM).payload == U32(7)
        peer.send(h2.setting(4, 1 << 20))
        assert read_status(read_answer(peer, 1)[2]) == 0


def test_client_that_does_not_read_is_not_read_either(start):
    server = start(request_timeout_s=1.0)
    with h2.Peer(server.address, h2.PREFACE + h2.setting(4, (1 << 31) - 1)) as peer:
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, U32(1 << 30)))
        peer.socket.settimeout(0.2)
        for stream in range(1, 99, 2):
            if not peer.send(infer(stream, 500_000)):
                break
        wait_for(lambda: any(one.is_paused for one in server.server.connections))
        now = time.monotonic()
        server.run(server.server.sweep, now)
        server.run(server.server.sweep, now + 2)
        wait_for(lambda: not server.server.connections)


# slow clients, with an injected clock


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(h2.PREFACE[:10], id="half a preface"),
        pytest.param(h2.PREFACE, id="no SETTINGS"),
        pytest.param(h2.PREFACE + h2.frame(h2.SETTINGS) + infer()[:20], id="half a HEADERS frame"),
        pytest.param(h2.PREFACE + h2.frame(h2.SETTINGS) + h2.headers(1, INFER_BLOCK, flags=0), id="half a header block"),
        pytest.param(
            h2.PREFACE + h2.frame(h2.SETTINGS) + h2.headers() + h2.frame(h2.DATA, 0, 1, b"12", 9), id="half a DATA frame"
        ),
    ],
)
def test_what_was_begun_must_end_in_time(start, data):
    server = start()
    with h2.Peer(server.address, data) as peer:
        wait_for(lambda: server.server.connections)
        time.sleep(0.05)
        now = time.monotonic()
        server.run(server.server.sweep, now)
        server.run(server.server.sweep, now + 29)
        time.sleep(0.05)
        assert server.server.connections
        server.run(server.server.sweep, now + 31)
        assert peer.outcome(2.0) in ("GOAWAY ENHANCE_YOUR_CALM", "closed")
    wait_for(lambda: not server.server.connections)


def test_body_must_come_in_time_and_others_of_the_connection_go_on(start):
    server = start()
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, INFER_BLOCK) + h2.frame(h2.DATA, 0, 1, bytes(10)))
        peer.send(infer(3))
        read_answer(peer, 3)
        now = time.monotonic()
        server.run(server.server.sweep, now)
        server.run(server.server.sweep, now + 29)
        peer.send(h2.frame(h2.DATA, 0, 1, bytes(10)))
        peer.send(infer(5))
        read_answer(peer, 5)
        server.run(server.server.sweep, now + 31)
        found = peer.find(h2.RST_STREAM)
        assert (found.stream, found.payload) == (1, U32(8))
        peer.send(infer(7))
        assert read_status(read_answer(peer, 7)[2]) == 0


def test_large_body_may_take_longer(start):
    server = start()
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, INFER_BLOCK) + 8 * h2.frame(h2.DATA, 0, 1, bytes(16384)))
        peer.send(infer(3))
        read_answer(peer, 3)
        now = time.monotonic()
        for after in (0, 31.5):
            server.run(server.server.sweep, now + after)
        assert peer.find(h2.RST_STREAM, timeout_s=0.1) is None
        server.run(server.server.sweep, now + 33)
        assert peer.find(h2.RST_STREAM).stream == 1


def test_answer_must_be_taken_in_time(start):
    server = start()
    with h2.Peer(server.address, h2.PREFACE + h2.setting(4, 5)) as peer:
        peer.send(infer(num_floats=1000))
        assert len(peer.find(h2.DATA).payload) == 5
        now = time.monotonic()
        server.run(server.server.sweep, now)
        peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 1, U32(5)))
        assert len(peer.find(h2.DATA).payload) == 5
        for after in (29, 58):
            server.run(server.server.sweep, now + after)
        assert peer.find(h2.RST_STREAM, timeout_s=0.1) is None
        server.run(server.server.sweep, now + 60)
        assert peer.find(h2.RST_STREAM).payload == U32(8)


def test_idle_connection_is_closed_with_goaway(start):
    server = start(idle_timeout_s=100)
    with h2.Peer(server.address) as peer:
        peer.send(infer())
        read_answer(peer)
        now = time.monotonic()
        for after in (0, 90):
            server.run(server.server.sweep, now + after)
        peer.send(infer(3))
        read_answer(peer, 3)
        for after in (95, 190):
            server.run(server.server.sweep, now + after)
        assert peer.find(h2.GOAWAY, timeout_s=0.1) is None
        server.run(server.server.sweep, now + 200)
        assert peer.find(h2.GOAWAY).payload == U32(3) + U32(0)
        assert peer.read() is None
        assert peer.is_closed


def test_sweep_gives_back_what_honest_clients_may_use(start):
    server = start(frames_burst=1000, frames_per_s=500, aborts_burst=20, aborts_per_s=10)
    with h2.Peer(server.address) as peer:
        stream = 1
        for second in range(6):
            peer.send(400 * h2.frame(h2.PING, 0, 0, bytes(8)))
            for _ in range(10):
                peer.send(h2.headers(stream, INFER_BLOCK) + h2.frame(h2.RST_STREAM, 0, stream, U32(8)))
                stream += 2
            assert peer.outcome() == "accepted"
            server.run(server.server.sweep, float(second))
        peer.send(1100 * h2.frame(h2.PING, 0, 0, bytes(8)))
        assert peer.outcome() == "GOAWAY ENHANCE_YOUR_CALM"


# limits


def test_streams_over_the_limit_are_refused_and_the_rest_answered(start):
    server = start(max_streams=10)
    with h2.Peer(server.address) as peer:
        peer.send(b"".join(infer(2 * n + 1, model="slow") for n in range(30)))
        outcomes = {}
        while len(outcomes) < 30:
            found = peer.find(h2.RST_STREAM, h2.HEADERS)
            if found.kind == h2.RST_STREAM:
                outcomes[found.stream] = int.from_bytes(found.payload, "big")
            elif found.flags & h2.END_STREAM:
                outcomes[found.stream] = read_status(found.payload)
        assert outcomes == {2 * n + 1: 0 if n < 10 else 7 for n in range(30)}


def test_connections_over_the_limit_are_closed():
    running = EchoServer()
    running.server.limits = Limits(max_connections=3)
    try:
        peers = [h2.Peer(running.address) for _ in range(3)]
        for peer in peers:
            assert peer.outcome() == "accepted"
        with h2.Peer(running.address) as peer:
            assert peer.outcome() == "closed"
        peers.pop().__exit__()
        wait_for(lambda: len(running.server.connections) == 2)
        assert h2.is_serving(running.address)
        for peer in peers:
            peer.__exit__()
    finally:
        running.stop()


class Upload:
    """A body that is sent as the server's windows allow."""

    def __init__(self, stream, message):
        self.stream = stream
        self.left = message
        self.window = 65535

    def take(self):
        size = min(len(self.left), self.window, 16384)
        piece, self.left = self.left[:size], self.left[size:]
        self.window -= size
        return h2.frame(h2.DATA, 0 if self.left else h2.END_STREAM, self.stream, piece) if size else b""


def test_large_bodies_take_turns_within_the_bound(start):
    limits = {"stream_window_bytes": 65536, "upload_pool_bytes": 300_000, "max_streams": 20}
    server = start(max_body_bytes=2_000_000, **limits)
    bound = 20 * 65536 + 300_000 + 2_000_000 + 65536
    peak = 0
    message = make_message(400_000)
    with h2.Peer(server.address) as peer:
        uploads = {stream: Upload(stream, message) for stream in range(1, 31, 2)}
        peer.send(b"".join(h2.headers(stream, INFER_BLOCK) for stream in uploads))
        wait_for(lambda: server.server.connections)
        (connection,) = server.server.connections
        answered = set()
        while len(answered) < len(uploads):
            data = b"".join(upload.take() for upload in uploads.values())
            peer.send(data)
            streams = list(connection.streams.values())
            peak = max(peak, sum(len(one.upload.body) for one in streams if one.upload is not None))
            while (found := peer.read(0.02 if not data else 0.001)) is not None:
                assert found.kind not in (h2.RST_STREAM, h2.GOAWAY)
                if found.kind == h2.SETTINGS and found.payload:
                    for upload in uploads.values():
                        upload.window += 65536 - 65535
                elif found.kind == h2.WINDOW_UPDATE and found.stream:
                    uploads[found.stream].window += int.from_bytes(found.payload, "big")
                elif found.kind == h2.DATA:
                    peer.send(h2.frame(h2.WINDOW_UPDATE, 0, 0, U32(len(found.payload))))
                    peer.send(h2.frame(h2.WINDOW_UPDATE, 0, found.stream, U32(len(found.payload))))
                elif found.kind == h2.HEADERS and found.flags & h2.END_STREAM:
                    assert read_status(found.payload) == 0
                    answered.add(found.stream)
        assert connection.uploads.granted == 0
        assert not connection.uploads.uploads
    assert 400_000 < peak < bound


def test_reset_uploads_give_their_credit_back(start):
    server = start(stream_window_bytes=65536, upload_pool_bytes=200_000)
    with h2.Peer(server.address) as peer:
        for stream in range(1, 41, 2):
            peer.send(h2.headers(stream, INFER_BLOCK) + 3 * h2.frame(h2.DATA, 0, stream, bytes(16384)))
        assert peer.outcome() == "accepted"
        (connection,) = server.server.connections
        assert len(connection.uploads.uploads) == 20
        assert 0 < connection.uploads.granted <= 200_000
        for stream in [1, *range(39, 1, -2)]:
            peer.send(h2.frame(h2.RST_STREAM, 0, stream, U32(8)))
        assert peer.outcome() == "accepted"
        assert connection.uploads.granted == 0
        assert not connection.uploads.uploads


# gRPC over raw frames


@pytest.mark.parametrize(
    ("block", "body", "text"),
    [
        pytest.param(INFER_BLOCK, b"", b"a body of 0 bytes", id="no message"),
        pytest.param(INFER_BLOCK, b"\0\0\0", b"a body of 3 bytes", id="prefix cut"),
        pytest.param(INFER_BLOCK, b"\0\0\0\0\5abc", b"a body of 8 bytes", id="message cut"),
        pytest.param(INFER_BLOCK, make_message() * 2, b"not exactly one message", id="two messages"),
        pytest.param(INFER_BLOCK + h2.literal(b"grpc-timeout", b"5"), make_message(), b"grpc-timeout", id="timeout without unit"),
        pytest.param(
            INFER_BLOCK + h2.literal(b"grpc-timeout", b"123456789S"), make_message(), b"grpc-timeout", id="timeout too long"
        ),
        pytest.param(INFER_BLOCK + h2.literal(b"grpc-timeout", b"-1S"), make_message(), b"grpc-timeout", id="timeout negative"),
    ],
)
def test_call_is_invalid(server, block, body, text):
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, block) + h2.frame(h2.DATA, h2.END_STREAM, 1, body))
        found = peer.find(h2.HEADERS)
        assert read_status(found.payload) == 3
        assert text in found.payload
        assert found.flags & h2.END_STREAM


@pytest.mark.parametrize(
    ("timeout", "status"),
    [(b"0S", 4), (b"1n", 4), (b"100m", 4), (b"99999999H", 0), (b"2S", 0), (b"1M", 0), (b"2000000u", 0)],
    ids=lambda value: str(value),
)
def test_timeouts_of_every_unit(server, timeout, status):
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, INFER_BLOCK + h2.literal(b"grpc-timeout", timeout)))
        peer.send(h2.frame(h2.DATA, h2.END_STREAM, 1, make_message(model="slow")))
        assert read_status(read_answer(peer)[2]) == status


def test_unknown_encoding_is_unimplemented_and_the_known_are_named(server):
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, INFER_BLOCK + h2.literal(b"grpc-encoding", b"snappy")))
        found = peer.find(h2.HEADERS)
        assert read_status(found.payload) == 12
        assert h2.literal(b"grpc-accept-encoding", b"identity,deflate,gzip") in found.payload
        reset = peer.find(h2.RST_STREAM)
        assert reset.payload == U32(0)
        peer.send(h2.frame(h2.DATA, h2.END_STREAM, 1, make_message()))
        assert peer.outcome() == "accepted"


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"application/grpc-web", b"application/grpc+json", b"text/application/grpc", b""]
)
def test_other_content_types_are_415(server, content_type):
    block = h2.METHOD + h2.SCHEME + h2.PATH
    block += h2.literal(b"content-type", content_type) if content_type else b""
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, block, end=True))
        found = peer.find(h2.HEADERS)
        assert found.payload.startswith(b"\x08\x03415")
        assert found.flags & h2.END_STREAM


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"])
def test_grpc_content_types_are_taken(server, content_type):
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, h2.METHOD + h2.SCHEME + h2.PATH + h2.literal(b"content-type", content_type)))
        peer.send(h2.frame(h2.DATA, h2.END_STREAM, 1, h2.MESSAGE))
        assert read_answer(peer)[0] == b"\0\0\0\0\2\x08\1"


def test_get_is_405(server):
    with h2.Peer(server.address) as peer:
        peer.send(h2.headers(1, b"\x82" + h2.SCHEME + h2.PATH + h2.TYPE, end=True))
        assert peer.find(h2.HEADERS).payload.startswith(b"\x08\x03405")


# draining


def test_drain_says_goaway_twice_and_answers_what_came_between(start):
    server = start()
    with h2.Peer(server.address) as peer:
        peer.send(infer(1, model="slow"))
        wait_for(lambda: server.admit.calls)
        server.run(server.server.drain)
        assert peer.find(h2.GOAWAY).payload == U32((1 << 31) - 1) + U32(0)
        ping = peer.find(h2.PING)
        peer.send(infer(3) + h2.frame(h2.PING, h2.ACK, 0, ping.payload) + infer(5))
        frames = []
        while (found := peer.read()) is not None:
            frames.append(found)
        assert peer.is_closed
        assert [one.payload for one in frames if one.kind == h2.GOAWAY] == [U32(3) + U32(0)]
        ends = [one for one in frames if one.flags & h2.END_STREAM and one.kind == h2.HEADERS]
        assert [(one.stream, read_status(one.payload)) for one in ends] == [(3, 0), (1, 0)]
    server.server.is_draining = server.server.is_over = False


def test_drain_does_not_wait_for_a_ping_that_never_comes(start):
    server = start()
    with h2.Peer(server.address) as peer:
        assert peer.outcome() == "accepted"
        server.run(server.server.drain)
        assert peer.find(h2.GOAWAY) is not None
        now = time.monotonic()
        server.run(server.server.sweep, now)
        assert peer.find(h2.GOAWAY, timeout_s=0.1) is None
        server.run(server.server.sweep, now + 1.5)
        assert peer.find(h2.GOAWAY).payload == U32(0) + U32(0)
    wait_for(lambda: not server.server.connections)
    server.server.is_draining = server.server.is_over = False
