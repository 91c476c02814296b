"""Whatever a Python model gives as an output is converted by one rule, or refused by name for that request alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from argosy.datatypes import DATATYPES
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from tests.home import Home, row
from tests.processes import find_workers

TYPES = ("FP16", "FP32", "FP64", "BF16", "INT64", "INT32", "UINT8", "BOOL", "BYTES")
# Every answer has all outputs; the expression of the case gives the one that its name says.
BODY = """
import array, decimal, fractions, scipy.sparse
class Bad(Exception):
    def __str__(self): raise ValueError
class Fault(Exception):
    is_input_fault = True
def fail(error): raise error
class Tensor:
    def __init__(self, array): self.array = array
    def detach(self): return self.array
class Foreign:
    def __init__(self, array): self.array = array
    def __array__(self, dtype=None, copy=None): return self.array
answer = {}
TYPES = ('FP16', 'FP32', 'FP64', 'BF16', 'INT64', 'INT32', 'UINT8', 'BOOL', 'BYTES')
for name in TYPES:
    answer[name] = np.zeros((1, 2), {'FP16': 'f2', 'FP32': 'f4', 'FP64': 'f8', 'BF16': 'f4', 'INT64': 'i8', 'INT32': 'i4',
        'UINT8': 'u1', 'BOOL': '?', 'BYTES': 'S1'}[name])
answer['BF16'] = [[0.0, 0.0]]
name, _, text = x[0, 0].decode().partition(' ')
loop = []; loop.append(loop)
gen = lambda *items: (item for item in items)
y = eval(text, globals() | locals())
if name == 'ALL': return y
answer[name] = y
return answer
"""

GOOD: list[tuple[str, str, list[Any]]] = [
    ("FP32", "[[1, 2.5]]", [1, 2.5]),
    ("FP32", "((1, True),)", [1, 1]),
    ("FP32", "[np.array([1, 2])]", [1, 2]),
    ("FP32", "[[0.1, 1e-50]]", [0.1, 0]),
    ("FP32", "np.array([[1, 2]], '>f4')", [1, 2]),
    ("FP32", "np.array([[1, 2]], 'f2')", [1, 2]),
    ("FP32", "np.array([[1, 2]], '>i2')", [1, 2]),
    ("FP32", "np.array([[1, 2.5]], object)", [1, 2.5]),
    ("FP32", "np.array([[np.float64(0.1), np.int8(3)]], object)", [0.1, 3]),
    ("FP32", "np.arange(8, dtype='f4').reshape(2, 4)[:1, ::2]", [0, 2]),
    ("FP32", "np.asfortranarray(np.array([[1, 2]], 'f4'))", [1, 2]),
    ("FP32", "np.matrix([[1, 2]], 'f4')", [1, 2]),
    ("FP32", "np.ma.array(np.array([[1, 2]], 'f4'))", [1, 2]),
    ("FP32", "Tensor(np.array([[1, 2]], 'f4'))", [1, 2]),
    ("FP32", "Foreign(np.array([[1, 2]], 'f4'))", [1, 2]),
    ("FP32", "memoryview(np.array([[1, 2]], 'f4'))", [1, 2]),
    ("FP16", "[[65504, -0.1]]", [65504, -0.1]),
    ("FP64", "[[2**53 + 1, 0.1]]", [2**53, 0.1]),
    ("FP64", "np.array([[1, 2]], 'f4')", [1, 2]),
    ("BF16", "[[1, 3.0]]", [1, 3]),
    ("INT64", "[[2**63 - 1, -2**63]]", [2**63 - 1, -(2**63)]),
    ("INT64", "[[True, 0]]", [1, 0]),
    ("INT64", "np.array([[1, 2]], '>i4')", [1, 2]),
    ("INT64", "np.array([[True, False]])", [1, 0]),
    ("INT64", "np.array([[1, np.int8(2)]], object)", [1, 2]),
    ("INT32", "[[7, -7]]", [7, -7]),
    ("UINT8", "[[0, 255]]", [0, 255]),
    ("UINT8", "np.array([[1, 255]], object)", [1, 255]),
    ("BOOL", "[[True, False]]", [True, False]),
    ("BOOL", "np.array([[True, np.bool_(False)]], object)", [True, False]),
    ("BYTES", "[['a', b'b']]", ["a", "b"]),
    ("BYTES", "np.array([['é', 'long one']])", ["é", "long one"]),
    ("BYTES", "np.array([[b'a', b'bc']])", ["a", "bc"]),
    ("BYTES", "np.array([['a', 'b']], '>U3')", ["a", "b"]),
    ("BYTES", "np.array([['a', b'b']], object)", ["a", "b"]),
    ("BYTES", "[['a\\0', b'\\0']]", ["a\0", "\0"]),
    ("BYTES", "[(bytearray(b'ab'), memoryview(b'c'))]", ["ab", "c"]),
    ("BYTES", "[np.array(['a', 'b'])]", ["a", "b"]),
    ("BYTES", "[[np.array('a'), np.str_('b')]]", ["a", "b"]),
    ("BYTES", "np.array([['a', 'x', 'b', 'x']], object)[:, ::2]", ["a", "b"]),
    ("BYTES", "Foreign(np.array([['a', 'b']]))", ["a", "b"]),
]

BAD: list[tuple[str, str, str]] = [
    ("FP32", "np.zeros((1, 2))", "has type float64, expected float32"),
    ("FP32", "np.zeros((1, 2), 'i8')", "has type int64"),
    ("FP32", "np.zeros((1, 2), complex)", "has type complex128"),
    ("FP32", "[[1e39, 0]]", "holds the number 1e+39"),
    ("FP32", "[[10**400, 0]]", "beyond every float"),
    ("FP32", "[[1, None]]", "holds None"),
    ("FP32", "[[1, '2']]", "holds a str"),
    ("FP32", "[[1, 2j]]", "holds a complex"),
    ("FP32", "[[decimal.Decimal(1), 0]]", "holds a Decimal"),
    ("FP32", "[[1], [2, 3]]", "cannot be read as an array"),
    ("FP32", "[[1, 2], [3, 4]]", "has 2 rows for 1"),
    ("FP32", "[1, 2]", "has shape (2,)"),
    ("FP32", "1.0", "has shape ()"),
    ("FP32", "np.float32(1)", "has shape ()"),
    ("FP32", "gen(1, 2)", "holds a generator"),
    ("FP32", "{1: 2}", "holds a dict"),
    ("FP32", "{1, 2}", "holds a set"),
    ("FP32", "'ab'", "has type <U2"),
    ("FP32", "loop", "'FP32'"),
    ("FP32", "np.ma.array([[1, 2]], 'f4', mask=[[0, 1]])", "has masked elements"),
    ("FP32", "scipy.sparse.csr_array(np.eye(1, 2, dtype='f4'))", "holds a csr_array"),
    ("FP32", "np.zeros((1, 2), 'M8[s]')", "has type datetime64[s]"),
    ("FP32", "np.zeros((1, 2), 'f4,f4')", "has type [("),
    ("FP32", "Foreign(5)", "cannot be read as an array"),
    ("FP32", "None", "'FP32' is missing"),
    ("FP16", "[[65520, 0]]", "holds the number 65520"),
    ("BF16", "[[3.4e38, 0]]", "holds the number 3.4e+38"),
    ("INT64", "[[2**63, 0]]", "holds the number 9223372036854775808"),
    ("INT64", "[[1.0, 2]]", "holds a float"),
    ("INT64", "np.ones((1, 2))", "has type float64"),
    ("INT64", "np.array([[1, 2.0]], object)", "holds a float"),
    ("INT64", "np.ones((1, 2), 'u8')", "has type uint64"),
    ("INT64", "np.ones((1, 2), 'm8[s]')", "has type timedelta64[s]"),
    ("UINT8", "[[256, 0]]", "holds the number 256"),
    ("UINT8", "[[-1, 0]]", "holds the number -1"),
    ("BOOL", "[[1, 0]]", "holds a number"),
    ("BOOL", "[[1, True]]", "holds a number"),
    ("BOOL", "np.zeros((1, 2), 'u1')", "has type uint8"),
    ("BYTES", "np.array([['ok', 5]], object)", "holds a int"),
    ("BYTES", "np.array([['ok', None]], object)", "holds None"),
    ("BYTES", "[['ok', float('nan')]]", "holds a float"),
    ("BYTES", "[['ok', True]]", "holds a bool"),
    ("BYTES", "[['\\ud800', '']]", "UTF-8 cannot write"),
    ("BYTES", "[['a'], ['b', 'c']]", "lists of different lengths"),
    ("BYTES", "[['a', ['b']]]", "holds a list"),
    ("BYTES", "loop", "holds a list"),
    ("BYTES", "'ab'", "has shape ()"),
    ("BYTES", "np.zeros((1, 2))", "has type float64, expected bytes or text"),
    ("BYTES", "gen('a')", "holds a generator"),
    ("ALL", "None", "gives None, expected a dict"),
    ("ALL", "[1]", "gives a list"),
    ("ALL", "np.zeros(2)", "gives a ndarray"),
    ("ALL", "{1: 2}", "is missing; got 1"),
    ("ALL", "fail(Bad())", "Bad"),
    ("ALL", "fail(SystemExit(3))", "SystemExit"),
    ("ALL", "fail(StopIteration())", "StopIteration"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("answers"))
    outputs = tuple(TensorSpec(name, name, (-1, 2)) for name in TYPES)
    home.publish_code(BODY, signature=Signature((TensorSpec("x", "BYTES", (-1, 1)),), outputs))
    with home.serve() as running:
        running.deploy("code", allow_code=True)
        yield running


def ask(server: Server, name: str, text: str) -> httpx.Response:
    body = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [f"{name} {text}"]}]}
    if name != "ALL":
        body["outputs"] = [{"name": name}]
    return httpx.post(f"{server.url}/v2/models/code/infer", json=body, timeout=20)


@pytest.mark.parametrize(("name", "text", "expected"), GOOD, ids=lambda part: str(part)[:50])
def test_output_is_converted(server: Server, name: str, text: str, expected: list[Any]) -> None:
    for _ in range(2):
        reply = ask(server, name, text)
        assert reply.status_code == 200, reply.text
        (output,) = reply.json()["outputs"]
        assert (output["datatype"], output["shape"]) == (name, [1, 2])
        # JSON has as many digits as tell a float from its neighbours.
        dtype = np.dtype("f4") if name == "BF16" else DATATYPES[name]
        assert np.array(output["data"], dtype).tolist() == np.array(expected, dtype).tolist()


@pytest.mark.parametrize(("name", "text", "fault"), BAD, ids=lambda part: str(part)[:50])
def test_output_is_refused_by_name_and_the_worker_lives(server: Server, name: str, text: str, fault: str) -> None:
    before = find_workers(server, "code")
    reply = ask(server, name, text)
    assert reply.status_code == 500
    assert fault in reply.json()["error"] and (name == "ALL" or repr(name) in reply.json()["error"])
    # With an answer of the same shapes before it and after it.
    assert ask(server, "FP32", "np.array([[1, 2]], 'f4')").json()["outputs"][0]["data"] == [1, 2]
    assert find_workers(server, "code") == before


def test_floats_that_no_json_has_stay_what_they_are(server: Server) -> None:
    with server.client() as client:
        for text in ("[[float('nan'), float('-inf')]]", "np.array([[np.nan, -np.inf]], object)"):
            y = client.predict("code", {"x": np.array([[f"FP32 {text}".encode()]], object)})["FP32"]
            assert y.dtype == np.float32 and math.isnan(y[0, 0]) and y[0, 1] == -math.inf


def test_what_a_model_keeps_of_a_request_stays_as_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path)
    # A row of zeros is what the worker asks when it loads a version without examples.
    home.publish_code(
        "if x.any() and not hasattr(self, 'first'):\n    self.first = x[:1]\n"
        "x *= 2\nreturn {'y': np.concatenate([x, getattr(self, 'first', x)])[-len(x):]}"
    )
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        answers = [client.predict("code", {"x": row(float(value))})["y"] for value in (1, 2, 3)]
    # The first row, which the model doubled itself, and no later one.
    np.testing.assert_array_equal(np.concatenate(answers), np.concatenate([2 * row(1.0)] * 3))
