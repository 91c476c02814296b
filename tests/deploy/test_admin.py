"""The admin API denies by default, and says what was wrong; publishing and deploying through it; metrics and stats."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from argosy.deploy import admin as admin_module
from argosy.server import Server
from tests.bombs import write_endless
from tests.home import Home, golden_scale, make_scale_model, row
from tests.processes import find_child, is_alive, list_children, read_state, wait_until
from tests.serve.http.requests import Peer, parse_address, request

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
ROUTES = [(method, path.replace("{name}", "scale").replace("{id}", "1")) for method, path, _ in admin_module._ROUTES]
UNKNOWN = [
    "/",
    "/v1",
    "/v1/",
    "/v2",
    "/v1/nothing",
    "/v1/status/x",
    "/v1/models",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/%2e%2e",
]
REFUSAL = {
    "error": "The admin API needs the header Authorization: Bearer TOKEN\nhint: the token stands in ARGOSY_HOME/run/serve.json",
    "key": "unauthorized",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("admin"))
    home.publish_scale()
    with home.serve("scale") as running:
        control = find_child(running, "argosy.deploy.control")
        yield running
        # Whatever was asked below, one process answered all of it, without a fault of its own.
        assert find_child(running, "argosy.deploy.control") == control
        assert "Traceback" not in (log := (running.home / "run" / "logs" / "control.log").read_text()), log


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return read_state(server)["token"]


@pytest.fixture(scope="module")
def stranger(server: Server) -> Iterator[httpx.Client]:
    """A client that has no token."""
    with httpx.Client(base_url=server.admin_url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def friend(server: Server, token: str) -> Iterator[httpx.Client]:
    """A client that has one."""
    with httpx.Client(base_url=server.admin_url, timeout=20, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


# who may ask


def test_every_route_is_walked() -> None:
    assert len(ROUTES) >= 8
    assert {path.split("/")[1] for _, path in ROUTES} == {"v1"}
    assert not any("{" in path for _, path in ROUTES)


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}) + UNKNOWN)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_answered_without_a_token(stranger: httpx.Client, method: str, path: str) -> None:
    answer = stranger.request(method, path, content=b"{}")
    assert answer.status_code == 401
    if method != "HEAD":
        assert answer.json() == REFUSAL


@pytest.mark.parametrize(
    "make",
    [
        lambda token: {"Authorization": ""},
        lambda token: {"Authorization": "Bearer"},
        lambda token: {"Authorization": "Bearer wrong"},
        lambda token: {"Authorization": token},
        lambda token: {"Authorization": f"Bearer {token[:-1]}"},
        lambda token: {"Authorization": f"Bearer {token}x"},
        lambda token: {"Authorization": f"Bearer {token} {token}"},
        lambda token: {"Authorization": f"Bearer {token.swapcase()}"},
        lambda token: {"Authorization": f"Token {token}"},
        lambda token: {"Authorization": f"Bearer \xff{token}".encode("latin-1")},
        lambda token: {"Authorization": "Bearer " + "a" * 50_000},
        lambda token: {"X-Authorization": f"Bearer {token}"},
        lambda token: {"Cookie": f"Authorization=Bearer {token}"},
        lambda token: {"Proxy-Authorization": f"Bearer {token}"},
    ],
)
def test_wrong_token_is_none(stranger: httpx.Client, token: str, make: Any) -> None:
    for path in ("/v1/status", "/v1/nothing", f"/v1/status?token={token}&Authorization=Bearer%20{token}"):
        answer = stranger.get(path, headers=make(token))
        assert (answer.status_code, answer.json()) == (401, REFUSAL)


def test_first_of_two_tokens_counts(stranger: httpx.Client, token: str) -> None:
    both = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {token}")]
    assert stranger.get("/v1/status", headers=both).status_code == 401


def test_websocket_gets_no_further(server: Server) -> None:
    lines = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    with Peer(parse_address(server.admin_url)) as peer:
        peer.send(request("GET", "/v1/status", *lines))
        answer = peer.read()
    assert answer.status in (400, 401, 403, 404)
    assert b"deployments" not in answer.body


def test_token_is_for_its_owner_and_the_listener_for_this_machine(server: Server) -> None:
    file = server.home / "run" / "serve.json"
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert len(read_state(server)["token"]) >= 32
    port = read_state(server)["admin_port"]
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize("path", ["/v1/status", "/v1/deployments/x", "/v1/models/x/versions"])
def test_token_does_not_open_the_other_listeners(server: Server, token: str, path: str) -> None:
    for url in (server.url, server.metrics_url.removesuffix("/metrics")):
        for method in ("GET", "PUT", "POST", "DELETE"):
            answer = httpx.request(method, url + path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in (404, 405), (method, url)


# what is not there, and what is wrong


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_unknown_route_is_not_found(friend: httpx.Client, method: str, path: str) -> None:
    answer = friend.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["key"] == "no_path"
    assert answer.json()["error"].startswith(f"No {method} /")


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_other_methods_of_a_route_are_not_there(friend: httpx.Client, path: str) -> None:
    known = {method for method, other in ROUTES if other == path}
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - known:
        answer = friend.request(method, path, content=b"{}")
        assert (answer.status_code, answer.json()["key"]) == (404, "no_path"), method


SPEC = {"name": "other", "model": "scale", "version": 1}
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "The body is not valid: Input data was truncated"),
        (b"{", 400, "The body is not valid"),
        (b"null", 400, "Expected `object`, got `null`"),
        (b"[]", 400, "Expected `object`, got `array`"),
        (b"{}", 400, "missing required field `name`"),
        (b"\xff\xfe", 400, "The body is not valid"),
        (b'{"name":"\xff"}', 400, "The body is not valid"),
        (DEEP, 400, "The body is not valid"),
        (b'{"name":' + DEEP, 400, "The body is not valid"),
        (b'{"x":' + DEEP + b"]" * 100_000 + b"}", 400, "The body is not valid"),
        ({**SPEC, "speed": 1}, 400, "unknown field `speed`"),
        ({**SPEC, "version": "1"}, 400, "Expected `int`, got `str`"),
        ({**SPEC, "version": 1.5}, 400, "Expected `int`, got `float`"),
        ({**SPEC, "version": None}, 400, "Expected `int`, got `null`"),
        ({**SPEC, "version": 0}, 400, "Option `version` is 0, expected 1 to"),
        ({**SPEC, "version": -1}, 400, "Option `version` is -1, expected 1 to"),
        ({**SPEC, "version": 1 << 70}, 400, "version"),
        ({**SPEC, "replicas": -1}, 400, "Option `replicas` is -1, expected 0 to 256"),
        ({**SPEC, "replicas": 10**9}, 400, "Option `replicas` is 1000000000"),
        ({**SPEC, "timeout_s": 0}, 400, "Option `timeout_s` is 0"),
        ({**SPEC, "timeout_s": -1.0}, 400, "Option `timeout_s` is -1.0"),
        ({**SPEC, "max_batch_rows": 1 << 40}, 400, "Option `max_batch_rows` is"),
        ({**SPEC, "allow_code": "yes"}, 400, "Expected `bool`, got `str`"),
        ({**SPEC, "name": "others"}, 400, "Option `name` is 'others', expected other"),
        ({**SPEC, "name": "../other"}, 400, "Deployment name '../other' is not valid"),
        ({**SPEC, "model": "../scale"}, 400, "Model name '../scale' is not valid"),
        ({**SPEC, "model": "scale@1"}, 400, "Model name 'scale@1' is not valid"),
        ({**SPEC, "model": "nothing"}, 404, "Unknown model 'nothing'; known: "),
        ({**SPEC, "version": 99}, 404, "Model 'scale' has no version 99; it has: 1"),
    ],
)
def test_deployment_that_makes_no_sense_is_refused(friend: httpx.Client, body: Any, status: int, text: str) -> None:
    answer = friend.put("/v1/deployments/other", content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]
    assert "other" not in [each["spec"]["name"] for each in friend.get("/v1/status").json()["deployments"]]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("DELETE", "/v1/deployments/nothing", 404, "Unknown model 'nothing'; deployed: scale"),
        ("DELETE", "/v1/deployments/..%2Fscale", 404, "No DELETE /v1/deployments/../scale here"),
        ("DELETE", "/v1/deployments/%00", 404, "Unknown model '\\x00'"),
        ("POST", "/v1/deployments/nothing/rollback", 404, "Unknown model 'nothing'; deployed: scale"),
        ("POST", "/v1/deployments/scale/rollback", 409, "Deployment 'scale' never held another version"),
        ("GET", "/v1/rollouts/99999", 404, "Unknown rollout 99999"),
        ("GET", "/v1/rollouts/0", 404, "Unknown rollout 0"),
        ("GET", "/v1/rollouts/-1", 404, "Unknown rollout '-1'"),
        ("GET", "/v1/rollouts/x", 404, "Unknown rollout 'x'"),
        ("GET", "/v1/rollouts/%C2%B2", 404, "Unknown rollout '\u00b2'"),
        ("GET", f"/v1/rollouts/{1 << 63}", 404, f"Unknown rollout '{1 << 63}'"),
        ("GET", "/v1/rollouts/" + "9" * 5000, 404, f"Unknown rollout '{'9' * 40}'"),
        ("GET", "/v1/rollouts/1?after=x", 400, "Parameter `after` is 'x', expected a number, 0 or above"),
        ("GET", "/v1/rollouts/1?after=-1", 400, "Parameter `after` is '-1'"),
        ("GET", "/v1/rollouts/1?after=nan", 400, "Parameter `after` is 'nan'"),
        ("GET", "/v1/rollouts/1?wait_s=inf", 400, "Parameter `wait_s` is 'inf'"),
        ("GET", "/v1/rollouts/1?wait_s=" + "9" * 500, 400, "Parameter `wait_s` is '999"),
        ("GET", "/v1/logs?name=nothing", 404, "Unknown log 'nothing'; known: control, front-0"),
        ("GET", "/v1/logs?name=../../serve", 404, "Unknown log '../../serve'"),
        ("GET", "/v1/logs?name=..%2f..%2fserve.log", 404, "Unknown log '../../serve.log'"),
        ("GET", "/v1/logs?name=", 404, "Unknown log ''"),
        ("GET", "/v1/logs?name=control&max_bytes=-1", 400, "Parameter `max_bytes` is '-1'"),
        ("POST", "/v1/models/-bad/versions", 400, "Model name '-bad' is not valid"),
        ("POST", "/v1/models/..%2Fbad/versions", 404, "No POST /v1/models/../bad/versions here"),
        ("POST", "/v1/models/%2e%2e/versions", 400, "Model name '..' is not valid"),
        ("POST", "/v1/models/" + "n" * 200 + "/versions", 400, "is not valid"),
        ("POST", "/v1/models/empty/versions", 400, "File model.onnx is not an ONNX model that can be served"),
    ],
)
def test_what_is_not_there_is_said(friend: httpx.Client, method: str, path: str, status: int, text: str) -> None:
    answer = friend.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].startswith(text) or text in answer.json()["error"]


def test_logs_are_as_long_as_asked_for(friend: httpx.Client) -> None:
    names = friend.get("/v1/logs").json()["names"]
    assert {"control", "front-0"} <= set(names)
    whole = friend.get("/v1/logs", params={"name": "control"}).json()["text"]
    assert "rollout 1 of scale" in whole
    for max_bytes in (0, 1, 10):
        text = friend.get("/v1/logs", params={"name": "control", "max_bytes": max_bytes}).json()["text"]
        assert len(text) == max_bytes


# publishing and deploying


def test_file_is_published_and_deployed(server: Server, friend: httpx.Client, tmp_path: Path) -> None:
    data = make_scale_model(tmp_path / "five.onnx", 5.0).read_bytes()
    first = friend.post("/v1/models/five/versions", content=data)
    assert first.status_code == 200
    assert (first.json()["name"], first.json()["version"]) == ("five", 1)
    assert first.json()["digest"].startswith("sha256:")
    # In chunks, and again: the same bytes are a version of their own.
    second = friend.post("/v1/models/five/versions", content=iter([data[:10], data[10:]]))
    assert second.json()["version"] == 2
    spec = {"name": "five-times", "model": "five", "version": 2, "timeout_s": 5.0}
    rollout = friend.put("/v1/deployments/five-times", content=json.dumps(spec)).json()["rollout"]
    assert (rollout["spec"]["name"], rollout["from_version"], rollout["state"]) == ("five-times", None, "pending")
    steps: list[str] = []
    found: dict[str, Any] = {"is_over": False}
    while not found["is_over"]:
        found = friend.get(f"/v1/rollouts/{rollout['id']}", params={"after": len(steps), "wait_s": 10}).json()
        assert [event["number"] for event in found["events"]] == list(
            range(len(steps) + 1, len(steps) + len(found["events"]) + 1)
        )
        steps += [event["step"] for event in found["events"]]
    assert steps == ["check", "load", "verify", "shift", "done"]
    assert found["rollout"]["state"] == "done"
    with server.client() as client:
        np.testing.assert_array_equal(client.predict("five-times", {"x": row(2)})["y"], row(10))
    (described,) = [each for each in friend.get("/v1/status").json()["deployments"] if each["spec"]["name"] == "five-times"]
    assert (described["is_live"], described["is_ready"], described["problem"]) == (True, True, "")
    assert [(lane["version"], lane["ready_replicas"]) for lane in described["lanes"]] == [(2, 1)]
    assert friend.delete("/v1/deployments/five-times").json() == {"removed": "five-times"}
    assert friend.delete("/v1/deployments/five-times").status_code == 404


def test_what_is_no_model_is_not_published(friend: httpx.Client, tmp_path: Path) -> None:
    good = make_scale_model(tmp_path / "good.onnx", 5.0).read_bytes()
    for data in (b"", b"garbage", bytes(1000), good[: len(good) // 2], good[100:], b"\x80\x04K\x01."):
        answer = friend.post("/v1/models/bad/versions", content=data)
        assert answer.status_code == 400
        assert answer.json()["key"] == "bad_onnx"
    # Nothing is left of any of them: the first good one is version 1.
    assert friend.post("/v1/models/bad/versions", content=good).json()["version"] == 1


def test_files_that_never_end_hold_no_rollout_up(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.publish_scale()
    endless = write_endless(tmp_path / "endless.onnx").read_bytes()
    with ThreadPoolExecutor(8) as pool, home.serve() as server:
        headers = {"Authorization": f"Bearer {read_state(server)['token']}"}
        url = f"{server.admin_url}/v1/models/evil/versions"
        control = find_child(server, "argosy.deploy.control")

        def send() -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(url, content=endless, headers=headers, timeout=60)

        for _ in range(8):
            pool.submit(send)
        opening = wait_until(lambda: children if len(children := list_children(control)) == 2 else [])
        server.deploy("scale")
        assert list_children(control) == opening
    assert not any(map(is_alive, opening))


def test_upload_that_breaks_off_is_not_published(server: Server, friend: httpx.Client, token: str, tmp_path: Path) -> None:
    good = make_scale_model(tmp_path / "good.onnx", 5.0).read_bytes()
    head = (f"Authorization: Bearer {token}", f"Content-Length: {len(good)}")
    for size in (0, 10, len(good) - 1):
        with Peer(parse_address(server.admin_url)) as peer:
            peer.send(request("POST", "/v1/models/broken/versions", *head, body=good[:size]))
    assert friend.post("/v1/models/broken/versions", content=good).json()["version"] == 1
    uploads = server.home / "run" / "uploads"
    wait_until(lambda: not list(uploads.iterdir()))


def test_versions_published_at_once_get_numbers_of_their_own(friend: httpx.Client, tmp_path: Path) -> None:
    files = [make_scale_model(tmp_path / f"{factor}.onnx", float(factor)).read_bytes() for factor in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda data: friend.post("/v1/models/many/versions", content=data), files))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3, 4, 5, 6]


# what is counted


def read_metrics(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = httpx.get(server.metrics_url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has answered a known number of requests."""
    home = Home(tmp_path_factory.mktemp("counted"))
    home.publish_code(
        "if (x == 13).any(): raise ValueError('unlucky')\nif (x == 77).any(): time.sleep(0.3)\nreturn {'y': x * 2}",
        golden=golden_scale(rows=3),
    )
    with home.serve() as server:
        server.deploy("code", allow_code=True, max_queue_rows=8, max_batch_rows=4)
        url = f"{server.url}/v2/models/code/infer"

        def ask(value: float, rows: int = 1, **fields: Any) -> int:
            tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [value] * 4 * rows}
            return httpx.post(url, json={"inputs": [tensor], **fields}, timeout=20).status_code

        assert [ask(number) for number in range(5)] == [200] * 5
        assert ask(1, rows=3) == 200
        assert [ask(13) for _ in range(2)] == [500] * 2
        assert ask(1, rows=9) == 400
        assert ask(77, parameters={"timeout": 100_000}) == 504
        assert httpx.post(url, content=b"{}").status_code == 400
        assert httpx.post(url.replace("code", "nothing"), content=b"{}").status_code == 404
        # The late one is counted as open until its worker is done with it.
        with server.admin() as admin:
            wait_until(lambda: admin.stats()["fronts"]["front-0"][0]["open_requests"] == 0)
        yield server


def test_metrics_count_what_was_sent(counted: Server) -> None:
    found = read_metrics(counted)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted({"model": "code", "version": "1", **labels}.items()))]

    assert value("argosy_requests_total", outcome="ok") == 6
    assert value("argosy_requests_total", outcome="fault") == 3
    assert value("argosy_requests_total", outcome="refused") == 0
    assert value("argosy_requests_total", outcome="bad_request") == 2
    assert value("argosy_rows_total") == 5 + 3 + 2 + 1
    assert value("argosy_batches_total") == 5 + 1 + 2 + 1
    assert value("argosy_joined_requests_total") == 0
    assert value("argosy_queued_rows") == 0
    assert value("argosy_ready_replicas") == 1
    assert value("argosy_request_seconds_count") == 6
    assert value("argosy_request_seconds_bucket", le="+Inf") == 6
    assert value("argosy_batch_rows_bucket", le="1.0") == 8
    assert value("argosy_batch_rows_bucket", le="4.0") == 9
    assert value("argosy_batch_rows_sum") == 11
    assert 0 < value("argosy_service_seconds_total") < 5
    assert all(labels[0] == ("model", "code") for name, labels in found if labels and labels[0][0] == "model")


def test_stats_say_the_same(counted: Server) -> None:
    with counted.admin() as admin:
        stats = admin.stats()
    (series,) = stats["series"]
    assert (series["name"], series["version"]) == ("code", "1")
    assert (series["rows"], series["batches"], series["queued_rows"]) == (11, 9, 0)
    assert (series["ok"], series["fault"], series["bad_request"], series["refused"]) == (6, 3, 2, 0)
    assert series["mean_batch_rows"] == pytest.approx(11 / 9)
    assert 0 < series["p50_s"] <= series["p99_s"] < 2
    (lane,) = stats["fronts"]["front-0"]
    assert (lane["name"], lane["version"], lane["replicas"]) == ("code", "1", 1)
    assert (lane["queued_rows"], lane["open_requests"], lane["can_join"]) == (0, 0, True)


def test_metrics_listener_answers_nothing_else(counted: Server) -> None:
    address = parse_address(counted.metrics_url.removesuffix("/metrics"))
    for data in (
        request("GET", "/"),
        request("GET", "/metricsx"),
        request("GET", "/metrics/../v2"),
        request("POST", "/metrics"),
        b"garbage\r\n\r\n",
    ):
        with Peer(address) as peer:
            peer.send(data)
            assert peer.read().status == 404
            assert peer.read() is None
            assert peer.is_closed
    with Peer(address) as peer:
        peer.send(b"a" * 200_000)
        assert peer.read() is None
        assert peer.is_closed
    with Peer(address) as slow:
        slow.send(b"GET /met")
        assert ("argosy_ready_replicas", (("model", "code"), ("version", "1"))) in read_metrics(counted)
        slow.send(b"rics HTTP/1.1\r\n\r\n")
        assert slow.read().status == 200


def test_idle_connections_to_the_metrics_take_nothing_from_others(counted: Server) -> None:
    address = parse_address(counted.metrics_url.removesuffix("/metrics"))
    peers = [Peer(address) for _ in range(100)]
    for peer in peers[64:]:
        assert peer.read() is None
        assert peer.is_closed
    with counted.client() as client:
        np.testing.assert_array_equal(client.predict("code", {"x": row(2)})["y"], row(4))
    peers[0].send(request("GET", "/metrics"))
    assert peers[0].read().status == 200
    for peer in peers:
        peer.socket.close()
    wait_until(lambda: can_read_metrics(counted))
    assert can_read_metrics(counted)


def can_read_metrics(server: Server) -> bool:
    try:
        return bool(read_metrics(server))
    except httpx.TransportError:
        return False
