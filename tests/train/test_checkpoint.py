"""Checkpoints through `train`: resumed runs end as undisturbed ones, and what is damaged or strange is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from argosy.errors import ConflictError, InputError, ModelError, StoreError
from argosy.optim import SGD, Adam, Genetic, RandomSearch
from argosy.train.checkpoint import Checkpoints, read_checkpoint
from argosy.train.run import train
from tests.frameworks import small_run
from tests.frameworks.small_run import write_data
from tests.scripts import ROOT


def weights_of(model):
    return np.concatenate([tensor.numpy().ravel() for tensor in model.state_dict().values()])


def fit(model, data, folder, **options):
    plan = Checkpoints(folder=folder, every_steps=options.pop("every_steps", 1), every_s=None, keep=options.pop("keep", 3))
    return train(model, data, checkpoints=plan, progress=False, **{"batch_size": 30, "epochs": 4, **options})


class Interrupt(torch.nn.Module):
    """Ends the run by an exception at one forward pass, as a kill would, but within this process."""

    def __init__(self, model, after):
        super().__init__()
        self.model, self.left = model, after

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.model(x)


@pytest.mark.parametrize(
    "optimizer", [Adam(learning_rate=0.02), Genetic(population=6), RandomSearch(tries=3)], ids=lambda o: o.name
)
@pytest.mark.parametrize("after", [1, 5, 8, 15])
def test_resumed_run_ends_as_an_undisturbed_one(optimizer, after, blobs, make_model, tmp_path):
    whole = Interrupt(make_model(), 0)
    expected = fit(whole, blobs, tmp_path / "whole", optimizer=optimizer, validation_split=0.2)
    broken = Interrupt(make_model(), after)
    if not isinstance(optimizer, Adam):
        broken.left = 0
        fit(broken, blobs, tmp_path / "broken", optimizer=optimizer, validation_split=0.2, epochs=(after + 3) // 4)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(broken, blobs, tmp_path / "broken", optimizer=optimizer, validation_split=0.2)
    fresh = Interrupt(make_model(), 0)
    got = fit(fresh, blobs, tmp_path / "broken", optimizer=optimizer, validation_split=0.2, resume=True)
    np.testing.assert_array_equal(weights_of(fresh), weights_of(whole))
    assert [(e.loss, e.metrics, e.validation_loss) for e in got.history] == [
        (e.loss, e.metrics, e.validation_loss) for e in expected.history
    ]
    assert got.num_steps == expected.num_steps


@pytest.mark.parametrize("data", ["memory", pytest.param("stream", marks=pytest.mark.needs("pyarrow"))])
@pytest.mark.parametrize("framework", ["torch"])
def test_killed_run_resumes_bit_for_bit(framework, data, tmp_path):
    """A run that nothing kills, in this process, is what one comes to that goes on in another process than it began in."""
    rows = [tmp_path / "rows"] if data == "stream" else []
    if rows:
        write_data(tmp_path / "rows")

    def start(pause_s):
        words = ["tests.frameworks.small_run", framework, str(tmp_path / "killed"), str(pause_s), *map(str, rows)]
        return subprocess.Popen([sys.executable, "-W", "ignore", "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    killed = start(0.05)
    while not (tmp_path / "killed" / "step-000000009.npz").exists():
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    expected = small_run.run(framework, tmp_path / "whole", *rows)
    assert start(0).communicate(timeout=60)[0].strip() == expected


def test_last_few_and_the_best_are_kept(blobs, make_model, tmp_path):
    result = fit(make_model(), blobs, tmp_path, keep=2, validation_split=0.25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.npz", "lock", "step-000000011.npz", "step-000000012.npz"]
    assert result.checkpoint == tmp_path / "step-000000012.npz"
    state, meta = read_checkpoint(result.checkpoint)
    assert meta["progress"]["step"] == result.num_steps == 12
    np.testing.assert_array_equal(state["weights/0.weight"], result.model[0].weight.detach().numpy())


def test_longer_run_goes_on_where_the_shorter_one_ended(blobs, make_model, tmp_path):
    fit(make_model(), blobs, tmp_path / "a", epochs=2)
    longer = make_model()
    fit(longer, blobs, tmp_path / "a", epochs=4, resume=True)
    whole = make_model()
    fit(whole, blobs, tmp_path / "b", epochs=4)
    np.testing.assert_array_equal(weights_of(longer), weights_of(whole))


def test_checkpoints_that_are_there_are_neither_mixed_nor_lost(blobs, make_model, tmp_path):
    fit(make_model(), blobs, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")}
    with pytest.raises(ConflictError) as caught:
        fit(make_model(), blobs, tmp_path)
    assert caught.value.key == "checkpoints_exist"
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")} == before
    result = fit(make_model(), blobs, tmp_path, resume="restart", epochs=1)
    assert result.num_steps == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"optimizer": SGD()}, "its optimizer is", id="optimizer"),
        pytest.param({"seed": 5}, "its seed is 0", id="seed"),
        pytest.param({"batch_size": 20}, "its batch_size is 30", id="batch-size"),
    ],
)
def test_checkpoint_of_another_run_is_refused(options, words, blobs, make_model, tmp_path):
    fit(make_model(), blobs, tmp_path)
    model = make_model()
    with pytest.raises(InputError) as caught:
        fit(model, blobs, tmp_path, resume=True, **options)
    assert caught.value.key == "bad_checkpoint"
    assert words in caught.value.message
    np.testing.assert_array_equal(weights_of(model), weights_of(make_model()))


def test_checkpoint_of_other_data_is_refused(blobs, make_model, tmp_path):
    fit(make_model(), blobs, tmp_path)
    with pytest.raises(InputError, match="its data is"):
        fit(make_model(), (blobs[0] + 1, blobs[1]), tmp_path, resume=True)


def test_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(blobs, make_model, tmp_path, caplog):
    fit(make_model(), blobs, tmp_path, epochs=3)
    newest = sorted(tmp_path.glob("step-*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:-200])
    resumed, whole = make_model(), make_model()
    fit(resumed, blobs, tmp_path, resume=True)
    fit(whole, blobs, tmp_path / "whole")
    np.testing.assert_array_equal(weights_of(resumed), weights_of(whole))
    assert newest.name in caplog.text


def test_folder_of_damaged_checkpoints_is_an_error_not_a_new_run(blobs, make_model, tmp_path):
    fit(make_model(), blobs, tmp_path)
    for path in tmp_path.glob("step-*.npz"):
        path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="cannot be read"):
        fit(make_model(), blobs, tmp_path, resume=True)


def test_pickle_in_a_checkpoint_is_not_opened(tmp_path):
    marker = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = tmp_path / "step-000000001.npz"
    np.savez(path, meta=np.array(json.dumps({"run": {}, "progress": {}})), bomb=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path)
    assert not marker.exists()


def test_two_runs_do_not_share_a_folder(blobs, make_model, tmp_path):
    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make_model()

        def forward(self, x):
            if self.training:
                with pytest.raises(ConflictError, match="Another run writes"):
                    fit(make_model(), blobs, tmp_path, resume=True)
            return self.model(x)

    fit(Nested(), blobs, tmp_path, epochs=1, batch_size=120)


def test_state_before_a_loss_that_is_not_finite_is_kept(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with pytest.raises(ModelError) as caught:
        fit(model, (x, x.sum(1)), tmp_path, loss="mse", optimizer=SGD(learning_rate=1e12), batch_size=8, every_steps=1000)
    step = caught.value.fields["step"]
    assert f"kept in {tmp_path}/step-{step - 1:09d}.npz" in caught.value.message
    state, _ = read_checkpoint(tmp_path / f"step-{step - 1:09d}.npz")
    assert all(np.isfinite(array).all() for array in state.values())


def test_full_disk_is_told_and_leaves_what_was_kept(blobs, make_model, tmp_path, monkeypatch):
    fit(make_model(), blobs, tmp_path, epochs=1)

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(Exception, match="No space left") as caught:
        fit(make_model(), blobs, tmp_path, resume=True)
    assert getattr(caught.value, "key", "") == "disk_full"
    assert len(list(tmp_path.glob("step-*.npz"))) == 3


@pytest.mark.parametrize("options", [{"every_steps": 0}, {"every_s": 0.0}, {"keep": 0}], ids=str)
def test_bad_plan_is_refused(options, tmp_path):
    with pytest.raises(InputError, match=f"checkpoints.{next(iter(options))}"):
        Checkpoints(folder=tmp_path, **options)


class Rated(torch.nn.Module):
    """A model with a setting of its own, in a name that only its code knows, and a count of its passes."""

    def __init__(self, model, rate, function):
        super().__init__()
        self.model, self._rate, self.function, self.passes = model, rate, function, 0

    def forward(self, x):
        self.passes += 1
        return self.function(self.model(x)) * self._rate


def make_rated(make_model, rate=1.0, function=torch.nn.functional.softplus):
    return Rated(make_model(), rate, function)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda model: model.model[2].__init__(0.3), r"program.model.2.p is 0.2, that of this run 0.3", id="dropout"),
        pytest.param(lambda model: model.model.__setitem__(1, torch.nn.Tanh()), r"program.model.1.name is .*ReLU", id="layer"),
        pytest.param(lambda model: setattr(model, "_rate", 0.5), r"program._rate is 1.0, that of this run 0.5", id="attribute"),
        pytest.param(lambda model: setattr(model, "function", torch.tanh), r"program.function is .*softplus", id="function"),
        pytest.param(lambda model: setattr(model, "function", lambda x: 2 * x), r"program.function is .*softplus", id="lambda"),
        pytest.param(
            lambda model: setattr(model, "__class__", Other), r"program.name is .*Rated, that of this run .*Other", id="code"
        ),
    ],
)
def test_another_architecture_with_the_same_weights_is_refused(change, words, blobs, make_model, tmp_path):
    fit(make_rated(make_model), blobs, tmp_path, epochs=1)
    same = make_rated(make_model)
    fit(same, blobs, tmp_path, epochs=2, resume=True)
    fit(same, blobs, tmp_path, epochs=3, resume=True)  # That it has counted is no change.
    model = make_rated(make_model)
    change(model)
    with pytest.raises(InputError, match=words) as caught:
        fit(model, blobs, tmp_path, epochs=4, resume=True)
    assert caught.value.key == "bad_checkpoint"


class Other(Rated):
    def forward(self, x):
        self.passes += 1
        return self.function(self.model(x)) - self._rate


@pytest.mark.parametrize("given", [str, Path, os.fsencode], ids=["text", "path", "bytes"])
def test_folder_of_checkpoints_is_any_path(given, blobs, make_model, tmp_path):
    if given is os.fsencode:
        with pytest.raises(InputError, match=r"checkpoints\.folder"):
            Checkpoints(folder=given(tmp_path))
        return
    result = train(make_model(), blobs, checkpoints=Checkpoints(folder=given(tmp_path / "run")), epochs=1, progress=False)
    assert result.checkpoint.parent == tmp_path / "run"
    assert read_checkpoint(given(result.checkpoint))[1]["progress"]["epoch"] == 2


def test_run_goes_on_from_another_ones_weights_with_options_of_its_own(blobs, make_model, tmp_path):
    whole = make_model()
    fit(whole, blobs, tmp_path / "whole", optimizer=Adam(learning_rate=0.02))
    fit(make_model(), blobs, tmp_path / "parent", optimizer=Adam(learning_rate=0.02), epochs=2)
    again, other = make_model(), make_model()
    for name, model, rate in (("again", again, 0.02), ("other", other, 0.0)):
        plan = Checkpoints(folder=tmp_path / name, parent=tmp_path / "parent")
        options = {"optimizer": Adam(learning_rate=rate or 1e-9), "batch_size": 30, "epochs": 4, "progress": False}
        result = train(model, blobs, checkpoints=plan, **options)
        assert len(result.history) == 4  # With those of the parent.
    assert (weights_of(again) == weights_of(whole)).all()
    kept, _ = read_checkpoint(max((tmp_path / "parent").glob("step-*")))
    before = np.concatenate([kept[f"weights/{name}"].ravel() for name in other.state_dict()])
    assert np.allclose(weights_of(other), before, atol=1e-6)  # By the rate of its own.
    worse = make_model()  # Every epoch of its own is worse than those before: the parent's best is given.
    plan = Checkpoints(folder=tmp_path / "worse", parent=tmp_path / "parent")
    train(worse, blobs, checkpoints=plan, **{**options, "optimizer": Adam(learning_rate=5.0), "epochs": 9, "patience": 2})
    assert (weights_of(worse) == before).all()
    longer = Checkpoints(folder=tmp_path / "again", parent=tmp_path / "nowhere")  # What it has itself goes before.
    train(again, blobs, checkpoints=longer, resume=True, **{**options, "optimizer": Adam(learning_rate=0.02), "epochs": 5})
    with pytest.raises(InputError, match="nowhere holds none to go on from"):
        train(again, blobs, checkpoints=Checkpoints(folder=tmp_path / "new", parent=tmp_path / "nowhere"), **options)
    with pytest.raises(InputError, match="does not fit"):
        wider = torch.nn.Linear(blobs[0].shape[1], 3)
        train(wider, blobs, checkpoints=Checkpoints(folder=tmp_path / "wide", parent=tmp_path / "parent"), **options)


@pytest.mark.slow
def test_own_optimizer_keeps_its_settings_when_it_goes_on_from_another_ones_weights(tmp_path):
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    data = x, (x[:, 0] > 0).astype(np.int64)

    def fit_keras(name, rate, epochs, parent=None):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        plan = Checkpoints(folder=tmp_path / name, parent=parent)
        train(model, data, optimizer=keras.optimizers.SGD(rate), epochs=epochs, checkpoints=plan, progress=False)
        return model.get_weights()[0]

    before = fit_keras("parent", 0.1, 1)
    assert np.array_equal(fit_keras("still", 0.0, 2, tmp_path / "parent"), before)
    assert not np.allclose(fit_keras("moved", 0.1, 2, tmp_path / "parent"), before)


def test_disk_that_is_too_small_is_told_before_the_first_step(blobs, make_model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    steps = []
    with pytest.raises(StoreError, match=r"MB are needed for 3 checkpoints and the best, 0.0 MB are free") as caught:
        fit(make_model(), blobs, tmp_path, on_step=steps.append)
    assert caught.value.key == "disk_full" and not steps
