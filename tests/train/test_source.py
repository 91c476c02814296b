"""Training from loaders: batches as the loader gives them, resumable, with validation rows beside."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from argosy.errors import InputError
from argosy.train.run import train
from argosy.train.sharing import find_share


class Pairs(torch.utils.data.Dataset):
    """Rows with noise that is drawn anew each time that a row is taken."""

    def __init__(self, blobs, noise=0.0):
        self.x, self.y = (torch.from_numpy(np.asarray(part)) for part in blobs)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return x + self.noise * torch.randn_like(x), self.y[index]


def weights_of(model):
    return np.concatenate([tensor.numpy().ravel() for tensor in model.state_dict().values()])


def test_loader_in_order_trains_as_the_same_arrays_do(blobs, make_model):
    one, other = make_model(), make_model()
    loader = torch.utils.data.DataLoader(Pairs(blobs), batch_size=32)
    result = train(one, loader, epochs=3, progress=False)
    train(other, blobs, epochs=3, shuffle=False, progress=False)
    np.testing.assert_array_equal(weights_of(one), weights_of(other))
    assert result.data == {"loader": "torch.utils.data.dataloader.DataLoader", "batches": 4, "x": "float32 [4]"}
    assert result.settings.batch_size is None
    np.testing.assert_array_equal(result.sample[:8], blobs[0][:8])


def test_shuffled_loader_with_random_rows_repeats_and_resumes(blobs, make_model, tmp_path):
    def run(folder, epochs, resume=False):
        model = make_model()
        loader = torch.utils.data.DataLoader(Pairs(blobs, noise=0.1), batch_size=32, shuffle=True)
        train(model, loader, epochs=epochs, seed=4, checkpoints=tmp_path / folder, resume=resume, progress=False)
        return weights_of(model)

    expected = run("a", 4)
    torch.rand(7)
    np.testing.assert_array_equal(run("b", 4), expected)
    run("c", 2)
    np.testing.assert_array_equal(run("c", 4, resume=True), expected)


def test_loader_takes_validation_rows_and_any_batch_sampler(blobs, make_model):
    loader = torch.utils.data.DataLoader(Pairs(blobs), batch_size=32, drop_last=True)
    result = train(make_model(), loader, epochs=2, validation_data=blobs, progress=False)
    assert result.num_steps == 6
    assert result.history[-1].validation_loss == pytest.approx(result.evaluate(*blobs)["loss"])


@pytest.mark.parametrize(
    ("make_loader", "options", "words"),
    [
        pytest.param(lambda d: torch.utils.data.DataLoader(d), {"batch_size": 8}, "None with a loader", id="batch-size"),
        pytest.param(lambda d: torch.utils.data.DataLoader(d), {"validation_split": 0.1}, "give validation_data", id="split"),
        pytest.param(
            lambda d: torch.utils.data.DataLoader(d.x),
            {},
            "there are no targets, which the loss cross_entropy takes",
            id="no-pairs",
        ),
        pytest.param(lambda d: torch.utils.data.DataLoader([], batch_size=2), {}, "gives no batch", id="empty"),
    ],
)
def test_bad_use_of_a_loader_is_refused(make_loader, options, words, blobs, make_model):
    with pytest.raises(InputError, match=words):
        train(make_model(), make_loader(Pairs(blobs)), progress=False, **options)


class Drawn(Pairs):
    """Rows with noise from the random numbers that transforms use."""

    def __getitem__(self, index):
        return self.x[index] * random.uniform(0.9, 1.1) + float(np.random.normal(0, 0.1)), self.y[index]


def test_rows_drawn_from_any_global_random_numbers_resume(blobs, make_model, tmp_path):
    def run(folder, epochs, resume=False):
        model = make_model()
        loader = torch.utils.data.DataLoader(Drawn(blobs), batch_size=32, shuffle=True)
        train(model, loader, epochs=epochs, seed=4, checkpoints=tmp_path / folder, resume=resume, progress=False)
        return weights_of(model)

    before = random.getstate()
    expected = run("a", 3)
    assert random.getstate() == before
    run("b", 1)
    np.testing.assert_array_equal(run("b", 3, resume=True), expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda x, y: (x, y - 1), "labels run from -1", id="below"),
        pytest.param(lambda x, y: (x, y + 7), "the model has", id="above"),
        pytest.param(lambda x, y: (x, y[:-1]), "as many rows", id="count"),
        pytest.param(lambda x, y: (x, y.float()), "the first had", id="type"),
        pytest.param(lambda x, y: (x.int(), y), "the first had", id="inputs"),
        pytest.param(lambda x, y: (x, y, y), "the first had", id="weights"),
    ],
)
def test_later_batch_of_a_loader_is_looked_at_as_the_first(change, words, blobs, make_model):
    x, y = (torch.from_numpy(np.asarray(part)) for part in blobs)
    batches = [(x[:32], y[:32]), (x[32:64], y[32:64]), change(x[64:96], y[64:96])]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    with pytest.raises(InputError, match=words):
        train(make_model(), loader, epochs=1, rescue=False, progress=False)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 20, 32, 81])
def test_shares_of_a_batch_make_the_batch_whatever_their_number(num_rows, size):
    shares = [find_share(num_rows, rank, size) for rank in range(size)]
    rows = [np.arange(num_rows)[part] for part, is_spare in shares if not is_spare]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(num_rows))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert all(len(range(num_rows)[part]) >= min(num_rows, 2) for part, _ in shares)
