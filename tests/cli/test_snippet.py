from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.cli.snippet import MAX_SHOWN_VALUES, Snippet, build_snippet, choose_example
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version

URL = "http://127.0.0.1:1"


def publish(store: Store, inputs: dict[str, np.ndarray], **more: Any) -> Version:
    """Publish a version whose golden inputs these are; nothing runs it."""
    golden = Golden(inputs, {"y": np.zeros(len(next(iter(inputs.values()))), np.float32)})
    signature = Signature.from_arrays(golden.inputs, golden.outputs)
    return store.publish("m", {"m.onnx": b"x"}, signature=signature, entry="m.onnx", golden=golden, **more)


def read_curl(snippet: Snippet) -> dict[str, Any]:
    words = shlex.split(snippet.curl)
    assert words[:2] == ["curl", "-sS"] and words[2] == f"{URL}/v2/models/m/infer"
    return {tensor["name"]: tensor for tensor in json.loads(words[-1])["inputs"]}


def read_python(snippet: Snippet) -> Any:
    """The inputs that the Python lines send."""
    lines = snippet.python.splitlines()
    assert len(lines) == 3
    sent: list[Any] = []

    class Client:
        def __init__(self, url: str) -> None:
            assert url == URL

        def predict(self, name: str, inputs: Any) -> None:
            assert name == "m"
            sent.append(inputs)

    scope: dict[str, Any] = {"argosy": type("argosy", (), {"Client": Client}), "numpy": np, "Client": Client}
    exec("\n".join(lines[1:]), scope)
    return sent[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_numbers_are_short_and_exact(store: Store) -> None:
    values = np.array([[0.1, 1 / 3, -1e-20, 3.4e38]], np.float32)
    snippet = build_snippet(URL, "m", store, publish(store, {"x": values}))
    tensor = read_curl(snippet)["x"]
    assert tensor["shape"] == [1, 4] and tensor["datatype"] == "FP32"
    assert tensor["data"][0] == 0.1 and "0.1," in snippet.curl and "[[0.1, " in snippet.python
    np.testing.assert_array_equal(np.array(tensor["data"], np.float32), values[0])
    np.testing.assert_array_equal(np.array(read_python(snippet)["x"], np.float32), values)


def test_every_datatype_can_be_pasted(store: Store) -> None:
    inputs: dict[str, np.ndarray] = {
        "flag": np.array([True]),
        "half": np.array([0.1], np.float16),
        "big": np.array([(1 << 64) - 1], np.uint64),
        "small": np.array([-128], np.int8),
        "text": np.array(['it\'s "grün" $HOME `x` \\n'.encode()], object),
        "double": np.array([0.1], np.float64),
    }
    snippet = build_snippet(URL, "m", store, publish(store, inputs))
    tensors, sent = read_curl(snippet), read_python(snippet)
    for name, array in inputs.items():
        if name == "text":
            assert tensors[name]["data"][0].encode() == array[0] and sent[name][0].encode() == array[0]
        else:
            assert np.array(tensors[name]["data"], array.dtype) == array
            assert np.array(sent[name], array.dtype) == array


def test_example_that_json_cannot_hold_is_passed_over(store: Store) -> None:
    version = publish(store, {"x": np.array([np.nan, 2.0], np.float32)})
    assert choose_example(store, version)["x"].tolist() == [2.0]
    version = publish(store, {"x": np.array([b"\xff", b"a"], object)})
    assert choose_example(store, version)["x"].tolist() == [b"a"]


def test_without_golden_examples_zeros_are_sent(store: Store) -> None:
    specs = (TensorSpec("x", "INT64", (-1, -1, 3)), TensorSpec("t", "BYTES", (-1,)))
    signature = Signature(specs, (TensorSpec("y", "FP32", (-1,)),))
    snippet = build_snippet(URL, "m", store, store.publish("m", {"m.onnx": b"x"}, signature=signature, entry="m.onnx"))
    tensors = read_curl(snippet)
    assert tensors["x"]["shape"] == [1, 1, 3] and tensors["x"]["data"] == [0, 0, 0]
    assert tensors["t"]["data"] == [""]
    assert read_python(snippet) == {"x": [[[0, 0, 0]]], "t": [""]}


def test_damaged_examples_give_zeros(store: Store) -> None:
    version = publish(store, {"x": np.array([7.0], np.float32)})
    golden = store.open_artifact(version) / "golden.npz"
    golden.chmod(0o600)
    golden.write_bytes(b"damaged")
    assert choose_example(store, version)["x"].tolist() == [0.0]


def test_example_of_a_model_without_rows_has_its_own_shape(store: Store) -> None:
    signature = Signature((TensorSpec("x", "FP32", (2, 2)),), (TensorSpec("y", "FP32", ()),))
    golden = Golden({"x": np.arange(8, dtype=np.float32).reshape(2, 2, 2)}, {"y": np.zeros(2, np.float32)})
    version = store.publish("m", {"m.onnx": b"x"}, signature=signature, entry="m.onnx", golden=golden)
    snippet = build_snippet(URL, "m", store, version)
    assert read_curl(snippet)["x"]["data"] == [0, 1, 2, 3]
    assert read_python(snippet) == {"x": [[0.0, 1.0], [2.0, 3.0]]}


def test_large_requests_are_short_to_paste(store: Store) -> None:
    inputs = {
        "x": np.ones((1, MAX_SHOWN_VALUES), np.float16),
        "n": np.ones((1, 5), np.int32),
        "t": np.array([[b"a", b"b"]], object),
        "b": np.array([True]),
    }
    snippet = build_snippet(URL, "m", store, publish(store, inputs))
    assert len(snippet.curl) < 600 and len(snippet.python) < 300
    program = shlex.split(snippet.curl)[2]
    printed: list[str] = []
    exec(program, {"print": printed.append})
    tensors = {tensor["name"]: tensor for tensor in json.loads(printed[0])["inputs"]}
    sent = read_python(snippet)
    for name, array in inputs.items():
        assert tuple(tensors[name]["shape"]) == array.shape == sent[name].shape
        assert len(tensors[name]["data"]) == array.size
        assert sent[name].dtype == array.dtype
