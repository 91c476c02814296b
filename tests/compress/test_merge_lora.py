"""Adapters are merged exactly, however they were written down."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from argosy.bench.artifact import open_version
from argosy.compress.catalogue import list_recipes
from argosy.compress.steps.base import Workshop
from argosy.compress.steps.merge_lora import MergeLora
from argosy.errors import InputError
from argosy.train.publish import publish
from tests.compress.artifacts import answer, make_artifact, make_perceptron

RANDOM = np.random.default_rng(5)
W, A, B, BIAS = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((12, 8), (12, 2), (2, 8), (8,)))
X = RANDOM.normal(size=(16, 12)).astype(np.float32)
node = helper.make_node
FORMS = {
    "scale-last": [
        node("MatMul", ["x", "a"], ["xa"]),
        node("MatMul", ["xa", "b"], ["ab"]),
        node("Mul", ["ab", "s"], ["low"]),
        node("MatMul", ["x", "w"], ["base"]),
        node("Add", ["base", "low"], ["y"]),
    ],
    "scale-first-and-bias": [
        node("Mul", ["s", "x"], ["sx"]),
        node("MatMul", ["sx", "a"], ["xa"]),
        node("MatMul", ["xa", "b"], ["low"]),
        node("MatMul", ["x", "w"], ["xw"]),
        node("Add", ["bias", "xw"], ["base"]),
        node("Add", ["low", "base"], ["y"]),
    ],
    "gemm-flipped": [
        node("Gemm", ["x", "wt", "bias"], ["base"], transB=1),
        node("Transpose", ["at"], ["a2"], perm=[1, 0]),
        node("MatMul", ["x", "a2"], ["xa"]),
        node("Div", ["xa", "s"], ["xs"]),
        node("MatMul", ["xs", "b"], ["low"]),
        node("Add", ["base", "low"], ["y"]),
    ],
}
WEIGHTS = {"w": W, "wt": W.T, "a": A, "at": A.T, "b": B, "bias": BIAS, "s": np.array(2.0, np.float32)}


def list_kinds(artifact):
    return [one.op_type for one in onnx.load(str(artifact.path)).graph.node]


@pytest.fixture
def make(tmp_path):
    def write(nodes):
        used = {name for one in nodes for name in one.input}
        weights = {name: array for name, array in WEIGHTS.items() if name in used}
        rows = [("x", "FP32", ("rows", 12))], [("y", "FP32", ("rows", 8))]
        return make_artifact(tmp_path / "lora", nodes, *rows, weights)

    return write


@pytest.mark.parametrize("form", FORMS)
def test_adapter_becomes_part_of_its_matrix(form, make, tmp_path):
    original = make(FORMS[form])
    merged = MergeLora().apply(original, Workshop(tmp_path / "made"))
    onnx.checker.check_model(onnx.load(str(merged.path)), full_check=True)
    kinds = list_kinds(merged)
    assert sum(kind in ("MatMul", "Gemm") for kind in kinds) == 1 and not {"Mul", "Div"} & set(kinds)
    np.testing.assert_allclose(answer(merged, x=X)["y"], answer(original, x=X)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([*FORMS["scale-last"][:-1], node("Sub", ["base", "low"], ["y"])], id="difference"),
        pytest.param(
            [
                *FORMS["scale-last"][:2],
                node("Relu", ["ab"], ["low"]),
                node("MatMul", ["x", "w"], ["base"]),
                node("Add", ["base", "low"], ["y"]),
            ],
            id="nonlinear",
        ),
        pytest.param(
            [
                node("Tanh", ["x"], ["other"]),
                node("MatMul", ["other", "a"], ["xa"]),
                node("MatMul", ["xa", "b"], ["low"]),
                node("MatMul", ["x", "w"], ["base"]),
                node("Add", ["base", "low"], ["y"]),
            ],
            id="of-something-else",
        ),
    ],
)
def test_what_is_no_adapter_stays(nodes, make, tmp_path):
    original = make(nodes)
    with pytest.raises(InputError, match="merge-lora finds nothing"):
        MergeLora().apply(original, Workshop(tmp_path / "made"))
    assert not any(isinstance(recipe[0], MergeLora) for recipe in list_recipes(original, Workshop(tmp_path / "made")))


def test_product_that_others_use_stays(tmp_path):
    nodes = [*FORMS["scale-last"], node("Relu", ["base"], ["z"])]
    outputs = [("y", "FP32", ("rows", 8)), ("z", "FP32", ("rows", 8))]
    weights = {name: WEIGHTS[name] for name in ("w", "a", "b", "s")}
    original = make_artifact(tmp_path / "shared", nodes, [("x", "FP32", ("rows", 12))], outputs, weights)
    with pytest.raises(InputError, match="merge-lora finds nothing"):
        MergeLora().apply(original, Workshop(tmp_path / "made"))


def test_every_recipe_begins_with_the_merge_where_there_is_an_adapter(make, tmp_path):
    recipes = list_recipes(make(FORMS["scale-last"]), Workshop(tmp_path / "made"))
    assert recipes and all(isinstance(recipe[0], MergeLora) for recipe in recipes)
    plain = list_recipes(make_perceptron(tmp_path / "plain"), Workshop(tmp_path / "made"))
    assert not any(isinstance(recipe[0], MergeLora) for recipe in plain)


@pytest.mark.slow  # PEFT imports transformers.
def test_model_with_adapters_is_published_merged_and_stays_as_it_is(store):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        model = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["0", "2"]))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    version = publish(model, "adapted", store, sample=X)
    made = open_version(store, version)
    assert list_kinds(made) == ["Gemm", "Relu", "Gemm"]
    assert version.manifest.lineage["adapters"] == [{"name": "default", "kind": "LORA", "rank": 2}]
    with torch.no_grad():
        want = model(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(answer(made, input=X)["output"], want, rtol=1e-4, atol=1e-4)
