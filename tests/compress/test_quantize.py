"""The int8 file itself, against the rule in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from argosy.compress.quantize import Int8
from argosy.frameworks.onnx import OnnxModel


def make_dense(w, b):
    """An ONNX file of softmax(x @ w + b), with any number of rows; w has shape (in, out)."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=-1)],
        "dense",
        [helper.make_tensor_value_info("x", kind, ["rows", w.shape[0]])],
        [helper.make_tensor_value_info("y", kind, ["rows", w.shape[1]])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture
def dense():
    """Weights whose outputs differ a thousandfold in size, biases, and rows."""
    random = np.random.default_rng(4)
    w = (random.normal(size=(12, 5)) * np.array([0.01, 0.1, 1, 3, 10])).astype(np.float32)
    return w, random.normal(size=5).astype(np.float32), random.normal(size=(64, 12)).astype(np.float32)


def read_constants(model):
    graph = onnx.load_model_from_string(model).graph
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}


def round_trip(values, scale, zero_point):
    """Quantise to int8 and back."""
    return (np.clip(np.round(values / scale) + zero_point, -128, 127) - zero_point) * scale


def test_weights_are_rounded_with_one_scale_for_each_output(dense):
    w, b, x = dense
    constants = read_constants(Int8().apply(make_dense(w, b), {"x": x}))
    scales = constants["w_scale"]
    np.testing.assert_allclose(scales, np.abs(w).max(axis=0) / 127, rtol=1e-6)
    assert not constants["w_zero_point"].any()
    # Half a step, and float32's rounding of the scale.
    assert (np.abs(constants["w_quantized"] * scales - w) <= scales * 0.5001).all()


def test_one_scale_for_all_outputs_loses_the_small_ones(dense):
    w, b, x = dense
    constants = read_constants(Int8(per_channel=False).apply(make_dense(w, b), {"x": x}))
    assert constants["w_scale"].size == 1
    assert np.abs(constants["w_quantized"][:, 0]).max() <= 1


def test_scales_of_activations_are_the_ranges_of_the_calibration_rows(dense):
    w, b, x = dense
    constants = read_constants(Int8().apply(make_dense(w, b), {"x": x}))
    z = x.astype(np.float64) @ w + b
    for name, values in (("x", x), ("z", z)):
        assert constants[f"{name}_scale"] == pytest.approx((values.max() - values.min()) / 255, rel=1e-5)


def test_answers_equal_the_rule_in_numpy(dense):
    w, b, x = dense
    quantized = Int8().apply(make_dense(w, b), {"x": x})
    c = read_constants(quantized)
    xq = round_trip(x, c["x_scale"], c["x_zero_point"])
    z = xq @ (c["w_quantized"] * c["w_scale"]) + c["b_quantized"] * c["b_quantized_scale"]
    zq = round_trip(z, c["z_scale"], c["z_zero_point"])
    powers = np.exp(zq - zq.max(axis=1, keepdims=True))
    # Softmax stays float32: 1e-7 for each of a few operations. The integers before it are exact.
    np.testing.assert_allclose(OnnxModel(quantized).run({"x": x})["y"], powers / powers.sum(axis=1, keepdims=True), atol=1e-6)


def test_operators_that_int8_would_ruin_stay_float(dense):
    w, b, x = dense
    graph = onnx.load_model_from_string(Int8().apply(make_dense(w, b), {"x": x})).graph
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert softmax.output[0] == "y" == graph.output[0].name


def test_calibration_looks_at_no_more_rows_than_wanted_evenly_spaced(dense):
    w, b, x = dense
    rows = np.repeat(x[:1], 1000, axis=0)
    rows[500] = 90.0
    rows[999] = 7.0
    constants = read_constants(Int8(max_calibration_rows=2).apply(make_dense(w, b), {"x": rows}))
    # Two rows are the first and the last.
    assert constants["x_scale"] == pytest.approx((7.0 - x[0].min()) / 255, rel=1e-5)
