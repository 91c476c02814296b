"""The extensions repository, model_configuration and statistics over both protocols, asked by tritonclient and plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

import argosy
from argosy.server import Server
from tests.home import Home, golden_scale, row
from tests.processes import find_child, read_state, wait_until
from tests.serve.v2.models import publish_pair, publish_turn

KINDS = ("http", "grpc")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("repository"))
    made.publish_scale(factor=2.0)
    made.publish_scale(factor=3.0)
    made.publish_scale("spare")
    made.publish_code("return {'y': x}", "code")
    publish_pair(made)
    publish_turn(made)
    return made


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    with home.serve("scale@1", "pair", "turn", num_fronts=2) as running:
        yield running


class Client:
    """One of tritonclient's clients, with the token or without."""

    def __init__(self, kind: str, server: Server) -> None:
        self.is_http = kind == "http"
        self.headers = {"Authorization" if self.is_http else "authorization": f"Bearer {read_state(server)['token']}"}
        url = server.url.removeprefix("http://") if self.is_http else server.grpc_address
        self.client: Any = (triton_http if self.is_http else triton_grpc).InferenceServerClient(url)

    def read_index(self) -> dict[tuple[str, str], tuple[str, str]]:
        found = self.client.get_model_repository_index()
        models = found if self.is_http else [
            {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason} for each in found.models
        ]  # fmt: skip
        return {(each["name"], each["version"]): (each["state"], each["reason"]) for each in models}

    def load(self, name: str, **more: Any) -> None:
        self.client.load_model(name, headers=self.headers, **more)

    def unload(self, name: str) -> None:
        self.client.unload_model(name, headers=self.headers)

    def infer(self, name: str, value: float) -> Any:
        module = triton_http if self.is_http else triton_grpc
        tensor = module.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(row(value))
        return self.client.infer(name, [tensor])


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    made = Client(request.param, server)
    yield made
    made.client.close()


def post(server: Server, path: str, body: Any = None, token: str | None = None, **more: Any) -> httpx.Response:
    headers = {} if token is None else {"Authorization": token}
    return httpx.post(server.url + path, json=body, headers=headers, timeout=30, **more)


def bearer(server: Server) -> str:
    return f"Bearer {read_state(server)['token']}"


# the index


def test_index_lists_what_is_deployed_and_what_is_not(client: Client) -> None:
    index = client.read_index()
    assert index["scale", "1"] == ("READY", "")
    assert index["pair", "1"] == ("READY", "")
    assert index["spare", "1"] == ("UNAVAILABLE", "not deployed")


def test_index_of_ready_models_leaves_out_the_others(server: Server) -> None:
    names = {each["name"] for each in post(server, "/v2/repository/index", {"ready": True}).json()}
    assert {"scale", "pair", "turn"} <= names
    assert "spare" not in names
    with triton_grpc.InferenceServerClient(server.grpc_address) as grpc_client:
        stub = grpc_client._client_stub
        found = stub.RepositoryIndex(triton_grpc.service_pb2.RepositoryIndexRequest(ready=True))
        with pytest.raises(grpc.RpcError, match="Parameter `repository_name` is 'other', expected none"):
            stub.RepositoryIndex(triton_grpc.service_pb2.RepositoryIndexRequest(repository_name="other"))
    assert {each.name for each in found.models} == names


def test_index_shows_a_version_that_was_published_meanwhile(home: Home, client: Client) -> None:
    name = f"new-{'http' if client.is_http else 'grpc'}"
    home.publish_scale(name)
    assert wait_until(lambda: client.read_index().get((name, "1"))) == ("UNAVAILABLE", "not deployed")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready":1}', b"\xff", b"[" * 10_000])
def test_index_refuses_what_is_no_request(server: Server, body: bytes) -> None:
    answer = httpx.post(f"{server.url}/v2/repository/index", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("The body is not valid")


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/scale/load"])
def test_repository_takes_post_alone(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert post(server, path.replace("index", "nothing").replace("load", "delete")).status_code == 404


# load and unload


def test_model_is_loaded_answers_and_is_unloaded(server: Server, client: Client) -> None:
    client.load("spare")
    np.testing.assert_array_equal(client.infer("spare", 3.0).as_numpy("y"), row(6.0))
    assert client.read_index()["spare", "1"] == ("READY", "")
    client.unload("spare")
    # Every front knows by then: the kernel hands connections to either.
    for _ in range(8):
        assert httpx.get(f"{server.url}/v2/models/spare").status_code == 404
    assert wait_until(lambda: client.read_index()["spare", "1"][0] == "UNAVAILABLE")
    with pytest.raises(InferenceServerException, match="Unknown model 'spare'"):
        client.unload("spare")


def test_load_rolls_out_the_newest_version_or_the_one_that_is_named(server: Server) -> None:
    def read_versions() -> list[str]:
        return httpx.get(f"{server.url}/v2/models/scale").json()["versions"]

    token = bearer(server)
    assert post(server, "/v2/repository/models/scale/load", token=token).status_code == 200
    wait_until(lambda: read_versions() == ["2"])
    for version in (1, "1"):
        answer = post(server, "/v2/repository/models/scale/load", {"parameters": {"version": version}}, token)
        assert (answer.status_code, answer.json()) == (200, {})
        wait_until(lambda: read_versions() == ["1"])
    answer = post(server, "/v2/repository/models/scale/load", {"parameters": {"version": "9"}}, token)
    assert (answer.status_code, answer.json()["error"][:40]) == (404, "Model 'scale' has no version 9; it has: ")
    assert read_versions() == ["1"]


def test_two_clients_that_load_the_same_are_both_answered(server: Server) -> None:
    token = bearer(server)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(post, server, "/v2/repository/models/spare/load", None, token) for _ in range(8)]
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 8, [answer.text for answer in answers]
    assert post(server, "/v2/repository/models/spare/unload", None, token).status_code == 200


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", "Basic dTpw", "Bearer \u00e9\u00e9"])
def test_token_is_asked_for(server: Server, action: str, token: str | None) -> None:
    answer = httpx.post(
        f"{server.url}/v2/repository/models/pair/{action}",
        headers=[] if token is None else [(b"authorization", token.encode("latin-1"))],
    )
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer TOKEN" in answer.json()["error"]
    assert httpx.get(f"{server.url}/v2/models/pair/ready").status_code == 200


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_token_is_asked_for_over_grpc(server: Server, headers: dict[str, str]) -> None:
    with triton_grpc.InferenceServerClient(server.grpc_address) as made:
        for ask in (made.load_model, made.unload_model):
            with pytest.raises(InferenceServerException) as caught:
                ask("pair", headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert made.is_model_ready("pair")


def test_files_and_configurations_of_a_client_are_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException, match=r"Parameter `config` is '\{\"backend\": \"python\"\}', expected none"):
        client.load("spare", config='{"backend": "python"}')
    with pytest.raises(InferenceServerException, match=r"Parameter `(config|file:1/model\.py)`"):
        client.load("spare", config="{}", files={"file:1/model.py": b"import os"})
    assert client.read_index()["spare", "1"][0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/nothing/load", None, 404, "Unknown model 'nothing'; known: "),
        ("/nothing/unload", None, 404, "Unknown model 'nothing'; deployed: "),
        ("/..%2F..%2Fetc/load", None, 400, "Model name '../../etc' is not valid"),
        ("/code/load", None, 403, "may run code of its maker"),
        ("/scale/load", {"parameters": {"version": True}}, 400, "Parameter `version` is 'True'"),
        ("/scale/load", {"parameters": {"version": "1@2"}}, 400, "Reference 'scale@1@2' is not valid"),
        ("/scale/load", {"parameters": {"version": "x" * 200}}, 400, "Parameter `version`"),
        ("/scale/load", {"parameters": {"version": {"a": 1}}}, 400, "The body is not valid"),
        ("/scale/unload", {"parameters": {"version": "1"}}, 400, "Parameter `version`"),
        ("/scale/load", [1], 400, "The body is not valid"),
    ],
)
def test_what_cannot_be_done_is_said(server: Server, path: str, body: Any, status: int, text: str) -> None:
    answer = post(server, f"/v2/repository/models{path}", body, bearer(server))
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text


def test_version_that_cannot_load_is_told_and_leaves_the_live_one(home: Home, server: Server) -> None:
    good = home.publish_code("return {'y': x}", "fragile")
    server.deploy("fragile", allow_code=True)
    for code, said in (("x * 3", "differs by 0.5, allowed 0.001"), ("x * float('nan')", "is NaN or infinite in ")):
        home.publish_code(f"return {{'y': {code}}}", "fragile", golden=golden_scale(2.0))
        answer = post(server, "/v2/repository/models/fragile/load", None, bearer(server))
        assert answer.status_code == 500
        assert f"does not answer its golden examples as recorded: output 'y' {said}" in answer.json()["error"]
    with server.client() as client:
        assert client.predict("fragile", {"x": row(1)}).version == str(good.number)


def test_client_that_goes_away_takes_nothing_back(server: Server) -> None:
    lines = ("Host: a", f"Authorization: {bearer(server)}", "Content-Length: 0", "", "")
    head = "\r\n".join(("POST /v2/repository/models/spare/load HTTP/1.1", *lines))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode())
    wait_until(lambda: httpx.get(f"{server.url}/v2/models/spare/ready").status_code == 200)
    assert post(server, "/v2/repository/models/spare/unload", None, bearer(server)).status_code == 200


def test_aio_clients_load_and_unload(server: Server) -> None:
    token = bearer(server)

    async def main(module: Any, url: str, name: str) -> None:
        async with module.InferenceServerClient(url) as made:
            await made.load_model("spare", headers={name: token})
            assert await made.is_model_ready("spare")
            await made.unload_model("spare", headers={name: token})

    asyncio.run(main(triton_http_aio, server.url.removeprefix("http://"), "Authorization"))
    asyncio.run(main(triton_grpc_aio, server.grpc_address, "authorization"))


def test_fronts_say_so_while_the_control_process_is_away(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.publish_scale()
    with home.serve("scale") as server:
        token = bearer(server)
        control = find_child(server, "argosy.deploy.control")
        asking = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        asking.request("GET", "/v2/health/live")
        asking.getresponse().read()
        os.kill(control, signal.SIGSTOP)
        asking.request("POST", "/v2/repository/models/scale/load", headers={"Authorization": token})
        # Sent after it and answered: what the front asked is on its way to a process that will not answer.
        assert post(server, "/v2/repository/index").status_code == 200
        os.kill(control, signal.SIGKILL)
        answer = asking.getresponse()
        assert answer.status == 503
        assert "control process is being started again" in json.loads(answer.read())["error"]
        asking.close()
        # The next one takes it, and meanwhile the front has answered all along.
        assert wait_until(lambda: post(server, "/v2/repository/models/scale/load", None, token).status_code == 200)
        with server.client() as made:
            assert made.predict("scale", {"x": row(1)})["y"][0, 0] == 2.0


# configuration


def test_config_is_what_triton_clients_read(client: Client) -> None:
    if client.is_http:
        config = client.client.get_model_config("pair")
    else:
        config = client.client.get_model_config("pair", as_json=True)["config"]
        for tensor in config["input"] + config["output"]:
            tensor["dims"] = [int(dim) for dim in tensor.get("dims", [])]  # JSON of protobuf writes int64 as text
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("pair", "onnxruntime_onnx", 64)
    assert config["input"] == [
        {"name": "a", "data_type": "TYPE_FP32", "dims": [2]},
        {"name": "b", "data_type": "TYPE_INT64", "dims": [3]},
    ]
    assert config["output"] == [
        {"name": "joined", "data_type": "TYPE_FP64", "dims": [5]},
        {"name": "total", "data_type": "TYPE_INT64", "dims": []},
        {"name": "positive", "data_type": "TYPE_BOOL", "dims": [2]},
    ]
    assert config["dynamic_batching"]["preferred_batch_size"] == [64]
    assert config["instance_group"] == [{"name": "pair", "kind": "KIND_CPU", "count": 1}]
    assert not config["model_transaction_policy"].get("decoupled", False)


def test_config_of_a_model_without_rows_has_no_batch(server: Server) -> None:
    config = httpx.get(f"{server.url}/v2/models/turn/versions/1/config").json()
    assert (config["max_batch_size"], config["input"][0]["dims"], "dynamic_batching" in config) == (0, [2, 3], False)


@pytest.mark.parametrize("path", ["/v2/models/nothing/config", "/v2/models/pair/versions/9/config", "/v2/models/nothing/stats"])
def test_config_and_stats_of_an_unknown_model_are_not_found(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith(("Unknown model", "Version 9 of model"))


# statistics


def read_stats(client: Client, name: str = "") -> dict[str, Any]:
    if client.is_http:
        found = client.client.get_inference_statistics(name)
    else:
        found = client.client.get_inference_statistics(name, as_json=True)
    return {each["name"]: each for each in found["model_stats"]}


def count(duration: dict[str, Any]) -> tuple[int, int]:
    return int(duration.get("count", 0)), int(duration.get("ns", 0))


def test_statistics_count_requests_rows_and_batches_of_all_fronts(server: Server, client: Client) -> None:
    before = read_stats(client, "pair")["pair"]
    arrays = {"a": np.ones((3, 2), np.float32), "b": np.ones((3, 3), np.int64)}
    for _ in range(8):
        # Each on a connection of its own, so that both fronts answer some.
        with server.client() as made:
            made.predict("pair", arrays)
    with server.client() as made, contextlib.suppress(argosy.errors.InputError):
        made.predict("pair", arrays | {"a": np.ones((2, 2), np.float32)})
    after = read_stats(client, "pair")["pair"]

    def grown(*path: str) -> int:
        one, other = before, after
        for key in path:
            one, other = one.get(key, {}), other.get(key, {})
        return int(other or 0) - int(one or 0)

    assert (grown("inference_count"), grown("execution_count")) == (24, 8)
    assert grown("inference_stats", "success", "count") == 8
    assert grown("inference_stats", "fail", "count") == 1
    times = [grown("inference_stats", key, "ns") for key in ("queue", "compute_infer", "compute_output")]
    assert all(time_ns > 0 for time_ns in times)
    assert sum(times) == pytest.approx(grown("inference_stats", "success", "ns"), rel=1e-6)
    sizes = {int(each["batch_size"]): count(each["compute_infer"]) for each in after["batch_stats"]}
    assert sizes[4][0] >= 8  # three rows stand among the batches of three and four
    wait_until(lambda: int(read_stats(client, "pair")["pair"].get("last_inference", 0)) > int(before.get("last_inference", 0)))


def test_statistics_of_all_models_and_of_one_version(server: Server, client: Client) -> None:
    assert {"scale", "pair", "turn"} <= set(read_stats(client))
    answer = httpx.get(f"{server.url}/v2/models/pair/versions/1/stats").json()
    assert [(each["name"], each["version"]) for each in answer["model_stats"]] == [("pair", "1")]
    assert httpx.get(f"{server.url}/v2/models/stats").json().keys() == {"model_stats"}
