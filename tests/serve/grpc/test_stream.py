"""ModelStreamInfer on a real socket: unmodified tritonclient and grpcio, then frame by frame; the engine is a fake."""

import asyncio
import queue
import random
import struct
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from argosy.serve.grpc.stream import MAX_OPEN
from argosy.serve.http2.frames import PREFACE
from argosy.serve.http2.limits import Limits
from tests.serve.grpc.echo import EchoServer, make_server
from tests.serve.grpc.requests import X, make_input, make_request
from tests.serve.http2.random_frames import check_invariants, frame, make_frame

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.url, [("grpc.max_receive_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


class Asker:
    """Requests that a test hands to an open stream one by one."""

    def __init__(self, stub, **options):
        self.queue = queue.Queue()
        self.call = stub.ModelStreamInfer(iter(self.queue.get, None), **options)

    def send(self, array, model="any", **fields):
        self.queue.put(make_request(array, model, **fields))

    def end(self):
        self.queue.put(None)

    def read(self):
        return next(self.call)


def read_output(response):
    return triton.InferResult(response.infer_response).as_numpy("y")


# unmodified clients


def test_triton_streams(server):
    answers = queue.Queue()
    with triton.InferenceServerClient(server.url) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for value in range(50):
            client.async_stream_infer("any", [make_input(X + value)], request_id=f"r{value}", enable_empty_final_response=True)
        client.async_stream_infer("nothing", [make_input(X)], request_id="lost")
        got = [answers.get(timeout=20) for _ in range(51)]
        client.stop_stream()
    errors = [str(error) for _, error in got if error is not None]
    assert len(errors) == 1
    assert "Unknown model 'nothing'" in errors[0]
    results = {result.get_response().id: result for result, error in got if error is None}
    for value in range(50):
        np.testing.assert_array_equal(results[f"r{value}"].as_numpy("y"), 2 * (X + value))
        assert results[f"r{value}"].get_response().parameters["triton_final_response"].bool_param


def test_triton_aio_streams(server):
    async def main():
        async def requests():
            for value in range(30):
                yield {"model_name": "any", "inputs": [make_input(X + value)], "request_id": str(value)}

        async with triton_aio.InferenceServerClient(server.url) as client:
            return [(result, error) async for result, error in client.stream_infer(requests())]

    got = asyncio.run(main())
    assert len(got) == 30
    for result, error in got:
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * (X + int(result.get_response().id)))


def test_triton_hears_that_its_stream_has_ended(server):
    answers = queue.Queue()
    with triton.InferenceServerClient(server.url) as client:
        client.start_stream(callback=lambda result, error: answers.put(error), stream_timeout=0.2)
        error = answers.get(timeout=20)
        client.stop_stream()
    assert isinstance(error, InferenceServerException)
    assert "Deadline Exceeded" in str(error)


# what a stream does


def test_answers_come_in_the_order_of_their_completion(stub):
    asker = Asker(stub)
    asker.send(X, "slow", id="slow")
    asker.send(X, id="fast")
    asker.end()
    assert [response.infer_response.id for response in asker.call] == ["fast", "slow"]
    assert asker.call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("model", "fields", "text"),
    [
        ("nothing", {}, "Unknown model 'nothing'; deployed: any"),
        ("any", {"model_version": "9"}, "Version 9 of model 'any' is not served"),
        ("any", {"name": "z"}, "has no input 'z'"),
        ("fails", {}, "failed on this request"),
        ("wrong", {}, "Internal error: TypeError"),
        ("raises", {}, "Internal error: RuntimeError"),
    ],
)
def test_error_of_one_request_does_not_end_the_stream(server, stub, model, fields, text):
    asker = Asker(stub)
    asker.send(X, model, id="bad", **fields)
    response = asker.read()
    assert text in response.error_message
    assert (response.infer_response.id, response.infer_response.model_name) == ("bad", "")
    asker.send(X, id="good")
    np.testing.assert_array_equal(read_output(asker.read()), 2 * X)
    asker.end()
    assert list(asker.call) == []
    assert asker.call.code() is grpc.StatusCode.OK
    server.errors.clear()


def test_stream_without_requests_ends_well(stub):
    asker = Asker(stub)
    asker.end()
    assert list(asker.call) == []
    assert asker.call.code() is grpc.StatusCode.OK


def test_half_closed_stream_is_answered_to_its_end(stub):
    asker = Asker(stub)
    for index in range(3 * MAX_OPEN):
        asker.send(X + index, id=str(index))
    asker.end()
    responses = list(asker.call)
    assert {response.infer_response.id for response in responses} == {str(index) for index in range(3 * MAX_OPEN)}
    for response in responses:
        np.testing.assert_array_equal(read_output(response), 2 * (X + int(response.infer_response.id)))


def test_requests_and_answers_may_be_larger_than_every_window(stub):
    asker = Asker(stub)
    arrays = [
        np.random.default_rng(index).standard_normal((5, size)).astype("f4") for index, size in enumerate((90_000, 3, 400_000))
    ]
    for index, array in enumerate(arrays):
        asker.send(array, id=str(index))
    asker.end()
    responses = {int(response.infer_response.id): response for response in asker.call}
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(read_output(responses[index]), 2 * array)


def test_many_streams_on_one_connection_keep_their_answers(stub):
    askers = [Asker(stub) for _ in range(40)]
    for turn in range(5):
        for number, asker in enumerate(askers):
            asker.send(np.full((1 + number % 3, 1 + 977 * number % 5000), number + turn, np.float32), id=f"{number}-{turn}")
    for number, asker in enumerate(askers):
        asker.end()
        responses = {response.infer_response.id: response for response in asker.call}
        assert set(responses) == {f"{number}-{turn}" for turn in range(5)}
        for turn in range(5):
            expected = np.full((1 + number % 3, 1 + 977 * number % 5000), 2.0 * (number + turn), np.float32)
            np.testing.assert_array_equal(read_output(responses[f"{number}-{turn}"]), expected)


def test_cancelled_stream_drops_what_waits(server, stub):
    server.admit.calls.clear()
    asker = Asker(stub)
    asker.send(X, "slow")
    asker.send(X, id="seen")
    assert asker.read().infer_response.id == "seen"
    asker.call.cancel()
    done = threading.Event()

    def look():
        if all(call.is_done for call in server.admit.calls):
            done.set()

    for _ in range(200):
        server.run(look)
        if done.wait(0.01):
            break
    assert len(server.admit.calls) == 1
    assert done.is_set()
    asker.end()


def test_deadline_of_the_stream_is_that_of_its_requests(server, stub):
    server.admit.calls.clear()
    asker = Asker(stub, timeout=7.0)
    asker.send(X, "slow")
    asker.end()
    assert len(list(asker.call)) == 1
    (call,) = server.admit.calls
    # The client rounds what it sends up, by up to a hundredth of it.
    assert 0.0 < call.deadline_s - call.started_s <= 7.1


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_unpacked(stub, algorithm):
    asker = Asker(stub, compression=algorithm)
    array = np.ones((100, 64), np.float32)
    asker.send(array)
    asker.end()
    (response,) = asker.call
    np.testing.assert_array_equal(read_output(response), 2 * array)


def test_priority_and_timeout_of_a_request_are_taken(server, stub):
    server.admit.calls.clear()
    asker = Asker(stub)
    request = make_request(X, "slow")
    request.parameters["priority"].uint64_param = 3
    request.parameters["timeout"].int64_param = 5_000_000
    asker.queue.put(request)
    asker.end()
    assert len(list(asker.call)) == 1
    (call,) = server.admit.calls
    assert call.priority == 3
    assert call.deadline_s - call.started_s == pytest.approx(5.0)


def test_message_over_the_limit_ends_the_stream():
    running = EchoServer(max_body_bytes=100_000)
    with grpc.insecure_channel(running.url) as channel:
        asker = Asker(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        asker.send(X, id="first")
        assert asker.read().infer_response.id == "first"
        asker.send(np.zeros((1, 30_000), np.float32))
        with pytest.raises(grpc.RpcError) as caught:
            asker.read()
        asker.end()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more than 100000 bytes" in caught.value.details()
    running.stop()
    assert running.errors == []


def test_draining_server_answers_what_it_has_and_ends_its_streams():
    running = EchoServer()
    with grpc.insecure_channel(running.url) as channel:
        asker = Asker(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        asker.send(X, id="first")
        assert asker.read().infer_response.id == "first"
        running.admit.calls.clear()
        asker.send(X, "slow", id="late")
        for _ in range(500):
            if running.run(lambda: len(running.admit.calls)):
                break
        running.run(running.server.drain)
        assert asker.read().infer_response.id == "late"
        with pytest.raises(grpc.RpcError) as caught:
            asker.read()
        asker.end()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "The server is stopping" in caught.value.details()
    running.stop()
    assert running.errors == []


# frame by frame


def pack(request):
    data = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def literal(name, value):
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


BLOCK = b"\x83\x86" + b"".join(
    literal(*pair)
    for pair in (
        (b":path", STREAM.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)


class Transport:
    """Takes what a connection writes, and gives it as frames."""

    def __init__(self):
        self.data = b""
        self.is_ended = False

    def write(self, data):
        self.data += data

    def is_closing(self):
        return self.is_ended

    def abort(self):
        self.is_ended = True

    write_eof = abort

    def can_write_eof(self):
        return True

    def set_write_buffer_limits(self, high):
        pass

    def pause_reading(self):
        pass

    resume_reading = pause_reading

    def take(self):
        frames = []
        while self.data:
            first, flags, stream = struct.unpack_from(">IBI", self.data)
            length = first >> 8
            frames.append((first & 255, flags, stream, self.data[9 : 9 + length]))
            self.data = self.data[9 + length :]
        return frames


def connect(limits=None, max_body_bytes=64 << 20):
    """A connection without a socket, greeted; it must be made within an event loop."""
    make_connection, owner = make_server(limits, max_body_bytes)
    connection, transport = make_connection(), Transport()
    connection.connection_made(transport)
    connection.data_received(PREFACE + frame(4))
    transport.take()
    return connection, transport, owner


async def settle():
    for _ in range(6):
        await asyncio.sleep(0)


def read_answers(frames, stream=1):
    body = b"".join(payload for kind, _, number, payload in frames if kind == 0 and number == stream)
    ids = []
    while body:
        size = struct.unpack_from(">I", body, 1)[0]
        ids.append(grpc_echo_response(body[5 : 5 + size]).infer_response.id)
        body = body[5 + size :]
    return ids


def grpc_echo_response(data):
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelStreamInferResponse.FromString(data)


def run(main):
    return asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_messages_may_be_cut_anywhere(seed):
    async def main():
        rng = random.Random(seed)
        connection, transport, _ = connect(Limits(frames_burst=1 << 30))
        data = b"".join(pack(make_request(np.ones((1, rng.choice((1, 30, 2000))), np.float32), id=str(i))) for i in range(40))
        connection.data_received(frame(1, 4, 1, BLOCK))
        frames = []
        pos = 0
        while pos < len(data):
            size = min(rng.choice((1, 5, 100, 9000)), len(data) - pos)
            connection.data_received(frame(0, 0, 1, data[pos : pos + size]))
            pos += size
            if rng.random() < 0.3:
                await settle()
            frames += transport.take()
            # The client has read them.
            got = sum(len(payload) for kind, _, _, payload in frames if kind == 0)
            frames_new = got and frame(8, 0, 0, struct.pack(">I", 1 << 20)) + frame(8, 0, 1, struct.pack(">I", 1 << 20))
            if frames_new and rng.random() < 0.05:
                connection.data_received(frames_new)
        connection.data_received(
            frame(0, 1, 1) + frame(8, 0, 0, struct.pack(">I", 1 << 24)) + frame(8, 0, 1, struct.pack(">I", 1 << 24))
        )
        await settle()
        frames += transport.take()
        assert sorted(read_answers(frames), key=int) == [str(index) for index in range(40)]
        assert frames[-1][0] == 1
        assert b"grpc-status\x010" in frames[-1][3]
        assert connection.streams == {}
        assert connection.unsent_bytes == 0

    run(main)


def test_client_that_does_not_read_is_not_asked_for_more():
    async def main():
        connection, transport, _ = connect()
        connection.data_received(frame(1, 4, 1, BLOCK))
        request = pack(make_request(np.ones((1, 4000), np.float32)))
        credit = sent = 256 << 10
        while credit >= len(request):
            room = (credit // len(request)) * len(request)
            for _ in range(room // len(request)):
                for start in range(0, len(request), 16000):
                    connection.data_received(frame(0, 0, 1, request[start : start + 16000]))
                credit -= len(request)
                await settle()
            for kind, _, number, payload in transport.take():
                if kind == 8 and number == 1:
                    credit += int.from_bytes(payload, "big")
                    sent += int.from_bytes(payload, "big")
            assert sent < 8 << 20
        (stream,) = connection.streams.values()
        # 64 KiB have gone to the client; the rest waits, and is not much more than the bound.
        assert (1 << 20) < stream.unsent_bytes < (1 << 20) + (300 << 10)
        # It reads again, and all goes on.
        for _ in range(200):
            connection.data_received(frame(8, 0, 0, struct.pack(">I", 1 << 20)) + frame(8, 0, 1, struct.pack(">I", 1 << 20)))
            await settle()
        assert stream.unsent_bytes == 0
        assert any(kind == 8 and number == 1 for kind, _, number, _ in transport.take())
        assert connection.unsent_bytes == 0

    run(main)


def test_requests_in_flight_are_bounded():
    async def main():
        connection, _, owner = connect()
        owner.admit.delay_s = 0.01
        connection.data_received(frame(1, 4, 1, BLOCK))
        request = pack(make_request(X, "slow"))
        count = (200 << 10) // len(request)
        assert count > 2 * MAX_OPEN
        for _ in range(count):
            connection.data_received(frame(0, 0, 1, request))
        assert len(owner.admit.calls) == MAX_OPEN
        (stream,) = connection.streams.values()
        assert stream.num_open == MAX_OPEN
        connection.data_received(frame(3, 0, 1, struct.pack(">I", 8)))
        assert all(call.is_done for call in owner.admit.calls)
        await asyncio.sleep(0.03)
        assert len(owner.admit.calls) == MAX_OPEN
        assert connection.streams == {}

    run(main)


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"\0\0\0\0\x05abc", b"3", b"ends within a message"),
        (b"\0\0\0", b"3", b"ends within a message"),
        (b"\0\xff\xff\xff\xff", b"8", b"more than 1000 bytes"),
    ],
    ids=["cut", "cut-prefix", "huge"],
)
def test_broken_framing_ends_the_stream(data, status, text):
    async def main():
        connection, transport, _ = connect(max_body_bytes=1000)
        connection.data_received(frame(1, 4, 1, BLOCK) + frame(0, 1, 1, data))
        await settle()
        *_, (kind, flags, number, payload) = transport.take()
        assert (kind, flags, number) == (1, 5, 1)
        assert b"grpc-status" + bytes((1,)) + status in payload
        assert text in payload
        assert connection.streams == {}

    run(main)


@pytest.mark.parametrize("payload", [b"\2\0\0\0\1a", b"\1\0\0\0\1a", b"\0\0\0\0\2\xff\xff"], ids=["flag", "encoding", "garbage"])
def test_bad_message_is_answered_and_the_stream_goes_on(payload):
    async def main():
        connection, transport, _ = connect()
        connection.data_received(
            frame(1, 4, 1, BLOCK) + frame(0, 0, 1, payload) + frame(0, 1, 1, pack(make_request(X, id="after")))
        )
        await settle()
        frames = transport.take()
        assert read_answers(frames) == ["", "after"]
        assert b"grpc-status\x010" in frames[-1][3]

    run(main)


def test_client_that_overruns_its_window_is_reset():
    async def main():
        connection, transport, owner = connect()
        owner.admit.delay_s = 60
        connection.data_received(frame(1, 4, 1, BLOCK))
        request = pack(make_request(X, "slow")) * 100
        for _ in range(60):
            connection.data_received(frame(0, 0, 1, request))
        resets = [payload for kind, _, _, payload in transport.take() if kind == 3]
        assert resets == [struct.pack(">I", 3)]
        assert all(call.is_done for call in owner.admit.calls)
        assert not connection.is_dead

    run(main)


@pytest.mark.parametrize(
    ("data", "age_s", "is_reset"),
    [(b"", 100, False), (b"", 700, True), (b"\0\0\0", 100, True), (b"\0\0\0", 20, False)],
    ids=["idle", "idle-long", "begun-long", "begun"],
)
def test_silent_stream_ends_after_a_time(data, age_s, is_reset):
    async def main():
        connection, _, owner = connect()
        connection.data_received(frame(1, 4, 1, BLOCK) + frame(0, 0, 1, data))
        owner.sweep(1000.0)
        owner.sweep(1000.0 + age_s)
        assert (connection.streams == {}) == is_reset

    run(main)


@pytest.mark.parametrize("is_reading", [True, False])
def test_client_may_read_slowly_but_must_read(is_reading):
    async def main():
        connection, _, owner = connect()
        request = pack(make_request(np.ones((1, 30_000), np.float32)))
        connection.data_received(frame(1, 4, 1, BLOCK))
        for start in range(0, len(request), 16000):
            connection.data_received(frame(0, 0, 1, request[start : start + 16000]))
        await settle()
        for second in range(0, 200, 10):
            owner.sweep(1000.0 + second)
            if is_reading:
                connection.data_received(frame(8, 0, 1, struct.pack(">I", 100)) + frame(8, 0, 0, struct.pack(">I", 100)))
        assert bool(connection.streams) == is_reading

    run(main)


def test_working_stream_does_not_end():
    async def main():
        connection, _, owner = connect()
        owner.admit.delay_s = 60
        connection.data_received(frame(1, 4, 1, BLOCK) + frame(0, 0, 1, pack(make_request(X, "slow"))))
        for second in range(0, 2000, 100):
            owner.sweep(1000.0 + second)
        assert len(connection.streams) == 1

    run(main)


def read_status(frames, stream=1):
    """The status in the trailers that end a stream."""
    (payload,) = [payload for kind, flags, number, payload in frames if (kind, flags, number) == (1, 5, stream)]
    begin = payload.index(b"grpc-status") + len(b"grpc-status")
    return int(payload[begin + 1 : begin + 1 + payload[begin]])


def test_stream_that_begins_while_the_server_drains_is_ended():
    async def main():
        connection, transport, owner = connect()
        owner.drain()
        connection.data_received(frame(1, 4, 1, BLOCK))
        frames = transport.take()
        assert read_status(frames) == grpc.StatusCode.UNAVAILABLE.value[0]
        assert connection.streams == {}
        assert not connection.is_dead

    run(main)


def test_stream_whose_deadline_has_passed_is_ended_with_what_is_under_way():
    async def main():
        connection, transport, owner = connect()
        owner.admit.delay_s = 60
        block = BLOCK + literal(b"grpc-timeout", b"5S")
        connection.data_received(frame(1, 4, 1, block) + frame(0, 0, 1, pack(make_request(X, "slow"))))
        now = time.monotonic()
        owner.sweep(now + 1)
        assert len(connection.streams) == 1
        owner.sweep(now + 10)
        await settle()
        assert read_status(transport.take()) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert [call.is_done for call in owner.admit.calls] == [True]
        assert connection.streams == {}

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_no_frames_break_a_connection_of_streams(seed):
    async def main():
        rng = random.Random(seed)
        sizes = {"stream_window_bytes": 65536, "upload_pool_bytes": 150_000}
        num_dead = num_answers = num_unsent = 0
        for _ in range(25):
            connection, transport, owner = connect(
                Limits(max_streams=6, max_unsent_bytes=100_000, **sizes), max_body_bytes=200_000
            )
            owner.admit.delay_s = 0
            unsent: dict[int, bytes] = {}
            for _ in range(80):
                open_ids = [number for number in unsent if number in connection.streams]
                if len(open_ids) < 4 and rng.random() < 0.3:
                    number = (connection.last_id + 1) | 1
                    unsent[number] = b"".join(
                        pack(
                            make_request(
                                np.ones((1, rng.choice((1, 50, 5000, 40_000))), np.float32), rng.choice(("any", "slow", "no"))
                            )
                        )
                        for _ in range(rng.choice((1, 5, 40)))
                    )
                    connection.data_received(frame(1, 4, number, BLOCK))
                elif open_ids and rng.random() < 0.9:
                    number = rng.choice(open_ids)
                    window = connection.streams[number].upload.window
                    size = min(rng.choice((1, 40, 60_000, 100_000)), len(unsent[number]), window)
                    data, unsent[number] = unsent[number][:size], unsent[number][size:]
                    pieces = [data[pos : pos + 16384] for pos in range(0, max(1, size), 16384)]
                    *firsts, last = pieces
                    end = frame(0, int(not unsent[number]), number, last)
                    connection.data_received(b"".join(frame(0, 0, number, piece) for piece in firsts) + end)
                elif rng.random() < 0.3:
                    connection.data_received(make_frame(rng, connection.last_id))
                elif rng.random() < 0.2:
                    connection.data_received(frame(3, 0, rng.choice(list(unsent) or [1]), bytes(4)) if unsent else b"")
                check_invariants(connection)
                if rng.random() < 0.5:
                    await settle()
                    check_invariants(connection)
                if rng.random() < 0.15:
                    step = struct.pack(">I", rng.choice((1000, 100_000)))
                    more = b"".join(frame(8, 0, number, step) for number in (0, *connection.streams))
                    connection.data_received(more)
                    check_invariants(connection)
                num_unsent += bool(connection.sending)
                if rng.random() < 0.01:
                    connection.drain()
            num_dead += connection.is_dead
            num_answers += sum(kind == 0 for kind, _, _, _ in transport.take())
            connection.connection_lost(None)
            check_invariants(connection)
            assert not connection.streams
            assert all(call.is_done for call in owner.admit.calls)
        assert num_dead < 25
        assert num_answers > 100
        assert num_unsent > 50

    # Where a frame was lost, what comes after it is garbage, and the fake engine adds that up.
    with np.errstate(all="ignore"):
        run(main)
