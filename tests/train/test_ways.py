"""Models that go other ways on other rows, or take rows of any length: what is published answers as they do, or is refused."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

import argosy
from argosy.errors import InputError, ModelError
from argosy.runtimes.base import load_runtime_class
from argosy.signature import Ragged, RaggedInput

SAMPLE = 0.3 * np.random.default_rng(0).random((8, 4), np.float32)
"""All on one side of what the models below ask of their rows."""


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.other = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)


class Mean(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) if bool(x.mean() > 0.5) else self.other(x)


class Silent(Two):
    """Keeps the tracer's warning to itself."""

    def forward(self, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.one(x) if x.abs().max() > 10 else self.other(x)


class Equal(Two):
    """No tracer warns of this."""

    def forward(self, x):
        return self.one(x) if torch.equal(x, x * 0) else self.other(x)


class Text(Two):
    """Nor of this, and torch.export goes on."""

    def forward(self, x):
        return self.one(x) if f"{float(x.detach().sum()):.0f}" == "0" else self.other(x)


class Memory(Two):
    """Nor of this: the numbers are read where they lie."""

    def forward(self, x):
        return self.one(x) if np.from_dlpack(x.detach()).max() < 5000 else self.other(x)


class Draw(Two):
    """Draws by Python's own generator, of which no graph knows."""

    def forward(self, x):
        return self.one(x) * random.random()


class Count(Two):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.one(x) * self.calls


class Item(Two):
    def forward(self, x):
        return self.one(x) * x.max().item()


class Loop(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = 0
        while float(x.abs().max()) > 1.0:
            x = x / 2
            count += 1
        return self.one(x) + count


class Choice(Two):
    """Branches in the graph itself."""

    def forward(self, x):
        return torch.where(x.mean(1, keepdim=True) > 0.5, self.one(x), self.other(x))


class Seed(torch.nn.Module):
    """Noise that is always the same, which a graph draws anew."""

    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return 2 * x + torch.rand_like(x)


class Lengths(Two):
    """Asks for a length, which no row changes."""

    def forward(self, x):
        return self.one(x) if x.shape[1] > 2 else self.other(x)


class Steep(Two):
    """Rounding alone moves some of its answers."""

    def forward(self, x):
        return torch.sign(self.one(x)) + torch.sin(1000 * self.other(x))


class Band(Two):
    """Mixes rows only where the largest number of all is in a narrow band, which no trial is likely to meet."""

    def forward(self, x):
        largest = x.abs().max()
        return self.one(x) + ((largest > 3.0) & (largest < 3.1)).to(x.dtype) * self.other(x)


def draw_rows():
    for seed in range(30):
        generator = np.random.default_rng(seed)
        yield (generator.standard_normal((1 + seed % 3, 4)) * 10 ** generator.uniform(-2, 2)).astype(np.float32)
    yield np.zeros((2, 4), np.float32)


def load(store, version):
    runtime = load_runtime_class(version.manifest.runtime)()
    names = {"inputs": ["input"], "outputs": ["output"]}
    runtime.load(store.open_artifact(version), version.manifest.entry, version.manifest.options or names)
    return lambda rows: runtime.infer({"input": rows})["output"]


@pytest.mark.parametrize(
    "kind", [Mean, Item, Loop, Choice, Lengths, Equal], ids=["mean", "item", "loop", "choice", "lengths", "equal"]
)
def test_model_that_branches_answers_other_rows_as_itself(kind, store):
    model = kind()
    version = argosy.publish(model, "ways", store, sample=SAMPLE)
    assert version.manifest.runtime == ("torch" if kind is Equal else "onnx")
    answer = load(store, version)
    for rows in draw_rows():
        with torch.no_grad():
            expected = model(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(answer(rows), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("native", [False, True], ids=["any", "native"])
@pytest.mark.parametrize("kind", [Silent, Text, Memory], ids=["silent", "text", "memory"])
def test_model_whose_branches_nothing_keeps_is_refused_with_the_reason(kind, native, store):
    with pytest.raises(ModelError, match="looks at numbers from Python") as caught:
        argosy.publish(kind(), "ways", store, sample=SAMPLE, native=native)
    assert caught.value.key == "save_failed"
    assert not store.list_models()


@pytest.mark.parametrize("kind", [Draw, Count, Seed], ids=["draw", "count", "seed"])
def test_model_is_not_published_where_it_alone_or_the_graph_alone_answers_otherwise_each_time(kind, store):
    with pytest.raises(ModelError, match="otherwise each time"):
        argosy.publish(kind(), "ways", store, sample=SAMPLE)
    assert not store.list_models()


@pytest.mark.parametrize(("kind", "expected"), [(Band, "dependent"), (Choice, "independent")], ids=["band", "choice"])
def test_graph_of_what_is_published_tells_whether_rows_may_share_a_batch(kind, expected, store):
    joining = argosy.publish(kind(), "ways", store, sample=SAMPLE).manifest.joining
    assert (joining.kind, "ReduceMax" in joining.reason) == (expected, kind is Band)


def test_lineage_says_on_what_a_difference_was_measured(store):
    export = argosy.publish(Choice(), "ways", store, sample=SAMPLE).manifest.lineage["export"]
    assert export["difference"] < 1e-5 and export["far_difference"] < 1e-5
    assert {"sample", "spread", "permuted", "sign", "zero", "random"} <= set(export["kinds"])
    assert export["rows"] > 50
    native = argosy.publish(Choice(), "ways", store, sample=SAMPLE, native=True).manifest.lineage["export"]
    assert (native["format"], native["rows"], native["kinds"]) == ("torch", export["rows"], export["kinds"])


def test_rows_on_which_rounding_alone_moves_the_model_refuse_nothing(store):
    assert argosy.publish(Steep(), "ways", store, sample=SAMPLE).manifest.runtime == "onnx"


def test_rows_that_the_model_refuses_are_no_trial(store):
    embedding = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    version = argosy.publish(embedding, "ids", store, sample=np.full((4, 3), 8))
    assert "random" in version.manifest.lineage["export"]["kinds"]


class Tokens(torch.nn.Module):
    """Answers each step, and the whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.embed, self.gru, self.head = (
                torch.nn.Embedding(20, 6),
                torch.nn.GRU(6, 8, batch_first=True),
                torch.nn.Linear(8, 3),
            )
        self.whole = whole

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        steps = self.gru(self.embed(ids))[0]
        return self.head(steps.mean(1) if self.whole else steps)


IDS = np.random.default_rng(0).integers(1, 20, (8, 12))


@pytest.mark.parametrize("native", [False, True], ids=["onnx", "native"])
@pytest.mark.parametrize("whole", [False, True], ids=["steps", "whole"])
def test_axes_that_are_named_dynamic_take_any_length(whole, native, store):
    model = Tokens(whole)
    version = argosy.publish(model, "tokens", store, sample=IDS, dynamic={"input": [1]}, native=native)
    signature = version.manifest.signature
    assert (signature.inputs[0].shape, signature.outputs[0].shape) == ((-1, -1), (-1, 3) if whole else (-1, -1, 3))
    assert version.manifest.runtime == ("torch" if native else "onnx")
    answer = load(store, version)
    for length in (1, 2, 11, 12, 40):
        ids = np.random.default_rng(length).integers(0, 20, (3, length))
        with torch.no_grad():
            np.testing.assert_allclose(answer(ids), model(torch.from_numpy(ids)).numpy(), atol=1e-5)


def test_other_lengths_of_a_ragged_version_are_served(store):
    ragged = Ragged({"input": RaggedInput(1)}, {"output": 1})
    model = Tokens(whole=False)
    version = argosy.publish(model, "tokens", store, sample=IDS, ragged=ragged)
    assert (version.manifest.signature.inputs[0].shape, version.manifest.signature.ragged) == ((-1, -1), ragged)
    with argosy.serve("tokens", home=store.home) as server, server.client() as client:
        for length in (3, 12, 20):
            ids = IDS[:2, np.arange(length) % 12]
            got = client.predict("tokens", {"input": ids})["output"]
            with torch.no_grad():
                np.testing.assert_allclose(got, model(torch.from_numpy(ids)).numpy(), atol=1e-5)


def test_several_axes_are_free_each_for_itself(store):
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.ReLU())
    images = np.random.default_rng(0).standard_normal((3, 2, 6, 8)).astype(np.float32)
    version = argosy.publish(model, "images", store, sample=images, dynamic={"input": (2, 3)})
    assert version.manifest.signature.outputs[0].shape == (-1, 3, -1, -1)
    assert len([kind for kind in version.manifest.lineage["export"]["kinds"] if kind.startswith("lengths")]) > 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"dynamic": {"inputs": [1]}}, "dynamic", id="other-name"),
        pytest.param({"dynamic": {"input": [0]}}, "from 1 on", id="rows"),
        pytest.param({"dynamic": {"input": [2]}}, "from 1 on", id="no-axis"),
        pytest.param({"dynamic": {"input": [1, 1]}}, "dynamic", id="twice"),
        pytest.param({"dynamic": {"input": 1}}, "dynamic", id="no-list"),
        pytest.param({"ragged": Ragged({"other": RaggedInput(1)})}, "ragged", id="ragged-name"),
        pytest.param({"ragged": Ragged({})}, "ragged", id="ragged-nothing"),
        pytest.param({"ragged": Ragged({"input": RaggedInput(1)}, {"output": 1})}, "ragged", id="ragged-output"),
    ],
)
def test_axes_that_are_none_are_refused(options, words, store):
    with pytest.raises(InputError, match=words) as caught:
        argosy.publish(Tokens(whole=True), "tokens", store, sample=IDS, **options)
    assert caught.value.key == "bad_option"


def test_axis_along_which_the_model_has_one_length_is_refused(store):
    with pytest.raises(InputError, match="other lengths than its sample's") as caught:
        argosy.publish(torch.nn.Linear(4, 2), "fixed", store, sample=SAMPLE, dynamic={"input": [1]})
    assert caught.value.key == "bad_option"


def test_result_of_training_is_published_with_free_lengths(store):
    result = argosy.train(Tokens(whole=True), (IDS, np.arange(8) % 3), epochs=1, progress=False)
    version = result.publish("tokens", store, dynamic={"input": [1]})
    assert version.manifest.signature.inputs[0].shape == (-1, -1)
    ragged = Ragged({"input": RaggedInput(1)})
    assert result.publish("tokens", store, ragged=ragged).manifest.signature.ragged == ragged
    assert result.publish("tokens", store).manifest.signature.inputs[0].shape == (-1, 12)
