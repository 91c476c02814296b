"""Golden examples: exact on disk, held against the signature, safe to read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest

from argosy.datatypes import DATATYPES
from argosy.errors import InputError, NotFoundError, StoreError
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import decode_golden, encode_golden
from argosy.store.local import Golden, Store, Version

Publish = Callable[..., Version]


def make_array(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"", b"trailing zero\0"], ["t\u00e9xt".encode(), b"\xff\x00\xfe"]], dtype=object)
    return np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype])


@pytest.mark.parametrize("datatype", DATATYPES)
def test_golden_examples_come_back_exactly(store: Store, publish: Publish, datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 2))
    golden = Golden({"x": make_array(datatype)}, {"y": make_array(datatype)})
    version = publish(signature=Signature((spec,), (TensorSpec("y", datatype, (-1, 2)),)), golden=golden)
    found = store.load_golden(version)
    for array in (found.inputs["x"], found.outputs["y"]):
        assert (array.dtype, array.shape) == (spec.dtype, (2, 2))
        assert array.tolist() == make_array(datatype).tolist()


def test_non_finite_values_are_kept() -> None:
    array = np.array([[np.nan, np.inf, -np.inf, -0.0]], dtype=np.float32)
    found = decode_golden(encode_golden(Golden({"x": array}, {"y": array})), "test")
    assert found.outputs["y"].tobytes() == array.tobytes()


def test_names_that_look_like_files_are_kept_apart() -> None:
    inputs = {
        "a": np.zeros(1),
        "a.npy": np.ones(1),
        "shape:in:a": np.full(1, 2.0),
        "../x": np.full(1, 3.0),
        "file": np.full(1, 4.0),
    }
    found = decode_golden(encode_golden(Golden(inputs, {"a": np.full(1, 5.0)})), "test")
    assert {name: array.tolist() for name, array in found.inputs.items()} == {name: a.tolist() for name, a in inputs.items()}
    assert found.outputs["a"].tolist() == [5.0]


def test_equal_examples_have_equal_bytes() -> None:
    golden = Golden({"x": np.arange(4.0)}, {"y": make_array("BYTES")})
    assert encode_golden(golden) == encode_golden(golden)


def test_example_of_a_batched_signature_is_one_row() -> None:
    golden = Golden({"x": np.zeros((3, 4))}, {"y": np.zeros((3, 2))})
    assert golden.num_examples == 3
    assert golden.example(1, is_batched=True).inputs["x"].shape == (1, 4)
    assert golden.example(1, is_batched=False).outputs["y"].shape == (2,)


def test_golden_examples_of_an_unbatched_signature_have_an_axis_more(store: Store, publish: Publish) -> None:
    signature = Signature((TensorSpec("x", "FP32", (2, 3)),), (TensorSpec("y", "FP32", ()),))
    golden = Golden({"x": np.zeros((5, 2, 3), np.float32)}, {"y": np.zeros(5, np.float32)})
    version = publish(signature=signature, golden=golden)
    assert version.manifest.num_golden == store.load_golden(version).num_examples == 5


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        pytest.param({"z": np.zeros((1, 4), "f4")}, None, "inputs are z, expected x", id="other name"),
        pytest.param({"x": np.zeros((1, 4), "f8")}, None, "dtype float64, expected float32", id="other datatype"),
        pytest.param({"x": np.zeros((1, 5), "f4")}, None, "shape (1, 5), expected (-1, 4)", id="other shape"),
        pytest.param({"x": np.zeros((2, 4), "f4")}, None, "{'x': 2, 'y': 1}", id="other number of examples"),
        pytest.param({"x": np.zeros((0, 4), "f4")}, {"y": np.zeros((0, 2), "f4")}, "above 0", id="no examples"),
        pytest.param(None, {}, "outputs are none, expected y", id="no outputs"),
    ],
)
def test_golden_examples_that_do_not_fit_the_signature_are_refused(
    publish: Publish, inputs: dict, outputs: dict, text: str
) -> None:
    golden = Golden(inputs or {"x": np.zeros((1, 4), "f4")}, {"y": np.zeros((1, 2), "f4")} if outputs is None else outputs)
    with pytest.raises(InputError) as caught:
        publish(golden=golden)
    assert caught.value.key == "bad_golden"
    assert text in caught.value.message


def test_version_without_golden_examples_says_why(store: Store, publish: Publish) -> None:
    with pytest.raises(NotFoundError, match="none were given"):
        store.load_golden(publish())
    with pytest.raises(NotFoundError, match="it refused"):
        store.load_golden(publish(lineage={"golden_error": "it refused"}))


def zip_of(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("in:x.npy", content)
    return out.getvalue()


def npy_of(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no zip", id="no zip"),
        pytest.param(zip_of(b"no array"), id="no array"),
        pytest.param(zip_of(npy_of(np.zeros(10))[:-8]), id="cut off"),
        pytest.param(zip_of(npy_of(np.array([print], dtype=object))), id="pickle"),
        pytest.param(zip_of(npy_of(np.zeros(1 << 20)), zipfile.ZIP_DEFLATED), id="compressed"),
        pytest.param(zip_of(npy_of(np.zeros(1)).replace(b"(1,)", b"(10000000000000000,)")), id="shape without the data"),
    ],
)
def test_hostile_golden_file_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError) as caught:
        decode_golden(data, "iris@1")
    assert caught.value.key == "bad_manifest"
