"""From a version to its compressed successor: guard, measurement, golden examples, lineage."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from argosy.bench.artifact import open_version
from argosy.bench.probe import Probe
from argosy.compress import Gain, Guard, compress, describe_result, get_recipe
from argosy.compress.judge import Evidence, judge_outputs
from argosy.compress.kind import find_meaning
from argosy.compress.measure import Cost, Timing, measure_costs
from argosy.compress.recipe import read_recipe, run_recipe
from argosy.compress.sample import take_sample
from argosy.compress.steps.base import Workshop
from argosy.compress.steps.int8 import Int8
from argosy.errors import ConflictError, FaultError, InputError, NotAllowedError
from argosy.frameworks.onnx import OnnxModel
from argosy.train.recipes import load_data_for

# Whether int8 is faster is the processor's; what is refused for it has tests of its own.
ANY_SPEED = {"needs_gain": False}


@pytest.fixture(scope="module")
def result(digits):
    options = {"calibration": digits.training.x, "evaluation": digits.testing, "store": digits.store, **ANY_SPEED}
    return compress(digits.version, method="int8", **options)


def open_artifact(digits, result):
    return digits.store.open_artifact(result.version) / "model.onnx"


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
    # A value on the border of two may round either way on another number of threads: one row of 359.
    assert result.score.before == pytest.approx(accuracy_of(files[0], digits.testing), abs=1 / 359 + 1e-9)
    assert result.score.after == pytest.approx(accuracy_of(files[1], digits.testing), abs=1 / 359 + 1e-9)
    assert result.score.loss == result.score.before - result.score.after <= 0.01
    assert (result.score.basis, result.score.num_rows) == ("evaluation", 359)
    assert [cost.size_bytes for cost in (result.before, result.after)] == [file.stat().st_size for file in files]
    assert all(cost.latency_s > 0 and cost.batch_row_s > 0 for cost in (result.before, result.after))


def test_golden_examples_are_the_parents_rows_with_the_childs_own_answers(digits, result):
    parent, child = (digits.store.load_golden(version) for version in (digits.version, result.version))
    np.testing.assert_array_equal(child.inputs["image"], parent.inputs["image"])
    model = OnnxModel(open_artifact(digits, result))  # On one thread, as they were made.
    own = np.concatenate([model.run({"image": image[None]})["logits"] for image in child.inputs["image"]])
    np.testing.assert_array_equal(child.outputs["logits"], own)
    assert not np.array_equal(child.outputs["logits"], parent.outputs["logits"])


def test_lineage_tells_parent_method_guard_and_both_measurements(digits, result):
    lineage = result.version.manifest.lineage
    assert lineage["parent"] == {"name": "digits", "number": 1, "digest": digits.version.digest}
    assert lineage["precision"] == "int8"
    assert lineage["compression"] == json.loads(json.dumps(result.describe()))
    defaults = {"per_channel": True, "ranges": "minmax", "max_calibration_rows": 512, "exclude": []}
    assert lineage["compression"]["recipe"] == [{"name": "int8", **defaults}]
    assert lineage["compression"]["guard"] == {"metric": "accuracy", "max_loss": 0.01}
    assert lineage["calibration"]["rows"] == len(digits.training.x)
    assert read_recipe(lineage["compression"]["recipe"]) == result.recipe
    assert result.version.measurements["accuracy"] == result.score.after
    assert result.version.measurements["size_bytes"] == result.after.size_bytes


def test_data_of_a_compressed_version_is_its_parents(digits, result):
    _, testing = load_data_for(result.version)
    np.testing.assert_array_equal(testing.x, digits.testing.x)


def test_rows_of_static_int8_do_not_depend_on_their_batch_mates(digits, result):
    assert result.after.batch_difference <= 1e-5 and result.after.batch_rows == 32
    assert result.version.measurements["batch_difference"] == result.after.batch_difference
    assert (digits.version.manifest.joining.kind, result.version.manifest.joining.kind) == ("independent", "independent")
    session = onnxruntime.InferenceSession(digits.store.open_artifact(result.version) / "model.onnx")
    x = digits.testing.x[:32].copy()
    x[3] *= 50.0  # An outlier, which would stretch the scale of a batch.
    together = session.run(None, {"image": x})[0]
    alone = np.concatenate([session.run(None, {"image": row[None]})[0] for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def test_rows_whose_scales_come_from_the_batch_are_found_and_not_timed_together(digits, tmp_path):
    artifact = open_version(digits.store, digits.version)
    made = run_recipe(get_recipe("dynamic-int8"), artifact, Workshop(tmp_path))
    rows = take_sample(artifact.signature, digits.testing.x[:32]).rows
    with Probe(made) as probe:
        (cost,) = measure_costs([probe], Timing(rows, tmp_path / "rows", is_batched=True), budget_s=0.1)
    assert cost.batch_difference > 1e-3
    assert cost.batch_rows == 1 and cost.batch_row_s == cost.latency_s


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
        compress("copy@1", method="int8", calibration=digits.training.x / 100, evaluation=digits.testing, store=store)
    assert caught.value.key == "guard_failed"
    assert "accuracy went from 0.9" in caught.value.message
    assert "nothing was published" in caught.value.hint
    assert [v.number for v in store.list_versions("copy")] == [1]
    options = {"method": "int8", "guard": Guard("accuracy", max_loss=0.99), "evaluation": digits.testing, "store": store}
    with pytest.raises(ConflictError, match="Compression ruined the answers"):
        compress(version, calibration=digits.training.x / 100, **options, **ANY_SPEED)
    wide = compress(version, calibration=digits.training.x / 4, **options, **ANY_SPEED)
    assert wide.version.number == 2


def test_without_evaluation_the_guard_is_fidelity_on_golden_examples(digits):
    # Of 8 rows a rate says nothing finer than 1 in 8: their numbers are compared.
    result = compress("digits@1", method="int8", calibration=digits.training.x, publish=False, store=digits.store)
    assert result.version is None
    assert (result.score.metric, result.score.basis, result.score.num_rows) == ("fidelity", "golden", 8)
    assert result.score.reason == "8 rows are too few for a rate within 0.01, which takes 100; it was trained with cross_entropy"
    report = describe_result(result)
    assert "fidelity with the parent on its 8 golden examples, as no evaluation data was given" in report
    assert "not published" in report
    with pytest.raises(InputError, match="accuracy on 8 rows says nothing finer than one row in 8"):
        compress("digits@1", method="int8", calibration=digits.training.x, guard=Guard("accuracy"), store=digits.store)


def test_report_tells_all_numbers(digits, result):
    report = describe_result(result)
    assert report.startswith("int8 of digits@1\n")
    for expected in (
        f"{result.score.before:.4f}",
        f"{result.after.size_bytes / 1024:.1f}",
        "359 evaluation rows",
        "published as digits@2",
    ):
        assert expected in report
    assert "a row's answer does not depend on its batch mates" in report


def test_named_metric_of_a_regression_is_guarded_in_its_own_unit(make_regressor, store):
    version, x, y = make_regressor()
    options = {"method": "int8", "guard": Guard("mae", 0.05), "store": store, **ANY_SPEED}
    result = compress(version, calibration=x[:100], evaluation=(x[100:], y[100:]), **options)
    outputs = OnnxModel(store.open_artifact(result.version) / "model.onnx").run({"input": x[100:]})["output"]
    assert result.score.after == pytest.approx(np.mean(np.abs(outputs - y[100:])), rel=1e-6)
    assert result.score.loss == result.score.after - result.score.before
    golden = compress(version, calibration=x, publish=False, **options)
    assert (golden.score.metric, golden.score.before, golden.score.basis) == ("mae", 0.0, "golden")
    assert 0 < golden.score.loss < 0.05


@pytest.mark.parametrize("columns", [pytest.param(1, id="one-output"), pytest.param(3, id="several-outputs")])
def test_regression_that_calibration_ruins_is_refused(columns, make_values, store):
    # All values are far above 0, and one column is always the largest: by sign or by class nothing would change.
    version, x, y = make_values(columns)
    calibration = x[:20] * 0.01
    with pytest.raises(ConflictError, match=r"fidelity went from 1\.0000 to .* on 8 golden rows") as caught:
        compress(version, method="int8", calibration=calibration, store=store)
    assert "as it was trained with mse" in caught.value.hint
    with pytest.raises(ConflictError, match=r"r2 went from 0\.9.* on 100 evaluation rows"):
        compress(version, method="int8", calibration=calibration, evaluation=(x[100:], y[100:]), store=store)
    with pytest.raises(InputError, match="accuracy, while it was trained with mse"):
        compress(version, method="int8", calibration=x, guard=Guard("accuracy"), store=store)
    kept = compress(version, method="int8", calibration=x[:100], evaluation=(x[100:], y[100:]), store=store, publish=False)
    assert (kept.score.metric, kept.guard.metric) == ("r2", "r2") and kept.score.before > 0.9


def test_version_of_unknown_kind_is_judged_by_fidelity_to_the_original(digits, make_values, store):
    trained, x, y = make_values(2)
    files = {"model.onnx": store.open_artifact(trained) / "model.onnx"}
    golden = store.load_golden(trained)
    version = store.publish("found", files, signature=trained.manifest.signature, entry="model.onnx", golden=golden)
    with pytest.raises(ConflictError, match=r"fidelity went from 1\.0000") as caught:
        compress(version, method="int8", calibration=x * 0.01, store=store)
    assert "what the outputs are is not known: its lineage names no loss" in caught.value.hint
    kept = compress(version, method="int8", calibration=x[:40], evaluation=(x, None), store=store, publish=False)
    assert (kept.score.metric, kept.score.basis, kept.score.num_rows) == ("fidelity", "evaluation", 160)
    assert "judged by fidelity: what the outputs are is not known" in describe_result(kept)
    options = {"method": "int8", "calibration": x[:40], "store": store, "publish": False}
    assert compress(version, evaluation=(x, {"output": y}), **options).score.metric == "r2"


def test_rows_of_the_calibration_are_left_out_of_the_evaluation(make_values, store):
    version, x, y = make_values(1)
    options = {"method": "int8", "calibration": x[:60], "store": store, "publish": False}
    assert compress(version, evaluation=(x, y), **options).score.num_rows == 140
    with pytest.raises(InputError, match="every evaluation row is a calibration row, too"):
        compress(version, evaluation=(x[:60], y[:60]), **options)


def cut(answers):
    """Answers as a model gives them to each row."""
    count = len(next(iter(answers.values())))
    return [{name: array[row : row + 1] for name, array in answers.items()} for row in range(count)]


def judge(before, after, targets=None, *, loss=None, guard=None, framework="torch"):
    """Score hand-made answers of one output, each of them often enough that its rows can be counted."""
    many = [np.concatenate([np.asarray(array)] * 60) for array in (before, after, targets) if array is not None]
    outputs = (cut({"y": answers.astype(np.float32)}) for answers in many[:2])
    evidence = Evidence(*outputs, {} if targets is None else {"y": many[2]}, "evaluation")
    lineage = {"framework": framework, "training": {"loss": loss}} if loss else {}
    version: Any = SimpleNamespace(manifest=SimpleNamespace(lineage=lineage))
    return judge_outputs(evidence, find_meaning(version), guard or Guard())


EYE = np.eye(4)
COLUMN = np.array([[1.0], [-1.0], [2.0], [-2.0]])


@pytest.mark.parametrize(
    ("arguments", "metric", "loss"),
    [
        pytest.param((EYE, EYE[[0, 1, 3, 2]], np.arange(4), "cross_entropy"), "accuracy", 0.5, id="classes"),
        pytest.param((EYE, EYE[[0, 1, 3, 2]], None, "cross_entropy"), "agreement", 0.5, id="classes-without-targets"),
        pytest.param((EYE, EYE[[0, 1, 3, 2]], EYE, {"name": "CategoricalCrossentropy"}), "accuracy", 0.5, id="one-hot"),
        pytest.param((COLUMN, [[1], [1], [2], [-2]], [1, 0, 1, 0], "binary_cross_entropy"), "accuracy", 0.25, id="yes-no"),
        pytest.param(([[0.9], [0.4]], [[0.9], [0.6]], [1, 0], {"name": "BCELoss"}), "accuracy", 0.5, id="probabilities"),
        pytest.param((EYE[:1] + EYE * 0, EYE[:1] + EYE * 0 + 1, None, "cross_entropy"), "fidelity", 16 / 3, id="one-class"),
        pytest.param((COLUMN, COLUMN * 0, COLUMN, "mse"), "r2", 1.0, id="values"),
        pytest.param((COLUMN, COLUMN * 0, COLUMN[:, 0], {"name": "HuberLoss"}), "r2", 1.0, id="framework-loss-of-values"),
        pytest.param((COLUMN + 1000, COLUMN * 0 + 1000, None, None), "fidelity", 1.0, id="far-from-zero"),
        pytest.param((COLUMN, COLUMN * 0 + 5, None, {"name": "mine"}), "fidelity", 11.0, id="unknown-loss"),
        pytest.param((COLUMN * [1e6, 1], COLUMN * [1e6, 0], None, None), "fidelity", 1.0, id="small-column-ruined"),
        pytest.param(
            (COLUMN[:, :, None] * [[[1.0], [1e-6]]], COLUMN[:, :, None] * [[[1.0], [0]]], None, None),
            "fidelity",
            1.0,
            id="middle-axis",
        ),
        pytest.param((np.tile([3, 0], (4, 1)), np.tile([3, 3], (4, 1)), None, None), "fidelity", 2.0, id="zeros-moved"),
        pytest.param((COLUMN, COLUMN * np.nan, None, None), "fidelity", np.nan, id="nan"),
    ],
)
def test_score_follows_from_what_the_outputs_are(arguments, metric, loss):
    before, after, targets, trained = arguments
    score = judge(before, after, targets, loss=trained)
    assert score.metric == metric
    assert score.loss == pytest.approx(loss, rel=1e-6, nan_ok=True)


def test_every_output_is_judged_and_the_worst_counts():
    before = {"y": COLUMN, "label": np.arange(4), "name": np.array(["a", "b", "c", "d"])}
    meaning = find_meaning(SimpleNamespace(manifest=SimpleNamespace(lineage={"training": {"loss": "mse"}})))
    for changed, metric, loss in ((("y", -COLUMN), "fidelity", 4.0), (("label", np.array([0, 1, 2, 2])), "agreement", 0.25)):
        score = judge_outputs(Evidence(cut(before), cut(before | dict([changed])), {}, "golden"), meaning, Guard())
        assert (score.output, score.metric) == (changed[0], metric)
        assert score.loss == pytest.approx(loss, rel=1e-6)
    assert judge_outputs(Evidence(cut(before), cut(before), {}, "golden"), meaning, Guard()).loss == 0


def test_accuracy_of_a_number_whose_meaning_is_unknown_is_refused():
    with pytest.raises(InputError, match="accuracy of a single number"):
        judge(COLUMN, COLUMN, [1, 0, 1, 0], guard=Guard("accuracy"))


def test_what_is_larger_is_refused_with_the_figures(make_regressor, store):
    version, x, y = make_regressor()  # Of so few weights that scales and names take more than is saved.
    options = {"method": "int8", "calibration": x[:100], "evaluation": (x[100:], y[100:]), "store": store}
    with pytest.raises(ConflictError) as caught:
        compress(version, **options)
    assert caught.value.key == "no_gain"
    assert re.search(r"the file is \d+\.\d% larger \(\d+\.\d -> \d+\.\d KiB\)", caught.value.message)
    assert [kept.number for kept in store.list_versions("regressor")] == [1]
    result = compress(version, needs_gain=False, **options)
    assert result.version.number == 2
    assert "larger" in result.gain.losses[0] and "worse: the file is" in describe_result(result)
    assert result.version.manifest.lineage["compression"]["losses"] == result.gain.losses


def make_cost(size_bytes, latency_s, batch_row_s):
    return Cost(size_bytes, 1000, 1.0, latency_s, latency_s, batch_row_s, 32, 0.0)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        pytest.param(make_cost(25, 0.5, 0.5), "75.0% smaller .* alone is 2.00 times faster .* batch of 32 is 2.00", id="all"),
        pytest.param(make_cost(98, 1.05, 0.95), "neither smaller nor faster", id="noise"),
        pytest.param(
            make_cost(25, 1.5, 0.5), "smaller .* batch of 32 is 2.00 times faster .* alone is 1.50 times slower", id="slow"
        ),
        pytest.param(make_cost(101, 0.5, 0.5), "faster .* the file is 1.0% larger", id="large"),
    ],
)
def test_gain_says_what_became_smaller_and_faster_and_what_not(after, said):
    gain = Gain(make_cost(100, 1.0, 1.0), after)
    assert re.search(said, gain.describe())
    assert gain.is_one == (after.size_bytes == 25)


def test_compressed_version_is_not_compressed_again(digits, result):
    with pytest.raises(InputError) as caught:
        compress(result.version, method="int8", calibration=digits.training.x, store=digits.store)
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
        compress("digits@1", method="int8", calibration=calibration, store=digits.store)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


def test_missing_calibration_and_unfit_targets_are_named(digits):
    with pytest.raises(InputError, match="int8 needs calibration rows of model 'digits'"):
        compress("digits@1", method="int8", store=digits.store)
    with pytest.raises(InputError, match="evaluation has 359 rows"):
        compress(
            "digits@1", method="int8", calibration=digits.training.x, evaluation=(digits.testing.x, [1, 2]), store=digits.store
        )


def test_model_without_weights_has_nothing_to_compress(make_regressor, store):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x * self.factor)[:, :1]

    version, x, _ = make_regressor(Scale(), "scale")
    with pytest.raises(InputError, match="finds nothing to work on in the model: it needs an operator of Conv"):
        compress(version, method="int8", calibration=x, store=store)


def test_version_that_may_run_code_is_compressed_only_if_that_is_allowed(digits, store, tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"whatever its maker wrote")
    signature = digits.version.manifest.signature
    version = store.publish(
        "code", {"model.pt2": tmp_path / "model.pt2"}, signature=signature, runtime="torch", entry="model.pt2"
    )
    with pytest.raises(NotAllowedError, match="may run code of its maker"):
        compress(version, data=digits.training.x[:400], store=store)
    with pytest.raises(FaultError):
        compress(version, data=digits.training.x[:400], store=store, allow_code=True)


def test_target_that_this_machine_lacks_is_told(digits):
    with pytest.raises(InputError, match="Unknown target 'tpu'; known: cpu, gpu"):
        compress(digits.version, target="tpu", store=digits.store)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(FaultError, match="has no CUDAExecutionProvider; the package onnxruntime-gpu"):
            compress(digits.version, target="gpu", data=digits.training.x[:400], store=digits.store)


def test_unknown_method_and_bad_parameters_are_named():
    with pytest.raises(InputError, match="Unknown compression method 'int3'; known: bfloat16, distill, dynamic-int8, "):
        get_recipe("int3")
    assert get_recipe("int8") == (Int8(),)
    with pytest.raises(InputError, match=r"int8\.max_calibration_rows"):
        Int8(max_calibration_rows=0)
    with pytest.raises(InputError, match=r"guard\.max_loss"):
        Guard(max_loss=-0.1)
    with pytest.raises(InputError, match="Unknown metric 'f1'"):
        Guard(metric="f1")
