"""The raw endpoint of Python models: any method, bytes in, bytes or events out, and what happens when one side goes away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import argosy
from argosy.errors import InputError, NotFoundError, UnavailableError
from argosy.importers.python import publish_python
from argosy.raw import Event
from argosy.server import Server
from argosy.signature import Signature
from tests.home import SIGNATURE, Home
from tests.processes import find_child, find_workers, wait_until
from tests.scripts import ROOT

SOURCE = '''
import asyncio, os, threading, time
from urllib.parse import parse_qs

import numpy as np
from argosy.raw import Event, Response

VERSION = 1


class Model:
    def load(self, folder):
        self.ended = []
        self.gates = {}
        self.num_running = self.most_running = 0

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}

    def gate(self, key):
        return self.gates.setdefault(key, threading.Event())

    def raw(self, request):
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        return getattr(self, "do_" + request.path.strip("/").replace("/", "_"))(request, **query)

    def do_(self, request):
        return request.body

    def do_version(self, request):
        return str(VERSION)

    def do_pid(self, request):
        return str(os.getpid())

    def do_describe(self, request, **query):
        fields = {"method": request.method, "path": request.path, "query": request.query, "headers": request.headers}
        return Response.from_json(fields | {"body": request.body.decode("latin-1")})

    do_describe_a_b = do_describe

    def do_status(self, request, code="200"):
        return Response(b"" if code in ("204", "304") else b"said", status=int(code), headers={"X-Said": "yes"})

    def do_cookies(self, request):
        return Response(b"", headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Type", "text/plain")])

    def do_headers(self, request, name, value="v"):
        return Response(b"body", headers={name: value})

    def do_type(self, request, kind):
        return {"text": "text", "view": memoryview(b"view"), "array": bytearray(b"array"), "dict": {"a": 1}, "none": None,
                "list": Response([b"one", "two"]), "empty": iter(()), "event": Event("one")}[kind]

    def do_length_infer(self, request):
        return f"{type(request.body).__name__} {len(request.body)}".encode()

    def do_large(self, request, size):
        return b"x" * int(size)

    def do_pour(self, request, count, key=""):
        try:
            for number in range(int(count)):
                self.poured = number
                yield b"x" * 65536
        finally:
            self.ended.append(key)

    def do_poured(self, request):
        return str(self.poured)

    def do_count(self, request, to="5"):
        for number in range(int(to)):
            yield Event(f"number {number}", event="count", id=str(number))

    def do_steps(self, request, key):
        """The next event comes when somebody opens its gate."""
        try:
            for number in range(1000):
                self.gate(f"{key}-{number}").wait(20)
                yield Event(str(number))
        finally:
            self.ended.append(key)

    def do_open(self, request, key):
        self.gate(key).set()
        return b""

    def do_ended(self, request):
        return Response.from_json(self.ended)

    async def do_async(self, request):
        await asyncio.sleep(0)
        return Response("awaited", status=201)

    async def do_ticks(self, request, key):
        try:
            async with asyncio.timeout(60):
                yield "begun"
                await asyncio.sleep(60)
        finally:
            self.ended.append(key)

    def do_poll(self, request, key):
        while not request.is_cancelled:
            time.sleep(0.005)
        self.ended.append(key)
        return b""

    def do_together(self, request):
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        time.sleep(0.05)
        self.num_running -= 1
        return str(self.most_running)

    def do_fail(self, request):
        raise ValueError("no such thing")

    def do_fail_late(self, request):
        yield b"begun"
        raise ValueError("too late")

    def do_exit(self, request):
        raise SystemExit(3)

    def do_lie(self, request, frames=""):
        """Say on the stream what the threads of a worker never say."""
        stream = request._ask.__self__
        stream.sock.sendall(bytes.fromhex(frames))
        stream.sock.close() if not frames else stream.sock.recv(1)

    def do_die(self, request):
        os.kill(os.getpid(), 9)

    def do_die_once(self, request, flag):
        if os.path.exists(flag):
            return b"alive"
        open(flag, "w").close()
        os.kill(os.getpid(), 9)

    def do_die_late(self, request):
        yield b"begun"
        time.sleep(0.05)
        os.kill(os.getpid(), 9)
'''


def publish(
    home: Home, source: str = SOURCE, name: str = "api", *, signature: Signature | None = SIGNATURE, repeatable: bool = False
) -> argosy.Version:
    path = home.files / "api.py"
    path.write_text(source)
    return publish_python(home.store, path, name, signature=signature, repeatable=repeatable)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    home = Home(tmp_path_factory.mktemp("raw"))
    publish(home)
    home.publish_scale()
    with home.serve("scale", max_body_bytes=32 << 20) as server:
        server.deploy("api", allow_code=True)
        server.deploy("api", name="few", allow_code=True, max_streams=2, max_queue_rows=3)
        server.deploy("api", name="brief", allow_code=True, timeout_s=0.3)
        # Long enough for an answer to begin on a machine that is busy.
        server.deploy("api", name="short", allow_code=True, timeout_s=1.5)
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with open_client(server) as client:
        yield client


def open_client(server: Server, name: str = "api") -> httpx.Client:
    return httpx.Client(base_url=f"{server.url}/v2/models/{name}/raw", trust_env=False, timeout=20.0)


def connect(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 80))


def has_ended(http: httpx.Client, key: str) -> bool:
    return key in http.get("/ended").json()


# requests and answers


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_model_gets_what_the_client_sent(http: httpx.Client, method: str) -> None:
    sent = {"X-Key": "one", "Authorization": "Bearer secret", "Connection": "keep-alive, x-hop", "X-Hop": "1"}
    answer = http.request(method, "/describe/a%2Fb?q=%20x&q", content=b"\x00\xff", headers=sent)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    got = answer.json()
    assert (got["method"], got["path"], got["query"], got["body"]) == (method, "/describe/a/b", "q=%20x&q", "\x00\xff")
    assert got["headers"]["x-key"] == "one"
    assert got["headers"].keys().isdisjoint({"authorization", "connection", "x-hop"})


def test_head_is_answered_as_get_without_the_body(http: httpx.Client) -> None:
    for path in ("/large?size=1000", "/count", "/status?code=404", "/fail", "/status?code=204"):
        got, head = http.get(path), http.head(path)
        assert head.status_code == got.status_code
        assert head.content == b""
        assert head.headers.get("content-length") == got.headers.get("content-length")
    assert http.get("/pid").status_code == 200  # on the connection that the answers to HEAD left in order


def test_error_of_the_server_to_head_has_no_body(server: Server) -> None:
    with httpx.Client(trust_env=False) as http:
        for name in ("scale", "nobody"):
            assert http.head(f"{server.url}/v2/models/{name}/raw").status_code == 404
            assert http.get(f"{server.url}/v2/health/live").status_code == 200


def test_header_that_stands_several_times_comes_whole(http: httpx.Client) -> None:
    sent = [("X-Foo", "1"), ("x-foo", "2"), ("Cookie", "a=1"), ("X-Other", "o"), ("cookie", "b=2"), ("X-FOO", "")]
    got = http.get("/describe", headers=sent).json()["headers"]
    assert (got["x-foo"], got["cookie"], got["x-other"]) == ("1, 2, ", "a=1; b=2", "o")


def test_answer_may_have_a_header_several_times(http: httpx.Client) -> None:
    answer = http.get("/cookies")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers.get_list("content-type") == ["text/plain"]


@pytest.mark.parametrize("code", [200, 201, 204, 299, 304, 404, 418, 503, 599])
def test_status_and_headers_are_the_models(http: httpx.Client, code: int) -> None:
    answer = http.post(f"/status?code={code}")
    assert (answer.status_code, answer.headers["x-said"]) == (code, "yes")
    assert answer.content == (b"" if code in (204, 304) else b"said")


@pytest.mark.parametrize(
    ("kind", "content_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", b"text"),
        ("view", "application/octet-stream", b"view"),
        ("array", "application/octet-stream", b"array"),
        ("list", "application/octet-stream", b"onetwo"),
        ("empty", "application/octet-stream", b""),
        ("event", "text/event-stream", b"data: one\n\n"),
    ],
)
def test_kind_of_answer_suggests_its_content_type(http: httpx.Client, kind: str, content_type: str, body: bytes) -> None:
    answer = http.get(f"/type?kind={kind}")
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, content_type, body)


@pytest.mark.parametrize("kind", ["dict", "none"])
def test_answer_of_no_such_kind_is_the_models_fault(http: httpx.Client, kind: str) -> None:
    answer = http.get(f"/type?kind={kind}")
    assert answer.status_code == 500
    assert "expected bytes, str, Event, Response or a generator" in answer.json()["error"]


def test_coroutine_is_awaited(http: httpx.Client) -> None:
    answer = http.get("/async")
    assert (answer.status_code, answer.text) == (201, "awaited")


def test_large_bodies_pass_both_ways(http: httpx.Client) -> None:
    body = os.urandom(20 << 20)
    assert http.post("", content=body).content == body
    assert http.post("/length/infer", content=body).text == f"bytes {len(body)}"
    assert http.post("", content=iter([body[:100], body[100:]])).content == body  # chunked


def test_body_over_the_limit_is_refused(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(b"PUT /v2/models/api/raw HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % ((32 << 20) + 1))
        assert read_until(sock, lambda data: b"\r\n\r\n" in data).startswith(b"HTTP/1.1 413 ")


def test_connection_is_kept_after_answers_of_every_kind(server: Server) -> None:
    with connect(server) as sock:
        paths = ("/count", "/version", "/status?code=204", "/fail", "/version")
        sock.sendall(b"".join(b"GET /v2/models/api/raw%b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths))
        data = read_until(sock, lambda data: data.count(b"HTTP/1.1 ") == 5 and data.endswith(b"\r\n\r\n1"))
    assert [int(part.split()[0]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 200, 204, 500, 200]


def test_client_of_http_1_0_gets_an_answer_without_chunks(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /v2/models/api/raw/count?to=2 HTTP/1.0\r\n\r\n")
        head, _, body = read_until(sock, lambda data: False).partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"Connection: close" in head
    assert body == b"event: count\nid: 0\ndata: number 0\n\nevent: count\nid: 1\ndata: number 1\n\n"


def read_until(sock: socket.socket, is_enough: Any) -> bytes:
    sock.settimeout(10.0)
    data = b""
    while not is_enough(data) and (more := sock.recv(1 << 16)):
        data += more
    return data


def test_curl_gets_events(server: Server) -> None:
    words = ["curl", "-sSN", "--noproxy", "*", "-d", "{}", f"{server.url}/v2/models/api/raw/count?to=3"]
    done = subprocess.run(words, capture_output=True, timeout=20, check=True)
    assert done.stdout.count(b"event: count\n") == 3


# where requests go


def test_version_of_the_url_answers(server: Server) -> None:
    with httpx.Client(trust_env=False) as http:
        base = f"{server.url}/v2/models/api/versions"
        assert http.get(f"{base}/1/raw/version").text == "1"
        answer = http.get(f"{base}/7/raw/version")
        assert (answer.status_code, "served: 1" in answer.text) == (404, True)


def test_tensors_and_raw_requests_are_answered_by_one_model(server: Server, http: httpx.Client) -> None:
    with server.client() as client:
        assert client.predict("api", [[1, 2, 3, 4]])["y"].tolist() == [[2, 4, 6, 8]]
    assert http.get("/version").text == "1"


def test_model_without_the_method_has_no_raw_endpoint(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v2/models/scale/raw", trust_env=False)
    assert answer.status_code == 404
    assert "no raw endpoint" in answer.json()["error"]


def test_requests_count_in_the_metrics(server: Server, http: httpx.Client) -> None:
    def read() -> dict[str, float]:
        page = httpx.get(server.metrics_url, trust_env=False).text
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith('argosy_requests_total{model="api"')]
        return {line[0].split('outcome="')[1].split('"')[0]: float(line[1]) for line in lines}

    before = read()
    for path in ("/version", "/status?code=404", "/fail"):
        http.get(path)
    after = read()
    assert [after[key] - before[key] for key in ("ok", "bad_request", "fault")] == [1, 1, 1]


# streams


def test_events_come_one_by_one(http: httpx.Client) -> None:
    with http.stream("POST", "/steps?key=one") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-cache"
        parts = answer.iter_raw()
        for number in range(3):
            http.get(f"/open?key=one-{number}")
            assert next(parts) == f"data: {number}\n\n".encode()
    http.get("/open?key=one-3")


@pytest.fixture(autouse=True)
def open_first_gate(request: pytest.FixtureRequest) -> None:
    """`steps` sends its head with its first event: open that before."""
    if "http" in request.fixturenames:
        request.getfixturevalue("http").get("/open?key=one-0")


def test_fifty_streams_are_answered_at_once(server: Server) -> None:
    async def read(client: httpx.AsyncClient, number: int) -> bool:
        answer = await client.get(f"{server.url}/v2/models/api/raw/count?to={number}")
        return answer.text.count("data: ") == number

    async def read_all() -> list[bool]:
        async with httpx.AsyncClient(trust_env=False, timeout=30.0, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(read(client, number) for number in range(50)))

    assert asyncio.run(read_all()) == [True] * 50


def test_no_more_than_max_streams_run_and_the_others_wait_or_are_refused(server: Server) -> None:
    statuses: list[int] = []
    most: list[int] = []

    def ask() -> None:
        with open_client(server, "few") as http:
            answer = http.get("/together")
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                most.append(int(answer.text))
            else:
                assert "Retry-After" in answer.headers

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 2
    assert max(most) <= 2


@pytest.mark.parametrize("path", ["/steps?key=gone", "/ticks?key=gone-async", "/pour?count=100000&key=gone-pour"])
def test_client_that_goes_away_closes_the_generator(server: Server, http: httpx.Client, path: str) -> None:
    key = path.rpartition("=")[2]
    http.get(f"/open?key={key}-0")
    with open_client(server) as other, other.stream("GET", path) as answer:
        next(answer.iter_raw())
    if key == "gone":
        assert not has_ended(http, key)  # it is closed when it gives its next item
        http.get(f"/open?key={key}-1")
    wait_until(lambda: has_ended(http, key))


def test_client_that_goes_away_is_seen_by_a_model_that_asks(server: Server, http: httpx.Client) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /v2/models/api/raw/poll?key=polled HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not has_ended(http, "polled")
    wait_until(lambda: has_ended(http, "polled"))


def test_slow_reader_stops_the_generator_and_fills_no_memory(server: Server, http: httpx.Client) -> None:
    front = find_child(server, "argosy.serve.front.front")

    def read_rss() -> int:
        return int(Path(f"/proc/{front}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = read_rss()
    with open_client(server) as other, other.stream("GET", "/pour?count=4000&key=slow") as answer:
        parts = answer.iter_raw()
        size = len(next(parts))
        seen = [-1]
        wait_until(lambda: seen.append(int(http.get("/poured").text)) or seen[-1] == seen[-2])
        assert seen[-1] < 400  # of 4000 parts of 64 KiB: what sockets and buffers hold
        assert read_rss() - before < 8 << 20
        size += sum(map(len, parts))
    assert size == 4000 * 65536
    assert read_rss() - before < 8 << 20


# faults


def test_error_of_the_model_is_answered_and_the_next_request_too(http: httpx.Client) -> None:
    for path in ("/fail", "/exit"):
        answer = http.get(path)
        assert answer.status_code == 500
        assert "Model 'api' version 1 failed on this request" in answer.json()["error"]
    assert http.get("/version").text == "1"


def test_error_after_the_first_part_cuts_the_answer(http: httpx.Client) -> None:
    with http.stream("GET", "/fail_late") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"begun"
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)
    assert http.get("/version").text == "1"


def test_client_of_http_1_0_sees_that_its_answer_was_cut(server: Server) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /v2/models/api/raw/fail_late HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            read_until(sock, lambda data: False)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        pytest.param("/headers?name=X-A&value=b%0d%0aX-B:%20c", "no HTTP header can hold", id="line break in a value"),
        pytest.param("/headers?name=X-A:%20b%0aX-B", "no HTTP header can hold", id="line break in a name"),
        pytest.param("/headers?name=X%20A", "no HTTP header can hold", id="space in a name"),
        pytest.param("/headers?name=X-A&value=%E2%82%AC", "no HTTP header can hold", id="value beyond latin-1"),
        pytest.param("/headers?name=Content-Length&value=1", "server's to write", id="length"),
        pytest.param("/headers?name=transfer-encoding&value=chunked", "server's to write", id="framing"),
        pytest.param("/headers?name=Connection&value=close", "server's to write", id="connection"),
        pytest.param("/status?code=100", "200 to 599", id="informational status"),
        pytest.param("/status?code=600", "200 to 599", id="status too large"),
        pytest.param("/status?code=-1", "200 to 599", id="negative status"),
    ],
)
def test_head_that_would_break_the_connection_is_refused(http: httpx.Client, path: str, words: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 500
    assert words in answer.json()["error"]
    assert "x-b" not in answer.headers
    assert http.get("/version").text == "1"


def frame(kind: int, data: bytes) -> bytes:
    return struct.pack("<BI", kind, len(data)) + data


def head(length: int | None = None, **fields: Any) -> bytes:
    return frame(1, json.dumps({"status": 200, "headers": [], "length": length, **fields}).encode())


@pytest.mark.parametrize(
    ("frames", "is_cut"),
    [
        pytest.param(b"\1\xff\xff\xff\xff", False, id="head without end"),
        pytest.param(b"\2\xff\xff\xff\x7f", False, id="data without end"),
        pytest.param(b"\xff" * 64, False, id="unknown frame"),
        pytest.param(frame(1, b"{"), False, id="head that is no JSON"),
        pytest.param(frame(1, b"\xff\xfe"), False, id="head that is no text"),
        pytest.param(frame(1, b'{"x":' + b"[" * 2000), False, id="head that is nested too deep"),
        pytest.param(head(status="200"), False, id="status that is no number"),
        pytest.param(head(length=-1), False, id="negative length"),
        pytest.param(head(headers=[["a", "b"]] * 101), False, id="too many headers"),
        pytest.param(head(headers=[["a"]]), False, id="header without value"),
        pytest.param(frame(2, b"data"), False, id="data before the head"),
        pytest.param(frame(3, b""), False, id="end before the head"),
        pytest.param(head(length=5) + frame(2, b"123456"), True, id="body too long"),
        pytest.param(head(length=5) + frame(2, b"1234") + frame(3, b""), True, id="body too short"),
        pytest.param(head() + head(), True, id="two heads"),
        pytest.param(head() + frame(3, b"") + frame(2, b"x"), True, id="data after the end"),
        pytest.param(head() + frame(9, b""), True, id="unknown frame after the head"),
        pytest.param(b"", False, id="closed without an answer"),
    ],
)
def test_worker_that_lies_breaks_its_own_answer_alone(http: httpx.Client, frames: bytes, is_cut: bool) -> None:
    url = f"/lie?frames={frames.hex()}"
    if is_cut:
        with pytest.raises(httpx.RemoteProtocolError):
            http.get(url)
    else:
        answer = http.get(url)
        assert answer.status_code == 500
        assert "cannot be sent" in answer.text or "not declared repeatable" in answer.text
    assert [http.get("/version").text for _ in range(20)] == ["1"] * 20


def test_deadline_before_the_first_part_is_504_and_after_it_cuts(server: Server) -> None:
    with open_client(server, "brief") as brief, open_client(server, "short") as short:
        answer = brief.get("/steps?key=never")
        assert (answer.status_code, "0.300 s passed" in answer.text) == (504, True)
        with short.stream("GET", "/ticks?key=late") as answer:
            parts = answer.iter_raw()
            assert next(parts) == b"begun"
            with pytest.raises(httpx.RemoteProtocolError):
                next(parts)
        wait_until(lambda: has_ended(short, "late"))
        brief.get("/open?key=never-0")


def test_deadline_cuts_a_client_that_does_not_read(server: Server) -> None:
    with open_client(server, "short") as short, short.stream("GET", "/pour?count=100000&key=unread") as answer:
        parts = answer.iter_raw()
        next(parts)
        wait_until(lambda: "unread" in httpx.get(f"{server.url}/v2/models/short/raw/ended", trust_env=False).json())


def test_worker_that_dies_is_told_cut_or_asked_again(home: Home, tmp_path: Path) -> None:
    publish(home)
    publish(home, name="again", repeatable=True)
    with home.serve() as server:
        server.deploy("api", allow_code=True)
        server.deploy("again", allow_code=True)
        with open_client(server) as http, open_client(server, "again") as again:
            answer = http.get("/die")
            assert (answer.status_code, "not declared repeatable" in answer.text) == (500, True)
            with http.stream("GET", "/die_late") as begun:
                parts = begun.iter_raw()
                assert next(parts) == b"begun"
                with pytest.raises(httpx.RemoteProtocolError):
                    next(parts)
            assert http.get("/version").text == "1"  # it waits for the new worker
            answer = again.get(f"/die_once?flag={tmp_path / 'flag'}")
            assert (answer.status_code, answer.text) == (200, "alive")
            answer = again.get("/die")
            assert (answer.status_code, "as one did before it" in answer.text) == (500, True)
            with again.stream("GET", "/ticks?key=killed") as begun:
                parts = begun.iter_raw()
                assert next(parts) == b"begun"
                os.kill(find_workers(server, "again")[0], signal.SIGKILL)
                with pytest.raises(httpx.RemoteProtocolError):
                    next(parts)


def test_worker_whose_threads_are_all_stuck_is_replaced(home: Home) -> None:
    publish(home)
    with home.serve(hang_timeout_s=0.3) as server:
        server.deploy("api", allow_code=True, timeout_s=0.2, max_streams=1)
        with open_client(server) as http:
            pid = http.get("/pid").text
            assert http.get("/steps?key=stuck").status_code == 504
            wait_until(lambda: (answer := http.get("/pid")).status_code == 200 and answer.text != pid)


# rollouts


def test_rollout_waits_for_the_streams_of_the_old_version(home: Home) -> None:
    publish(home)
    publish(home, SOURCE.replace("VERSION = 1", "VERSION = 2"))
    with home.serve() as server:
        server.deploy("api@1", allow_code=True)
        with open_client(server) as http, open_client(server) as other:
            (pid,) = find_workers(server, "api")
            with http.stream("GET", "/ticks?key=held") as answer:
                parts = answer.iter_raw()
                assert next(parts) == b"begun"
                rollout = threading.Thread(target=server.deploy, args=("api@2",))
                rollout.start()
                wait_until(lambda: other.get("/version").text == "2")
                old = httpx.get(f"{server.url}/v2/models/api/versions/1/raw/version", trust_env=False)
                assert old.status_code == 404  # it takes nothing new
                assert rollout.is_alive() and Path(f"/proc/{pid}").exists()
            rollout.join(30)
            assert not rollout.is_alive()


# publishing


@pytest.mark.parametrize(
    ("source", "signature", "words"),
    [
        pytest.param("def raw(self): pass", None, "raw(self, request)", id="raw without request"),
        pytest.param("def raw(self, request): pass", SIGNATURE, "no method `infer", id="signature without infer"),
        pytest.param("def infer(self, inputs): pass", None, "no signature is given", id="infer without signature"),
        pytest.param("pass", None, "no method `infer", id="neither"),
        pytest.param("async def infer(self, inputs): pass", SIGNATURE, "no method `infer", id="infer that must be awaited"),
    ],
)
def test_class_that_cannot_answer_is_not_published(home: Home, source: str, signature: Signature | None, words: str) -> None:
    with pytest.raises(InputError, match="is not valid") as caught:
        publish(home, f"class Model:\n    def load(self, folder): pass\n    {source}\n", signature=signature)
    assert words in str(caught.value)


def test_model_of_raw_requests_alone_has_no_tensors(home: Home) -> None:
    publish(
        home, "class Model:\n    def load(self, folder): pass\n    async def raw(self, request): return b'ok'\n", signature=None
    )
    with home.serve() as server:
        server.deploy("api", allow_code=True)
        with open_client(server) as http:
            assert http.get("").text == "ok"
            answer = http.post(f"{server.url}/v2/models/api/infer", json={"inputs": []})
            assert (answer.status_code, "under /v2/models/api/raw" in answer.text) == (400, True)
            assert http.get(f"{server.url}/v2/models/api/ready").status_code == 200


# clients


def test_client_gives_the_answer_whatever_its_status(server: Server) -> None:
    with server.client() as client:
        answer = client.raw("api", "/status?code=404", method="PUT", body=b"x", headers={"X-A": "1"})
        assert (answer.status_code, answer.content) == (404, b"said")
        assert client.raw("api", "/version", method="GET", version=1).text == "1"
        with pytest.raises(InputError, match="slash"):
            client.raw("api", "version")


def test_client_gives_parts_as_they_come(server: Server) -> None:
    async def read() -> list[bytes]:
        async with server.async_client() as client:
            parts: AsyncIterator[bytes] = client.raw_stream("api", "/count?to=2")
            return [part async for part in parts]

    with server.client() as client:
        whole = b"".join(client.raw_stream("api", "/count?to=2"))
        assert whole == b"".join(asyncio.run(read()))
        assert whole.count(b"data: ") == 2
        with pytest.raises(NotFoundError):
            next(iter(client.raw_stream("scale")))
        with pytest.raises(UnavailableError, match="complete"):
            list(client.raw_stream("api", "/fail_late"))


# events


def test_event_has_a_line_for_each_line_of_its_data() -> None:
    event = Event("one\ntwo\r\nthree\rfour\u2028five", event="e", id="7", retry_s=1.5)
    lines = ["event: e", "id: 7", "retry: 1500", "data: one", "data: two", "data: three", "data: four\u2028five", "", ""]
    assert event.encode().decode() == "\n".join(lines)
    assert Event.from_json({"a": [1]}).encode() == b'data: {"a": [1]}\n\n'


@pytest.mark.parametrize("fields", [{"event": "a\nb"}, {"id": "a\rb"}, {"id": "a\0"}])
def test_event_whose_name_would_forge_lines_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one line"):
        Event("data", **fields)


# the example


def test_example_is_the_one_of_the_page_and_answers(home: Home) -> None:
    root = ROOT
    path = root / "examples" / "raw_api.py"
    assert path.read_text() in (root / "docs" / "raw.md").read_text()
    publish_python(home.store, path, "texts")
    with home.serve() as server:
        server.deploy("texts", allow_code=True)
        with open_client(server, "texts") as http:
            assert http.post("/words", json={"text": "to be or not to be"}).json() == {"to": 2, "be": 2, "or": 1, "not": 1}
            assert http.post("/words", content=b"[").status_code == 400
            assert http.get("/counter/3").text.count("event: count\n") == 3
            assert http.get("/other").status_code == 404
