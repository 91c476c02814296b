"""OpenAI's `/v1` as the unmodified `openai` client and plain requests see it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from argosy.serve.http.openai import MAX_BODY_BYTES, MAX_INPUTS
from argosy.server import Server
from tests.home import Home
from tests.runtimes.words import TEXTS, TOLERANCE, embed, list_ids, publish_words


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("openai"))
    publish_words(home, "words")
    publish_words(home, "short", options={"dimensions": [2, 3], "truncate": True, "max_length": 4})
    home.publish_scale()
    with home.serve("words", "short", "scale") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def post(server: Server, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", json=body, **more)


def check_error(answer: httpx.Response, status: int, kind: str, **fields: Any) -> str:
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert {name: error[name] for name in fields} == fields
    return error["message"]


# embeddings


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_client_gets_embeddings(client: openai.OpenAI, encoding: Any) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="words", input=list(TEXTS), **more)
    got = [item.embedding for item in answer.data]
    if encoding == "base64":
        got = [np.frombuffer(base64.b64decode(text), "<f4") for text in got]  # type: ignore[arg-type]
    np.testing.assert_allclose(got, [embed(list_ids(text)) for text in TEXTS], rtol=0, atol=TOLERANCE)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert (answer.object, answer.model) == ("list", "words")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(list_ids(text)) for text in TEXTS)


def test_input_may_be_a_text_or_token_ids(client: openai.OpenAI) -> None:
    cases: list[tuple[Any, list[list[int]]]] = [
        ("the ship", [list_ids("the ship")]),
        ([2, 4, 5, 3], [[2, 4, 5, 3]]),
        ([[2, 4, 3], [7], [5, 5, 5, 5]], [[2, 4, 3], [7], [5, 5, 5, 5]]),
    ]
    for given, rows in cases:
        answer = client.embeddings.create(model="words", input=given, user="somebody")
        np.testing.assert_allclose([item.embedding for item in answer.data], [embed(row) for row in rows], rtol=0, atol=TOLERANCE)
        assert answer.usage.prompt_tokens == sum(map(len, rows))


def test_thirty_two_clients_get_their_own_embeddings_and_counts(server: Server) -> None:
    texts = [" ".join(TEXTS[number % 3].split() * (1 + number % 2)) for number in range(128)]

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            gate = asyncio.Semaphore(32)

            async def ask(text: str) -> Any:
                async with gate:
                    return await client.embeddings.create(model="words", input=text)

            return await asyncio.gather(*map(ask, texts))

    for text, answer in zip(texts, asyncio.run(run()), strict=True):
        np.testing.assert_allclose(answer.data[0].embedding, embed(list_ids(text)), rtol=0, atol=TOLERANCE)
        assert answer.usage.prompt_tokens == len(list_ids(text))


def test_dimensions_are_cut_where_the_publisher_allows_it(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model="short", input="the ship").data[0].embedding)
    for dimensions in (2, 3, 4):
        for encoding in ("float", "base64"):
            answer = client.embeddings.create(model="short", input="the ship", dimensions=dimensions, encoding_format=encoding)
            got: Any = answer.data[0].embedding
            got = np.frombuffer(base64.b64decode(got), "<f4") if encoding == "base64" else np.array(got)
            expected = whole if dimensions == 4 else whole[:dimensions] / np.linalg.norm(whole[:dimensions])
            np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
    for model, dimensions in (("short", 1), ("short", 5), ("words", 2)):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=model, input="the ship", dimensions=dimensions)
        assert refused.value.param == "dimensions"


def test_tokens_are_counted_as_the_model_saw_them(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="short", input="the ship carries rich cargo")
    np.testing.assert_allclose(answer.data[0].embedding, embed([2, 4, 5, 3]), rtol=0, atol=TOLERANCE)
    assert answer.usage.prompt_tokens == 4


# errors


def test_clients_errors_are_of_its_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="nothing", input="a")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="words", input="the ship " * 20)
    assert "has 42 tokens, expected 1 to 16" in refused.value.message
    assert refused.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="words", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [[4], []]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1 << 31]}, "input"),
        ({"input": [400]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": 3.5}, "input"),
        ({"input": None}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [[[4]]]}, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"model": "scale"}, "model"),
        ({"dimensions": 3}, "dimensions"),
        ({"dimensions": 0}, None),
        ({"dimensions": "4"}, None),
        ({"encoding_format": "hex"}, None),
        ({"user": 3}, None),
        ({"model": 3}, None),
        ({"surprise": 1}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_request_is_explained(server: Server, change: dict[str, Any], param: str | None) -> None:
    answer = post(server, {"model": "words", "input": "the ship", **change})
    message = check_error(answer, 400, "invalid_request_error", param=param, code=None)
    assert len(message) < 500


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"model":"words"}', b"\xff", b'{"model":"words","input":"\\ud800"}', b"[" * 100_000],
    ids=["empty", "list", "cut", "no-input", "no-text", "half-a-character", "deep"],
)
def test_body_that_is_no_request_is_refused(server: Server, content: bytes) -> None:
    check_error(httpx.post(f"{server.url}/v1/embeddings", content=content), 400, "invalid_request_error")


def test_large_body_is_refused(server: Server) -> None:
    body = b'{"model":"words","input":"' + b"a" * MAX_BODY_BYTES + b'"}'
    check_error(httpx.post(f"{server.url}/v1/embeddings", content=body), 413, "invalid_request_error")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"type":"invalid_request_error"' in answer


def test_compressed_body_is_taken(server: Server) -> None:
    content = gzip.compress(b'{"model":"words","input":"the ship"}')
    answer = httpx.post(f"{server.url}/v1/embeddings", content=content, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 200


def test_full_queue_is_a_rate_limit(home: Home) -> None:
    publish_words(home)
    with home.serve() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        server.deploy("words", max_queue_rows=8, max_batch_rows=4)
        with pytest.raises(openai.BadRequestError, match="9 rows, at most 8") as refused:
            client.embeddings.create(model="words", input=["red"] * 9)
        assert refused.value.param == "input"

        async def run() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url) as plain:
                body = {"model": "words", "input": ["red"] * 8}
                return await asyncio.gather(*(plain.post("/v1/embeddings", json=body) for _ in range(40)))

        answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            check_error(answer, 429, "requests", code="rate_limit_exceeded")
            assert int(answer.headers["Retry-After"]) >= 1


# models and paths


def test_models_are_those_that_make_embeddings(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert sorted(model.id for model in models) == ["short", "words"]
    one = client.models.retrieve("words")
    assert (one.id, one.object, one.owned_by) == ("words", "model", "argosy")
    assert one.created > 1_600_000_000
    assert one in models
    for name in ("scale", "nothing", "../words"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/embeddings", 405, "POST"),
        ("DELETE", "/v1/models/words", 405, "GET, HEAD"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("GET", "/v1/", 404, None),
        ("POST", "/v1/chat/completions", 404, None),
        ("GET", "/v1/models/words/more", 404, None),
        ("POST", "/v1/embeddings/raw", 404, None),
    ],
)
def test_other_paths_and_methods_have_openais_errors(
    server: Server, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    check_error(answer, status, "invalid_request_error")
    assert answer.headers.get("Allow") == allow


def test_head_has_the_length_and_no_body(server: Server) -> None:
    with httpx.Client() as client:
        for path in ("/v1/models", "/v1/models/words", "/v1/models/nothing", "/v1/embeddings"):
            answers = [client.request(method, f"{server.url}{path}") for method in ("HEAD", "GET")]
            assert answers[0].status_code == answers[1].status_code
            assert answers[0].content == b""
            assert answers[0].headers["Content-Type"] == answers[1].headers["Content-Type"]


def test_answers_keep_their_order_on_one_connection(server: Server) -> None:
    """Requests of both protocols, sent ahead of the answers."""
    host, port = server.url.removeprefix("http://").split(":")
    bodies = [
        ("/v1/embeddings", b'{"model":"words","input":"red"}'),
        ("/v1/embeddings", b'{"model":"nothing","input":"red"}'),
        ("/v2/models/scale/infer", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'),
        ("/v1/embeddings", b'{"model":"words","input":"the ship"}'),
    ]
    wire = b"".join(
        b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body) for path, body in bodies
    )
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(wire + b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        got = b"".join(iter(lambda: sock.recv(65536), b""))
    marks = [
        b'"prompt_tokens":3,',
        b"model_not_found",
        b'"data":[2.0,4.0,6.0,8.0]',
        b'"prompt_tokens":4,',
        b'"owned_by":"argosy"',
    ]
    places = [got.index(mark) for mark in marks]
    assert places == sorted(places)


def test_classifier_makes_no_embeddings(home: Home) -> None:
    """It has the shapes of an encoder, but its output's labels say what it is."""
    publish_words(home, "classes", labels=["up", "down", "left", "right"])
    with home.serve("classes") as server:
        assert httpx.get(f"{server.url}/v1/models").json() == {"object": "list", "data": []}
        check_error(post(server, {"model": "classes", "input": "a"}), 400, "invalid_request_error", param="model")
