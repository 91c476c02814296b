"""The int8 file itself, against the rule in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from argosy.compress.steps.base import Workshop
from argosy.compress.steps.int8 import Int8
from tests.compress.artifacts import answer, make_artifact, make_dense, read_constants


@pytest.fixture
def dense():
    """Weights whose outputs differ a thousandfold in size, biases, and rows."""
    random = np.random.default_rng(4)
    w = (random.normal(size=(12, 5)) * np.array([0.01, 0.1, 1, 3, 10])).astype(np.float32)
    return w, random.normal(size=5).astype(np.float32), random.normal(size=(64, 12)).astype(np.float32)


@pytest.fixture
def quantize(tmp_path):
    """Give the int8 artifact of softmax(x @ w + b), calibrated on rows."""

    def make(w, b, rows, **options):
        workshop = Workshop(tmp_path / "made", [{"x": row[None]} for row in rows])
        return Int8(**options).apply(make_dense(tmp_path / "dense", w, b), workshop)

    return make


def round_trip(values, scale, zero_point):
    """Quantise to 8 bits without a sign, and back."""
    return (np.clip(np.round(values / scale) + zero_point, 0, 255) - zero_point) * scale


def test_weights_are_rounded_with_one_scale_for_each_output(dense, quantize):
    w, b, x = dense
    constants = read_constants(quantize(w, b, x))
    scales = constants["w_scale"]
    np.testing.assert_allclose(scales, np.abs(w).max(axis=0) / 127, rtol=1e-6)
    assert not constants["w_zero_point"].any()
    # Half a step, and float32's rounding of the scale.
    assert (np.abs(constants["w_quantized"] * scales - w) <= scales * 0.5001).all()


def test_one_scale_for_all_outputs_loses_the_small_ones(dense, quantize):
    w, b, x = dense
    constants = read_constants(quantize(w, b, x, per_channel=False))
    assert constants["w_scale"].size == 1
    assert np.abs(constants["w_quantized"][:, 0]).max() <= 1


def test_scales_of_activations_are_the_ranges_of_the_calibration_rows(dense, quantize):
    w, b, x = dense
    constants = read_constants(quantize(w, b, x))
    assert constants["x_scale"] == pytest.approx((x.max() - x.min()) / 255, rel=1e-5)


def test_answers_equal_the_rule_in_numpy(dense, quantize):
    w, b, x = dense
    quantized = quantize(w, b, x)
    c = read_constants(quantized)
    xq = round_trip(x, c["x_scale"], c["x_zero_point"])
    z = xq @ (c["w_quantized"] * c["w_scale"]) + c["b_quantized"] * c["b_quantized_scale"]
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    # Softmax stays float32: 1e-7 for each of a few operations. The integers before it are exact, and so are their sums.
    np.testing.assert_allclose(answer(quantized, x=x)["y"], powers / powers.sum(axis=1, keepdims=True), atol=1e-6)


def test_operators_that_int8_would_ruin_stay_float(dense, quantize):
    w, b, x = dense
    graph = onnx.load(str(quantize(w, b, x).path)).graph
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert softmax.output[0] == "y" == graph.output[0].name


def test_calibration_looks_at_no_more_rows_than_wanted_evenly_spaced(dense, quantize):
    w, b, x = dense
    rows = np.repeat(x[:1], 1000, axis=0)
    rows[500] = 90.0
    rows[999] = 7.0
    constants = read_constants(quantize(w, b, rows, max_calibration_rows=2))
    # Two rows are the first and the last.
    assert constants["x_scale"] == pytest.approx((7.0 - x[0].min()) / 255, rel=1e-5)


def test_what_stays_float_gets_numbers_that_were_not_rounded(tmp_path):
    """Attention's product of two activations, a residual sum, and a layer that is left out."""
    random = np.random.default_rng(3)
    w, v, u = (random.normal(size=(16, 16)).astype(np.float32) for _ in range(3))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["g"], name="second"),
        helper.make_node("Reshape", ["r", "shape"], ["t"], name="turn"),
        helper.make_node("MatMul", ["t", "g"], ["p"], name="product"),
        helper.make_node("Add", ["p", "r"], ["sum"], name="residual"),
        helper.make_node("MatMul", ["sum", "u"], ["y"], name="third"),
    ]
    weights = {"w": w, "v": v, "u": u, "shape": np.array([0, 16, 16], np.int64)}
    signature = [("x", "FP32", ("rows", 16, 16))], [("y", "FP32", ("rows", 16, 16))]
    artifact = make_artifact(tmp_path / "block", nodes, *signature, weights)
    x = random.normal(size=(32, 16, 16)).astype(np.float32)
    made = Int8(exclude=("third",)).apply(artifact, Workshop(tmp_path / "made", [{"x": row[None]} for row in x]))
    graph = onnx.load(str(made.path)).graph
    maker = {output: node for node in graph.node for output in node.output}

    def list_makers(name):
        (node,) = [node for node in graph.node if node.name == name]
        return [maker[entry].op_type for entry in node.input if entry in maker]

    assert list_makers("first") == list_makers("second") == ["DequantizeLinear", "DequantizeLinear"]
    assert list_makers("product") == ["Reshape", "MatMul"]
    assert sorted(list_makers("residual")) == ["MatMul", "Relu"]
    assert list_makers("third") == ["Add"]


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("num_rows", [1, 64, 100], ids=["one", "one-run", "a-run-and-a-part"])
def test_ranges_are_found_of_any_number_of_rows(ranges, num_rows, dense, quantize):
    w, b, x = dense
    rows = np.concatenate([x, x])[:num_rows]
    constants = read_constants(quantize(w, b, rows, ranges=ranges))
    assert 0 < constants["x_scale"] <= (rows.max() - rows.min()) / 255 * 1.01 + 1e-6


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile"])
def test_ranges_are_found_of_rows_of_different_shapes(ranges, tmp_path):
    """A convolution over sequences of any length, each asked for alone or in a batch."""
    random = np.random.default_rng(6)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1], name="conv")]
    signature = [("x", "FP32", ("rows", 4, "steps"))], [("y", "FP32", ("rows", 8, "steps"))]
    artifact = make_artifact(tmp_path / "steps", nodes, *signature, {"w": random.normal(size=(8, 4, 3)).astype(np.float32)})
    rows = [{"x": random.normal(size=(1, 4, 5 + place % 7)).astype(np.float32)} for place in range(40)]
    made = Int8(ranges=ranges).apply(artifact, Workshop(tmp_path / "made", rows))
    got, want = (answer(one, **rows[0])["y"] for one in (made, artifact))
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()
