"""Import of ONNX files: byte for byte, with a signature and golden examples, or refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.errors import ArgosyError, FaultError, InputError
from argosy.importers.onnx import import_onnx
from argosy.signature import TensorSpec
from argosy.store.local import Store
from tests.graphs import write_graph
from tests.home import Home

MakeOnnx = Callable[..., Path]


def info(name: str, element: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, element, shape)


def test_imported_file_keeps_its_bytes_and_answers_as_before(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx()
    version = import_onnx(
        store, path, "linear", lineage={"run": 7}, measurements={"accuracy": 0.9}, options={"precision": "fp32"}
    )
    folder = store.open_artifact(version)
    assert (folder / version.manifest.entry).read_bytes() == path.read_bytes()
    assert version.manifest.signature.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert version.manifest.signature.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    assert (version.manifest.runtime, version.manifest.repeatable, version.manifest.options) == (
        "onnx",
        True,
        {"precision": "fp32"},
    )
    assert version.manifest.lineage == {
        "run": 7,
        "source_file": "model.onnx",
        "producer": "test",
        "opsets": {"ai.onnx": 17},
        "num_weights": 8,
        "precision": "fp32",
    }
    golden = store.load_golden(version)
    assert (version.manifest.golden_is_synthetic, version.manifest.num_golden) == (True, 8)
    w = np.arange(8, dtype=np.float32).reshape(4, 2)
    # float32 sums of four products, in an order of the runtime's choice
    np.testing.assert_allclose(golden.outputs["y"], golden.inputs["x"] @ w, rtol=1e-5, atol=1e-5)


def test_external_data_is_published_and_found_by_the_runtime(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(external="weights.bin")
    version = import_onnx(store, path, "linear")
    path.unlink()
    (path.parent / "weights.bin").unlink()
    folder = store.open_artifact(version)
    session = onnxruntime.InferenceSession(folder / version.manifest.entry, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_allclose(y, [[12, 16]])
    assert sorted(file.name for file in folder.iterdir()) == ["argosy.json", "golden.npz", "model.onnx", "weights.bin"]
    # What `onnx.load` refuses in the shared folder, because of its hard links, it takes from a copy.
    assert len(onnx.load(store.copy_artifact(version, path.parent / "copy")).graph.initializer[0].raw_data) == 32


def test_golden_outputs_are_what_each_row_alone_answers(store: Store, make_onnx: MakeOnnx) -> None:
    # The mean over rows differs between a row alone and a batch.
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1), helper.make_node("Sub", ["x", "mean"], ["y"])]
    path = make_onnx(nodes, outputs=[info("y", TensorProto.FLOAT, ["N", 4])], weights={})
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    version = import_onnx(store, path, "centred", golden_inputs={"x": rows})
    golden = store.load_golden(version)
    assert (version.manifest.golden_is_synthetic, version.manifest.num_golden) == (False, 3)
    np.testing.assert_array_equal(golden.inputs["x"], rows)
    np.testing.assert_array_equal(golden.outputs["y"], np.zeros((3, 4)))


def test_example_of_an_unbatched_file_is_a_whole_request(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [info("x", TensorProto.FLOAT, ["rows", 3])],
        [info("y", TensorProto.FLOAT, [])],
        {},
    )
    version = import_onnx(store, path, "total", golden_inputs={"x": np.ones((2, 5, 3), np.float32)})
    assert store.load_golden(version).outputs["y"].tolist() == [15, 15]


@pytest.mark.parametrize(
    ("element", "datatype"),
    [
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.STRING, "BYTES"),
        (TensorProto.INT8, "INT8"),
        (TensorProto.INT16, "INT16"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.UINT8, "UINT8"),
        (TensorProto.UINT16, "UINT16"),
        (TensorProto.UINT32, "UINT32"),
        (TensorProto.UINT64, "UINT64"),
    ],
)
def test_element_type_becomes_its_datatype(store: Store, make_onnx: MakeOnnx, element: int, datatype: str) -> None:
    path = make_onnx(
        [helper.make_node("Identity", ["x"], ["y"])], [info("x", element, ["N", 3])], [info("y", element, ["N", 3])], {}
    )
    version = import_onnx(store, path, "same")
    assert version.manifest.signature.inputs == (TensorSpec("x", datatype, (-1, 3)),)
    golden = store.load_golden(version)
    assert golden.inputs["x"].shape == (8, 3)
    assert golden.outputs["y"].tolist() == golden.inputs["x"].tolist()


def test_initializers_among_the_inputs_are_no_inputs(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(inputs=[info("x", TensorProto.FLOAT, ["N", 4]), info("w", TensorProto.FLOAT, [4, 2])])
    assert [spec.name for spec in import_onnx(store, path, "linear").manifest.signature.inputs] == ["x"]


def test_shape_that_an_output_does_not_declare_is_inferred(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(outputs=[info("y", TensorProto.FLOAT, None)])
    assert import_onnx(store, path, "linear").manifest.signature.outputs == (TensorSpec("y", "FP32", (-1, 2)),)


def test_output_that_is_declared_without_axes_gets_those_that_its_operators_give(store: Store, tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    path = write_graph(tmp_path / "doubtful.onnx", nodes, [("x", "FP32", ("n", 3))], [("y", "FP32", ()), ("sum", "FP32", ())])
    version = import_onnx(store, path, "doubtful")
    assert [spec.shape for spec in version.manifest.signature.outputs] == [(-1, 3), ()]
    assert version.manifest.num_golden


def test_small_vocabulary_still_gets_synthetic_examples(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [info("ids", TensorProto.INT64, ["N", "length"])],
        [info("y", TensorProto.FLOAT, ["N", "length", 3])],
        {"table": np.zeros((10, 3), np.float32)},
    )
    version = import_onnx(store, path, "embedding")
    golden = store.load_golden(version)
    assert golden.inputs["ids"].shape == (8, 16)
    assert 2 < golden.inputs["ids"].max() < 10


def test_masks_of_synthetic_examples_are_zeros_and_ones(store: Store, make_onnx: MakeOnnx) -> None:
    ids, mask = (info(name, TensorProto.INT64, ["N", "length"]) for name in ("input_ids", "attention_mask"))
    path = make_onnx(
        [helper.make_node("Mul", ["input_ids", "attention_mask"], ["y"])],
        [ids, mask],
        [info("y", TensorProto.INT64, ["N", "length"])],
        {},
    )
    golden = store.load_golden(import_onnx(store, path, "masked"))
    assert set(np.unique(golden.inputs["attention_mask"])) == {0, 1}
    assert golden.inputs["attention_mask"][:, 0].all()
    assert golden.inputs["input_ids"].max() > 1


@pytest.mark.parametrize(
    ("nodes", "shape", "text"),
    [
        pytest.param([helper.make_node("RandomNormalLike", ["x"], ["y"])], ["N", 4], "differs between two runs", id="random"),
        pytest.param([helper.make_node("Log", ["x"], ["y"])], ["N", 4], "NaN", id="not a number"),
    ],
)
def test_version_without_synthetic_examples_is_published_and_says_why(
    store: Store, make_onnx: MakeOnnx, nodes: list[Any], shape: list[Any], text: str
) -> None:
    path = make_onnx(nodes, outputs=[info("y", TensorProto.FLOAT, shape)], weights={"shape": np.array([-1, 7])})
    version = import_onnx(store, path, "odd")
    assert (version.manifest.num_golden, version.manifest.golden_is_synthetic) == (0, False)
    assert text in version.manifest.lineage["golden_error"]


def test_version_that_runs_no_example_says_so_and_is_not_deployed(home: Home, make_onnx: MakeOnnx) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    path = make_onnx(nodes, outputs=[info("y", TensorProto.FLOAT, ["N", 7])], weights={"shape": np.array([-1, 7])})
    version = import_onnx(home.store, path, "odd")
    assert "Reshape" in version.manifest.lineage["example_error"]
    with home.serve() as server, pytest.raises(FaultError, match="ran none of the examples that were made for it at its import"):
        server.deploy("odd")


def test_labels_go_to_the_output_they_fit(store: Store, make_onnx: MakeOnnx) -> None:
    version = import_onnx(store, make_onnx(), "linear", labels=["cat", "dog"])
    assert version.manifest.signature.outputs[0].labels == ("cat", "dog")
    with pytest.raises(InputError, match="3 labels"):
        import_onnx(store, make_onnx(), "linear", labels=["cat", "dog", "cow"])


@pytest.mark.parametrize(
    ("golden_inputs", "text"),
    [
        pytest.param({}, "'x' is missing", id="missing input"),
        pytest.param({"x": np.zeros((2, 4), "f8")}, "", id="other datatype"),
        pytest.param({"x": np.zeros((2, 5), "f4")}, "", id="other shape"),
        pytest.param({"x": np.zeros((0, 4), "f4")}, "above 0", id="no examples"),
        pytest.param({"x": np.zeros((2, 4), "f4"), "z": np.zeros(2)}, "unknown: z", id="unknown input"),
    ],
)
def test_golden_inputs_that_do_not_fit_are_refused(
    store: Store, make_onnx: MakeOnnx, golden_inputs: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        import_onnx(store, make_onnx(), "linear", golden_inputs=golden_inputs)
    assert caught.value.key == "bad_golden"
    assert text in caught.value.message
    assert store.list_models() == []


def assert_refused(store: Store, path: Path, key: str) -> ArgosyError:
    with pytest.raises(InputError) as caught:
        import_onnx(store, path, "evil")
    assert caught.value.key == key
    assert store.list_models() == []
    assert list((store.home / "store" / "blobs" / "sha256").iterdir()) == []
    return caught.value


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x08", b"PK\x03\x04 a zip", b"plain text", os.urandom(1000)],
    ids=["empty", "header", "zip", "text", "noise"],
)
def test_file_that_is_no_onnx_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "model.onnx" in assert_refused(store, tmp_path / "model.onnx", "bad_onnx").message


def test_file_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    assert "nowhere.onnx" in assert_refused(store, tmp_path / "nowhere.onnx", "missing_file").message


def test_graph_that_onnxruntime_cannot_load_is_refused(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx([helper.make_node("NoSuchOperator", ["x"], ["y"])])
    assert "NoSuchOperator" in assert_refused(store, path, "bad_onnx").message


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_element_type_without_a_datatype_is_refused(store: Store, make_onnx: MakeOnnx, name: str) -> None:
    element = getattr(TensorProto, name)
    path = make_onnx([helper.make_node("Cast", ["x"], ["y"], to=element)], outputs=[info("y", element, ["N", 4])], weights={})
    message = assert_refused(store, path, "unsupported_type").message
    assert f"'y' has element type {name}" in message
    assert "FP32" in message


def test_sequence_output_is_refused_with_the_remedy(store: Store, make_onnx: MakeOnnx) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = make_onnx([helper.make_node("SequenceConstruct", ["x", "x"], ["y"])], outputs=[sequence], weights={})
    assert "zipmap=False" in assert_refused(store, path, "unsupported_type").message


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "sub/weights.bin", "..", ".", "", "a\\b", "a\0b", "a\nb", "*/_ORT_MEM_ADDR_/*"],
)
@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_external_data_outside_the_folder_is_refused(store: Store, tmp_path: Path, location: str, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    folder = tmp_path / "export"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.bin").write_bytes(bytes(32))
    tensor = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    x, y = info("x", TensorProto.FLOAT, ["N", 4]), info("y", TensorProto.FLOAT, ["N", 2])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if place == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    elif place == "subgraph":
        branch = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "g", [], [info("z", 1, None)], [tensor])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor] if place == "initializer" else [])
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert_refused(store, path, "bad_external_data")


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd"])
def test_external_data_behind_a_link_that_leaves_the_folder_is_refused(
    store: Store, make_onnx: MakeOnnx, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    path = make_onnx(external="weights.bin")
    (path.parent / "weights.bin").unlink()
    (path.parent / "weights.bin").symlink_to(target)
    assert "->" in assert_refused(store, path, "bad_external_data").message


def test_external_data_that_is_missing_is_named(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(external="weights.bin")
    (path.parent / "weights.bin").unlink()
    assert "weights.bin" in assert_refused(store, path, "missing_file").message


def test_external_data_that_is_cut_off_is_refused(store: Store, make_onnx: MakeOnnx) -> None:
    path = make_onnx(external="weights.bin")
    os.truncate(path.parent / "weights.bin", 16)
    assert_refused(store, path, "bad_onnx")


@pytest.mark.parametrize("name", ["argosy.json", "golden.npz"])
def test_external_data_with_a_name_of_the_store_is_refused(store: Store, make_onnx: MakeOnnx, name: str) -> None:
    assert_refused(store, make_onnx(external=name), "bad_file_name")
