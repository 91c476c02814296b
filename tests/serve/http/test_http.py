"""V2 over HTTP/1.1 on a real server: the endpoints, the connection, and clients that mean no good."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import select
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version as find_version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvloop

from argosy.serve.dispatch.intake import Intake
from argosy.serve.http.connection import HttpConnection
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from tests.home import SIGNATURE, Home, row
from tests.processes import find_child
from tests.scripts import load_script
from tests.serve.http.requests import BODY, INFER, OUTPUTS, Peer, attacks, request

bodies = load_script("attacks/http_bodies.py")
floods = load_script("attacks/http_floods.py")

MODEL = bodies.Model("scale", "x", 4)
MAX_BODY_BYTES = 1 << 20
VERSION = find_version("argosy")
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("http"))
    home.publish_scale(factor=2.0)
    home.publish_scale(factor=3.0)
    home.publish_scale("other.name-1")
    with home.serve("scale@2", "other.name-1", max_body_bytes=MAX_BODY_BYTES) as running:
        front = find_child(running, "argosy.serve.front.front")
        yield running
        # Whatever the clients below sent, one process took all of it, without a fault of its own.
        assert find_child(running, "argosy.serve.front.front") == front
        assert "Traceback" not in (log := (running.home / "run" / "logs" / "front-0.log").read_text()), log


@pytest.fixture(scope="module")
def address(server: Server) -> tuple[str, int]:
    return attacks.parse_address(server.url)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as made:
        yield made


def post(*lines: str, body: bytes = BODY, path: str = INFER) -> bytes:
    return request("POST", path, f"Content-Length: {len(body)}", *lines, body=body)


def exchange(address: tuple[str, int], *pieces: bytes, is_head: bool = False) -> Any:
    with Peer(address) as peer:
        peer.send(*pieces)
        answer = peer.read(is_head)
        assert answer is not None
        return answer


# endpoints


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2", 200, {"name": "argosy", "version": VERSION, "extensions": EXTENSIONS}),
        ("/v2/", 200, {"name": "argosy", "version": VERSION, "extensions": EXTENSIONS}),
        ("/v2/health/live?verbose=1", 200, {"live": True}),
        ("/v2/models/scale/ready", 200, {"name": "scale", "ready": True}),
        ("/v2/models/scale/versions/2/ready", 200, {"name": "scale", "ready": True}),
        ("/v2/models/%73cale/ready", 200, {"name": "scale", "ready": True}),
        ("/v2/models/other%2Ename%2d1/ready", 200, {"name": "other.name-1", "ready": True}),
    ],
)
def test_get(client: httpx.Client, path: str, status: int, body: dict[str, Any]) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/v2/models/scale", "/v2/models/scale/versions/2"], ids=["default", "version"])
def test_metadata(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {
        "name": "scale",
        "versions": ["2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }


NO_MODEL = "Unknown model 'nothing'; deployed: other.name-1, scale"
NO_VERSION = "Version 1 of model 'scale' is not served now; served: 2"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "No {method} / here"),
        ("/v2/nothing", "No {method} /v2/nothing here"),
        ("/v2/models", "No {method} /v2/models here"),
        ("/v2/models/scale/nothing", "No {method} /v2/models/scale/nothing here"),
        ("/v2/models/scale/versions", "No {method} /v2/models/scale/versions here"),
        ("/v3/models/scale/infer", "No {method} /v3/models/scale/infer here"),
        ("/v2/models/scale%2Finfer/nothing/x", "No {method} /v2/models/scale%2Finfer/nothing/x here"),
        ("/V2/health/live", "No {method} /V2/health/live here"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path(client: httpx.Client, method: str, path: str, text: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith(text.format(method=method))


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/v2/models/nothing", NO_MODEL),
        ("GET", "/v2/models/nothing/ready", NO_MODEL),
        ("POST", "/v2/models/nothing/infer", NO_MODEL),
        ("GET", "/v2/models/scale/versions/1", NO_VERSION),
        ("GET", "/v2/models/scale/versions/1/ready", NO_VERSION),
        ("POST", "/v2/models/scale/versions/1/infer", NO_VERSION),
        ("POST", "/v2/models/scale/versions/latest/infer", "Version latest of model 'scale' is not served now"),
        ("POST", "/v2/models/scale/versions/02/infer", "Version 02 of model 'scale' is not served now"),
        # Decoded once: what is left is part of the name.
        ("GET", "/v2/models/%2573cale", "Unknown model '%73cale'"),
        ("POST", "/v2/models/scale%2Finfer/infer", "Unknown model 'scale/infer'"),
        ("GET", "/v2/models/..%2F..%2Fetc%2Fpasswd", "Unknown model '../../etc/passwd'"),
        ("POST", "/v2/models/%00/infer", "Unknown model '\\x00'"),
        ("GET", "/v2/models/" + "n" * 1000, f"Unknown model '{'n' * 128}'; deployed"),
    ],
)
def test_unknown_model_or_version(client: httpx.Client, method: str, path: str, text: str) -> None:
    answer = client.request(method, path, content=BODY if method == "POST" else None)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith(text)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [INFER, "/v2/models/scale", "/v2/health/live", "/v2/nothing"])
def test_other_methods_are_refused(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == ("POST" if path == INFER else "GET, HEAD")
    assert answer.json()["error"].startswith(f"Method {method} is not allowed for {path}")


@pytest.mark.parametrize("path", [INFER, "/v2/models/scale/versions/2/infer", "/v2/models/nothing/infer", INFER + "?x=1"])
def test_inference_is_posted(client: httpx.Client, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers.get("allow")) == (405, "POST")
    assert client.get(path).json()["error"].startswith(f"Method GET is not allowed for {path}")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/scale", "/v2/models/scale/ready"])
def test_what_is_read_is_not_posted(client: httpx.Client, path: str) -> None:
    answer = client.post(path, content=BODY)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"].startswith(f"Method POST is not allowed for {path}")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/scale", "/v2/nothing", "/v2/models/nothing", INFER])
def test_head_is_answered_as_get_without_a_body(address: tuple[str, int], path: str) -> None:
    get = exchange(address, request("GET", path))
    with Peer(address) as peer:
        peer.send(request("HEAD", path))
        answer = peer.read(is_head=True)
        assert (answer.status, answer.body) == (get.status, b"")
        assert answer.headers["content-type"] == get.headers["content-type"]
        if answer.status == 200:
            assert answer.headers["content-length"] == get.headers["content-length"]
        peer.send(attacks.LIVE)
        assert peer.read().body == attacks.LIVE_BODY


# inference


@pytest.mark.parametrize("path", [INFER, "/v2/models/scale/versions/2/infer", INFER + "?x=1", "/v2/models/%73cale/infer"])
def test_infer(client: httpx.Client, path: str) -> None:
    answer = client.post(path, content=BODY)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"model_name": "scale", "model_version": "2", "outputs": OUTPUTS}


@pytest.mark.parametrize("id_", ["7", "a-b", 'quote " and \\', "\u00e4\u20ac\U0001f6a2", "n" * 10_000], ids=lambda text: text[:8])
@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
def test_id_is_echoed(client: httpx.Client, id_: str, is_binary: bool) -> None:
    fields = {"id": id_, "parameters": {"binary_data_output": is_binary}}
    answer = client.post(INFER, content=json.dumps({**json.loads(BODY), **fields}))
    assert answer.status_code == 200
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    assert json.loads(answer.content[:length])["id"] == id_


@pytest.mark.parametrize(
    "extra", [{}, {"id": "a"}, {"parameters": {}}, {"parameters": {"priority": 1, "a": "b", "c": 0.5}}, {"x": [{}]}]
)
def test_fields_that_are_not_known_change_nothing(client: httpx.Client, extra: dict[str, Any]) -> None:
    answer = client.post(INFER, content=json.dumps({**json.loads(BODY), **extra}))
    assert answer.status_code == 200
    assert answer.json()["outputs"] == OUTPUTS


def test_content_type_does_not_matter(client: httpx.Client) -> None:
    for content_type in ("application/json", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded"):
        assert client.post(INFER, content=BODY, headers={"Content-Type": content_type}).json()["outputs"] == OUTPUTS


def test_timeout_of_a_microsecond_is_over_before_the_answer(client: httpx.Client) -> None:
    answer = client.post(INFER, content=json.dumps({**json.loads(BODY), "parameters": {"timeout": 1}}))
    assert answer.status_code == 504
    assert answer.json()["error"].startswith("The deadline of 0.000 s passed")
    assert client.post(INFER, content=json.dumps({**json.loads(BODY), "parameters": {"timeout": 5_000_000}})).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("identity", bytes),
        ("gzip", lambda body: b"".join(gzip.compress(body[at : at + 7]) for at in range(0, len(body), 7))),
        ("gzip", lambda body: gzip.compress(b"") + gzip.compress(body) + gzip.compress(b"")),
    ],
    ids=["gzip", "deflate", "upper-case", "old-name", "identity", "members", "empty-members"],
)
def test_packed_body_is_unpacked(client: httpx.Client, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    answer = client.post(INFER, content=pack(BODY), headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["outputs"]) == (200, OUTPUTS)


def test_packed_body_may_be_as_large_as_any(client: httpx.Client) -> None:
    padding = b" " * (MAX_BODY_BYTES - len(BODY))
    answer = client.post(INFER, content=gzip.compress(padding + BODY), headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["outputs"]) == (200, OUTPUTS)
    answer = client.post(INFER, content=gzip.compress(padding + BODY + b" "), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert answer.json()["error"].startswith(f"The body has more than {MAX_BODY_BYTES} bytes")
    halves = gzip.compress(padding) + gzip.compress(BODY + b" ")
    assert client.post(INFER, content=halves, headers={"Content-Encoding": "gzip"}).status_code == 413


@pytest.mark.parametrize(
    ("encoding", "packed", "text"),
    [
        pytest.param("gzip", gzip.compress(BODY)[:-1], "it is cut", id="cut"),
        pytest.param("gzip", gzip.compress(BODY) * 2 + gzip.compress(BODY)[:5], "it is cut", id="cut-member"),
        pytest.param("gzip", gzip.compress(BODY) + b"x" * 20, "header", id="other-bytes"),
        pytest.param("deflate", zlib.compress(BODY) * 2, "followed by other bytes", id="two-of-deflate"),
        pytest.param("gzip", gzip.compress(b"") * 2000, "followed by other bytes", id="too-many-members"),
        pytest.param("gzip", b"", "it is cut", id="empty"),
        pytest.param("br", BODY, "known: deflate, gzip, identity", id="unknown"),
    ],
)
def test_body_that_cannot_be_unpacked_is_refused(client: httpx.Client, encoding: str, packed: bytes, text: str) -> None:
    answer = client.post(INFER, content=packed, headers={"Content-Encoding": encoding})
    assert answer.status_code == 400 and text in answer.json()["error"], answer.text


# the connection


def test_requests_of_one_connection_are_answered_one_after_the_other(address: tuple[str, int]) -> None:
    with Peer(address) as peer:
        for number in range(50):
            # The same head each time, which is looked up, and others, which are parsed.
            body = BODY.replace(b"[1,2", b"[%d,2" % (number % 10))
            peer.send(post(f"X-Number: {number % 7}", body=body) if number % 3 else post(body=body))
            answer = peer.read()
            assert answer.status == 200
            assert json.loads(answer.body)["outputs"][0]["data"][0] == 3.0 * (number % 10)


def test_requests_sent_ahead_are_answered_in_order(address: tuple[str, int]) -> None:
    with Peer(address) as peer:
        asks = [post(body=b'{"id":"%d",' % number + BODY[1:]) for number in range(8)]
        peer.send(b"".join([asks[0], request(), *asks[1:4], request("DELETE"), *asks[4:], post(body=b"{}")]))
        answers = peer.read_all(11)
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 405, 200, 200, 200, 200, 400]
    ids = [json.loads(answer.body).get("id") for answer in answers]
    assert ids == ["0", None, "1", "2", "3", None, "4", "5", "6", "7", None]


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_request_may_come_in_any_pieces(address: tuple[str, int], step: int) -> None:
    data = post("X: y")
    with Peer(address) as peer:
        for start in range(0, len(data), step):
            peer.socket.sendall(data[start : start + step])
        answer = peer.read()
    assert (answer.status, json.loads(answer.body)["outputs"]) == (200, OUTPUTS)


def test_head_that_is_known_may_be_cut_anywhere(address: tuple[str, int]) -> None:
    # A body two bytes shorter than its head: the head and one byte more look as long as the whole request would be.
    padding = "X: " + "y" * 100
    end = post(padding, body=b"-" * 100).index(b"\r\n\r\n")
    data = post(padding, body=BODY.ljust(end - 2))
    assert data.index(b"\r\n\r\n") == end
    with Peer(address) as peer:
        for cut in (0, end - 1, end, end + 1, end + 2, end + 3, end + 4, end + 5, len(data) - 1):
            peer.send(data[:cut], data[cut:])
            answer = peer.read()
            assert (answer.status, json.loads(answer.body)["outputs"]) == (200, OUTPUTS), cut


def test_body_that_looks_like_a_request_is_a_body(address: tuple[str, int]) -> None:
    hidden = request("GET", "/v2/smuggled") + post()
    with Peer(address) as peer:
        for _ in range(3):
            peer.send(post(body=hidden))
            assert peer.read().status == 400
        peer.send(post())
        assert json.loads(peer.read().body)["outputs"] == OUTPUTS


def test_chunked_body(address: tuple[str, int]) -> None:
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in (BODY[:1], BODY[1:40], BODY[40:]))
    for end in (b"0\r\n\r\n", b"0\r\nX-Trailer: a\r\n\r\n"):
        data = request("POST", INFER, "Transfer-Encoding: chunked", body=chunks + end)
        with Peer(address) as peer:
            peer.send(data, data[:100], data[100:] + data)
            for _ in range(3):
                answer = peer.read()
                assert (answer.status, json.loads(answer.body)["outputs"]) == (200, OUTPUTS)


def test_expectation_is_met_before_the_body_comes(address: tuple[str, int]) -> None:
    with Peer(address) as peer:
        head, body = post("Expect: 100-continue")[: -len(BODY)], BODY
        peer.send(head)
        assert peer.read().status == 100
        peer.send(body)
        answer = peer.read()
        assert (answer.status, json.loads(answer.body)["outputs"]) == (200, OUTPUTS)


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunks"])
def test_body_over_the_limit_is_refused_and_one_at_the_limit_taken(address: tuple[str, int], announced: bool) -> None:
    def frame(body: bytes) -> bytes:
        if announced:
            return post(body=body)
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 65536]), body[at : at + 65536]) for at in range(0, len(body), 65536)
        )
        return request("POST", INFER, "Transfer-Encoding: chunked", body=chunks + b"0\r\n\r\n")

    with Peer(address) as peer:
        body = BODY + b" " * (MAX_BODY_BYTES - len(BODY))
        peer.send(frame(body))
        assert peer.read().status == 200
        peer.send(frame(body + b" "))
        answer = peer.read()
        assert answer.status == 413
        assert json.loads(answer.body)["error"].startswith(f"The body has more than {MAX_BODY_BYTES} bytes")
        assert answer.headers["connection"] == "close"
        assert peer.read() is None
        assert peer.is_closed


def test_large_body_that_comes_in_pieces_ends_where_the_next_request_begins(address: tuple[str, int]) -> None:
    body = BODY + b" " * (MAX_BODY_BYTES - len(BODY))
    with Peer(address) as peer:
        for _ in range(3):
            whole = post(body=body) + request("GET", "/v2/health/live") + post()
            for start in range(0, len(whole), 150_001):
                peer.send(whole[start : start + 150_001])
            large, live, small = peer.read_all(3)
            assert (large.status, json.loads(large.body)["outputs"]) == (200, OUTPUTS)
            assert json.loads(live.body) == {"live": True}
            assert (small.status, json.loads(small.body)["outputs"]) == (200, OUTPUTS)


def test_client_that_leaves_within_a_large_body_disturbs_nobody(address: tuple[str, int]) -> None:
    whole = post(body=BODY + b" " * (MAX_BODY_BYTES - len(BODY)))
    for length in (len(whole) // 2, len(whole) - 1):
        with Peer(address) as peer:
            peer.send(whole[:length])
    with Peer(address) as peer:
        peer.send(post())
        assert peer.read().status == 200


def test_large_body_of_another_kind_of_request_is_answered_as_a_small_one(address: tuple[str, int]) -> None:
    packed = gzip.compress(BODY + random.Random(0).randbytes(300_000).hex().encode())
    junk = b"x" * 300_000
    for method, path, body, status in (
        ("GET", INFER, junk, 405),
        ("POST", "/v1/infer", junk, 404),
        ("POST", "/v2/models/nothing/infer", junk, 404),
        ("POST", "/v2/models/scale/raw/infer", junk, 404),
        ("POST", INFER, junk, 400),
        ("POST", INFER, packed, 400),
    ):
        lines = [f"Content-Length: {len(body)}", *(["Content-Encoding: gzip"] if body is packed else [])]
        head = request(method, path, *lines, body=body)
        with Peer(address) as peer:
            peer.send(head)
            answer = peer.read()
            assert answer.status == status, answer
            peer.send(post())
            assert peer.read().status == 200


@pytest.mark.parametrize(
    ("version", "lines", "is_closed"),
    [
        ("1.1", (), False),
        ("1.1", ("Connection: close",), True),
        ("1.1", ("Connection: CLOSE",), True),
        ("1.1", ("Connection: keep-alive",), False),
        ("1.1", ("Connection: x, close",), True),
        ("1.0", (), True),
        ("1.0", ("Connection: keep-alive",), False),
    ],
)
def test_connection_stays_as_the_client_asks(
    address: tuple[str, int], version: str, lines: tuple[str, ...], is_closed: bool
) -> None:
    for data in (
        request("GET", "/v2/health/live", *lines, version=version),
        request("POST", INFER, f"Content-Length: {len(BODY)}", *lines, body=BODY, version=version),
    ):
        with Peer(address) as peer:
            peer.send(data)
            answer = peer.read()
            assert answer.status == 200
            assert (answer.headers.get("connection") == "close") == is_closed
            peer.send(attacks.LIVE)
            assert (peer.read() is None) == is_closed


def test_client_that_left_makes_no_trouble(address: tuple[str, int]) -> None:
    for data in (b"", request()[:10], post()[:-1], post(), post() * 5):
        with Peer(address) as peer:
            peer.send(data)
    assert json.loads(exchange(address, post()).body)["outputs"] == OUTPUTS


# attacks


@pytest.mark.parametrize("case", attacks.CASES, ids=lambda case: case.name)
def test_hostile_request(address: tuple[str, int], case: Any) -> None:
    assert attacks.run_case(address, case) in case.expected
    assert json.loads(exchange(address, post()).body)["outputs"] == OUTPUTS


@pytest.mark.parametrize("case", bodies.build_cases(MODEL), ids=lambda case: case.name)
def test_hostile_body(address: tuple[str, int], case: Any) -> None:
    assert bodies.run_case(address, MODEL, case) in case.expected
    assert json.loads(exchange(address, post()).body)["outputs"] == OUTPUTS


@pytest.mark.parametrize("case", floods.CASES, ids=lambda case: case.name)
def test_flood(address: tuple[str, int], case: Any) -> None:
    outcome, longest_s = floods.run_case(address, MODEL, case)
    assert outcome in case.expected
    assert longest_s < floods.MAX_WAIT_S
    assert json.loads(exchange(address, post()).body)["outputs"] == OUTPUTS


def test_connections_over_the_limit_are_closed_and_others_go_on(home: Home) -> None:
    home.publish_scale(factor=3.0)
    with home.serve("scale", max_connections=8) as server:
        address = attacks.parse_address(server.url)
        peers = [Peer(address) for _ in range(8)]
        for peer in peers:
            peer.send(attacks.LIVE)
            assert peer.read().status == 200
        with Peer(address) as late:
            late.send(attacks.LIVE)
            assert late.read() is None
            assert late.is_closed
        for peer in peers:
            peer.send(post())
            assert json.loads(peer.read().body)["outputs"] == OUTPUTS
            peer.socket.close()


@pytest.mark.alone
def test_many_slow_readers_fill_no_memory_delay_nobody_and_get_all_their_answers(home: Home) -> None:
    num_clients, num_asks, width = 12, 60, 50_000
    signature = Signature(SIGNATURE.inputs, (TensorSpec("y", "FP32", (-1, width)),))
    home.publish_code(f"return {{'y': np.repeat(x[:, :1], {width}, axis=1)}}", signature=signature)
    home.publish_scale(factor=3.0)
    with home.serve("scale") as server, server.client() as other:
        server.deploy("code", allow_code=True)
        front = find_child(server, "argosy.serve.front.front")

        def read_rss() -> int:
            return int(Path(f"/proc/{front}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        other.predict("scale", {"x": row(1)})
        before = read_rss()
        address = attacks.parse_address(server.url)
        peers: list[Any] = []
        for number in range(num_clients):
            peers.append(Peer(address, timeout_s=20.0))
            peers[-1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[%d,0,0,0]}]}' % number
            peers[-1].send(post(body=body, path="/v2/models/code/infer") * num_asks)

        longest_s = 0.0
        for _ in range(100):
            for peer in peers:
                peer.buffer += peer.socket.recv(500)
            start_s = time.monotonic()
            assert other.predict("scale", {"x": row(1)})["y"].tolist() == (row(1) * 3).tolist()
            longest_s = max(longest_s, time.monotonic() - start_s)
        # Of 200 MB of answers, each client's next one.
        assert read_rss() - before < 12 << 20
        assert longest_s < floods.MAX_WAIT_S
        for number, peer in enumerate(peers):
            with peer:
                answers = peer.read_all(num_asks)
                assert [answer.status for answer in answers] == [200] * num_asks
                assert {answer.body.count(b"%d.0," % number) for answer in answers} == {width - 1}


async def turn_until(condition: Callable[[], Any]) -> None:
    """Let the loop turn until a condition comes true."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition did not come true in time")


@pytest.mark.parametrize("num_asks", [1, 3], ids=["one", "and others held behind it"])
def test_client_that_never_reads_its_answer_gives_its_place_back(num_asks: int) -> None:
    """With an injected clock. Nothing that waits for the client's next read may be waited for."""

    class OneServer:
        def __init__(self) -> None:
            self.admit = SimpleNamespace(max_body_bytes=MAX_BODY_BYTES, intake=Intake())
            self.connections: set[HttpConnection] = set()
            self.max_connections, self.is_draining, self.heads = 8, False, {}

        def answer_get(self, url: bytes, method: str = "GET") -> tuple[int, bytes]:
            return 200, bytes(32 << 20)

        def remember_head(self, *head: object) -> None:
            """As the real one of what is not inference."""

    async def main() -> None:
        server: Any = OneServer()
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: HttpConnection(server), "127.0.0.1", 0)
        with socket.create_connection(listener.sockets[0].getsockname()) as client:
            client.sendall(request() * num_asks)
            await turn_until(lambda: select.select([client], [], [], 0)[0])  # the answer has begun
            (connection,) = server.connections
            now = time.monotonic()
            connection.check_idle(now + 50)
            await asyncio.sleep(0.1)
            assert server.connections == {connection}
            connection.check_idle(now + 61)
            await turn_until(lambda: not server.connections)
        listener.close()

    uvloop.run(main())


# errors that end the connection


@pytest.mark.parametrize(
    ("head", "status", "text"),
    [
        (b"GET /" + b"a" * 5000, 414, "The URL is longer than 4096 bytes"),
        (b"GET /" + b"a" * 200_000, 414, "The URL is longer than 4096 bytes"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200, 431, "more than 100 headers, or more than 32768 bytes of them"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n", 431, "more than 100 headers"),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000, 431, "more than 100 headers"),
        (b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n", 413, "more than 1048576 bytes"),
        (b"nonsense\r\n\r\n", 400, "not valid HTTP/1.1"),
    ],
    ids=["url", "url-without-end", "headers", "header", "header-without-end", "body", "nonsense"],
)
def test_client_that_goes_on_sending_still_reads_why_it_was_refused(
    address: tuple[str, int], head: bytes, status: int, text: str
) -> None:
    # As most clients do: all is sent before anything is read. A reset would destroy the answer.
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head)
        for _ in range(30):
            connection.sendall(b"x" * 100_000)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 %d " % status)
    assert text in json.loads(data.partition(b"\r\n\r\n")[2])["error"]


def test_client_that_never_ends_after_a_refusal_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(2000):
                connection.sendall(b"x" * 100_000)
