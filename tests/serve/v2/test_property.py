"""Whatever rows several clients send at the same time, each gets back its own, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from argosy.datatypes import DATATYPES
from argosy.server import Server
from argosy.signature import pack_bytes, unpack_bytes
from tests.serve.http.requests import Peer, parse_address, request
from tests.serve.v2.models import TYPES, serve_models

HEADER = "inference-header-content-length"
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MAX_ROWS, MAX_WIDTH, MAX_CLIENTS = 5, 3, 8


class Question(NamedTuple):
    """One client's request: its rows, and which tensors travel as binary, either way."""

    arrays: dict[str, np.ndarray]
    is_binary: dict[str, bool]
    is_answer_binary: dict[str, bool]
    is_flat: bool


def elements(datatype: str, is_binary: bool) -> st.SearchStrategy[Any]:
    """Every value that a datatype can travel with; as JSON there are no floats but numbers, and BYTES are text."""
    dtype = DATATYPES[datatype]
    if dtype.kind == "O":
        # ONNX Runtime's strings are text in both forms.
        return st.text(max_size=6).map(str.encode)
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8, allow_nan=is_binary, allow_infinity=is_binary)
    info = np.iinfo(dtype)
    return st.integers(int(info.min), int(info.max))


@st.composite
def questions(draw: st.DrawFn, width: int, datatypes: tuple[str, ...]) -> Question:
    num_rows = draw(st.integers(1, MAX_ROWS))
    # From a seed: drawn one by one, the choices of eight clients are more than Hypothesis takes.
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    is_binary = {name: bool(generator.integers(2)) for name in datatypes}
    is_answer_binary = {name: is_binary[name] or bool(generator.integers(2)) for name in datatypes}
    arrays: dict[str, np.ndarray] = {}
    for name in datatypes:
        other = int(generator.integers(2))
        pool = [draw(elements(name, is_binary[name])), b"%d" % other if name == "BYTES" else other]
        array = np.empty(num_rows * width, DATATYPES[name])
        array[:] = [pool[pick] for pick in generator.integers(len(pool), size=num_rows * width)]
        arrays[name] = array.reshape(num_rows, width)
    return Question(arrays, is_binary, is_answer_binary, draw(st.booleans()))


def to_raw(array: np.ndarray) -> bytes:
    return pack_bytes(array) if array.dtype.kind == "O" else array.tobytes()


def to_json(array: np.ndarray, is_flat: bool) -> Any:
    text = np.array([item.decode() for item in array.ravel()], object).reshape(array.shape) if array.dtype.kind == "O" else array
    return (text.ravel() if is_flat else text).tolist()


def encode(question: Question, number: int) -> bytes:
    """Write a request for the model `types`."""
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name, array in question.arrays.items():
        item: dict[str, Any] = {"name": f"in-{name}", "datatype": name, "shape": array.shape}
        if question.is_binary[name]:
            item["parameters"] = {"binary_data_size": len(to_raw(array))}
            tail += to_raw(array)
        else:
            item["data"] = to_json(array, question.is_flat)
        inputs.append(item)
    outputs = [{"name": f"out-{name}", "parameters": {"binary_data": flag}} for name, flag in question.is_answer_binary.items()]
    head = json.dumps({"id": f"q{number}", "inputs": inputs, "outputs": outputs}).encode()
    lines = (f"Content-Length: {len(head) + len(tail)}", f"Inference-Header-Content-Length: {len(head)}")
    return request("POST", "/v2/models/types/infer", *lines, body=head + tail)


def check(question: Question, number: int, answer: Any) -> None:
    """Hold an answer against the rows that were sent, to the bit."""
    assert answer.status == 200, answer.body
    pos = int(answer.headers.get(HEADER, len(answer.body)))
    head = json.loads(answer.body[:pos])
    assert (head["id"], head["model_name"], head["model_version"]) == (f"q{number}", "types", "1")
    for item, (name, array) in zip(head["outputs"], question.arrays.items(), strict=True):
        assert (item["name"], item["datatype"], item["shape"]) == (f"out-{name}", name, list(array.shape))
        if question.is_answer_binary[name]:
            size = item["parameters"]["binary_data_size"]
            raw = answer.body[pos : pos + size]
            pos += size
            got = unpack_bytes(raw, array.size) if array.dtype.kind == "O" else np.frombuffer(raw, array.dtype)
        else:
            values = [value.encode() for value in item["data"]] if array.dtype.kind == "O" else item["data"]
            got = np.array(values, array.dtype)
        assert to_raw(got) == to_raw(array), name
    assert pos == len(answer.body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_models(tmp_path_factory.mktemp("property"), "types") as running:
        yield running


@pytest.fixture(scope="module")
def peers(server: Server) -> Iterator[list[Any]]:
    opened = [Peer(parse_address(server.url)) for _ in range(MAX_CLIENTS)]
    yield opened
    for peer in opened:
        peer.socket.close()


def ask_all(peers: list[Any], asked: list[Question]) -> None:
    """Send every request before any answer is read."""
    data = [encode(question, number) for number, question in enumerate(asked)]
    for peer, each in zip(peers, data, strict=False):
        peer.send(each)
    for number, (peer, question) in enumerate(zip(peers, asked, strict=False)):
        check(question, number, peer.read())


def count_joined(server: Server) -> float:
    lines = httpx.get(server.metrics_url).text.splitlines()
    (line,) = [each for each in lines if each.startswith('argosy_joined_requests_total{model="types"')]
    return float(line.rpartition(" ")[2])


@SETTINGS
@given(data=st.data())
def test_each_client_gets_its_own_rows(data: st.DataObject, peers: list[Any]) -> None:
    width = data.draw(st.integers(0, MAX_WIDTH))
    asked = data.draw(st.lists(questions(width, tuple(TYPES)), min_size=1, max_size=MAX_CLIENTS))
    ask_all(peers, asked)


@SETTINGS
@given(data=st.data())
def test_clients_of_different_widths_get_their_own_rows(data: st.DataObject, peers: list[Any]) -> None:
    widths = data.draw(st.lists(st.integers(0, MAX_WIDTH), min_size=1, max_size=MAX_CLIENTS))
    asked = [data.draw(questions(width, tuple(TYPES))) for width in widths]
    ask_all(peers, asked)


def test_rows_that_number_themselves_stay_in_their_place(server: Server, peers: list[Any]) -> None:
    # Eight clients at once, a hundred times, each row with a number of its own in every datatype that can hold it.
    before = count_joined(server)
    number = 0
    for turn in range(100):
        asked: list[Question] = []
        for client in range(MAX_CLIENTS):
            num_rows = 1 + (turn + client) % MAX_ROWS
            rows = np.arange(number, number + num_rows).reshape(num_rows, 1)
            number += num_rows
            text = np.array([str(value).encode() for value in rows.ravel()], object).reshape(num_rows, 1)
            with np.errstate(over="ignore"):
                arrays = {name: text if name == "BYTES" else rows.astype(dtype) for name, dtype in TYPES.items()}
            flags = dict.fromkeys(TYPES, client % 2 == 0)
            asked.append(Question(arrays, flags, flags, client % 3 == 0))
        ask_all(peers, asked)
    joined = count_joined(server) - before
    # Were no rows joined, nothing would have been tried.
    assert joined > 200, joined
