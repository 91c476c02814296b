"""Training from loaders: batches as the loader gives them, resumable, with validation rows beside."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from argosy import data as streams
from argosy.errors import InputError
from argosy.frameworks.base import Batch, get_framework
from argosy.train.elements import Columns
from argosy.train.run import train
from argosy.train.source import ArraySource, LoaderSource, StreamSource


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


def open_sources(blobs, folder):
    x, y = (np.asarray(part) for part in blobs)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    batch = Batch(x, y)
    yield ArraySource(batch, batch, batch_size=32, shuffle=True, seed=3)
    loader = torch.utils.data.DataLoader(Pairs(blobs), batch_size=32, shuffle=True)
    yield LoaderSource(loader, get_framework("torch"), Columns(), 3)
    yield LoaderSource(loader, get_framework("torch"), Columns(), 3, is_raw=True)
    stream = streams.open({"x": folder / "x.npy", "y": folder / "y.npy"}, inputs="x", targets="y")
    yield StreamSource(stream.open_source(batch_size=32, shuffle=True, seed=3), dtype=np.dtype(np.float32))


def leaves_of(batch):
    parts = batch.inputs if isinstance(batch.inputs, tuple | list) else (batch.inputs, batch.targets)
    return [np.asarray(part) for part in parts]


def test_parts_of_every_batch_make_the_batch_whatever_their_number(blobs, tmp_path):
    for source in open_sources(blobs, tmp_path):
        for start in (0, 2):
            whole = [leaves_of(batch) for batch in source.iterate(2, start)]
            for count in (1, 2, 3, 40):
                parts = [[leaves_of(batch) for batch in source.iterate(2, start, (index, count))] for index in range(count)]
                joined = [[np.concatenate(leaf) for leaf in zip(*shares, strict=True)] for shares in zip(*parts, strict=True)]
                for one, other in zip(whole, joined, strict=True):
                    for leaf, same in zip(one, other, strict=True):
                        np.testing.assert_array_equal(leaf, same)
