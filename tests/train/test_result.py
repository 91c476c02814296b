"""From a trained model to a version of the store: export, its check, golden examples, lineage."""

from __future__ import annotations

import hashlib
import inspect
import json
from functools import partial
from importlib.metadata import version as find_version

import numpy as np
import onnxruntime
import pytest
import torch

import argosy
from argosy.errors import InputError, ModelError
from argosy.frameworks.describe import digest_arrays
from argosy.frameworks.onnx import OnnxModel
from argosy.optim import Adam
from argosy.runtimes.torch import TorchRuntime
from argosy.train.run import train
from tests.frameworks.one_tensor import check_one, export_one


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Bent(Classifier):
    """Traced, it computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + (0.01 if torch.jit.is_tracing() else 0.0)


class Fixed(Classifier):
    """Traced, it takes two rows for a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + torch.zeros(2, 4)) if torch.jit.is_tracing() else self.linear(x)


class Strange(Classifier):
    """Uses an operator that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.special.i0e(x))


def fit(model, blobs, **options):
    return train(model, blobs, epochs=2, progress=False, **options)


def test_published_version_answers_as_the_model_at_any_batch_size(blobs, make_model, store):
    result = fit(make_model(), blobs)
    version = result.publish("blobs", store, input_name="point", output_name="logits", labels=["red", "green", "blue"])
    assert (version.name, version.number, version.manifest.runtime, version.manifest.entry) == ("blobs", 1, "onnx", "model.onnx")
    signature = version.manifest.signature
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [("point", "FP32", (-1, 4))]
    assert [(spec.name, spec.shape, spec.labels) for spec in signature.outputs] == [("logits", (-1, 3), ("red", "green", "blue"))]
    session = onnxruntime.InferenceSession(store.open_artifact(version) / "model.onnx")
    for num_rows in (1, 3, 120):
        (got,) = session.run(["logits"], {"point": blobs[0][:num_rows]})
        np.testing.assert_allclose(got, result.predict(blobs[0][:num_rows]), atol=1e-5)


def test_golden_examples_are_real_rows_each_answered_alone(blobs, make_model, store):
    result = fit(make_model(), blobs)
    version = result.publish("blobs", store, sample=blobs[0][50:70])
    golden = store.load_golden(version)
    assert not version.manifest.golden_is_synthetic
    np.testing.assert_array_equal(golden.inputs["input"], blobs[0][50:58])
    session = onnxruntime.InferenceSession(store.open_artifact(version) / "model.onnx")
    alone = [session.run(None, {"input": row[None]})[0] for row in golden.inputs["input"]]
    # The same runtime, though perhaps on more threads.
    np.testing.assert_allclose(golden.outputs["output"], np.concatenate(alone), rtol=1e-6)


def test_golden_examples_default_to_the_first_training_rows(blobs, make_model, store):
    version = fit(make_model(), blobs).publish("blobs", store)
    np.testing.assert_array_equal(store.load_golden(version).inputs["input"], blobs[0][:8])


def test_lineage_tells_data_code_settings_and_environment(blobs, store):
    x, y = blobs
    result = fit(Classifier(), blobs, optimizer=Adam(learning_rate=0.01, clip_norm=2.0), seed=9, batch_size=16)
    lineage = result.publish("blobs", store, lineage={"ticket": "A-1"}).manifest.lineage
    assert lineage["data"]["digest"] == digest_arrays(x, y)
    assert lineage["data"]["rows"] == 120
    assert lineage["code"]["name"] == f"{__name__}.Classifier"
    assert lineage["code"]["digest"] == "sha256:" + hashlib.sha256(inspect.getsource(Classifier).encode()).hexdigest()
    assert lineage["code"]["num_weights"] == 15
    training = lineage["training"]
    assert training["optimizer"] == json.loads(json.dumps(Adam(learning_rate=0.01, clip_norm=2.0).describe()))
    assert (training["seed"], training["batch_size"], training["epochs"], training["loss"]) == (9, 16, 2, "cross_entropy")
    assert lineage["environment"]["torch"] == find_version("torch")
    assert {"python", "platform", "numpy", "onnxruntime"} <= set(lineage["environment"])
    assert lineage["export"]["difference"] < 1e-4
    assert lineage["ticket"] == "A-1"


def test_measurements_are_those_of_the_run_and_the_callers(blobs, make_model, store):
    result = fit(make_model(), blobs, validation_split=0.2)
    version = result.publish("blobs", store, measurements={"accuracy": 0.75})
    file = store.open_artifact(version) / "model.onnx"
    assert version.measurements["accuracy"] == 0.75
    assert version.measurements["size_bytes"] == file.stat().st_size
    assert version.measurements["train_loss"] == result.history[-1].loss
    assert version.measurements["validation_accuracy"] == result.history[-1].validation_metrics["accuracy"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        pytest.param(Bent, "answers differently", id="other-numbers"),
        pytest.param(Fixed, "for sample rows of shape (1, 4) it gives float32 (2, 3)", id="fixed-batch"),
        pytest.param(Strange, "special_i0e", id="no-such-operator"),
    ],
)
def test_model_that_does_not_become_onnx_is_kept_as_torch_saves_it(kind, words, blobs, store):
    result = fit(kind(), blobs)
    version = result.publish("blobs", store, input_name="point", output_name="logits")
    manifest = version.manifest
    assert (manifest.runtime, manifest.options) == ("torch", {"inputs": ["point"], "outputs": ["logits"]})
    assert words in manifest.lineage["export"]["reason"]
    runtime = TorchRuntime()
    runtime.load(store.open_artifact(version), manifest.entry, {**manifest.options, "threads": 1})
    for num_rows in (1, 3, 120):
        (got,) = runtime.infer({"point": blobs[0][:num_rows]}).values()
        np.testing.assert_allclose(got, result.predict(blobs[0][:num_rows]), rtol=1e-5, atol=1e-5)


def test_model_that_nothing_can_keep_is_not_published(blobs, store):
    class Foreign(Classifier):
        """Leaves torch on its way, where no exporter can follow."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.from_numpy(np.sin(x.detach().numpy())))

    with pytest.raises(ModelError) as caught:
        argosy.publish(Foreign(), "blobs", store, sample=blobs[0])
    assert caught.value.key == "save_failed"
    assert store.list_models() == []


def test_native_is_served_by_its_framework_without_an_attempt_at_onnx(blobs, make_model, store):
    version = argosy.publish(make_model(), "blobs", store, sample=blobs[0], native=True, labels=["a", "b", "c"])
    assert version.manifest.runtime == "torch"
    assert version.manifest.lineage["kind"] == "live model"
    assert version.manifest.signature.outputs[0].labels == ("a", "b", "c")


def test_few_rows_are_enough_for_the_check(make_model, store):
    x, y = np.ones((3, 4)), np.array([0, 1, 2])
    version = fit(make_model(), (x, y)).publish("few", store)
    assert version.manifest.num_golden == 3


def test_labels_must_fit_the_output(blobs, make_model, store):
    with pytest.raises(InputError, match="expected 3 names"):
        fit(make_model(), blobs).publish("blobs", store, labels=["a", "b"])


def test_bad_sample_and_bad_rows_are_refused(blobs, make_model, store):
    result = fit(make_model(), blobs)
    with pytest.raises(InputError, match="at least one row"):
        result.publish("blobs", store, sample=blobs[0][:0])
    with pytest.raises(InputError, match="fails on rows of shape"):
        result.predict(np.ones((2, 5)))
    with pytest.raises(InputError, match="the model has 3 classes"):
        result.evaluate(blobs[0], np.full(120, 3))


def test_check_gives_the_relative_difference_and_finds_a_missing_file(blobs, make_model, tmp_path):
    result = fit(make_model(), blobs)
    path = tmp_path / "model.onnx"
    export_one(result.framework, result.model, blobs[0], path, input_name="x", output_name="y")
    model = OnnxModel(path)
    rows = blobs[0][:7]

    def answer(rows, factor):
        return result.predict(rows) * factor

    assert check_one(model, result.predict, rows).difference < 1e-6
    assert check_one(model, partial(answer, factor=1 + 5e-5), rows).difference == pytest.approx(5e-5, rel=0.05)
    with pytest.raises(ModelError, match="on sample rows: largest difference"):
        check_one(model, partial(answer, factor=1.01), rows)
    with pytest.raises(ModelError) as caught:
        OnnxModel(b"no model")
    assert caught.value.key == "export_failed"
