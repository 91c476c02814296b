"""MXNet models on their way out: ONNX files, MXNet's own files, and the runtime that serves them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argosy.runtimes.mxnet_files import OPERATORS, read_graph, read_parameters
from argosy.signature import Signature
from argosy.store.golden import Golden
from tests.frameworks.mxnet_run import run, run_cases

MODELS = ["convolutional", "double", "embedding", "embedding-int32", "perceptron", "recurrent"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mxnet")


@pytest.fixture(scope="module")
def cases(folder: Path) -> Callable[[str], Any]:
    return run_cases("mxnet_exports", folder)


@pytest.mark.parametrize("name", MODELS)
def test_exported_onnx_answers_as_the_model_does_for_any_number_of_rows(cases, name):
    difference, has_input, outputs = cases("onnx_exports")[name]
    assert difference < 1e-5
    # The names asked for are those of tensors inside, which make way.
    assert has_input
    assert outputs == ["data"]


def test_export_leaves_onnx_and_logging_as_they_were(cases):
    assert cases("exporter_is_left_as_it_was") == [True, True]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("onnx eager", "derive it from HybridBlock"),
        ("onnx shaped", "'Symbol' object has no attribute 'shape'"),
        ("onnx unknown", "erfinv"),
        ("native eager", "derive it from HybridBlock"),
        ("native shaped", "'Symbol' object has no attribute 'shape'"),
        ("native noisy", "_random_normal"),
    ],
)
def test_what_cannot_leave_the_framework_is_refused_with_the_reason(cases, name, words):
    key, message = cases("export_refusals")[name]
    assert key == {"onnx": "export_failed", "native": "save_failed"}[name.split()[0]]
    assert words in message


def test_native_files_are_those_that_mxnet_itself_loads(cases):
    assert all(
        found == ["model-symbol.json", ["model-0000.params", "model-symbol.json"]] for found in cases("native_files").values()
    )
    difference, loss = cases("symbol_block_trains_on")
    assert difference < 1e-6
    assert loss < 1e-6


# serving


@pytest.fixture(scope="module")
def served(cases, folder: Path) -> Any:
    cases("native_files")
    return run("mxnet_serving", folder, OMP_NUM_THREADS="")


@pytest.mark.parametrize("name", MODELS)
def test_runtime_answers_as_the_framework_does_for_any_number_of_rows(served, name):
    assert served["models"][name]["difference"] < 1e-5
    assert served["models"][name]["contiguous"]


def test_runtime_works_with_the_threads_asked_for_after_a_fork(served):
    assert served["threads"] == ([1, 2] if (os.cpu_count() or 1) > 1 else [1, 1])


def test_runtime_says_why_a_batch_failed_and_answers_the_next(served):
    assert served["failed"].startswith("Error in operator")
    assert "\n" not in served["failed"]
    assert served["after"] == [2, 3]


def test_runtime_refuses_files_that_do_not_fit_the_signature(served):
    assert "expected ['a', 'b'] and ['out']" in served["two-inputs"]
    assert "expected ['in'] and ['a', 'b']" in served["two-outputs"]
    assert "NAME-symbol.json" in served["other-entry"]
    assert "other-symbol.json" in served["no-file"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such-output", "takes an output that is not there"),
        ("no-such-attribute", "Cannot find argument 'depth'"),
        ("no-number", "num_hidden"),
        ("too-many-inputs", "Incorrect number of arguments"),
        ("too-few-inputs", "expected ['in'] and ['out']"),
    ],
)
def test_runtime_refuses_graphs_that_are_not_whole(served, name, words):
    assert words in served[name]


def test_deployment_serves_mxnet_files_from_their_own_environment(cases, folder, home):
    cases("native_files")
    with np.load(folder / "native" / "convolutional.npz") as kept:
        golden = Golden({"pixels": kept["rows"]}, {"scores": kept["answers"]})
    files = {path.name: path for path in (folder / "native" / "convolutional").iterdir()}
    home.store.publish(
        "pictures",
        files,
        signature=Signature.from_arrays(golden.inputs, golden.outputs),
        runtime="mxnet",
        entry="model-symbol.json",
        golden=golden,
        options={"inputs": ["pixels"], "outputs": ["scores"]},
    )
    with home.serve("pictures") as server, server.client() as client:
        for num_rows in (1, 5, 9):
            answer = client.predict("pictures", golden.inputs["pixels"][:num_rows])["scores"]
            np.testing.assert_allclose(answer, golden.outputs["scores"][:num_rows], atol=1e-5)


def make_graph(**changes: Any) -> dict[str, Any]:
    dense = {
        "op": "FullyConnected",
        "name": "dense",
        "attrs": {"num_hidden": "2", "no_bias": "True"},
        "inputs": [[0, 0, 0], [1, 0, 0]],
    }
    variables = [{"op": "null", "name": name, "inputs": []} for name in ("data", "weight")]
    return {"nodes": [*variables, dense | changes], "arg_nodes": [0, 1], "heads": [[2, 0, 0]]}


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        pytest.param(make_graph(op="_Native", attrs={"info": "0x1234"}), "Operator '_Native'", id="calls-an-address"),
        pytest.param(make_graph(op="Custom", attrs={"op_type": "x"}), "Operator 'Custom'", id="runs-a-class"),
        pytest.param(make_graph(op="_cvimread", attrs={"filename": "/etc/passwd"}), "_cvimread", id="reads-a-file"),
        pytest.param(make_graph(op="sgd_update"), "sgd_update", id="changes-weights"),
        pytest.param(make_graph(op="_scatter_set_nd"), "_scatter_set_nd", id="writes-anywhere"),
        pytest.param(make_graph(op="_foreach", subgraphs=[{}]), "_foreach", id="hides-a-graph"),
        pytest.param(make_graph(subgraphs=[{}]), "FullyConnected", id="hides-a-graph-in-another-operator"),
        pytest.param(make_graph(op=["FullyConnected"]), "not text", id="operator-is-a-list"),
        pytest.param(make_graph(attrs={"num_hidden": 2}), "not text", id="attribute-is-a-number"),
        pytest.param(make_graph(attrs=[]), "not one of MXNet", id="attributes-are-a-list"),
        pytest.param(make_graph(inputs=[[0, 0, 0], [2, 0, 0]]), "takes node 2", id="takes-itself"),
        pytest.param(make_graph(inputs=[[0, 0, 0], [9, 0, 0]]), "takes node 9", id="takes-what-is-not-there"),
        pytest.param(make_graph(inputs=[[0, -1, 0]]), "[0, -1, 0]", id="takes-output-before-the-first"),
        pytest.param(make_graph(inputs=[[0, True, 0]]), "[0, True, 0]", id="takes-output-true"),
        pytest.param(make_graph(inputs=[[0]]), "[0]", id="takes-half-an-entry"),
        pytest.param(make_graph(inputs=None), "not one of MXNet", id="no-inputs"),
        pytest.param(make_graph() | {"heads": [[3, 0, 0]]}, "takes node 3", id="head-is-not-there"),
        pytest.param(make_graph() | {"heads": []}, "no outputs", id="no-heads"),
        pytest.param(make_graph() | {"nodes": [7]}, "not one of MXNet", id="node-is-a-number"),
        pytest.param(
            {"nodes": [{"op": "null", "name": "a", "inputs": []}] * 2, "heads": [[0, 0, 0]]}, "one name", id="one-name-twice"
        ),
        pytest.param([], "not a graph of MXNet", id="a-list"),
        pytest.param({"nodes": {}}, "'heads'", id="no-list-of-heads"),
    ],
)
def test_hostile_graph_is_refused(tmp_path, graph, words):
    path = tmp_path / "model-symbol.json"
    path.write_text(json.dumps(graph))
    with pytest.raises(ValueError) as caught:
        read_graph(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000], ids=["empty", "no-text", "deep"])
def test_graph_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "model-symbol.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a graph of MXNet"):
        read_graph(path)


def test_graph_of_allowed_operators_is_read(tmp_path):
    path = tmp_path / "model-symbol.json"
    path.write_text(json.dumps(make_graph(attrs={"num_hidden": "2", "__ctx_group__": "gpu"})))
    graph = read_graph(path)
    assert graph.heads == [(2, 0)]
    assert [node.operator for node in graph.nodes] == [None, None, "FullyConnected"]
    assert graph.nodes[2].attributes == {"num_hidden": "2"}
    assert not OPERATORS & {"Custom", "_Native", "_NDArray", "_CachedOp", "_cvimread", "_CustomFunction"}


def pack_tensor(
    *, magic: int = 0xF993FAC9, storage: int = 0, shape: tuple[int, ...] = (2,), kind: int = 0, data: bytes = b"12345678"
) -> bytes:
    head = struct.pack("<IiI", magic, storage, len(shape)) + struct.pack(f"<{len(shape)}q", *shape)
    return head + struct.pack("<iii", 1, 0, kind) + data


def pack_file(
    tensor: bytes, names: tuple[bytes, ...] = (b"arg:w",), *, num_tensors: int = 1, magic: int = 0x112, tail: bytes = b""
) -> bytes:
    texts = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", magic, 0, num_tensors) + tensor + struct.pack("<Q", len(names)) + texts + tail


def test_parameters_are_read(tmp_path):
    path = tmp_path / "model-0000.params"
    path.write_bytes(pack_file(pack_tensor(data=np.array([1, 2], "<f4").tobytes())))
    np.testing.assert_array_equal(read_parameters(path)["w"], np.array([1, 2], np.float32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "cut off", id="empty"),
        pytest.param(b"\x80\x04K\x01." * 4, "does not hold parameters", id="a-pickle"),
        pytest.param(pack_file(pack_tensor(), magic=0x113), "does not hold parameters", id="other-magic"),
        pytest.param(pack_file(pack_tensor(storage=1)), "sparse", id="sparse"),
        pytest.param(pack_file(pack_tensor(magic=1)), "another version", id="old"),
        pytest.param(pack_file(pack_tensor(kind=12)), "type 12", id="unknown-type"),
        pytest.param(pack_file(pack_tensor(shape=(-2,))), "shape [-2]", id="negative-shape"),
        pytest.param(pack_file(pack_tensor(shape=(2**62, 2**62))), "cut off", id="huge-shape"),
        pytest.param(pack_file(pack_tensor(shape=(1,) * 40)), "40 axes", id="many-axes"),
        pytest.param(pack_file(pack_tensor(shape=())), "0 axes", id="no-axes"),
        pytest.param(pack_file(pack_tensor(), num_tensors=2**60), "cut off", id="many-tensors"),
        pytest.param(pack_file(pack_tensor(), names=()), "0 names", id="no-name"),
        pytest.param(pack_file(pack_tensor(), names=(b"a", b"b")), "2 names", id="more-names"),
        pytest.param(pack_file(pack_tensor(), tail=b"more"), "4 bytes more", id="something-behind"),
        pytest.param(pack_file(pack_tensor(), names=(b"\xff",)), "utf-8", id="name-is-no-text"),
        pytest.param(pack_file(pack_tensor())[:-1], "cut off", id="cut"),
    ],
)
def test_hostile_parameters_are_refused(tmp_path, content, words):
    path = tmp_path / "model-0000.params"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_parameters(path)
    assert words in str(caught.value)
