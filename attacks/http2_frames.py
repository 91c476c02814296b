"""Single frames and short exchanges that an HTTP/2 server has to refuse (RFC 9113, RFC 7541).

    python attacks/http2_frames.py HOST:PORT [NAME ...]

Each case opens a connection, sends its bytes, and prints what the server did: the error of a GOAWAY or RST_STREAM,
`closed`, or `accepted`. A case with a `!` was answered otherwise than the RFC asks. Needs the standard library only;
the cases follow those of h2spec, which is not used. tests/serve/http2/test_hostile.py runs all of them.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
CODES = [
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED"),
    *("FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">IBI", size << 8 | kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A field that enters no table, shorter than 127 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


METHOD, SCHEME = b"\x83", b"\x86"  # POST, http
PATH = literal(b":path", b"/inference.GRPCInferenceService/ServerLive")
TYPE = literal(b"content-type", b"application/grpc")
BLOCK = METHOD + SCHEME + PATH + literal(b":authority", b"localhost") + TYPE + literal(b"te", b"trailers")
MESSAGE = b"\0\0\0\0\0"
SETTINGS_ACK = frame(SETTINGS, ACK)


def headers(stream: int = 1, block: bytes = BLOCK, flags: int = END_HEADERS, end: bool = False) -> bytes:
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream, block)


def call(stream: int = 1) -> bytes:
    """A complete, valid call."""
    return headers(stream) + frame(DATA, END_STREAM, stream, MESSAGE)


def setting(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", key, value))


class Peer:
    """A client that sends what it is told."""

    def __init__(self, address: tuple[str, int], preface: bytes = PREFACE + frame(SETTINGS), timeout_s: float = 3.0) -> None:
        self.socket = socket.create_connection(address, timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout_s = timeout_s
        self.buffer = b""
        self.is_closed = False
        self.send(preface)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
        except TimeoutError:
            return False
        except OSError:
            return False
        return True

    def read(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame; None when the server closed, or said nothing for so long."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            if len(self.buffer) >= 9:
                first, flags, stream = struct.unpack_from(">IBI", self.buffer)
                end = 9 + (first >> 8)
                if len(self.buffer) >= end:
                    found = Frame(first & 255, flags, stream, self.buffer[9:end])
                    self.buffer = self.buffer[end:]
                    return found
            left = deadline - time.monotonic()
            if left <= 0 or self.is_closed:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 18)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                self.is_closed = True
                return None
            self.buffer += data

    def find(self, *kinds: int, stream: int | None = None, timeout_s: float | None = None) -> Frame | None:
        """The next frame of these kinds, other ones dropped."""
        while (found := self.read(timeout_s)) is not None:
            if found.kind in kinds and (stream is None or found.stream == stream):
                return found
        return None

    def outcome(self, timeout_s: float | None = None) -> str:
        """What the server makes of all that was sent, a PING at its end included."""
        self.send(frame(PING, 0, 0, b"outcome!"))
        while (found := self.read(timeout_s)) is not None:
            if found.kind == GOAWAY and (code := int.from_bytes(found.payload[4:8], "big")):
                return f"GOAWAY {name_code(code)}"
            if found.kind == RST_STREAM and (code := int.from_bytes(found.payload, "big")):
                return f"RST_STREAM {name_code(code)}"
            if found.kind == PING and found.flags & ACK and found.payload == b"outcome!":
                return "accepted"
        return "closed" if self.is_closed else "silence"


def name_code(code: int) -> str:
    return CODES[code] if code < len(CODES) else str(code)


class Case(NamedTuple):
    """Bytes to send after the preface and SETTINGS, and the outcomes that the RFC allows."""

    name: str
    data: bytes | Callable[[Peer], None]
    expected: tuple[str, ...]
    preface: bytes = PREFACE + frame(SETTINGS)


PROTOCOL, SIZE, FLOW, CLOSED, HPACK = (
    f"GOAWAY {code}"
    for code in ("PROTOCOL_ERROR", "FRAME_SIZE_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "COMPRESSION_ERROR")
)
RST_PROTOCOL, RST_FLOW, RST_CLOSED, RST_SIZE = (
    f"RST_STREAM {code}" for code in ("PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "FRAME_SIZE_ERROR")
)
U32 = struct.Struct(">I").pack


def after_answer(data: bytes) -> Callable[[Peer], None]:
    """Send more once stream 1 has been answered and is closed."""

    def run(peer: Peer) -> None:
        peer.send(call())
        while (found := peer.find(HEADERS, stream=1)) is not None and not found.flags & END_STREAM:
            pass
        peer.send(data)

    return run


def malformed(name: str, block: bytes, expected: str = RST_PROTOCOL) -> Case:
    return Case(name, headers(block=block, end=True), (expected,))


CASES = [
    # the preface
    Case("preface-wrong", b"", ("closed", PROTOCOL), b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n" + frame(SETTINGS)),
    Case("preface-http1", b"", ("closed",), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    Case("preface-tls", b"", ("closed",), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)),
    Case("first-frame-not-settings", b"", (PROTOCOL,), PREFACE + frame(PING, 0, 0, bytes(8))),
    Case("first-frame-settings-ack", b"", (PROTOCOL,), PREFACE + SETTINGS_ACK),
    # frames in general
    Case("unknown-type-ignored", frame(0x16, 0xFF, 0, b"abc") + frame(0x99, 1, 1, bytes(100)), ("accepted",)),
    Case("reserved-bit-ignored", frame(PING, 0, 1 << 31, bytes(8)), ("accepted",)),
    Case("unknown-flags-ignored", frame(PING, 0x16, 0, bytes(8)), ("accepted",)),
    Case("data-of-maximal-size", headers() + frame(DATA, 0, 1, bytes(16384)), ("accepted",)),
    Case("data-over-maximal-size", headers() + frame(DATA, 0, 1, bytes(16385)), (SIZE, RST_SIZE)),
    Case("headers-over-maximal-size", frame(HEADERS, 5, 1, bytes(16385)), (SIZE,)),
    Case("length-without-payload", frame(DATA, 0, 1, length=(1 << 24) - 1), (SIZE,)),
    Case("unknown-type-over-maximal-size", frame(0x77, 0, 0, length=1 << 20), (SIZE,)),
    # header blocks in pieces
    Case("continuation-without-headers", frame(CONTINUATION, END_HEADERS, 1, BLOCK), (PROTOCOL,)),
    Case("continuation-after-end", headers() + frame(CONTINUATION, END_HEADERS, 1, BLOCK), (PROTOCOL,)),
    Case("continuation-on-stream-0", headers(flags=0) + frame(CONTINUATION, END_HEADERS, 0, b""), (PROTOCOL,)),
    Case("continuation-on-other-stream", headers(flags=0) + frame(CONTINUATION, END_HEADERS, 3, b""), (PROTOCOL,)),
    Case("block-interrupted-by-data", headers(flags=0) + frame(DATA, 0, 1, b"x"), (PROTOCOL,)),
    Case("block-interrupted-by-ping", headers(flags=0) + frame(PING, 0, 0, bytes(8)), (PROTOCOL,)),
    Case("block-interrupted-by-unknown", headers(flags=0) + frame(0x55, 0, 0, b""), (PROTOCOL,)),
    Case("block-interrupted-by-headers", headers(flags=0) + headers(3), (PROTOCOL,)),
    Case("continuation-accepted", headers(block=BLOCK[:9], flags=0) + frame(CONTINUATION, 4, 1, BLOCK[9:]), ("accepted",)),
    # streams
    Case("data-on-idle-stream", frame(DATA, 0, 1, b"x"), (PROTOCOL,)),
    Case("rst-on-idle-stream", frame(RST_STREAM, 0, 1, U32(8)), (PROTOCOL,)),
    Case("window-update-on-idle-stream", frame(WINDOW_UPDATE, 0, 1, U32(1)), (PROTOCOL,)),
    Case("priority-on-idle-stream", frame(PRIORITY, 0, 9, bytes(5)), ("accepted",)),
    Case("even-stream", headers(2), (PROTOCOL,)),
    Case("smaller-stream", headers(5) + headers(3), (PROTOCOL,)),
    Case("data-after-end", headers(end=True) + frame(DATA, 0, 1, b"x"), (RST_CLOSED, CLOSED)),
    Case("headers-after-end", headers(end=True) + headers(end=True), (RST_CLOSED, CLOSED, PROTOCOL)),
    Case("data-after-reset", headers() + frame(RST_STREAM, 0, 1, U32(8)) + frame(DATA, 0, 1, b"x"), (CLOSED, RST_CLOSED)),
    Case("headers-after-reset", headers() + frame(RST_STREAM, 0, 1, U32(8)) + headers(), (CLOSED, RST_CLOSED, PROTOCOL)),
    Case("data-after-answer", after_answer(frame(DATA, 0, 1, b"x")), (CLOSED, RST_CLOSED)),
    Case("headers-after-answer", after_answer(headers()), (CLOSED, RST_CLOSED, PROTOCOL)),
    Case("window-update-after-answer", after_answer(frame(WINDOW_UPDATE, 0, 1, U32(9))), ("accepted",)),
    Case("rst-after-answer", after_answer(frame(RST_STREAM, 0, 1, U32(8))), ("accepted",)),
    Case("priority-after-answer", after_answer(frame(PRIORITY, 0, 1, bytes(5))), ("accepted",)),
    Case("too-many-streams", b"".join(headers(2 * n + 1) for n in range(1001)), ("RST_STREAM REFUSED_STREAM", RST_PROTOCOL)),
    # DATA
    Case("data-on-stream-0", frame(DATA, 0, 0, b"x"), (PROTOCOL,)),
    Case("data-padding-too-long", headers() + frame(DATA, PADDED, 1, b"\x05abcd"), (PROTOCOL,)),
    Case("data-padding-missing", headers() + frame(DATA, PADDED, 1, b""), (SIZE, PROTOCOL)),
    Case("data-padding-accepted", headers() + frame(DATA, PADDED | END_STREAM, 1, b"\x03" + MESSAGE + bytes(3)), ("accepted",)),
    # HEADERS
    Case("headers-on-stream-0", headers(0), (PROTOCOL,)),
    Case("headers-padding-too-long", headers(block=b"\xff" + BLOCK, flags=END_HEADERS | PADDED), (PROTOCOL,)),
    Case("headers-padding-accepted", headers(block=b"\x02" + BLOCK + bytes(2), flags=END_HEADERS | PADDED), ("accepted",)),
    Case("headers-priority-accepted", headers(block=bytes(5) + BLOCK, flags=END_HEADERS | HAS_PRIORITY), ("accepted",)),
    Case("headers-priority-cut", headers(block=bytes(3), flags=END_HEADERS | HAS_PRIORITY), (PROTOCOL, SIZE)),
    Case("headers-without-end-twice", headers() + headers(), (RST_PROTOCOL, PROTOCOL)),
    # PRIORITY, RST_STREAM
    Case("priority-on-stream-0", frame(PRIORITY, 0, 0, bytes(5)), (PROTOCOL,)),
    Case("priority-of-4-bytes", headers() + frame(PRIORITY, 0, 1, bytes(4)), (RST_SIZE, SIZE)),
    Case("rst-on-stream-0", frame(RST_STREAM, 0, 0, U32(8)), (PROTOCOL,)),
    Case("rst-of-3-bytes", headers() + frame(RST_STREAM, 0, 1, bytes(3)), (SIZE,)),
    Case("rst-unknown-code", headers() + frame(RST_STREAM, 0, 1, U32(0xFFFF)), ("accepted",)),
    # SETTINGS
    Case("settings-ack-with-payload", frame(SETTINGS, ACK, 0, bytes(6)), (SIZE,)),
    Case("settings-on-stream", frame(SETTINGS, 0, 1, b""), (PROTOCOL,)),
    Case("settings-of-5-bytes", frame(SETTINGS, 0, 0, bytes(5)), (SIZE,)),
    Case("settings-enable-push-2", setting(2, 2), (PROTOCOL,)),
    Case("settings-window-too-large", setting(4, 1 << 31), (FLOW,)),
    Case("settings-frame-size-small", setting(5, 16383), (PROTOCOL,)),
    Case("settings-frame-size-large", setting(5, 1 << 24), (PROTOCOL,)),
    Case("settings-unknown-ignored", setting(0xFF, 1 << 31), ("accepted",)),
    Case("settings-table-0-accepted", setting(1, 0) + call(), ("accepted",)),
    Case(
        "settings-window-overflows-stream",
        headers() + frame(WINDOW_UPDATE, 0, 1, U32((1 << 31) - 1 - 65535)) + setting(4, 65536),
        (FLOW,),
    ),
    # PING, GOAWAY, PUSH_PROMISE
    Case("ping-on-stream", frame(PING, 0, 1, bytes(8)), (PROTOCOL,)),
    Case("ping-of-7-bytes", frame(PING, 0, 0, bytes(7)), (SIZE,)),
    Case("ping-ack-unasked", frame(PING, ACK, 0, bytes(8)), ("accepted",)),
    Case("goaway-on-stream", frame(GOAWAY, 0, 1, bytes(8)), (PROTOCOL,)),
    Case("goaway-of-7-bytes", frame(GOAWAY, 0, 0, bytes(7)), (SIZE,)),
    Case("goaway-then-closed", frame(GOAWAY, 0, 0, bytes(8)), ("closed", "accepted")),
    Case("push-promise", headers() + frame(PUSH_PROMISE, END_HEADERS, 1, U32(2) + BLOCK), (PROTOCOL,)),
    # WINDOW_UPDATE
    Case("window-update-0", frame(WINDOW_UPDATE, 0, 0, U32(0)), (PROTOCOL,)),
    Case("window-update-0-on-stream", headers() + frame(WINDOW_UPDATE, 0, 1, U32(0)), (RST_PROTOCOL, PROTOCOL)),
    Case("window-update-of-3-bytes", frame(WINDOW_UPDATE, 0, 0, bytes(3)), (SIZE,)),
    Case("window-overflow", 2 * frame(WINDOW_UPDATE, 0, 0, U32((1 << 31) - 1)), (FLOW,)),
    Case("window-overflow-on-stream", headers() + 2 * frame(WINDOW_UPDATE, 0, 1, U32((1 << 31) - 1)), (RST_FLOW,)),
    # malformed requests
    malformed("name-uppercase", BLOCK + literal(b"X-Test", b"1")),
    malformed("name-empty", BLOCK + literal(b"", b"1")),
    malformed("name-with-space", BLOCK + literal(b"a b", b"1")),
    malformed("value-with-newline", BLOCK + literal(b"a", b"1\r\nb: 2")),
    malformed("value-with-nul", BLOCK + literal(b"a", b"1\0")),
    malformed("value-with-leading-space", BLOCK + literal(b"a", b" 1")),
    malformed("pseudo-unknown", literal(b":test", b"x") + BLOCK),
    malformed("pseudo-status", b"\x88" + BLOCK),
    malformed("pseudo-after-regular", TYPE + METHOD + SCHEME + PATH),
    malformed("pseudo-missing-method", SCHEME + PATH + TYPE),
    malformed("pseudo-missing-scheme", METHOD + PATH + TYPE),
    malformed("pseudo-missing-path", METHOD + SCHEME + TYPE),
    malformed("pseudo-empty-path", METHOD + SCHEME + literal(b":path", b"") + TYPE),
    malformed("pseudo-twice-method", METHOD + BLOCK),
    malformed("pseudo-twice-scheme", SCHEME + BLOCK),
    malformed("pseudo-twice-path", PATH + BLOCK),
    malformed("header-connection", BLOCK + literal(b"connection", b"keep-alive")),
    malformed("header-transfer-encoding", BLOCK + literal(b"transfer-encoding", b"chunked")),
    malformed("header-te", METHOD + SCHEME + PATH + literal(b"te", b"trailers, deflate")),
    malformed("content-length-without-body", BLOCK + literal(b"content-length", b"5")),
    malformed("content-length-not-a-number", BLOCK + literal(b"content-length", b"-5")),
    Case(
        "content-length-too-small",
        headers(block=BLOCK + literal(b"content-length", b"4")) + frame(DATA, END_STREAM, 1, MESSAGE),
        (RST_PROTOCOL,),
    ),
    Case(
        "content-length-differs-in-frames",
        headers(block=BLOCK + literal(b"content-length", b"9")) + 2 * frame(DATA, 0, 1, MESSAGE) + frame(DATA, END_STREAM, 1),
        (RST_PROTOCOL,),
    ),
    Case("trailers-with-pseudo", headers() + headers(block=METHOD, end=True), (RST_PROTOCOL,)),
    Case(
        "trailers-accepted", headers() + frame(DATA, 0, 1, MESSAGE) + headers(block=literal(b"a", b"b"), end=True), ("accepted",)
    ),
    # HPACK
    malformed("hpack-index-0", b"\x80", HPACK),
    malformed("hpack-index-70", BLOCK + b"\xc6", HPACK),
    malformed("hpack-index-huge", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", HPACK),
    malformed("hpack-size-update-at-end", BLOCK + b"\x20", HPACK),
    malformed("hpack-size-update-too-large", b"\x3f\xe2\x1f" + BLOCK, HPACK),
    malformed("hpack-huffman-padding-too-long", BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff", HPACK),
    malformed("hpack-huffman-padding-zero", BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90", HPACK),
    malformed("hpack-huffman-eos", BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f", HPACK),
    malformed("hpack-literal-cut", BLOCK + b"\x00\x05ab", HPACK),
    malformed("hpack-integer-cut", BLOCK + b"\x7f", HPACK),
]


def run_case(address: tuple[str, int], case: Case, timeout_s: float = 3.0) -> str:
    with Peer(address, case.preface, timeout_s) as peer:
        if callable(case.data):
            case.data(peer)
        elif case.data:
            peer.send(case.data)
        return peer.outcome()


def is_serving(address: tuple[str, int], timeout_s: float = 5.0) -> bool:
    """Whether a new connection's call is answered."""
    with Peer(address, timeout_s=timeout_s) as peer:
        peer.send(call())
        found = peer.find(HEADERS, stream=1)
        return found is not None


def main(run: Callable[[tuple[str, int], Case], str] = run_case, cases: list[Case] = CASES) -> None:
    host, _, port = sys.argv[1].rpartition(":")
    address = (host or "127.0.0.1", int(port))
    wrong = 0
    for case in cases:
        if len(sys.argv) > 2 and case.name not in sys.argv[2:]:
            continue
        outcome = run(address, case)
        is_right = outcome in case.expected
        wrong += not is_right
        verdict = "accepted" if outcome == "accepted" else f"refused  {outcome}"
        print(
            f"{' ' if is_right else '!'} {case.name:36} {verdict}"
            + ("" if is_right else f"   expected {' or '.join(case.expected)}")
        )
        if not is_serving(address):
            sys.exit(f"after {case.name} the server serves no others")
    print(f"{wrong} of the cases answered otherwise than the RFC asks; the server still serves")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
