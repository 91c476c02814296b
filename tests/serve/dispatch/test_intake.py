"""Many large bodies at once, none of them complete: a front holds no more than its bound, and all are answered in the end."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from argosy.serve.dispatch.intake import Intake
from argosy.server import Server
from tests.home import Home, row
from tests.processes import find_child
from tests.serve.http.requests import BODY, INFER, OUTPUTS, Peer, parse_address, request
from tests.serve.http2.requests import h2, infer, read_status

MAX_INTAKE_BYTES = 6 << 20
MAX_BODY_BYTES = 3 << 20
SLACK_BYTES = 12 << 20
"""What each connection read last, the oldest one's body, and pieces that the allocator keeps."""
NUM_CLIENTS = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("intake"))
    home.publish_scale(factor=3.0)
    with home.serve("scale", max_body_bytes=MAX_BODY_BYTES, max_intake_bytes=MAX_INTAKE_BYTES) as running:
        front = find_child(running, "argosy.serve.front.front")
        yield running
        assert find_child(running, "argosy.serve.front.front") == front
        assert "Traceback" not in (log := (running.home / "run" / "logs" / "front-0.log").read_text()), log


class Client:
    """Sends the pieces of one connection in a thread, stops before the last one, and goes on when told."""

    def __init__(
        self, go_on: threading.Event, connect: Callable[[], Any], pieces: list[bytes], read: Callable[[Any], Any]
    ) -> None:
        self.answer: Any = None
        self._parameters = go_on, connect, pieces, read
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        go_on, connect, pieces, read = self._parameters
        with connect() as peer:
            for piece in pieces[:-1]:
                peer.send(piece)
            assert go_on.wait(60)
            peer.send(pieces[-1])
            self.answer = read(peer)


def run_clients(server: Server, connect: Callable[[], Any], pieces: list[bytes], read: Callable[[Any], Any]) -> list[Any]:
    """Have all send at once, look at the front's memory and at another client meanwhile, and give their answers."""
    front = find_child(server, "argosy.serve.front.front")

    def read_rss() -> int:
        return int(Path(f"/proc/{front}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    go_on = threading.Event()
    with server.client() as other:
        other.predict("scale", {"x": row(1)})
        before = read_rss()
        clients = [Client(go_on, connect, pieces, read) for _ in range(NUM_CLIENTS)]
        deadline, highest = time.monotonic() + 2.0, 0
        while time.monotonic() < deadline:
            assert other.predict("scale", {"x": row(1)})["y"].tolist() == (row(1) * 3).tolist()
            highest = max(highest, read_rss() - before)
        go_on.set()
        for client in clients:
            client.thread.join(60)
            assert not client.thread.is_alive()
    assert highest < MAX_INTAKE_BYTES + SLACK_BYTES, f"{highest >> 20} MiB"
    return [client.answer for client in clients]


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
def test_large_http_bodies_wait_for_each_other(server: Server, is_chunked: bool) -> None:
    body = b" " * (MAX_BODY_BYTES - len(BODY)) + BODY
    if is_chunked:
        size = 1 << 16
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        head = request("POST", INFER, "Transfer-Encoding: chunked")
        pieces = [head, *(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]
    else:
        pieces = [request("POST", INFER, f"Content-Length: {len(body)}", body=body[:-1]), body[-1:]]
    address = parse_address(server.url)
    answers = run_clients(server, lambda: Peer(address, timeout_s=60.0), pieces, lambda peer: peer.read())
    assert [answer.status for answer in answers] == [200] * NUM_CLIENTS
    assert all(b'"data":[3.0,6.0,9.0,12.0]' in answer.body for answer in answers)
    assert OUTPUTS[0]["data"] == [3.0, 6.0, 9.0, 12.0]


def test_many_streams_of_many_grpc_connections_wait_for_each_other(server: Server) -> None:
    num_streams = 25
    requests = [infer(stream, 60_000, "scale") for stream in range(1, 2 * num_streams, 2)]
    # All but the last frame of each, which ends it: a stream's first window holds that much.
    last = 9 + (240_000 + 60) % 16384
    ends = [data.rindex(b"\0\1" + h2.U32(1 + 2 * index), 0, len(data)) - 3 for index, data in enumerate(requests)]
    assert all(len(data) - end < last + 200 for data, end in zip(requests, ends, strict=True))
    pieces = [data[:end] for data, end in zip(requests, ends, strict=True)]
    pieces.append(b"".join(data[end:] for data, end in zip(requests, ends, strict=True)))
    host, port = server.grpc_address.rsplit(":", 1)

    def read(peer: Any) -> list[int]:
        found: dict[int, int] = {}
        while len(found) < num_streams and (frame := peer.find(h2.HEADERS)) is not None:
            if frame.flags & h2.END_STREAM:
                found[frame.stream] = read_status(frame.payload)
        return [found[stream] for stream in sorted(found)]

    answers = run_clients(server, lambda: h2.Peer((host, int(port)), timeout_s=60.0), pieces, read)
    assert answers == [[3] * num_streams] * NUM_CLIENTS, "the tensors do not fit the model: INVALID_ARGUMENT"


def test_client_that_leaves_gives_its_place_back(server: Server) -> None:
    address = parse_address(server.url)
    head = request("POST", INFER, f"Content-Length: {MAX_BODY_BYTES}", body=b" " * (MAX_BODY_BYTES - 1000))
    for _ in range(20):
        with Peer(address) as peer:
            peer.socket.settimeout(0.2)
            peer.send(head)
    peers = [Peer(address) for _ in range(4)]
    for peer in peers:
        peer.socket.settimeout(0.3)
        peer.send(head)
    for peer in peers:
        # A reset: what the front has not read is of no use any more.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.socket.close()
    body = b" " * (MAX_BODY_BYTES - len(BODY)) + BODY
    with Peer(address, timeout_s=20.0) as peer:
        peer.send(request("POST", INFER, f"Content-Length: {len(body)}", body=body))
        assert peer.read().status == 200


class Taker:
    """A connection that remembers whether it has to wait."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.is_held = False

    def hold(self) -> None:
        assert not self.is_held
        self.is_held = True

    def go_on(self) -> None:
        assert self.is_held
        self.is_held = False


@pytest.mark.parametrize("seed", range(20))
def test_whoever_sends_what_somebody_always_goes_on(seed: int) -> None:
    rng = random.Random(seed)
    intake, takers = Intake(100), [Taker() for _ in range(8)]
    ages: list[Taker] = []
    for _ in range(3000):
        taker = rng.choice(takers)
        if taker.is_held and rng.random() < 0.9:
            continue  # it reads nothing, but its connection may end
        grown = 0 if taker.is_held or rng.random() < 0.4 else taker.num_bytes + rng.randint(1, 60)
        if not taker.is_held and rng.random() < 0.1 and taker.num_bytes > 1:
            grown = rng.randint(1, taker.num_bytes - 1)
        if grown < taker.num_bytes and taker in ages:
            ages.remove(taker)
        if grown and taker not in ages:
            ages.append(taker)
        taker.num_bytes = grown
        intake.note(taker, grown)
        total = sum(taker.num_bytes for taker in takers)
        assert not ages or not ages[0].is_held, "the oldest goes on"
        if total <= 100:
            assert not any(taker.is_held for taker in takers)
        assert all(taker.num_bytes for taker in takers if taker.is_held), "who holds nothing waits for nobody"
        assert total <= 100 + 60 * len(takers) + (ages[0].num_bytes if ages else 0)
    for taker in takers:
        taker.num_bytes = 0
        intake.note(taker, 0)
    assert not any(taker.is_held for taker in takers)
