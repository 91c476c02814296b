"""The suite's own reading of tensors: what it takes, and what it finds wrong in answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argosy.conformance.http_wire import parse_json
from argosy.conformance.tensors import (
    DATATYPES,
    equal,
    from_json,
    from_raw,
    make_edges,
    make_not_finite,
    make_octets,
    make_sample,
    to_json,
    to_raw,
)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tensor_comes_back_from_json_and_raw(datatype: str) -> None:
    for array in (make_edges(datatype), make_sample(datatype, (2, 4), 5)):
        assert array.shape == (2, 4)
        assert array.dtype == DATATYPES[datatype]
        assert equal(from_json(to_json(array, datatype), datatype, (2, 4)), array)
        assert equal(from_raw(to_raw(array, datatype), datatype, (2, 4)), array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_what_is_not_finite_comes_back_from_raw(datatype: str) -> None:
    array = make_not_finite(datatype)
    assert equal(from_raw(to_raw(array, datatype), datatype, (2, 4)), array)
    assert not equal(array, make_edges(datatype))


def test_bytes_of_any_kind_come_back_from_raw() -> None:
    assert equal(from_raw(to_raw(make_octets(), "BYTES"), "BYTES", (2, 4)), make_octets())


@pytest.mark.parametrize(
    ("value", "bits"), [(1.0, 0x3F80), (-2.0, 0xC000), (1 / 3, 0x3EAB), (1.00390625, 0x3F80), (3.4e38, 0x7F80)]
)
def test_bf16_is_rounded_to_the_nearest_and_ties_to_even(value: float, bits: int) -> None:
    assert from_json([value], "BF16", (1,)).tolist() == [bits]


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        (None, "FP32", (1,)),
        ({"0": 1}, "FP32", (1,)),
        ([1.0], "FP32", (2,)),
        ([1.0, 2.0, 3.0], "FP32", (2,)),
        ([[1.0, 2.0, 3.0], [4.0]], "FP32", (2, 2)),
        ([[1.0, 2.0], 3.0, 4.0], "FP32", (2, 2)),
        (["1"], "FP32", (1,)),
        ([None], "FP64", (1,)),
        ([True], "INT32", (1,)),
        ([1.5], "INT32", (1,)),
        ([128], "INT8", (1,)),
        ([-1], "UINT64", (1,)),
        ([1], "BOOL", (1,)),
        ([1], "BYTES", (1,)),
    ],
)
def test_data_that_do_not_fit_are_found(data: Any, datatype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        from_json(data, datatype, shape)


@pytest.mark.parametrize(
    ("raw", "datatype", "shape"),
    [
        (b"\0" * 7, "FP32", (2,)),
        (b"\0" * 9, "FP32", (2,)),
        (b"\1\0\0\0", "BYTES", (1,)),
        (b"\1\0\0", "BYTES", (1,)),
        (b"\0\0\0\0" * 3, "BYTES", (2,)),
        (b"\xff\xff\xff\xff\0", "BYTES", (1,)),
    ],
)
def test_raw_data_that_do_not_fit_are_found(raw: bytes, datatype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        from_raw(raw, datatype, shape)


def test_nested_data_and_whole_floats_are_read() -> None:
    np.testing.assert_array_equal(from_json([[1, 2.0], [3, 4]], "INT32", (2, 2)), np.array([[1, 2], [3, 4]], np.int32))
    assert from_json([], "FP32", (0, 4)).shape == (0, 4)
    assert from_json([5], "FP32", ()).item() == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (np.zeros((1, 2), np.float32), np.zeros(2, np.float32)),
        (np.array([np.nan, 1.0]), np.array([np.nan, 2.0])),
        (np.array([b"a"], object), np.array([b"b"], object)),
    ],
    ids=["dtype", "shape", "value", "bytes"],
)
def test_difference_is_seen(one: np.ndarray, other: np.ndarray) -> None:
    assert not equal(one, other)


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b"[-Infinity]", b"\xff", b"[" * 100_000, b"[1,]", b"{'a': 1}", b""])
def test_json_is_read_strictly(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
