from __future__ import annotations

import msgspec
import numpy as np
import pytest

from argosy.errors import InputError
from argosy.optim import SGD, Adam, LinearDecay
from argosy.train.datasets import load_digits
from argosy.train.recipes import count_confusion, get_recipe, load_data_for, run_recipe
from argosy.train.run import count_steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from argosy.store.local import Store

    return run_recipe("digits", seed=0, publish_as="digits", store=Store(tmp_path_factory.mktemp("home")), progress=False)


def test_digits_reaches_975_per_mille_on_rows_it_never_saw(run):
    assert run.test["accuracy"] >= 0.975
    assert run.version.measurements["accuracy"] == run.test["accuracy"]
    assert np.trace(run.confusion) / run.confusion.sum() == pytest.approx(run.test["accuracy"])
    assert run.confusion.sum(axis=1).tolist() == np.bincount(load_digits()[1].y).tolist()
    assert all(epoch.validation_loss is not None for epoch in run.result.history)


def test_digits_version_names_its_tensors_and_recipe(run):
    signature = run.version.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("image", (-1, 1, 8, 8))]
    assert [(spec.name, spec.labels) for spec in signature.outputs] == [("logits", tuple("0123456789"))]
    lineage = run.version.manifest.lineage
    assert lineage["recipe"]["name"] == "digits"
    optimizer = lineage["training"]["optimizer"]
    steps = count_steps(1438, batch_size=32, epochs=20, validation_split=0.05)
    assert (optimizer["name"], optimizer["learning_rate"]["name"], optimizer["learning_rate"]["steps"]) == (
        "adam",
        "linear_decay",
        steps,
    )
    assert 100_000 < lineage["code"]["num_weights"] < 400_000


def test_data_of_a_version_is_found_by_its_lineage(run):
    training, testing = load_data_for(run.version)
    # The run was tested with as many threads as torch chose, here there is one: sums of float32 come in another order, and a row
    # on the border of two classes may fall to either.
    again = run.result.evaluate(*testing)
    assert again["loss"] == pytest.approx(run.test["loss"], rel=1e-5)
    assert again["accuracy"] == pytest.approx(run.test["accuracy"], abs=1 / len(testing.y) + 1e-9)
    assert len(training.x) == run.version.manifest.lineage["data"]["rows"]


def test_data_that_is_not_what_the_version_was_trained_on_is_refused(run):
    lineage = run.version.manifest.lineage | {"data": {"digest": "sha256:0"}}
    version = msgspec.structs.replace(run.version, manifest=msgspec.structs.replace(run.version.manifest, lineage=lineage))
    with pytest.raises(InputError, match="other rows than those that digits@1 was trained on"):
        load_data_for(version)


def test_version_of_no_recipe_has_no_data(run):
    version = msgspec.structs.replace(run.version, manifest=msgspec.structs.replace(run.version.manifest, lineage={}))
    assert load_data_for(version) is None


def test_an_optimizer_object_is_used_as_it_is():
    run = run_recipe("recipe:digits", optimizer=SGD(learning_rate=0.05), epochs=1, progress=False)
    assert run.result.settings.optimizer == SGD(learning_rate=0.05).describe()
    assert (len(run.result.history), run.version) == (1, None)
    named = run_recipe("digits", optimizer="adam", epochs=1, progress=False).result.settings.optimizer
    steps = count_steps(1438, batch_size=32, epochs=1, validation_split=0.05)
    assert named == Adam(learning_rate=LinearDecay(0.001, steps)).describe()


def test_unknown_recipe_and_framework_list_the_known_ones():
    with pytest.raises(InputError, match="Unknown recipe 'letters'; known: digits"):
        get_recipe("recipe:letters")
    with pytest.raises(InputError, match="Unknown framework 'torhc'; known: jax, keras, mxnet, tensorflow, torch"):
        run_recipe("digits", framework="torhc")


def test_confusion_counts_true_against_predicted():
    counts = count_confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
