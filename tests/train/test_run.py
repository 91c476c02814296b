from __future__ import annotations

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from argosy.errors import InputError, ModelError
from argosy.optim import SGD, Adam
from argosy.train.losses import get_loss
from argosy.train.run import count_steps, train


class Watched(torch.nn.Module):
    """Counts the rows of each training step; the first column of a row names it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.batches: list[list[int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(x[:, 0].int().tolist())
        return self.linear(x)


class Root(torch.nn.Module):
    """Its value at 0 is 0, its slope there is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(1, 1, bias=False)
        self.last = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.sqrt(self.first(x) - self.first(x)))


class Log(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x)


def weights_of(model):
    return np.concatenate([tensor.numpy().ravel() for tensor in model.state_dict().values()])


def test_training_reaches_full_accuracy_on_separable_classes(blobs, make_model):
    result = train(make_model(), blobs, optimizer=Adam(learning_rate=0.02), epochs=25, progress=False)
    assert len(result.history) == 25
    assert result.history[-1].loss < result.history[0].loss / 5
    assert result.evaluate(*blobs)["accuracy"] == 1.0
    assert result.predict(blobs[0]).shape == (120, 3)
    assert all(epoch.duration_s > 0 for epoch in result.history)


def test_same_seed_gives_the_same_weights_bit_for_bit(blobs, make_model):
    def run(seed, **options):
        model = make_model()
        before = torch.get_rng_state()
        train(model, blobs, epochs=3, seed=seed, progress=False, **options)
        assert torch.equal(torch.get_rng_state(), before)
        return weights_of(model)

    first = run(5)
    torch.rand(3)
    assert np.array_equal(run(5), first)
    assert not np.array_equal(run(6), first)
    assert not np.array_equal(run(5, shuffle=False), first)


@pytest.mark.parametrize(
    ("loss", "y", "outputs"),
    [
        pytest.param("mse", np.linspace(-1, 1, 50), 1, id="mse"),
        pytest.param("binary_cross_entropy", np.arange(50) % 2, 1, id="binary_cross_entropy"),
        pytest.param("cross_entropy", np.arange(50) % 3, 3, id="cross_entropy"),
    ],
)
def test_epoch_loss_is_the_mean_over_all_rows_with_a_short_last_batch(loss, y, outputs):
    x = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    # A rate this small leaves the weights alone, so that the mean of the batches is the loss of the whole.
    result = train(torch.nn.Linear(4, outputs), (x, y), loss=loss, optimizer=SGD(learning_rate=1e-30), epochs=1, progress=False)
    assert result.history[0].loss == pytest.approx(result.evaluate(x, y)["loss"], rel=1e-5)
    metric = result.settings.metrics[0]
    assert metric == ("mae" if loss == "mse" else "accuracy")
    assert result.history[0].metrics[metric] == pytest.approx(result.evaluate(x, y)[metric], rel=1e-5)


def test_one_step_of_sgd_equals_numpy():
    x, y = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32), np.array([[1.0], [0.5]])
    model = torch.nn.Linear(2, 1)
    w, b = (parameter.detach().numpy().astype(np.float64).copy() for parameter in model.parameters())
    train(model, (x, y), loss="mse", optimizer=SGD(learning_rate=0.1), batch_size=2, epochs=1, progress=False)
    slope = 2 * (x @ w.T + b - y) / 2
    np.testing.assert_allclose(model.weight.detach().numpy(), w - 0.1 * slope.T @ x, atol=1e-6)
    np.testing.assert_allclose(model.bias.detach().numpy(), b - 0.1 * slope.sum(0), atol=1e-6)


def test_every_row_is_taken_once_an_epoch_in_a_new_order():
    model = Watched()
    x = np.stack([np.arange(10), np.ones(10)], axis=1)
    train(model, (x, np.zeros(10)), loss="mse", batch_size=4, epochs=2, progress=False)
    assert [len(batch) for batch in model.batches] == [4, 4, 2, 4, 4, 2]
    assert len(model.batches) == count_steps(10, batch_size=4, epochs=2)
    epochs = [list(itertools.chain(*batches)) for batches in (model.batches[:3], model.batches[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_validation_rows_are_kept_from_training_and_measured():
    model = Watched()
    x = np.stack([np.arange(20), np.ones(20)], axis=1)
    result = train(model, (x, np.zeros(20)), loss="mse", batch_size=6, epochs=2, validation_split=0.3, progress=False)
    trained = set(itertools.chain(*model.batches))
    assert len(trained) == 14
    assert len(model.batches) == count_steps(20, batch_size=6, epochs=2, validation_split=0.3)
    rows = sorted(set(range(20)) - trained)
    expected = get_loss("mse").compute(result.predict(x[rows]), np.zeros((6, 1)))
    assert result.history[-1].validation_loss == pytest.approx(expected, rel=1e-6)
    assert set(result.history[-1].validation_metrics) == {"mae"}


def test_validation_data_is_measured_after_each_epoch(blobs, make_model):
    x, y = blobs
    result = train(make_model(), (x[:90], y[:90]), epochs=2, validation_data=(x[90:], y[90:]), progress=False)
    measured = result.evaluate(x[90:], y[90:])
    assert result.history[-1].validation_loss == pytest.approx(measured["loss"], rel=1e-12)
    assert result.history[-1].validation_metrics == {"accuracy": measured["accuracy"]}
    assert train(make_model(), blobs, epochs=1, progress=False).history[0].validation_loss is None


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        pytest.param({"batch_size": 0}, "bad_option", "`batch_size` is 0", id="batch-size"),
        pytest.param({"batch_size": 2.5}, "bad_option", "`batch_size` is 2.5", id="batch-size-float"),
        pytest.param({"epochs": 0}, "bad_option", "`epochs` is 0", id="epochs"),
        pytest.param({"seed": -1}, "bad_option", "`seed` is -1", id="seed"),
        pytest.param({"num_threads": 0}, "bad_option", "`num_threads` is 0", id="threads"),
        pytest.param({"validation_split": 1.0}, "bad_option", "`validation_split` is 1.0", id="split"),
        pytest.param({"loss": "hinge"}, "unknown_choice", "binary_cross_entropy, cross_entropy, half_mse, mse", id="loss"),
        pytest.param({"metrics": ("f1",)}, "unknown_choice", "accuracy, mae, mse", id="metric"),
        pytest.param({"metrics": ("mae",)}, "bad_option", "suit the loss cross_entropy: accuracy", id="metric-of-other-loss"),
        pytest.param({"optimizer": "adan"}, "unknown_choice", "adam, genetic, momentum", id="optimizer"),
        pytest.param(
            {"validation_split": 0.5, "validation_data": (np.ones((3, 4)), np.zeros(3, int))},
            "bad_option",
            "0 when validation_data is given",
            id="two-validations",
        ),
    ],
)
def test_bad_options_are_refused_before_the_model_is_touched(options, key, words, blobs, make_model):
    model = make_model()
    with pytest.raises(InputError) as caught:
        train(model, blobs, progress=False, **options)
    assert caught.value.key == key
    assert words in caught.value.message
    assert np.array_equal(weights_of(model), weights_of(make_model()))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        pytest.param(np.ones((3, 4)), np.array([0, 1, 3]), "the model has 3 classes", id="label"),
        pytest.param(np.ones((3, 5)), np.array([0, 1, 2]), "the model fails on rows of shape (1, 5)", id="width"),
        pytest.param(np.full((3, 4), np.nan), np.array([0, 1, 2]), "NaN", id="nan"),
        pytest.param(np.ones((3, 4)), np.array([0, 1]), "x has 3 rows", id="rows"),
        pytest.param(np.ones((0, 4)), np.array([], int), "at least one row", id="empty"),
    ],
)
def test_bad_data_is_refused_before_the_model_is_touched(x, y, words, make_model):
    model = make_model()
    with pytest.raises(InputError) as caught:
        train(model, (x, y), progress=False)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message
    assert np.array_equal(weights_of(model), weights_of(make_model()))


def test_model_of_no_framework_is_refused():
    with pytest.raises(InputError, match=r"`model` is 'builtins.dict', expected a model of jax, keras, mxnet, tensorflow, torch"):
        train({}, (np.ones((2, 2)), np.zeros(2)), progress=False)


def test_diverging_run_stops_at_the_step_and_names_the_layer():
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with pytest.raises(ModelError) as caught:
        train(model, (x, x.sum(1)), loss="mse", optimizer=SGD(learning_rate=1e12), batch_size=8, progress=False)
    assert caught.value.key == "not_finite"
    assert 1 < caught.value.fields["step"] <= 8
    assert caught.value.fields["where"] in {" in layer 0", " in layer 2"}
    assert "1000000000000" in caught.value.hint


def test_loss_that_is_not_finite_names_the_layer_that_made_it():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Log(), torch.nn.Linear(2, 1))
    torch.nn.init.constant_(model[0].weight, -1.0)
    with pytest.raises(ModelError, match="stopped at step 1: the loss is not finite in layer 1"):
        train(model, (np.ones((4, 2)), np.ones(4)), loss="mse", progress=False)


def test_gradient_that_is_not_finite_names_the_layer_and_leaves_the_weights():
    model = Root()
    before = weights_of(model)
    with pytest.raises(ModelError, match="stopped at step 1: the gradient is not finite in layer first"):
        train(model, (np.ones((4, 1)), np.ones(4)), loss="mse", progress=False)
    assert np.array_equal(weights_of(model), before)


def test_weights_that_the_last_step_made_infinite_are_found():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ModelError, match="step 1: the weight is not finite in layer weight"):
        train(model, (np.full((2, 1), 1e3), np.zeros(2)), loss="mse", optimizer=SGD(learning_rate=1e38), epochs=1, progress=False)


def test_progress_is_a_line_an_epoch_on_stderr_away_from_a_terminal(blobs, make_model, capsys):
    train(make_model(), blobs, epochs=2, validation_split=0.2)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    assert all(word in lines[1] for word in ("accuracy", "validation loss", "validation accuracy", " s"))


def test_line_of_an_epoch_tells_of_validation_rows_without_a_loss(blobs, make_model, capsys):
    def step(model, batch, fit):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def share(outputs, targets):
        return (outputs.argmax(1) == targets).mean()

    train(make_model(), blobs, step=step, metrics={"share": share}, validation_data=blobs, epochs=1)
    assert re.search(r"epoch 1/1  loss \d\.\d+  validation share [01]\.\d+  ", capsys.readouterr().err)


def test_progress_is_a_bar_on_a_terminal(blobs, make_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    train(make_model(), blobs, epochs=2, batch_size=60)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "epoch 2/2" in shown


def test_progress_false_shows_nothing(blobs, make_model, capsys):
    train(make_model(), blobs, epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_importing_train_and_compress_imports_no_framework():
    code = (
        "import sys, argosy.train, argosy.compress; print({'torch', 'sklearn', 'matplotlib', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
