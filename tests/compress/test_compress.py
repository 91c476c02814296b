"""From a version to its compressed successor: guard, measurement, golden examples, lineage."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from argosy.compress import Guard, compress, describe_result, get_method
from argosy.compress.measure import measure_batch_difference, score_evaluation, score_golden
from argosy.compress.quantize import Int8
from argosy.errors import ConflictError, InputError
from argosy.frameworks.onnx import OnnxModel
from argosy.store.golden import Golden
from argosy.train.recipes import load_data_for


@pytest.fixture(scope="module")
def result(digits):
    return compress(digits.version, calibration=digits.training.x, evaluation=digits.testing, store=digits.store)


def accuracy_of(path, data):
    session = onnxruntime.InferenceSession(path)
    outputs = session.run(["logits"], {"image": data.x})[0]
    return float(np.mean(outputs.argmax(axis=1) == data.y))


def test_int8_is_published_as_the_next_version_at_a_third_of_the_size(digits, result):
    version = result.version
    assert (version.name, version.number) == ("digits", 2)
    assert version.size_bytes <= 0.35 * digits.version.size_bytes
    assert version.manifest.signature == digits.version.manifest.signature
    assert version.manifest.runtime == "onnx"


def test_score_is_the_accuracy_of_both_files_on_the_evaluation_rows(digits, result):
    files = [digits.store.open_artifact(version) / "model.onnx" for version in (digits.version, result.version)]
    assert result.score.before == pytest.approx(accuracy_of(files[0], digits.testing), abs=1e-9)
    # An int8 value on the border of two may round either way on another number of threads: one row of 359.
    assert result.score.after == pytest.approx(accuracy_of(files[1], digits.testing), abs=1 / 359 + 1e-9)
    assert result.score.loss == result.score.before - result.score.after <= 0.01
    assert (result.score.basis, result.score.num_rows) == ("evaluation", 359)
    assert [cost.size_bytes for cost in (result.before, result.after)] == [file.stat().st_size for file in files]
    assert all(cost.latency_s > 0 and cost.batch_row_s > 0 for cost in (result.before, result.after))


def test_golden_examples_are_the_parents_rows_with_the_childs_own_answers(digits, result):
    parent, child = (digits.store.load_golden(version) for version in (digits.version, result.version))
    np.testing.assert_array_equal(child.inputs["image"], parent.inputs["image"])
    own = OnnxModel(result.model).run_alone(child.inputs)["logits"]
    np.testing.assert_array_equal(child.outputs["logits"], own)
    assert not np.array_equal(child.outputs["logits"], parent.outputs["logits"])


def test_lineage_tells_parent_method_guard_and_both_measurements(digits, result):
    lineage = result.version.manifest.lineage
    assert lineage["parent"] == {"name": "digits", "number": 1, "digest": digits.version.digest}
    assert lineage["precision"] == "int8"
    assert lineage["compression"] == json.loads(json.dumps(result.describe()))
    assert lineage["compression"]["method"] == {"name": "int8", "per_channel": True, "max_calibration_rows": 512}
    assert lineage["compression"]["guard"] == {"metric": "accuracy", "max_loss": 0.01}
    assert lineage["calibration"]["rows"] == len(digits.training.x)
    assert result.version.measurements["accuracy"] == result.score.after
    assert result.version.measurements["size_bytes"] == result.after.size_bytes


def test_data_of_a_compressed_version_is_its_parents(digits, result):
    _, testing = load_data_for(result.version)
    np.testing.assert_array_equal(testing.x, digits.testing.x)


def test_rows_of_static_int8_do_not_depend_on_their_batch_mates(digits, result):
    assert result.batch_difference <= 1e-5
    assert result.version.measurements["batch_difference"] == result.batch_difference
    session = onnxruntime.InferenceSession(digits.store.open_artifact(result.version) / "model.onnx")
    x = digits.testing.x[:32].copy()
    x[3] *= 50.0  # An outlier, which would stretch the scale of a batch.
    together = session.run(None, {"image": x})[0]
    alone = np.concatenate([session.run(None, {"image": row[None]})[0] for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def test_batch_difference_finds_scales_that_come_from_the_batch(digits, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(digits.store.open_artifact(digits.version) / "model.onnx", tmp_path / "dynamic.onnx")
    assert measure_batch_difference(OnnxModel(tmp_path / "dynamic.onnx"), {"image": digits.testing.x}) > 1e-3


def test_failed_guard_publishes_nothing(digits, store):
    version = store.publish(
        "copy",
        {"model.onnx": digits.store.open_artifact(digits.version) / "model.onnx"},
        signature=digits.version.manifest.signature,
        entry="model.onnx",
        golden=digits.store.load_golden(digits.version),
    )
    # Rows a hundred times too dark give scales that clip every real image.
    with pytest.raises(ConflictError) as caught:
        compress("copy@1", calibration=digits.training.x / 100, evaluation=digits.testing, store=store)
    assert caught.value.key == "guard_failed"
    assert "accuracy went from 0.9" in caught.value.message
    assert "nothing was published" in caught.value.hint
    assert [v.number for v in store.list_versions("copy")] == [1]
    wide = compress(
        version, calibration=digits.training.x / 100, evaluation=digits.testing, guard=Guard(max_loss=1.0), store=store
    )
    assert wide.version.number == 2


def test_without_evaluation_the_guard_is_agreement_on_golden_examples(digits):
    result = compress("digits@1", calibration=digits.training.x, publish=False, store=digits.store)
    assert result.version is None
    assert (result.score.metric, result.score.basis, result.score.num_rows) == ("agreement", "golden", 8)
    report = describe_result(result)
    assert "agreement with the parent on its 8 golden examples, as no evaluation data was given" in report
    assert "not published" in report


def test_report_tells_all_numbers(digits, result):
    report = describe_result(result)
    assert report.startswith("int8 of digits@1\n")
    for expected in (
        f"{result.score.before:.4f}",
        f"{result.after.size_bytes / 1e3:.1f}",
        "359 evaluation rows",
        "published as digits@2",
    ):
        assert expected in report
    assert "a row's answer does not depend on its batch mates" in report


def test_regression_is_guarded_by_its_error(make_regressor, store):
    version, x, y = make_regressor()
    result = compress(version, calibration=x[:100], evaluation=(x[100:], y[100:]), guard=Guard("mae", 0.05), store=store)
    outputs = OnnxModel(result.model).run({"input": x[100:]})["output"]
    assert result.score.after == pytest.approx(np.mean(np.abs(outputs - y[100:])), rel=1e-6)
    assert result.score.loss == result.score.after - result.score.before
    golden = compress(version, calibration=x, guard=Guard("mae", 0.05), publish=False, store=store)
    assert golden.score.metric == "relative_error"
    assert 0 < golden.score.loss < 0.05


def test_scores_of_hand_made_outputs():
    def answer(values):
        return SimpleNamespace(output_names=["y"], run=lambda inputs: {"y": values}, run_alone=lambda inputs: {"y": values})

    before, after = np.eye(4), np.eye(4)[[0, 1, 3, 2]]
    score = score_evaluation((answer(before), answer(after)), Guard(), {"x": before}, np.arange(4))
    assert (score.before, score.after, score.loss) == (1.0, 0.5, 0.5)
    golden = Golden({"x": before}, {"y": before})
    assert score_golden(answer(after), Guard(), golden).loss == 0.5
    assert score_golden(answer(before * 1.1), Guard("mse"), golden).loss == pytest.approx(0.1)
    column = Golden({"x": before}, {"y": np.array([[1.0], [-1.0], [2.0], [-2.0]])})
    assert score_golden(answer(np.array([[1.0], [1.0], [2.0], [-2.0]])), Guard(), column).loss == 0.25


def test_compressed_version_is_not_compressed_again(digits, result):
    with pytest.raises(InputError) as caught:
        compress(result.version, calibration=digits.training.x, store=digits.store)
    assert caught.value.key == "already_compressed"
    assert "compress its parent, digits@1" in caught.value.hint


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        pytest.param(np.ones((5, 1, 8, 9)), "has type float32 and shape (5, 1, 8, 9), expected float32", id="shape"),
        pytest.param({"picture": np.ones((5, 1, 8, 8))}, "arrays for picture, the model takes image", id="name"),
        pytest.param(np.full((5, 1, 8, 8), np.nan), "NaN", id="nan"),
    ],
)
def test_unfit_calibration_is_refused(calibration, words, digits):
    with pytest.raises(InputError) as caught:
        compress("digits@1", calibration=calibration, store=digits.store)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


def test_missing_calibration_and_unfit_targets_are_named(digits):
    with pytest.raises(InputError, match="int8 needs calibration rows of model 'digits'"):
        compress("digits@1", store=digits.store)
    with pytest.raises(InputError, match="evaluation has 359 rows"):
        compress("digits@1", calibration=digits.training.x, evaluation=(digits.testing.x, [1, 2]), store=digits.store)


def test_model_without_weights_has_nothing_to_compress(make_regressor, store):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x * self.factor)[:, :1]

    version, x, _ = make_regressor(Scale(), "scale")
    with pytest.raises(InputError, match="finds nothing to work on in the model: it needs an operator of Conv"):
        compress(version, calibration=x, store=store)


def test_unknown_method_and_bad_parameters_are_named():
    with pytest.raises(InputError, match="Unknown compression method 'int3'; known: int8"):
        get_method("int3")
    assert get_method("int8") == Int8()
    with pytest.raises(InputError, match=r"int8\.max_calibration_rows"):
        Int8(max_calibration_rows=0)
    with pytest.raises(InputError, match=r"guard\.max_loss"):
        Guard(max_loss=-0.1)
    with pytest.raises(InputError, match="Unknown metric 'f1'"):
        Guard(metric="f1")
