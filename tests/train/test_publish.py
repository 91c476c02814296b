"""What goes into a live model and comes out of it: names, rows, axes, and what is refused before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import argosy
from argosy.errors import ArgosyError, InputError, ModelError
from argosy.runtimes.base import load_runtime_class
from argosy.signature import Ragged, RaggedInput

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.standard_normal((16, 4)).astype(np.float32), RNG.standard_normal((16, 2)).astype(np.float32)
IDS, MASK = RNG.integers(1, 20, (16, 6)), RNG.integers(0, 2, (16, 6)).astype(bool)
NODES, EDGES = RNG.standard_normal((5, 4)).astype(np.float32), RNG.integers(0, 5, (2, 7))


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        mixed = self.a(left) + self.b(right)
        return mixed, mixed.sum(1)


class Named(Two):
    """Takes its inputs in another order than that of a dict, and gives a dict."""

    def forward(self, right: torch.Tensor, left: torch.Tensor) -> Any:
        return {"mixed": self.a(left) + self.b(right), "gate": self.b(right)}


class Scaled(Two):
    def forward(self, left: torch.Tensor, right: torch.Tensor | None = None, scale: torch.Tensor | None = None) -> Any:
        mixed = self.a(left) if right is None else self.a(left) + self.b(right)
        return mixed if scale is None else mixed * scale


class Pooled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        vectors = self.embedding(ids) * mask[..., None]
        return {"pooled": vectors.sum(1), "tokens": vectors}


class Graph(torch.nn.Module):
    """One step of message passing: first axes of nodes and edges count no rows that both have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges[0], edges[1]
        return torch.zeros_like(nodes).index_add(0, target, self.linear(nodes)[source])


class Nested(Two):
    def forward(self, left: torch.Tensor, pair: Any) -> Any:
        return self.a(left) + self.b(pair[0]) * pair[1]["scale"], pair[0]


class Giving(Two):
    """Gives whatever a function makes of the mixed inputs."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        return self.give(self.a(left) + self.b(right))


def serve(store: Any, version: Any) -> Any:
    """Give what a worker answers."""
    manifest = version.manifest
    runtime = load_runtime_class(manifest.runtime)()
    runtime.load(store.open_artifact(version), manifest.entry, {**manifest.options, "threads": 1})
    return runtime.infer


def list_names(version: Any) -> tuple[list[str], list[str]]:
    signature = version.manifest.signature
    return [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]


def list_shapes(version: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    signature = version.manifest.signature
    return [spec.shape for spec in signature.inputs], [spec.shape for spec in signature.outputs]


@pytest.mark.parametrize(
    ("model", "sample", "options", "names"),
    [
        pytest.param(Two(), (LEFT, RIGHT), {}, (["left", "right"], ["output_0", "output_1"]), id="arguments"),
        pytest.param(
            Two(), (LEFT, RIGHT), {"input_name": "x"}, (["x_0", "x_1"], ["output_0", "output_1"]), id="one-name-for-several"
        ),
        pytest.param(
            Two(), (LEFT, RIGHT), {"input_name": ["a b", "a/1"], "output_name": ["y", "a.weight"]},
            (["a b", "a/1"], ["y", "a.weight"]), id="all-names",
        ),
        pytest.param(
            Named(), {"left": LEFT, "right": RIGHT}, {}, (["right", "left"], ["mixed", "gate"]), id="dicts-in-the-model's-order"
        ),
        pytest.param(
            Nested(), (LEFT, (RIGHT, {"scale": LEFT[:, :1]})), {},
            (["left", "pair_0", "pair_1_scale"], ["output_0", "output_1"]), id="nested",
        ),
        pytest.param(Scaled(), (LEFT, None, LEFT[:, :1]), {}, (["left", "scale"], ["output"]), id="none-between"),
        pytest.param(Scaled(), {"left": LEFT, "scale": LEFT[:, :1]}, {}, (["left", "scale"], ["output"]), id="left-out"),
        pytest.param(Giving(lambda mixed: (mixed,)), (LEFT, RIGHT), {}, (["left", "right"], ["output"]), id="tuple-of-one"),
        pytest.param(
            Giving(lambda mixed: (mixed, (mixed[:, 0], {"last": mixed[:, -1], "none": None}))), (LEFT, RIGHT), {},
            (["left", "right"], ["output_0", "output_1_0", "output_1_1_last"]), id="nested-outputs",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("native", [False, True])
def test_names_stand_for_the_tensors_at_their_places(model, sample, options, names, native, store):
    version = argosy.publish(model, "any", store, sample=sample, native=native, **options)
    assert list_names(version) == names
    assert version.manifest.signature.is_batched
    assert version.manifest.runtime == ("torch" if native else "onnx")
    leaves = torch.utils._pytree.tree_leaves(sample)
    if isinstance(sample, dict):
        leaves = [sample[name] for name in names[0]]
    inputs = dict(zip(names[0], [leaf for leaf in leaves if leaf is not None], strict=True))
    tensors = torch.utils._pytree.tree_map(lambda leaf: leaf if leaf is None else torch.from_numpy(leaf), sample)
    with torch.no_grad():
        outputs = model(**tensors) if isinstance(sample, dict) else model(*tensors)
    expected = [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(outputs) if leaf is not None]
    got = serve(store, version)(inputs)
    for name, want in zip(names[1], expected, strict=True):
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-6)
    golden = store.load_golden(version)
    assert golden.num_examples == 8
    np.testing.assert_allclose(golden.outputs[names[1][0]], expected[0][:8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("model", "sample", "options", "shapes"),
    [
        pytest.param(
            torch.nn.LSTM(4, 5, batch_first=True), RNG.standard_normal((6, 7, 4)).astype(np.float32), {},
            ([(-1, 7, 4)], [(-1, 7, 5), (1, -1, 5), (1, -1, 5)]), id="states-of-a-recurrent-network",
        ),
        pytest.param(Giving(torch.mean), (LEFT, RIGHT), {}, ([(-1, 4), (-1, 2)], [()]), id="scalar"),
        pytest.param(
            Giving(lambda mixed: mixed @ mixed.T), (LEFT, RIGHT), {}, ([(-1, 4), (-1, 2)], [(-1, -1)]), id="every-row-with-every"
        ),
        pytest.param(
            Graph(), (NODES, EDGES), {"dynamic": {"nodes": [0], "edges": [1]}}, ([(-1, 4), (2, -1)], [(-1, 4)]), id="graph"
        ),
        pytest.param(Graph(), (NODES, EDGES), {"dynamic": {}}, ([(5, 4), (2, 7)], [(5, 4)]), id="graph-of-one-size"),
        pytest.param(
            Scaled(), {"left": LEFT, "scale": np.float32(2)}, {}, ([(-1, 4), ()], [(-1, 3)]), id="a-number-among-the-inputs"
        ),
    ],
)  # fmt: skip
def test_what_counts_no_rows_is_one_request(model, sample, options, shapes, native, store):
    version = argosy.publish(model, "any", store, sample=sample, native=native, **options)
    assert list_shapes(version) == shapes
    assert not version.manifest.signature.is_batched
    golden = store.load_golden(version)
    assert golden.num_examples == 1
    inputs, answers = ({name: array[0, ...] for name, array in side.items()} for side in (golden.inputs, golden.outputs))
    for name, got in serve(store, version)(inputs).items():
        assert got.shape == answers[name].shape
        np.testing.assert_allclose(got, answers[name], rtol=1e-5, atol=1e-6)


def test_request_of_another_size_is_answered_where_rows_are_states(store):
    model = torch.nn.LSTM(4, 5, batch_first=True)
    sample = RNG.standard_normal((6, 7, 4)).astype(np.float32)
    version = argosy.publish(model, "lstm", store, sample=sample, output_name=["steps", "h", "c"])
    with argosy.serve("lstm", home=store.home) as server, server.client() as client:
        for num_rows in (1, 3, 9):
            rows = RNG.standard_normal((num_rows, 7, 4)).astype(np.float32)
            with torch.no_grad():
                steps, (h, c) = model(torch.from_numpy(rows))
            got = client.predict("lstm", {"input": rows})
            for name, want in {"steps": steps, "h": h, "c": c}.items():
                np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-5, atol=1e-6)
    assert version.manifest.runtime == "onnx"


@pytest.mark.parametrize("native", [False, True])
def test_inputs_that_share_a_ragged_axis_are_padded_together(native, store):
    ragged = Ragged({"ids": RaggedInput(1), "mask": RaggedInput(1)}, {"tokens": 1})
    model = Pooled()
    version = argosy.publish(model, "pooled", store, sample={"ids": IDS, "mask": MASK}, ragged=ragged, native=native)
    assert list_shapes(version) == ([(-1, -1), (-1, -1)], [(-1, 4), (-1, -1, 4)])
    assert [spec.datatype for spec in version.manifest.signature.inputs] == ["INT64", "BOOL"]
    answer = serve(store, version)
    for length in (1, 5, 11):
        ids, mask = (array[:3, np.arange(length) % 6] for array in (IDS, MASK))
        with torch.no_grad():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask))
        for name, got in answer({"ids": ids, "mask": mask}).items():
            np.testing.assert_allclose(got, expected[name].numpy(), rtol=1e-5, atol=1e-6)


def test_branch_on_one_input_is_not_lost(store):
    class Branch(Two):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
            mixed = self.a(left) + self.b(right)
            return (mixed, mixed.sum(1)) if np.asarray(right)[0, 0] > 0 else (-mixed, mixed.sum(1))

    with pytest.raises(ModelError, match="looks at numbers from Python") as caught:
        argosy.publish(Branch(), "branch", store, sample=(LEFT, np.abs(RIGHT)))
    assert caught.value.key == "save_failed"
    assert store.list_models() == []


def test_form_that_changes_with_the_numbers_is_refused(store):
    class Changing(Two):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
            mixed = self.a(left) + self.b(right)
            return (mixed, mixed[:, 0]) if float(right.abs().max()) > 0 else mixed

    with pytest.raises(ModelError) as caught:
        argosy.publish(Changing(), "changing", store, sample=(LEFT, RIGHT))
    assert caught.value.key == "save_failed"


def test_result_of_training_is_published_under_names(blobs, make_model, store):
    result = argosy.train(make_model(), blobs, epochs=1, progress=False)
    version = result.publish("blobs", store, input_name=["point"], output_name="scores", labels={"scores": ["a", "b", "c"]})
    assert list_names(version) == (["point"], ["scores"])
    assert version.manifest.signature.outputs[0].labels == ("a", "b", "c")


def test_adapters_of_a_model_of_two_inputs_are_merged(store):
    peft: Any = pytest.importorskip("peft")
    model = peft.get_peft_model(Two(), peft.LoraConfig(r=2, target_modules=["a", "b"], init_lora_weights=False)).eval()
    version = argosy.publish(model, "adapted", store, sample=(LEFT, RIGHT))
    assert list_names(version) == (["left", "right"], ["output_0", "output_1"])
    assert [adapter["kind"] for adapter in version.manifest.lineage["adapters"]] == ["LORA"]
    with torch.no_grad():
        expected = model(torch.from_numpy(LEFT), torch.from_numpy(RIGHT))
    for got, want in zip(serve(store, version)({"left": LEFT, "right": RIGHT}).values(), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


PAIR = (LEFT, RIGHT)


@pytest.mark.parametrize(
    ("model", "sample", "options", "key", "words"),
    [
        pytest.param(Two(), LEFT, {}, "bad_data", "missing 1 required positional argument: 'right'", id="one-of-two"),
        pytest.param(Two(), (*PAIR, LEFT), {}, "bad_data", "3 positional arguments but 4", id="three-of-two"),
        pytest.param(Two(), [LEFT, RIGHT], {}, "bad_data", "given as a tuple or a dict", id="list-of-unequal-arrays"),
        pytest.param(Two(), {"left": LEFT, "rihgt": RIGHT}, {}, "bad_data", "rihgt", id="misspelt"),
        pytest.param(Two(), (LEFT, RIGHT[:5]), {}, "bad_data", "of shape (5, 2)", id="other-number-of-rows"),
        pytest.param(Two(), (LEFT, np.array(["a"] * 16)), {}, "bad_data", "x[1]: x has type <U1", id="text"),
        pytest.param(Two(), (LEFT, np.full((16, 2), np.nan)), {}, "bad_data", "x[1]: x holds 32 values", id="nan"),
        pytest.param(Two(), (), {}, "bad_data", "holds no tensor", id="nothing"),
        pytest.param(Two(), {"left": None}, {}, "bad_data", "holds no tensor", id="none-alone"),
        pytest.param(Two(), PAIR, {"input_name": ["a", "a"]}, "bad_option", "2 different names", id="names-alike"),
        pytest.param(Two(), PAIR, {"input_name": ["a"]}, "bad_option", "`input_name`", id="too-few-names"),
        pytest.param(Two(), PAIR, {"output_name": ["a", ""]}, "bad_option", "`output_name`", id="empty-name"),
        pytest.param(Two(), PAIR, {"output_name": ["a", "b\n"]}, "bad_option", "printable", id="name-of-two-lines"),
        pytest.param(Two(), PAIR, {"output_name": ["a", 5]}, "bad_option", "`output_name`", id="number-as-a-name"),
        pytest.param(Two(), PAIR, {"input_name": 5}, "bad_option", "`input_name`", id="name-is-a-number"),
        pytest.param(Two(), PAIR, {"labels": ["a", "b", "c"]}, "bad_option", "by output", id="labels-of-which"),
        pytest.param(Two(), PAIR, {"labels": {"y": ["a"]}}, "bad_option", "output_0, output_1", id="labels-of-none"),
        pytest.param(Two(), PAIR, {"labels": {"output_0": ["a"]}}, "bad_option", "3 names", id="too-few-labels"),
        pytest.param(Two(), PAIR, {"dynamic": {"left": [0]}}, "bad_option", "from 1 on", id="rows-named"),
        pytest.param(Two(), PAIR, {"dynamic": {"x": [1]}}, "bad_option", "'right' of shape [16, 2]", id="axis-of-no-input"),
        pytest.param(Giving(torch.sum), PAIR, {"ragged": Ragged({"left": RaggedInput(1)})}, "bad_option", "rows", id="ragged"),
        pytest.param(
            Two(), PAIR, {"ragged": Ragged({"left": RaggedInput(1), "right": RaggedInput(1)})},
            "bad_option", "equally long", id="ragged-axes-of-two-lengths",
        ),
        pytest.param(Giving(lambda mixed: 3.0), PAIR, {}, "bad_data", "gives float, expected tensors", id="no-tensor"),
        pytest.param(Giving(lambda mixed: None), PAIR, {}, "bad_data", "gives nothing", id="gives-nothing"),
        pytest.param(Giving(lambda mixed: ()), PAIR, {}, "bad_data", "gives nothing", id="empty-tuple"),
        pytest.param(Giving(lambda mixed: torch.complex(mixed, mixed)), PAIR, {}, "unsupported_type", "output", id="complex"),
        pytest.param(Giving(torch.Tensor.bfloat16), PAIR, {}, "bad_data", "BFloat16", id="no-type-of-numpy"),
        pytest.param(Giving(torch.Tensor.to_sparse), PAIR, {}, "bad_data", "Sparse", id="sparse"),
        pytest.param(Giving(lambda mixed: {}["x"]), PAIR, {}, "bad_data", "'x'", id="fault-of-the-code"),
        pytest.param(Giving(lambda mixed: mixed.no_such), PAIR, {}, "bad_data", "no_such", id="attribute-that-is-not-there"),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_said_and_nothing_is_written(model, sample, options, key, words, store):
    with pytest.raises(ArgosyError) as caught:
        argosy.publish(model, "any", store, sample=sample, **options)
    assert (caught.value.key, isinstance(caught.value, InputError)) == (key, True)
    assert words in caught.value.message
    assert store.list_models() == []
