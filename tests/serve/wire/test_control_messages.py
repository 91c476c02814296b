"""Messages between processes: what is said arrives as it was said, and nothing else passes."""

from __future__ import annotations

import array
import asyncio
import json
import math
import os
import selectors
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.errors import MessageError
from argosy.serve.node.children import MAX_WAITING_BYTES, Child, ChildChannel
from argosy.serve.node.family import Family
from argosy.serve.wire import channel as channels
from argosy.serve.wire.channel import Channel, Received, read_message
from argosy.serve.wire.control_messages import (
    MAX_MESSAGE_BYTES,
    TABLE,
    Accuse,
    Alive,
    ArrivalsAnswer,
    AskArrivals,
    AskBusy,
    AskLink,
    AskLinks,
    AskStats,
    Beat,
    BusyAnswer,
    EndOfWorkers,
    ErrandDone,
    ForkWorker,
    Held,
    Hello,
    JoinEnded,
    LaneStats,
    LinksAnswer,
    LoadModel,
    Message,
    NewLink,
    Process,
    PutTable,
    Ready,
    Refused,
    StartControl,
    StartFront,
    StartWorker,
    StatsAnswer,
    StopWorker,
    TableTaken,
    UnloadModel,
    WorkerDied,
    WorkerGone,
    WorkerState,
    decode,
    encode,
    fit_text,
    longest,
)
from argosy.serve.worker.model import MAX_REFUSAL

NAME = "w-mnist-3-0a1b2c3d"
SPEC: dict[str, Any] = {"runtime": "onnx", "signature": {"inputs": [{"name": "x", "shape": [-1, 4]}]}, "key": "k"}
READY = Ready(
    load_s=0.25,
    warm_s=0.5,
    threads=2,
    memory_bytes=1 << 30,
    golden_difference=1e-7,
    join_refusal="",
    joining="unknown",
    pad_refusal="output 'y' moved",
    service_s=((1, 0.001), (2, 0.0015)),
    service=((1, 16, 0.001), (2, 16, 0.0015)),
    escape=0.25,
    trial="a made-up request failed",
)
REFUSED = Refused("GoldenMismatch: é \U0001f600", tensor="y", got=0.5, how="has another shape", allowed=0.001)
LANE = LaneStats("mnist", "3", 1, 0, 2, 1234.5, True, "", "independent", "", 64, "full", 0.002)

# One of each, with something in every field.
EXAMPLES: list[Message] = [
    StartControl({"home": "/home/\udcff", "num_fronts": 2}, "f00d"),
    WorkerState(NAME, 77, SPEC, 3, READY, False),
    EndOfWorkers(),
    WorkerDied(NAME, "signal SIGSEGV", "the end\n", True, REFUSED),
    WorkerGone(NAME),
    StartFront({"home": "/x"}, 1, ("http", "grpc"), 2.5),
    NewLink("front-0", "front", 78, True),
    AskLink(NAME),
    ForkWorker(NAME, 1, SPEC),
    Hello(),
    READY,
    REFUSED,
    JoinEnded("output 'y' moved", 0.25),
    StartWorker(NAME, SPEC),
    StopWorker(NAME),
    Accuse("front-0", 78, "it hangs"),
    Held(NAME, 78, True, 2.5),
    Beat(),
    Alive(),
    PutTable({"epoch": 4, "deployments": []}, id=9),
    TableTaken(9, 1_764_000_000_000),
    AskBusy((("mnist", "3"), ("mnist", "4")), (NAME,), id=10),
    BusyAnswer(10, True),
    AskLinks("mnist", (NAME,), True, id=13),
    LinksAnswer(13, (NAME,)),
    AskStats(id=11),
    StatsAnswer(11, (LANE,)),
    AskArrivals("r1", "mnist", id=12),
    ArrivalsAnswer(12, struct.pack("6d", 1.5, 2, 0, 2.5, 1, 7), 3),
    LoadModel(5, "mnist", "3", "secret"),
    UnloadModel(6, "mnist", "secret"),
    ErrandDone(5, "NotFoundError", "no such model", "look"),
]
OPS = {route.kind: op for op, route in TABLE.items()}
PROCESSES: tuple[Process, ...] = get_args(Process)
FIELDS = [(message, name) for message in EXAMPLES for name in vars(message)]

# What a field is not, by what it is.
WRONG: dict[type, list[Any]] = {
    str: [1, True, None, [], {}, "half of a pair: \ud800"],
    int: ["1", 1.5, True, None, -1, 1 << 63, 10**4000, []],
    float: ["1", True, None, -0.5, [], {}, 10**400],
    bool: [0, 1, "true", None],
    dict: [None, 1, "x", []],
    bytes: [None, 1, "not base64", [], "AAAA"],
    tuple: [None, 1, "x", {}, [None], [[]], [["x"]], [[1]]],
}
NULLABLE = {"report", "golden_difference", "pad_refusal", "tensor", "got", "how", "allowed", "kind", "escape", "drain_s"}


def name_of(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Message) else str(value)


def to_fields(message: Message) -> dict[str, Any]:
    return json.loads(encode(message))


def take(message: Message, **changes: Any) -> Message:
    """What a receiver makes of a message whose fields were changed."""
    route = TABLE[OPS[type(message)]]
    return decode(json.dumps({**to_fields(message), **changes}).encode(), route.senders[0], route.receivers[0])


def test_there_is_an_example_of_every_message() -> None:
    assert sorted(OPS[type(message)] for message in EXAMPLES) == sorted(TABLE)


@pytest.mark.parametrize("message", EXAMPLES, ids=name_of)
def test_message_arrives_as_it_was_sent(message: Message) -> None:
    op = OPS[type(message)]
    route = TABLE[op]
    for sender in PROCESSES:
        for receiver in PROCESSES:
            if sender in route.senders and receiver in route.receivers:
                found = decode(encode(message), sender, receiver, route.num_fds or 0)
                assert found == message
                assert type(found) is type(message)
            else:
                with pytest.raises(MessageError, match=f"`{op}` is none that a {sender} process sends to a {receiver} process"):
                    decode(encode(message), sender, receiver)


@pytest.mark.parametrize(("message", "name"), FIELDS, ids=name_of)
def test_field_that_is_missing_is_refused(message: Message, name: str) -> None:
    route = TABLE[OPS[type(message)]]
    fields = to_fields(message)
    del fields[name]
    with pytest.raises(MessageError, match=f"{type(message).__name__} lacks '{name}'"):
        decode(json.dumps(fields).encode(), route.senders[0], route.receivers[0])


@pytest.mark.parametrize(("message", "name"), FIELDS, ids=name_of)
def test_field_of_another_kind_is_refused(message: Message, name: str) -> None:
    value = getattr(message, name)
    kind = dict if isinstance(value, Message) else type(value)
    for wrong in WRONG[kind]:
        if wrong is None and name in NULLABLE:
            continue
        with pytest.raises(MessageError) as caught:
            take(message, **{name: wrong})
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("message", EXAMPLES, ids=name_of)
def test_field_that_is_not_known_is_refused(message: Message) -> None:
    with pytest.raises(MessageError, match="has no 'more'"):
        take(message, more=1)


def test_what_a_worker_says_forges_no_line_of_a_log() -> None:
    for text in ('{"op":"hello","a\\nargosy: serving":1}', '{"op":"a\\nb"}', '{"op":"refused","error":1,"\\n":1}'):
        with pytest.raises(MessageError) as caught:
            decode(text.encode(), "worker", "supervisor")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", ["quit", "", None, 1, [], {}, ["hello"]], ids=str)
def test_unknown_op_is_refused(op: Any) -> None:
    with pytest.raises(MessageError, match=r"its op is .*, which is none"):
        decode(json.dumps({"op": op}).encode(), "worker", "supervisor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"service": [[0, 0, 0.1]]}, "is 0, expected 1 to 65536", id="no rows"),
        pytest.param({"service": [[1, 1 << 40, 0.1]]}, "expected 0 to", id="long"),
        pytest.param({"service": [[1, 0, 1e-200]]}, "expected 1e-09 to", id="no time"),
        pytest.param({"service_s": [[1, 0.0]]}, "expected 1e-09 to", id="zero"),
        pytest.param({"service_s": [[1, 0.1, 0.1]]}, "has 3 elements, expected 2", id="elements"),
    ],
)
def test_measurements_that_no_front_can_compute_with_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MessageError, match=words):
        take(READY, **changes)


@pytest.mark.parametrize("name", ["control", "w-", "w-a/b", "w-a b", "w-\n", "w-" + "a" * 300, "../w-a"])
def test_name_that_no_worker_has_is_refused(name: str) -> None:
    with pytest.raises(MessageError, match=r"StartWorker.name is "):
        take(StartWorker(NAME, SPEC), name=name)


@pytest.mark.parametrize(
    "changes",
    [{"runtime": None}, {"runtime": "../x"}, {"runtime": ["onnx"]}, {"python": 1}, {"python": "a\0b"}, {"python": None}],
    ids=str,
)
def test_spec_that_names_no_template_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match=r"StartWorker.spec has "):
        take(StartWorker(NAME, SPEC), spec={**SPEC, **changes})


@pytest.mark.parametrize("arrivals", [b"1234567", struct.pack("3d", math.nan, 1, 1), struct.pack("3d", 1, -1, 1), bytes(16)])
def test_arrivals_that_are_none_are_refused(arrivals: bytes) -> None:
    with pytest.raises(MessageError, match=r"ArrivalsAnswer.arrivals are none"):
        ArrivalsAnswer(1, arrivals, 0)


def test_output_that_differs_is_told_with_what_is_allowed() -> None:
    with pytest.raises(MessageError, match="do not go without each other"):
        take(REFUSED, allowed=None)
    with pytest.raises(MessageError, match="say by how much it differs, or how"):
        take(REFUSED, got=None, how=None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "it is no JSON", id="nothing"),
        pytest.param(b"[]", "it is no JSON object", id="list"),
        pytest.param(b"1", "it is no JSON object", id="number"),
        pytest.param(b"null", "it is no JSON object", id="null"),
        pytest.param(b'{"op":"hello"}x', "it is no JSON", id="more"),
        pytest.param(b"\xff\xfe", "it is no JSON", id="no text"),
        pytest.param('{"op":"hello"}'.encode("utf-16"), "it is no JSON", id="utf-16"),
        pytest.param(b'\xef\xbb\xbf{"op":"hello"}', "it is no JSON", id="mark"),
        pytest.param(b"[" * 100_000, "nested too deep", id="lists"),
        pytest.param(b'{"a":' * 20_000, "nested too deep", id="objects"),
        pytest.param(b'{"op":' + b"[" * 900 + b"]" * 900 + b"}", "its op is a list", id="op"),
        pytest.param(b'{"op":NaN}', "NaN is no number", id="nan"),
        pytest.param(b'{"op":-Infinity}', "-Infinity is no number", id="infinity"),
        pytest.param(b'{"op":1e999}', "1e999 is no number", id="overflow"),
        pytest.param(b'{"op":%s}' % (b"9" * 5000), "it is no JSON", id="digits"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(data, "worker", "supervisor")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_but_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data, "worker", "supervisor")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(data=st.data())
def test_changed_message_is_refused_or_is_one(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(EXAMPLES))
    route = TABLE[OPS[type(message)]]
    fields = to_fields(message)
    for name in data.draw(st.lists(st.sampled_from([*fields, "more"]), min_size=1, max_size=2)):
        fields[name] = data.draw(JSON)
    text = json.dumps(fields).encode()
    try:
        found = decode(text, route.senders[0], route.receivers[0])
    except MessageError:
        return
    assert decode(encode(found), route.senders[0], route.receivers[0]) == found


# sizes


def fill_spec(size: int) -> dict[str, Any]:
    """A spec whose message has just so many bytes."""
    missing = size - len(encode(StartWorker(NAME, {"runtime": "onnx", "key": ""})))
    return {"runtime": "onnx", "key": "k" * missing}


def test_message_that_does_not_fit_is_refused_where_it_is_sent_and_where_it_arrives() -> None:
    limit = TABLE["start_worker"].max_bytes
    data = encode(StartWorker(NAME, fill_spec(limit)))
    assert len(data) == limit
    with pytest.raises(MessageError, match=f"`start_worker` of {limit + 1} bytes is not sent .* at most {limit} bytes"):
        encode(StartWorker(NAME, fill_spec(limit + 1)))
    with pytest.raises(MessageError, match=f"`start_worker` is longer than {limit} bytes"):
        decode(data + b" ", "control", "supervisor")


def test_whatever_is_told_the_supervisor_can_be_told_on() -> None:
    spec = fill_spec(TABLE["start_worker"].max_bytes)
    worst = "\U0001f600"  # twelve bytes of JSON
    refused = Refused(fit_text(worst * 9000), tensor=fit_text(worst * 9000, 200), got=1e-300, allowed=1e-300)
    ready = Ready(
        *(1e-300, 1e-300, 1, 1, 1e-300, *[fit_text(worst * 9000, MAX_REFUSAL)] * 3),
        service_s=tuple((1 << power, 0.12345678901234567) for power in range(17)),
        service=tuple((1, length, 0.12345678901234567) for length in range(60)),
        escape=1e-300,
    )
    for report in (refused, ready):
        assert encode(report)
        assert encode(WorkerState(NAME, 1, spec, 1, report, False))
        assert encode(WorkerDied(NAME, fit_text(worst * 9000), fit_text("\0" * 9000), True, report))
    assert encode(ForkWorker(NAME, 1, spec))


def test_table_of_a_thousand_deployments_fits() -> None:
    lane = {"name": "x" * 128, "signature": {"outputs": [{"labels": ["label of a class"] * 1000}]}}
    message = PutTable({"deployments": [lane] * 1000})
    assert MAX_MESSAGE_BYTES < len(encode(message)) < longest("control", "front")


def nest(depth: int) -> list[Any]:
    """So many lists, one in the other."""
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer


@pytest.mark.parametrize("value", [math.nan, math.inf, {1}, nest(20_000)], ids=["nan", "infinity", "set", "deep"])
def test_what_no_json_holds_is_refused_where_it_is_sent(value: Any) -> None:
    with pytest.raises(MessageError, match="`start_worker` cannot be written"):
        encode(StartWorker(NAME, {**SPEC, "options": value}))


def test_text_from_elsewhere_is_made_to_fit() -> None:
    assert fit_text("a\udcffb" * 10, 5) == "a?ba?"
    assert encode(Refused(fit_text("\ud800" * 5000)))


# channels


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def pair() -> Iterator[tuple[ChildChannel, socket.socket]]:
    """The supervisor's end of a worker's channel, and the worker's, on which anything can be sent."""
    ours = ChildChannel("worker")
    yield ours, ours.theirs
    ours.close()
    ours.theirs.close()


def test_kernel_says_which_process_a_message_comes_from(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(encode(Hello()))
    assert ours.receive() == Received(Hello(), [], os.getpid())
    code = f'import socket; socket.socket(fileno={theirs.fileno()}).send(b\'{{"op":"hello"}}\')'
    child = subprocess.Popen(["python3", "-c", code], pass_fds=(theirs.fileno(),))
    child.wait()
    assert ours.receive() == Received(Hello(), [], child.pid)


@pytest.mark.parametrize("num_fds", [1, 3, 16, 40])
@pytest.mark.parametrize(
    "data", [b"[]", b'{"op":"hello"}', b"x" * (MAX_MESSAGE_BYTES + 1), b" "], ids=["list", "hello", "long", "blank"]
)
def test_descriptors_of_a_message_that_is_refused_are_closed(
    pair: tuple[ChildChannel, socket.socket], data: bytes, num_fds: int
) -> None:
    ours, theirs = pair
    before = count_descriptors()
    fds = array.array("i", [0] * num_fds)
    theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(MessageError):
        ours.receive()
    assert count_descriptors() == before


def test_descriptors_without_a_message_are_closed(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, theirs = pair
    before = count_descriptors()
    theirs.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 0]))])
    assert ours.receive() is None
    assert count_descriptors() == before


def test_message_that_was_cut_is_refused(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b'{"op":"hello"}' + b" " * MAX_MESSAGE_BYTES)
    with pytest.raises(MessageError, match=f"longer than {MAX_MESSAGE_BYTES} bytes"):
        ours.receive()


def test_nobody_there_and_nothing_there_are_told_apart(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, theirs = pair
    with pytest.raises(BlockingIOError):
        ours.receive()
    theirs.close()
    assert ours.receive() is None


def test_child_that_reads_late_gets_everything_in_order(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, theirs = pair
    child = Channel(theirs, "worker", "supervisor")
    before = count_descriptors()
    for number in range(2000):
        ours.send(NewLink(f"front-{number}", "front", number), [0])
    assert ours.stuck_s is not None
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_WRITE)
        for number in range(2000):
            if selector.select(0):
                ours.flush()
            received = child.receive()
            assert received is not None
            assert received.message == NewLink(f"front-{number}", "front", number)
            os.close(received.fds[0])
    assert ours.stuck_s is None
    assert count_descriptors() == before


def test_too_much_that_waits_for_a_child_is_an_error_and_is_closed(pair: tuple[ChildChannel, socket.socket]) -> None:
    ours, _ = pair
    before = count_descriptors()
    message = WorkerState(NAME, 1, {"key": "k" * 100_000}, 1, None, False)
    with pytest.raises(OSError, match="does not read"):
        for _ in range(MAX_WAITING_BYTES // 100_000 + 100):
            ours.send(message, [0])
    ours.close()
    assert count_descriptors() < before


def test_process_ends_when_its_supervisor_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    taken: list[Any] = []
    monkeypatch.setattr(channels.os, "_exit", taken.append)
    channel = Channel(right, "front", "supervisor")
    with left, right:
        channels.follow(channel, lambda message, fds: taken.append(message))
        assert taken == []
        left.send(encode(EndOfWorkers()))
        channels.follow(channel, lambda message, fds: taken.append(message))
        assert taken == [1]
        assert "`end_of_workers` is none that a supervisor process sends to a front process" in capfd.readouterr().err


# streams


def read(*data: bytes) -> list[Message | None]:
    """What a control process makes of what a front has written, up to its end."""

    async def read_all() -> list[Message | None]:
        reader = asyncio.StreamReader()
        for part in data:
            reader.feed_data(part)
        reader.feed_eof()
        found = [await read_message(reader, "control", "front")]
        while found[-1] is not None:
            found.append(await read_message(reader, "control", "front"))
        return found

    return asyncio.run(read_all())


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def test_stream_is_read_message_by_message() -> None:
    written = frame(encode(TableTaken(1, 5))) + frame(encode(BusyAnswer(2, False)))
    assert read(written) == read(written[:7], written[7:]) == [TableTaken(1, 5), BusyAnswer(2, False), None]


@pytest.mark.parametrize("cut", [0, 3, 4, 20])
def test_stream_that_ends_in_the_middle_has_ended(cut: int) -> None:
    assert read(frame(encode(TableTaken(1, 5)))[:cut]) == [None]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"\xff\xff\xff\xff", "4294967295 bytes are announced, at most", id="announced"),
        pytest.param(frame(b""), "it is no JSON", id="nothing"),
        pytest.param(frame(b"[" * 100_000), "nested too deep", id="deep"),
        pytest.param(frame(encode(AskStats())), "`stats` is none that a front process sends", id="direction"),
        pytest.param(frame(encode(Hello())), "`hello` is none that a front process sends", id="op"),
    ],
)
def test_rubbish_in_a_stream_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        read(data)


# whose process it is


def test_process_of_somebody_else_is_adopted_by_no_worker(tmp_path: Path) -> None:
    greeted: list[str] = []
    family = Family(tmp_path, lambda child: greeted.append(child.name), lambda *_: None, lambda *_: None)
    first, second = Child("w-a", "worker", SPEC), Child("w-b", "worker", SPEC)
    family.children = {"w-a": first, "w-b": second}
    for pid, words in ((os.getpid(), "cannot be watched"), (1, "cannot be watched"), (1 << 22, "cannot be watched")):
        with pytest.raises(MessageError, match=words):
            family.adopt(first, pid)
    process = subprocess.Popen(["sleep", "60"])
    try:
        family.adopt(first, process.pid)
        for child, words in ((first, "second time"), (second, "another child")):
            with pytest.raises(MessageError, match=words):
                family.adopt(child, process.pid)
        assert (first.pid, second.pid, greeted) == (process.pid, 0, ["w-a"])
    finally:
        family.kill(first)
        process.wait()
        os.close(first.pidfd)
        family.selector.close()
