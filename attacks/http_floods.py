"""Slow, endless and greedy clients: what an HTTP/1.1 server does with them, and that it serves others meanwhile.

    python attacks/http_floods.py HOST:PORT MODEL [NAME ...]

MODEL is as in http_bodies.py. Each case prints what came of it and the longest time that another client had to wait for an
answer meanwhile. A line with a `!` came out otherwise than expected, or made others wait for more than a second.
Needs the standard library only. tests/serve/http/test_http.py runs all of them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from http_bodies import Model, describe_model, dump
from http_requests import LIVE, LIVE_BODY, Peer, is_serving, observe, parse_address, request

MAX_WAIT_S = 1.0
CHUNKED = "Transfer-Encoding: chunked"


class Case(NamedTuple):
    name: str
    run: Callable[[tuple[str, int], Model], str]
    expected: tuple[str, ...]


class Neighbour(threading.Thread):
    """Another client, which asks all the time and remembers its longest wait."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__()
        self.num_answers = 0
        self.longest_s = 0.0
        self.failure = ""
        self._address = address
        self._stop_event = threading.Event()

    def __enter__(self) -> Neighbour:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_event.set()
        self.join()

    def run(self) -> None:
        with Peer(self._address, timeout_s=20.0) as peer:
            while not self._stop_event.wait(0.002) or not self.num_answers:
                before = time.monotonic()
                peer.send(LIVE)
                answer = peer.read()
                self.longest_s = max(self.longest_s, time.monotonic() - before)
                if answer is None or answer.body != LIVE_BODY:
                    self.failure = f"another client was answered {answer}"
                    return
                self.num_answers += 1


def infer_path(model: Model) -> str:
    return f"/v2/models/{model.name}/infer"


def good_body(model: Model, value: float = 1.0) -> bytes:
    return dump({"name": model.tensor, "shape": [1, model.width], "datatype": "FP32", "data": [value] * model.width})


def endless_chunks(address: tuple[str, int], model: Model) -> str:
    """A body without a length, of which no end is in sight."""
    with Peer(address) as peer:
        peer.send(request("POST", infer_path(model), CHUNKED))
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(2000):
            if not peer.send(chunk):
                break
        return observe(peer)


def single_byte_chunks(address: tuple[str, int], model: Model) -> str:
    """A good body in chunks of one byte."""
    body = b" " * 100_000 + good_body(model)
    with Peer(address) as peer:
        peer.send(request("POST", infer_path(model), CHUNKED))
        peer.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        return observe(peer)


def long_chunk_extensions(address: tuple[str, int], model: Model) -> str:
    """Chunks of one byte, each with 10 kB that say nothing; a server may read them all, or end it."""
    with Peer(address) as peer:
        peer.send(request("POST", infer_path(model), CHUNKED))
        for byte in good_body(model):
            if not peer.send(b"1;" + b"e" * 10_000 + b"\r\n%c\r\n" % byte):
                break
        peer.send(b"0\r\n\r\n")
        return observe(peer)


def endless_header(address: tuple[str, int], model: Model) -> str:
    """A header line without an end."""
    with Peer(address) as peer:
        peer.send(b"GET /v2 HTTP/1.1\r\nX: ")
        for _ in range(200):
            if not peer.send(b"a" * 65536):
                break
        return observe(peer)


def endless_header_name(address: tuple[str, int], model: Model) -> str:
    """The name of a header without an end."""
    with Peer(address) as peer:
        peer.send(b"GET /v2 HTTP/1.1\r\n")
        for _ in range(200):
            if not peer.send(b"a" * 65536):
                break
        return observe(peer)


def endless_trailer(address: tuple[str, int], model: Model) -> str:
    """A line after the last chunk without an end."""
    with Peer(address) as peer:
        peer.send(request("POST", infer_path(model), CHUNKED, body=b"1\r\n{\r\n0\r\nX: "))
        for _ in range(200):
            if not peer.send(b"a" * 65536):
                break
        return observe(peer)


def endless_empty_lines(address: tuple[str, int], model: Model) -> str:
    """Empty lines before a request, which RFC 9112 allows in a small number."""
    with Peer(address) as peer:
        for _ in range(200):
            if not peer.send(b"\r\n" * 32768):
                break
        peer.send(request())
        return observe(peer)


def half_sent_requests(address: tuple[str, int], model: Model) -> str:
    """Slow-loris: many requests that do not end."""
    cut = (b"G", b"GET /v2", request()[:-2], request("POST", infer_path(model), "Content-Length: 10", body=b"{"), b"")
    peers = [Peer(address) for _ in range(200)]
    for number, peer in enumerate(peers):
        peer.send(cut[number % len(cut)])
    outcome = "served" if is_serving(address) else "not served"
    for peer in peers:
        peer.socket.close()
    return outcome


def dripping_request(address: tuple[str, int], model: Model) -> str:
    """A request that comes byte by byte is slow, and good."""
    body = good_body(model)
    data = request("POST", infer_path(model), f"Content-Length: {len(body)}", body=body)
    with Peer(address) as peer:
        for byte in data:
            peer.send(bytes((byte,)))
        return observe(peer)


def ask_infer(model: Model, number: int) -> bytes:
    body = b'{"id":"n%d",' % number + good_body(model)[1:]
    return request("POST", infer_path(model), f"Content-Length: {len(body)}", body=body)


def ask_metadata(model: Model, number: int) -> bytes:
    return request("GET", f"/v2/models/n{number}")


def ask_either(model: Model, number: int) -> bytes:
    return ask_infer(model, number) if number % 3 else ask_metadata(model, number)


def pipelined(ask: Callable[[Model, int], bytes], count: int) -> Callable[[tuple[str, int], Model], str]:
    """Requests sent ahead of their answers: they are answered in order, or not at all once the connection ends."""

    def run(address: tuple[str, int], model: Model) -> str:
        with Peer(address) as peer:
            sender = threading.Thread(target=peer.send, args=(b"".join(ask(model, number) for number in range(count)),))
            sender.start()
            answers = peer.read_all(count)
            sender.join()
        for number, answer in enumerate(answers):
            if f"n{number}'" not in (text := answer.body.decode()) and f'"n{number}"' not in text:
                return f"answer {number} is {text[:60]}"
        return "all in order" if len(answers) == count else f"closed after {len(answers)} of {count}"

    return run


def unread_answers(address: tuple[str, int], model: Model) -> str:
    """A client that asks and never reads: the server must stop reading as well, not hold all the answers."""
    ask = request("GET", f"/v2/models/{model.name}")
    with Peer(address, timeout_s=0.5) as peer:
        sent = 0
        while sent < 64 << 20 and peer.send(ask * 1000):
            sent += 1000 * len(ask)
        return "stopped" if sent < 64 << 20 else "took all"


def large_bodies_ahead(address: tuple[str, int], model: Model) -> str:
    """Bodies just under any limit, sent ahead on one connection."""
    body = good_body(model)
    body += b" " * ((1 << 20) - len(body))
    ask = request("POST", infer_path(model), f"Content-Length: {len(body)}", body=body)
    with Peer(address) as peer:
        sender = threading.Thread(target=lambda: all(peer.send(ask) for _ in range(16)))
        sender.start()
        answers = peer.read_all(16)
        sender.join()
    return " ".join(sorted({str(answer.status) for answer in answers})) + (" closed" if len(answers) < 16 else "")


def connections(address: tuple[str, int], model: Model) -> str:
    """Connections that are opened and dropped at once, some of them with a reset."""
    for number in range(1000):
        with Peer(address) as peer:
            if number % 3:
                peer.send(request()[: number % 40])
            if number % 2:
                # Linger for 0 s: the kernel sends a reset.
                peer.socket.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    return "served" if is_serving(address) else "not served"


def left_before_the_answer(address: tuple[str, int], model: Model) -> str:
    """Requests whose client is gone before they are answered."""
    body = good_body(model)
    data = request("POST", infer_path(model), f"Content-Length: {len(body)}", body=body)
    for _ in range(300):
        with Peer(address) as peer:
            peer.send(data)
    with Peer(address) as peer:
        peer.send(data)
        return observe(peer)


CASES = [
    Case("endless_chunks", endless_chunks, ("413 closed",)),
    Case("single_byte_chunks", single_byte_chunks, ("200", "400 closed", "413 closed")),
    Case("long_chunk_extensions", long_chunk_extensions, ("200", "400 closed", "413 closed")),
    Case("endless_header", endless_header, ("400 closed", "431 closed")),
    Case("endless_header_name", endless_header_name, ("400 closed", "431 closed")),
    Case("endless_trailer", endless_trailer, ("400 closed", "431 closed")),
    Case("endless_empty_lines", endless_empty_lines, ("200", "400 closed")),
    Case("half_sent_requests", half_sent_requests, ("served",)),
    Case("dripping_request", dripping_request, ("200",)),
    Case("pipelined_10", pipelined(ask_infer, 10), ("all in order",)),
    Case("pipelined_300", pipelined(ask_infer, 300), ("all in order",)),
    Case("pipelined_300_of_two_kinds", pipelined(ask_either, 300), ("all in order",)),
    Case("pipelined_metadata", pipelined(ask_metadata, 2000), ("all in order",)),
    Case("unread_answers", unread_answers, ("stopped",)),
    Case("large_bodies_ahead", large_bodies_ahead, ("200",)),
    Case("connections", connections, ("served",)),
    Case("left_before_the_answer", left_before_the_answer, ("200",)),
]


def run_case(address: tuple[str, int], model: Model, case: Case) -> tuple[str, float]:
    """What came of a case, and how long another client waited meanwhile."""
    with Neighbour(address) as neighbour:
        outcome = case.run(address, model)
    return neighbour.failure or outcome, neighbour.longest_s


def main() -> None:
    address = parse_address(sys.argv[1])
    model = describe_model(address, sys.argv[2])
    wrong = 0
    for case in CASES:
        if len(sys.argv) > 3 and case.name not in sys.argv[3:]:
            continue
        before = time.monotonic()
        outcome, longest_s = run_case(address, model, case)
        is_wrong = outcome not in case.expected or longest_s > MAX_WAIT_S
        wrong += is_wrong
        note = f"   expected {' or '.join(case.expected)}" if is_wrong else ""
        took_s = time.monotonic() - before
        print(f"{'!' if is_wrong else ' '} {case.name:28} {outcome:24} {took_s:5.1f} s, others waited {longest_s:.3f} s{note}")
        if not is_serving(address):
            sys.exit(f"after {case.name} the server serves no others")
    print(f"{wrong} of the cases came out otherwise than expected; the server still serves")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
