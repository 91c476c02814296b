"""Tensors against a signature: what every protocol shares."""

from types import SimpleNamespace

import numpy as np
import pytest

from argosy.datatypes import DATATYPES
from argosy.errors import InputError
from argosy.serve.v2.tensors import MAX_BYTES_ELEMENTS, array_from_raw, check_tensor, count_elements, gather_inputs
from argosy.signature import Signature, TensorSpec, pack_bytes, unpack_bytes


def make_lane(*specs, batched=True):
    outputs = (TensorSpec("y", "FP32", (-1,) if batched else (3,)),)
    return SimpleNamespace(name="m", version="3", cache={}, signature=Signature(specs, outputs))


LANE = make_lane(TensorSpec("x", "FP32", (-1, 3)), TensorSpec("free", "INT8", (-1, -1)))


def read(lane, name, datatype, shape, raw):
    spec = check_tensor(lane, name, datatype, shape)
    return array_from_raw(spec, shape, raw, lane)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_raw_bytes_are_viewed_without_a_copy(datatype, wrap):
    dtype = DATATYPES[datatype]
    lane = make_lane(TensorSpec("x", datatype, (-1, 3)))
    expected = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    buffer = wrap(b"#" * 3 + expected.tobytes())
    view = memoryview(buffer)[3:]
    array = read(lane, "x", datatype, (2, 3), view)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)
    assert np.shares_memory(array, np.frombuffer(view, np.uint8))


def test_bytes_elements_are_read():
    lane = make_lane(TensorSpec("x", "BYTES", (-1, 2)))
    expected = np.array([[b"", b"a\0b"], [b"\xff" * 300, b"c"]], dtype=object)
    np.testing.assert_array_equal(read(lane, "x", "BYTES", (2, 2), pack_bytes(expected)), expected)


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "raw", "key"),
    [
        pytest.param("z", "FP32", (1, 3), bytes(12), "unknown_input", id="unknown name"),
        pytest.param("z" * 10_000, "FP32", (1, 3), bytes(12), "unknown_input", id="long name"),
        pytest.param("x", "FP64", (1, 3), bytes(24), "datatype_mismatch", id="other datatype"),
        pytest.param("x", "", (1, 3), bytes(12), "datatype_mismatch", id="no datatype"),
        pytest.param("x", "FP32" * 1000, (1, 3), bytes(12), "datatype_mismatch", id="long datatype"),
        pytest.param("x", "FP32", (1, 4), bytes(16), "shape_mismatch", id="other length"),
        pytest.param("x", "FP32", (3,), bytes(12), "shape_mismatch", id="other rank"),
        pytest.param("x", "FP32", (), bytes(4), "shape_mismatch", id="scalar"),
        pytest.param("x", "FP32", (1,) * 9000, bytes(4), "shape_mismatch", id="huge rank"),
        pytest.param("free", "INT8", (-1, -1), b"\0", "shape_mismatch", id="negative dimensions"),
        pytest.param("free", "INT8", (1 << 62, 0), b"", "shape_mismatch", id="huge and empty"),
        pytest.param("free", "INT8", (1 << 40, 1 << 40), b"\0", "bytes_mismatch", id="product over 64 bits"),
        pytest.param("free", "INT8", (1 << 32, 1 << 32), b"", "bytes_mismatch", id="product is 0 in 64 bits"),
        pytest.param("x", "FP32", (1, 3), bytes(11), "bytes_mismatch", id="a byte less"),
        pytest.param("x", "FP32", (1, 3), bytes(13), "bytes_mismatch", id="a byte more"),
    ],
)
def test_tensor_is_refused(name, datatype, shape, raw, key):
    with pytest.raises(InputError) as caught:
        read(LANE, name, datatype, shape, raw)
    assert caught.value.key == key
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "key"),
    [
        pytest.param("BOOL", (1, 2), b"\1\2", "bad_value", id="BOOL of 2"),
        pytest.param("BYTES", (1, 2), pack_bytes(np.array([b"a"], object)), "size_mismatch", id="an element less"),
        pytest.param("BYTES", (1, 1), pack_bytes(np.array([b"a", b"b"], object)), "bytes_mismatch", id="an element more"),
        pytest.param("BYTES", (1, 1), b"\xff\xff\xff\xffab", "size_mismatch", id="length beyond the end"),
        pytest.param("BYTES", (1, 2), b"\0\0\0\0\0\0", "size_mismatch", id="length cut"),
        pytest.param("BYTES", (1 << 30, 1 << 30), bytes(8), "too_many_elements", id="too many elements"),
        pytest.param("BYTES", (1, MAX_BYTES_ELEMENTS), bytes(8), "size_mismatch", id="more elements than lengths"),
    ],
)
def test_contents_are_refused(datatype, shape, raw, key):
    lane = make_lane(TensorSpec("x", datatype, (-1, -1)))
    with pytest.raises(InputError) as caught:
        read(lane, "x", datatype, shape, raw)
    assert caught.value.key == key


def test_empty_tensors_are_arrays():
    assert read(LANE, "free", "INT8", (2, 0), b"").shape == (2, 0)
    assert read(make_lane(TensorSpec("x", "BYTES", (-1, -1))), "x", "BYTES", (2, 0), b"").shape == (2, 0)
    assert read(make_lane(TensorSpec("x", "BOOL", (-1, -1))), "x", "BOOL", (0, 2), b"").shape == (0, 2)


def test_inputs_are_gathered_in_the_signatures_order():
    x, free = np.ones((2, 3), np.float32), np.ones((2, 1), np.int8)
    arrays, rows, _ = gather_inputs(LANE, {"free": free, "x": x})
    assert arrays[0] is x
    assert arrays[1] is free
    assert rows == 2


def test_rows_of_an_unbatched_signature_are_not_counted():
    lane = make_lane(TensorSpec("x", "FP32", (3,)), batched=False)
    arrays, rows, _ = gather_inputs(lane, {"x": np.ones(3, np.float32)})
    assert (len(arrays), rows) == (1, 1)


@pytest.mark.parametrize(
    ("named", "key", "text"),
    [
        pytest.param({"x": np.ones((1, 3))}, "missing_input", "needs the input 'free'", id="missing"),
        pytest.param({}, "missing_input", "got: none", id="no inputs"),
        pytest.param({"x": np.ones((1, 3)), "free": np.ones((2, 3))}, "rows_differ", "x 1, free 2", id="rows differ"),
        pytest.param({"x": np.ones((0, 3)), "free": np.ones((0, 3))}, "no_rows", "no rows", id="no rows"),
    ],
)
def test_set_of_inputs_is_refused(named, key, text):
    with pytest.raises(InputError, match=text) as caught:
        gather_inputs(LANE, named)
    assert caught.value.key == key


def test_shapes_seen_are_bounded():
    spec = LANE.signature.inputs[1]
    for length in range(3000):
        assert count_elements(LANE, check_tensor(LANE, "free", "INT8", (1, length)), (1, length)) == length
    assert len(LANE.cache["inputs"].sizes[spec.name]) <= 256


@pytest.mark.parametrize("element", [5, None, 1.5, True, ["a"], "\ud800"], ids=repr)
def test_element_that_is_neither_bytes_nor_text_is_not_packed(element):
    array = np.empty(1, object)
    array[0] = element
    with pytest.raises(InputError) as caught:
        pack_bytes(array, "x")
    assert caught.value.key == "bad_value" and "'x'" in caught.value.message


def test_text_and_buffers_are_packed_as_their_bytes():
    array = np.empty(4, object)
    array[:] = ["é", b"a\0", bytearray(b"b"), memoryview(b"c")]
    assert unpack_bytes(pack_bytes(array), 4).tolist() == ["é".encode(), b"a\0", b"b", b"c"]
