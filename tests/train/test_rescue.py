"""Batches that would ruin a run are left out, and the run ends as if they had not been there; schedules that watch a measure."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from argosy.errors import InputError, ModelError
from argosy.optim import SGD, Adam, OneCycle, ReduceOnPlateau
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train


def weights_of(model):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in model.state_dict().values()])


def make_data(poison=None, place=61):
    """Two classes, and a row that ruins the weights of whoever follows it."""
    random = np.random.default_rng(2)
    x = random.normal(size=(400, 4)).astype(np.float32)
    y = (x @ np.array([1.0, -1.0, 2.0, 0.5]) > 0).astype(np.int64)
    if poison is not None:
        x[place] = poison
    return x, y


class Poisoned(torch.utils.data.Dataset):
    def __init__(self, poison, place=61):
        self.x, self.y = make_data()
        self.poison, self.place = poison, place

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return (np.full(4, self.poison, np.float32) if row == self.place else self.x[row]), self.y[row]


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


class Raw(torch.nn.Linear):
    """Nothing bounds what it gives."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(4, 2)


class Cliff(Raw):
    """Whatever a step makes of its weights, it gives no numbers any more."""

    def __init__(self):
        super().__init__()
        self.start = self.weight.detach().clone()

    def forward(self, x):
        return super().forward(x) if torch.equal(self.weight, self.start) else super().forward(x) * math.nan


def run(model, poison, **options):
    loader = torch.utils.data.DataLoader(Poisoned(poison), batch_size=10)
    return train(model, loader, validation_data=make_data(), progress=False, **{"epochs": 3, "optimizer": "adam", **options})


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e6], ids=["nan", "infinite", "huge"])
@pytest.mark.parametrize("make", [make_model, Raw], ids=["normalised", "raw"])
def test_ruinous_batch_is_left_out(poison, make, caplog):
    if poison == 1e6 and make is make_model:
        pytest.skip("batch normalisation bears it")
    caplog.set_level(logging.WARNING)
    result, clean = run(make(), poison, epochs=8, optimizer=Adam(learning_rate=0.02)), train(
        make(), make_data(), batch_size=10, epochs=8, optimizer=Adam(learning_rate=0.02), shuffle=False, progress=False
    )  # fmt: skip
    accuracies = [one.evaluate(*make_data())["accuracy"] for one in (result, clean)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)
    assert [(skip.epoch, skip.batch, skip.step) for skip in result.skipped[:2]] == [(1, 6, 7), (2, 6, 46)]
    assert "batch 6 of epoch 1 is left out" in caplog.text
    lineage = result.describe_lineage()["training"]["skipped"]
    assert lineage[0]["batch"] == 6 and lineage[0]["rate_factor"] == 0.5
    assert np.isfinite(weights_of(result.model)).all()


@pytest.mark.parametrize("place", [1, 11, 21], ids=["first", "second", "third"])
@pytest.mark.parametrize("rule", [SGD(learning_rate=0.1), Adam(learning_rate=0.02)], ids=["sgd", "adam"])
@pytest.mark.parametrize("poison", [1e6, 1e30], ids=["large", "huge"])
def test_huge_batch_among_the_first_is_left_out(place, rule, poison):
    loader = torch.utils.data.DataLoader(Poisoned(-poison if make_data()[1][place] else poison, place), batch_size=10)
    options = {"optimizer": rule, "epochs": 4, "progress": False}
    result = train(Raw(), loader, **options)
    clean = train(Raw(), make_data(), batch_size=10, shuffle=False, **options)
    accuracies = [one.evaluate(*make_data())["accuracy"] for one in (result, clean)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03) and accuracies[1] > 0.9
    assert (result.skipped[0].epoch, result.skipped[0].batch) == (1, place // 10) and result.skipped[0].loss > 1e4


@pytest.mark.parametrize("batch_size", [10, 400], ids=["batches", "one-batch"])
def test_losses_that_are_large_by_nature_are_not_doubted_for_long(batch_size):
    x, y = make_data()
    models = [Raw(), Raw()]
    for model, rescue in zip(models, (True, False), strict=True):
        data, rule = (x, 1e4 * np.stack([y, -y], 1).astype(np.float32)), SGD(learning_rate=0.01)
        result = train(model, data, loss="mse", optimizer=rule, batch_size=batch_size, epochs=2, rescue=rescue, progress=False)
        assert result.skipped == () and result.history[0].loss > 1e6
    np.testing.assert_array_equal(*map(weights_of, models))


def test_state_goes_back_to_the_one_before_the_batch():
    left_out = torch.utils.data.DataLoader(
        Poisoned(np.nan), batch_sampler=[range(b, b + 10) for b in range(0, 400, 10) if b != 60]
    )
    model, other = make_model(), make_model()
    run(model, np.nan, optimizer=SGD(learning_rate=0.1), epochs=1)
    train(other, left_out, optimizer=SGD(learning_rate=Dropped(0.1, 6)), epochs=1, progress=False)
    np.testing.assert_array_equal(weights_of(model), weights_of(other))


class Dropped(OneCycle):
    """Half the rate after some steps."""

    def rate_at(self, step):
        return self.learning_rate * (1.0 if step <= self.steps else 0.5)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "torch's"])
def test_run_with_a_rescue_resumes_bit_for_bit(own, tmp_path):
    def fit(folder, epochs, *, every_steps=None, resume=False):
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01) if own else Adam(learning_rate=0.01)
        plan = Checkpoints(folder=tmp_path / folder, every_steps=every_steps, every_s=None)
        return run(model, np.nan, optimizer=optimizer, epochs=epochs, checkpoints=plan, resume=resume)

    whole = fit("whole", 3)
    fit("broken", 1, every_steps=7)
    again = fit("broken", 3, resume=True)
    np.testing.assert_array_equal(weights_of(again.model), weights_of(whole.model))
    assert again.skipped == whole.skipped and len(whole.skipped) == 3


def test_without_rescue_the_run_ends_at_the_batch():
    with pytest.raises(ModelError) as caught:
        run(make_model(), np.nan, rescue=False)
    assert caught.value.key == "not_finite" and caught.value.fields["step"] == 7


def test_batch_that_ruins_the_weights_is_found_by_those_after_it():
    """Its own loss is small; by its gradient every later one is huge."""
    calls = []

    def loss(outputs, targets):
        calls.append(len(calls))
        value = torch.nn.functional.cross_entropy(outputs, targets)
        return value + (1e6 * (outputs[:, 0].sum() - outputs[:, 0].sum().detach()) if bool((targets == 7).any()) else 0.0)

    x, y = make_data()
    y[200] = 7
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 8)
    result = train(
        model, (x, y), loss=loss, optimizer=SGD(learning_rate=0.1), batch_size=10, epochs=1, shuffle=False, progress=False
    )
    assert [skip.batch for skip in result.skipped] == [20]
    assert math.isfinite(result.history[0].loss) and result.history[0].loss < 3


def test_weights_that_every_batch_ruins_end_the_run(tmp_path):
    with pytest.raises(ModelError) as caught:
        train(Cliff(), make_data(), optimizer="sgd", checkpoints=tmp_path, progress=False)
    assert caught.value.key == "not_finite"
    assert any(tmp_path.glob("step-*.npz"))


def test_run_whose_every_batch_is_bad_ends_at_the_first_of_them(tmp_path):
    calls = []

    def loss(outputs, targets):
        calls.append(0)
        return torch.nn.functional.cross_entropy(outputs, targets) * (math.nan if len(calls) > 5 else 1.0)

    with pytest.raises(ModelError) as caught:
        train(Raw(), make_data(), loss=loss, metrics=(), checkpoints=tmp_path, progress=False)
    assert caught.value.key == "not_finite" and caught.value.fields["what"] == "loss"
    assert any(tmp_path.glob("step-*.npz"))


def test_rate_falls_on_a_plateau_and_what_was_seen_is_kept(tmp_path):
    x, y = make_data()
    noise = np.random.default_rng(5).integers(0, 2, 400)

    def fit(folder, epochs, resume=False):
        model = make_model()
        rule = SGD(learning_rate=ReduceOnPlateau(0.5, factor=0.1, patience=1, watch="validation_loss"))
        options = {"checkpoints": tmp_path / folder, "resume": resume, "validation_data": (x, noise)}
        return train(model, (x, y), optimizer=rule, epochs=epochs, progress=False, **options)

    whole = fit("whole", 8)
    fit("broken", 3)
    np.testing.assert_array_equal(weights_of(fit("broken", 8, resume=True).model), weights_of(whole.model))
    # With a hundredth of the rate the weights hardly move any more.
    losses = [epoch.loss for epoch in whole.history]
    assert abs(losses[-1] - losses[-2]) < abs(losses[1] - losses[0]) / 10
    assert whole.settings.optimizer["learning_rate"]["name"] == "reduce_on_plateau"
    with pytest.raises(InputError, match=r"`reduce_on_plateau.watch` is 'f1', expected what the run measures: accuracy, loss"):
        train(make_model(), (x, y), optimizer=SGD(learning_rate=ReduceOnPlateau(0.5, watch="f1")), progress=False)


def test_one_cycle_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=50)
    ours = OneCycle(0.1, steps=50)
    for step in range(1, 51):
        assert ours.rate_at(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < 50:
            theirs.step()
