"""What `train` can be asked for beside the basics: own losses and optimizers, stopping, pieces, precision, logs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from argosy.errors import InputError
from argosy.optim import SGD, Adam, Genetic, RandomSearch
from argosy.train.run import train


def weights_of(model):
    return np.concatenate([tensor.numpy().ravel() for tensor in model.state_dict().values()])


def plain_loop(model, data, loss, optimizer, *, batch_size, epochs):
    """What a user of torch writes by hand."""
    x, y = (torch.from_numpy(np.asarray(part)) for part in data)
    for _ in range(epochs):
        for start in range(0, len(x), batch_size):
            optimizer.zero_grad()
            loss(model(x[start : start + batch_size]), y[start : start + batch_size]).backward()
            optimizer.step()


def make_linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(4, 3)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, nesterov=True), id="sgd"),
        pytest.param(lambda w: torch.optim.Adam(w, lr=0.01), id="adam"),
        pytest.param(lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1), id="adamw"),
    ],
)
def test_own_loss_and_optimizer_run_as_they_are(make_optimizer, blobs, tmp_path):
    ours, theirs = make_linear(), make_linear()
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    plain_loop(theirs, blobs, loss, make_optimizer(theirs.parameters()), batch_size=32, epochs=3)
    result = train(
        ours,
        blobs,
        loss=loss,
        optimizer=make_optimizer(ours.parameters()),
        epochs=3,
        shuffle=False,
        metrics=("accuracy",),
        progress=False,
    )
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), atol=1e-6)
    lineage = result.describe_lineage()["training"]
    assert lineage["loss"]["name"] == "CrossEntropyLoss"
    assert lineage["loss"]["label_smoothing"] == 0.1
    assert lineage["optimizer"]["name"].startswith("torch.optim.")
    assert lineage["optimizer"]["lr"] in (0.1, 0.01)
    assert result.history[-1].metrics["accuracy"] > 0.5
    # Resumed from the first epoch, with a new optimizer object, it ends in the same place.
    half, again = make_linear(), make_linear()
    options = {"loss": loss, "shuffle": False, "progress": False, "checkpoints": tmp_path}
    train(half, blobs, optimizer=make_optimizer(half.parameters()), epochs=1, **options)
    train(again, blobs, optimizer=make_optimizer(again.parameters()), epochs=3, resume=True, **options)
    np.testing.assert_array_equal(weights_of(again), weights_of(ours))


def test_probabilities_are_judged_at_one_half():
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Sigmoid())
    result = train(model, (x, y), loss=torch.nn.BCELoss(), optimizer="adam", metrics=("accuracy",), epochs=1, progress=False)
    expected = np.mean((result.predict(x)[:, 0] > 0.5) == y)
    assert result.evaluate(x, y)["accuracy"] == pytest.approx(expected)
    assert 0 < expected < 1


def test_own_parts_of_another_model_or_framework_are_refused(blobs, make_model):
    strange = torch.optim.SGD(make_linear().parameters(), lr=0.1)
    with pytest.raises(InputError, match="over this model's parameters"):
        train(make_model(), blobs, optimizer=strange, progress=False)
    with pytest.raises(InputError, match="an optimizer of torch"):
        train(make_model(), blobs, optimizer=object(), progress=False)
    with pytest.raises(InputError, match="a loss of torch"):
        train(make_model(), blobs, loss=object(), progress=False)


@pytest.mark.parametrize("size", [1, 7, 32, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(size, blobs):
    pieces, whole = make_linear(), make_linear()
    options = {"optimizer": Adam(learning_rate=0.02, clip_norm=0.5), "batch_size": 50, "epochs": 3, "progress": False}
    left = train(pieces, blobs, micro_batch_size=size, **options)
    right = train(whole, blobs, **options)
    np.testing.assert_allclose(weights_of(pieces), weights_of(whole), atol=2e-6)
    assert left.history[-1].loss == pytest.approx(right.history[-1].loss, rel=1e-5)
    # A matrix product rounds by the number of its rows: one of the 120 may lie on the border of two classes.
    assert left.history[-1].metrics == pytest.approx(right.history[-1].metrics, abs=1 / 120 + 1e-9)


def test_patience_ends_the_run_and_gives_back_the_best_weights():
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 30)).astype(np.float32), random.integers(0, 2, 40)  # noise: it can only be learnt by heart
    model = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    result = train(
        model,
        (x, y),
        optimizer=Adam(learning_rate=0.01),
        epochs=200,
        patience=5,
        validation_split=0.5,
        batch_size=10,
        progress=False,
    )
    losses = [epoch.validation_loss for epoch in result.history]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 5 < 200
    kept = np.random.default_rng(0).permutation(40)[:20]
    assert result.evaluate(x[np.sort(kept)], y[np.sort(kept)])["loss"] == pytest.approx(losses[best], rel=1e-5)


def test_tolerance_ends_a_run_that_has_converged():
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5]) + 3.0 + 0.1 * random.normal(size=64)
    model = torch.nn.Linear(3, 1)
    result = train(
        model,
        (x, y),
        loss="half_mse",
        optimizer=SGD(learning_rate=0.2),
        batch_size=64,
        epochs=None,
        tolerance=1e-6,
        progress=False,
    )
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(64)]), y, rcond=None)[0]
    np.testing.assert_allclose(model.weight.detach().numpy()[0], exact[:3], atol=1e-3)
    assert 10 < len(result.history) < 500
    with pytest.raises(InputError, match="with a tolerance or a patience"):
        train(model, (x, y), loss="mse", epochs=None, progress=False)


def test_half_mse_has_the_gradient_of_the_textbook():
    x, y = np.random.default_rng(0).normal(size=(12, 3)), np.random.default_rng(1).normal(size=(12, 2))
    model = torch.nn.Linear(3, 2, bias=False).double()
    before = model.weight.detach().numpy().copy()
    train(
        model, (x, y), loss="half_mse", optimizer=SGD(learning_rate=1.0), batch_size=12, epochs=1, shuffle=False, progress=False
    )
    gradient = x.T @ (x @ before.T - y) / 12
    np.testing.assert_allclose(model.weight.detach().numpy(), before - gradient.T, atol=1e-12)


def test_model_in_double_precision_trains_and_answers_in_it(blobs, store):
    model = make_linear().double()
    result = train(model, blobs, epochs=1, progress=False)
    assert model.weight.dtype == torch.float64
    assert result.predict(blobs[0]).dtype == np.float64
    version = result.publish("double", store)
    assert [spec.datatype for spec in version.manifest.signature.inputs + version.manifest.signature.outputs] == ["FP64", "FP64"]


def test_mixed_precision_computes_products_in_bfloat16_and_keeps_the_weights(blobs, make_model):
    seen = []

    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make_model()

        def forward(self, x):
            outputs = self.model(x)
            seen.append(outputs.dtype)
            return outputs

    model = Watched()
    result = train(model, blobs, optimizer=Adam(learning_rate=0.02), epochs=20, precision="bfloat16", progress=False)
    assert torch.bfloat16 in seen and model.model[0].weight.dtype == torch.float32
    assert result.evaluate(*blobs)["accuracy"] == 1.0
    with pytest.raises(InputError, match="`precision` is 'float16'"):
        train(make_model(), blobs, precision="float16", progress=False)


@pytest.mark.parametrize("optimizer", [RandomSearch(scale=0.3), Genetic(scale=0.3)], ids=lambda o: o.name)
def test_small_model_is_fitted_without_a_gradient(optimizer, blobs):
    model = make_linear()
    result = train(model, blobs, optimizer=optimizer, batch_size=120, epochs=60, seed=3, progress=False)
    assert result.history[-1].loss < result.history[0].loss / 3
    assert result.evaluate(*blobs)["accuracy"] > 0.95
    again = make_linear()
    train(again, blobs, optimizer=optimizer, batch_size=120, epochs=60, seed=3, progress=False)
    np.testing.assert_array_equal(weights_of(again), weights_of(model))
    with pytest.raises(InputError, match=f"None with {optimizer.name}"):
        train(model, blobs, optimizer=optimizer, precision="bfloat16", progress=False)


def test_curves_are_written_for_tensorboard(blobs, make_model, tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    result = train(make_model(), blobs, epochs=3, batch_size=8, validation_split=0.2, tensorboard=tmp_path, progress=False)
    (file,) = tmp_path.iterdir()
    data, events = file.read_bytes(), []
    while data:  # TFRecord: length, checksum, event, checksum.
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    curves = {}
    for event in events:
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert [step for step, _ in curves["step/loss"]] == [10, 20, 30]
    for tag, expected in {
        "epoch/loss": [epoch.loss for epoch in result.history],
        "epoch/validation_accuracy": [epoch.validation_metrics["accuracy"] for epoch in result.history],
    }.items():
        assert [step for step, _ in curves[tag]] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in curves[tag]], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"workers": 0}, "`workers` is 0, expected", id="workers"),
        pytest.param({"resume": True}, "False without checkpoints", id="resume"),
        pytest.param({"patience": 0}, "`patience` is 0", id="patience"),
        pytest.param({"tolerance": -1.0}, "`tolerance` is -1.0", id="tolerance"),
        pytest.param({"micro_batch_size": 0}, "`micro_batch_size` is 0", id="micro-batch"),
        pytest.param({"metrics": "accuracy"}, "a sequence of names", id="metrics"),
        pytest.param(
            {"loss": torch.nn.CrossEntropyLoss(reduction="sum"), "micro_batch_size": 2}, "mean, with micro-batches", id="sum"
        ),
    ],
)
def test_bad_options_are_named(options, words, blobs, make_model):
    model = make_model()
    with pytest.raises(InputError) as caught:
        train(model, blobs, progress=False, **options)
    assert words in caught.value.message
    np.testing.assert_array_equal(weights_of(model), weights_of(make_model()))


def test_lineage_holds_the_tensors_of_a_loss_and_all_groups_of_an_optimizer(blobs, make_model):
    def run(weight, rate):
        model = make_model()
        loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weight))
        groups = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": rate}]
        result = train(model, blobs, loss=loss, optimizer=torch.optim.SGD(groups, lr=torch.tensor(0.1)), epochs=1, progress=False)
        return result.describe_lineage()["training"]

    plain, weighted, faster = run([1.0, 1.0, 1.0], 0.1), run([1.0, 2.0, 1.0], 0.1), run([1.0, 1.0, 1.0], 0.5)
    assert weighted["loss"]["weight"]["shape"] == [3] and weighted["loss"]["weight"]["digest"].startswith("sha256:")
    assert plain["loss"] != weighted["loss"] and plain["optimizer"] == weighted["optimizer"]
    assert faster["optimizer"]["lr"] == pytest.approx(0.1) and faster["optimizer"]["groups"][0]["lr"] == 0.5
    json.dumps([plain, weighted, faster])


def test_lineage_of_a_loss_of_ones_own_holds_its_code_and_what_it_uses(blobs, make_model):
    def make_loss(factor):
        return lambda outputs, y: factor * torch.nn.functional.cross_entropy(outputs, y)

    def squared(outputs, y):
        return torch.nn.functional.cross_entropy(outputs, y) ** 2

    losses = [make_loss(1.0), make_loss(1.0), make_loss(2.0), squared]
    told = [train(make_model(), blobs, loss=loss, epochs=1, progress=False).settings.loss for loss in losses]
    assert told[0] == told[1]
    assert len({json.dumps(one) for one in told}) == 3
    assert told[2]["uses"] == {"factor": 2.0}


@pytest.mark.parametrize("method", ["training_step", "train_step"])
def test_module_that_says_itself_how_it_is_trained_is_refused(method, blobs, make_model):
    kind = type("Own", (torch.nn.Sequential,), {method: lambda self, batch: None})
    with pytest.raises(InputError, match=f"says by `{method}` how it is trained") as caught:
        train(kind(make_model()), blobs, progress=False)
    assert caught.value.key == "own_training" and "argosy.publish" in caught.value.hint
