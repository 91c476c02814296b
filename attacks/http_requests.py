"""Requests that an HTTP/1.1 server has to refuse, or to answer once and in step (RFC 9110, RFC 9112).

    python attacks/http_requests.py HOST:PORT [NAME ...]

Each case opens a connection, sends its bytes, and prints what the server did: the statuses of its answers, `closed`
where it ended the connection, `silent` where it said nothing, and `out of step` where the next request of the same
connection was not answered by its own answer (a smuggled request). A line with a `!` was answered otherwise than the
case expects. After each case the server has to answer another connection. Needs the standard library only.
tests/serve/http/test_http.py runs all of them.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

REFUSED = ("400 closed",)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: probe\r\n\r\n"
LIVE_BODY = b'{"live":true}'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """A client that sends what it is told, and reads answers as RFC 9112 says."""

    def __init__(self, address: tuple[str, int], timeout_s: float = 5.0) -> None:
        self.socket = socket.create_connection(address, timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.is_closed = False

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> bool:
        """Send pieces, each for itself; False when the server does not take them."""
        try:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(0.01)  # no reader can be asked whether it has read; this keeps the pieces apart
                self.socket.sendall(piece)
        except OSError:
            return False
        return True

    def read(self, is_head: bool = False) -> Answer | None:
        """The next answer; None when the server closed (see `is_closed`) or said nothing."""
        if (head := self._read_until(b"\r\n\r\n")) is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        code = first.removeprefix("HTTP/1.1 ")[:3]
        status = int(code) if code.isdecimal() else 0  # no answer at all
        size = 0 if is_head or status < 200 else int(headers.get("content-length", "0"))
        while len(self.buffer) < size:
            if not self._fill():
                return None
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Answer(status, headers, body)

    def read_all(self, count: int) -> list[Answer]:
        """Up to `count` answers; fewer when the server closed or said no more."""
        answers: list[Answer] = []
        while len(answers) < count and (answer := self.read()) is not None:
            answers.append(answer)
        return answers

    def _read_until(self, end: bytes) -> bytes | None:
        while end not in self.buffer:
            if not self._fill():
                return None
        head, _, self.buffer = self.buffer.partition(end)
        return head

    def _fill(self) -> bool:
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.buffer += data
        self.is_closed = not data
        return bool(data)


def is_serving(address: tuple[str, int]) -> bool:
    """Say whether the server answers a good request on a new connection."""
    with Peer(address) as peer:
        peer.send(LIVE)
        answer = peer.read()
        return answer is not None and (answer.status, answer.body) == (200, LIVE_BODY)


class Case(NamedTuple):
    """Bytes to send, and the outcomes that are right."""

    name: str
    pieces: tuple[bytes, ...]
    expected: tuple[str, ...] = REFUSED
    is_head: bool = False


def observe(peer: Peer, is_head: bool = False) -> str:
    """Read what the server answers, then try whether the connection is still in step."""
    answers: list[Answer] = []
    while (answer := peer.read(is_head)) is not None:
        answers.append(answer)
        if answer.status >= 200 and answer.headers.get("connection", "").lower() != "close":
            break
    statuses = " ".join(str(answer.status) for answer in answers)
    if peer.is_closed:
        return f"{statuses} closed".strip() + (" cut" if peer.buffer else "")
    if not answers:
        return "silent"
    peer.send(LIVE)
    probe = peer.read()
    if probe is None and peer.is_closed:
        return f"{statuses} closed"
    is_in_step = probe is not None and (probe.status, probe.body) == (200, LIVE_BODY) and not peer.buffer
    return statuses if is_in_step else f"{statuses} out of step"


def run_case(address: tuple[str, int], case: Case) -> str:
    with Peer(address) as peer:
        peer.send(*case.pieces)
        return observe(peer, case.is_head)


def request(method: str = "GET", path: str = "/v2", *lines: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A request with just these header lines after Host."""
    head = f"{method} {path} HTTP/{version}\r\nHost: a\r\n" + "".join(f"{line}\r\n" for line in lines)
    return head.encode("latin-1") + b"\r\n" + body


def framed(name: str, *lines: str, body: bytes = b"abc", expected: tuple[str, ...] = REFUSED) -> Case:
    """A body whose length is in doubt."""
    return Case(name, (request("POST", "/v2/models/none/infer", *lines, body=body),), expected)


def chunked(name: str, body: bytes, expected: tuple[str, ...] = REFUSED) -> Case:
    return framed(name, "Transfer-Encoding: chunked", body=body, expected=expected)


def line(name: str, head: bytes, expected: tuple[str, ...] = REFUSED) -> Case:
    return Case(name, (head,), expected)


SMUGGLED = request("GET", "/v2/smuggled")
LENGTHS = [
    framed("two_lengths_equal", "Content-Length: 3", "Content-Length: 3"),
    framed("two_lengths_different", "Content-Length: 3", "Content-Length: 30", body=b"abc" + SMUGGLED),
    framed("length_list", "Content-Length: 3, 3"),
    framed("length_negative", "Content-Length: -1"),
    framed("length_plus", "Content-Length: +3"),
    framed("length_hex", "Content-Length: 0x3"),
    framed("length_underscore", "Content-Length: 1_0"),
    framed("length_two_words", "Content-Length: 3 4"),
    framed("length_float", "Content-Length: 3.0"),
    framed("length_empty", "Content-Length:"),
    framed("length_garbage", "Content-Length: many"),
    framed("length_not_ascii", "Content-Length: \xb3"),
    framed("length_64_bits", f"Content-Length: {1 << 64}"),
    framed("length_1000_digits", "Content-Length: " + "9" * 1000),
    framed("length_above_the_limit", f"Content-Length: {1 << 62}", expected=("413 closed",)),
    framed(
        "length_above_the_limit_asked_before",
        f"Content-Length: {1 << 62}",
        "Expect: 100-continue",
        body=b"",
        expected=("413 closed", "417 closed"),
    ),
]
ENCODINGS = [
    framed("length_and_encoding", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    framed("encoding_and_length", "Transfer-Encoding: chunked", "Content-Length: 5", body=b"0\r\n\r\n"),
    framed("encoding_and_length_0", "Transfer-Encoding: chunked", "Content-Length: 0", body=b"0\r\n\r\n"),
    framed("encoding_identity", "Transfer-Encoding: identity"),
    framed("encoding_unknown", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    framed("encoding_vertical_tab", "Transfer-Encoding:\x0bchunked", body=b"0\r\n\r\n"),
    framed("encoding_quoted", 'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    framed("encoding_chunked_first", "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    framed("encoding_chunked_twice", "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    framed("two_encodings", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    framed("encoding_space_before_colon", "Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    # Decoded by nobody here, so its body is not what it seems.
    framed("encoding_gzip_chunked", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n", expected=("400 closed", "501 closed")),
    # HTTP/1.0 has no chunks: whoever stands between may see another end of the body.
    line(
        "encoding_http_1_0",
        request("POST", "/v2/models/none/infer", "Transfer-Encoding: chunked", body=b"0\r\n\r\n", version="1.0"),
        ("404 closed", "400 closed"),
    ),
]
CHUNKS = [
    chunked("chunk_size_garbage", b"zz\r\n"),
    chunked("chunk_size_prefix", b"0x3\r\nabc\r\n0\r\n\r\n"),
    chunked("chunk_size_negative", b"-3\r\nabc\r\n0\r\n\r\n"),
    chunked("chunk_size_65_bits", b"1ffffffffffffffff\r\n"),
    chunked("chunk_size_above_the_limit", b"fffffffffffffff\r\n" + bytes(2 << 20), ("413 closed",)),
    chunked("chunk_size_empty", b"\r\nabc\r\n0\r\n\r\n"),
    chunked("chunk_longer_than_its_size", b"3\r\nabcdef\r\n0\r\n\r\n"),
    chunked("chunk_ends_in_lf", b"3\nabc\n0\n\n"),
    chunked("chunk_extension_ends_in_lf", b"3;a=b\nabc\r\n0\r\n\r\n"),
    chunked("chunk_trailer_without_colon", b"0\r\nabc\r\n\r\n"),
    chunked("chunk_trailer_is_a_length", b"0\r\nContent-Length: 9\r\n\r\n" + SMUGGLED, ("400 closed",)),
    chunked("trailers_without_end", b"0\r\n" + 5000 * b"X-A: b\r\n" + b"\r\n", ("400 closed", "431 closed")),
]
LINES = [
    line("garbage", bytes(range(256))),
    line("zeros", bytes(1000)),
    line("spaces", b" " * 1000 + b"\r\n\r\n"),
    line("tls_hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)),
    line("http2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    line("method_unknown", b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", ("400 closed", "405", "501 closed")),
    line("method_very_long", b"G" * 100_000),
    line("version_1_2", request(version="1.2"), ("400 closed", "505 closed")),
    line("version_9_9", request(version="9.9"), ("400 closed", "505 closed")),
    line("version_2_0", request(version="2.0"), ("400 closed", "505 closed", "200 closed")),
    line("version_garbage", b"GET /v2 HTTP/x\r\nHost: a\r\n\r\n"),
    line("version_missing", b"GET /v2\r\n\r\n", ("400 closed", "200 closed")),
    line("url_missing", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    line("url_with_space", b"GET /v2 /x HTTP/1.1\r\nHost: a\r\n\r\n"),
    line("url_with_zero", b"GET /v2\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    line("url_not_ascii", b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", ("400 closed", "404")),
    line("url_very_long", request("GET", "/" + "a" * 100_000), ("400 closed", "414 closed")),
    Case(
        "url_very_long_in_pieces",
        (b"GET /" + b"a" * 3000, b"a" * 3000, b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("400 closed", "414 closed"),
    ),
    line("lines_end_in_lf", b"GET /v2 HTTP/1.1\nHost: a\n\n"),
    line("lines_end_in_cr", b"GET /v2 HTTP/1.1\rHost: a\r\r"),
    line("header_folded", request("GET", "/v2", "X: a\r\n b")),
    line("header_space_before_colon", request("GET", "/v2", "X : a")),
    line("header_without_colon", request("GET", "/v2", "X")),
    line("header_without_name", request("GET", "/v2", ": a")),
    line("header_name_with_zero", request("GET", "/v2", "X\0: a")),
    line("header_value_with_zero", request("GET", "/v2", "X: a\0b")),
    line("header_value_with_cr", request("GET", "/v2", "X: a\rb")),
    line("header_very_long", request("GET", "/v2", "X: " + "a" * 100_000), ("400 closed", "431 closed")),
    line("headers_5000", request("GET", "/v2", *(f"X-{number}: a" for number in range(5000))), ("400 closed", "431 closed")),
    line("headers_101_short", request("GET", "/v2", *(f"X{number}:" for number in range(101))), ("400 closed", "431 closed")),
    line("headers_5000_of_one_name", request("GET", "/v2", *("X:" for _ in range(5000))), ("400 closed", "431 closed")),
    # Two servers that take another one of them each serve two different requests (RFC 9112, 3.2).
    line("host_missing", b"GET /v2 HTTP/1.1\r\n\r\n", ("400 closed", "400")),
    line("host_twice", request("GET", "/v2", "Host: b"), ("400 closed", "400")),
]
IN_STEP = [
    # What is offered and not taken must be answered once: a second answer would be taken for the next request's.
    line(
        "upgrade_h2c",
        request("GET", "/v2", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        ("200", "200 closed"),
    ),
    line(
        "upgrade_websocket",
        request("GET", "/v2", "Connection: Upgrade", "Upgrade: websocket"),
        ("200", "200 closed", "400 closed"),
    ),
    line("connect", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", ("400 closed", "405 closed", "405")),
    # The answer to HEAD has no body, whatever it says of its length.
    Case("head", (request("HEAD", "/v2"),), ("200",), is_head=True),
    Case("head_of_unknown_path", (request("HEAD", "/nothing"),), ("404",), is_head=True),
    line("options_star", request("OPTIONS", "*"), ("404", "405")),
    line("expectation_unknown", request("GET", "/v2", "Expect: miracles"), ("200", "417", "417 closed")),
    line("empty_lines_before", b"\r\n\r\n" + request(), ("200",)),
    line("absolute_url", request("GET", "http://a/v2"), ("200",)),
    Case("head_in_pieces", tuple(bytes((byte,)) for byte in request()), ("200",)),
    line("get_with_body", request("GET", "/v2", "Content-Length: 3", body=b"abc"), ("200", "400")),
    line("traversal", request("GET", "/v2/models/../../../etc/passwd"), ("404",)),
    line("traversal_encoded", request("GET", "/v2/models/..%2f..%2f..%2fetc%2fpasswd"), ("404",)),
    line("traversal_encoded_twice", request("GET", "/v2/models/%252e%252e%252f%252e%252e%252fetc"), ("404",)),
    line("traversal_overlong_utf8", request("GET", "/v2/models/%c0%ae%c0%ae/%c0%ae%c0%ae"), ("404",)),
    line("traversal_backslash", request("GET", "/v2/models/..%5c..%5cetc"), ("404",)),
    line("name_with_zero", request("GET", "/v2/models/%00"), ("404",)),
    line("name_with_line_break", request("GET", "/v2/models/a%0d%0aX-Injected:%20b"), ("404",)),
    line("name_not_utf8", request("GET", "/v2/models/%ff%fe"), ("404",)),
    line("name_with_half_escape", request("GET", "/v2/models/%4"), ("404",)),
    line("version_negative", request("GET", "/v2/models/none/versions/-1"), ("404",)),
    line("version_of_1000_digits", request("GET", "/v2/models/none/versions/" + "9" * 1000), ("404",)),
]
CASES = LENGTHS + ENCODINGS + CHUNKS + LINES + IN_STEP


def parse_address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def report(
    address: tuple[str, int], outcomes: Iterable[tuple[str, Callable[[], str], tuple[str, ...]]], names: list[str]
) -> None:
    """Run cases, print a line for each, and end with 1 if one was answered otherwise than expected."""
    wrong = 0
    for name, run, expected in outcomes:
        if names and name not in names:
            continue
        outcome = run()
        wrong += (is_wrong := outcome not in expected)
        verdict = "accepted" if outcome.startswith("2") else "refused "
        print(
            f"{'!' if is_wrong else ' '} {name:40} {verdict} {outcome}"
            + (f"   expected {' or '.join(expected)}" if is_wrong else "")
        )
        if not is_serving(address):
            sys.exit(f"after {name} the server serves no others")
    print(f"{wrong} of the cases answered otherwise than expected; the server still serves")
    sys.exit(wrong > 0)


def main() -> None:
    address = parse_address(sys.argv[1])
    report(address, [(case.name, lambda case=case: run_case(address, case), case.expected) for case in CASES], sys.argv[2:])


if __name__ == "__main__":
    main()
