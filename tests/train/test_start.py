"""A run starts from a version of the store: weights by name, all or of parts; what does not fit is told, and changes nothing."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from argosy.bench.artifact import open_version
from argosy.confine.confine import describe_confinement
from argosy.errors import InputError, NotFoundError
from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Flatten, Relu, draw_weights
from argosy.optim import SGD
from argosy.signature import Signature, TensorSpec
from argosy.store.manifest import WEIGHTS_FILE
from argosy.train.publish import publish
from argosy.train.run import train
from argosy.train.start import Start

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)


class Net(torch.nn.Module):
    def __init__(self, classes: int = 2, width: int = 6) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.ReLU())
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Recurrent(torch.nn.Module):
    """Its ONNX file has the weights in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = torch.nn.Embedding(9, 4), torch.nn.LSTM(4, 5, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.embedding(ids))[0][:, -1, :2]


IDS = np.random.default_rng(0).integers(0, 9, size=(40, 7))


def state_of(model: torch.nn.Module, *parts: str) -> dict[str, np.ndarray]:
    state = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    return {name: array for name, array in state.items() if not parts or name.startswith(parts)}


def check_same(found: Any, wanted: Any) -> None:
    """The steps of `begin` move zeros by less than a float32 can hold beside one."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-30)


def begin(model: Any, start: Any, rows: Any = X, **options: Any) -> Any:
    """Train by steps too small to move anything, so that the weights are those of the beginning."""
    return train(model, (rows, Y), start=start, optimizer=SGD(learning_rate=1e-38), epochs=1, progress=False, **options)


@pytest.mark.parametrize("native", [False, True], ids=["onnx", "native"])
@pytest.mark.parametrize(("make", "rows"), [(Net, X), (Recurrent, IDS)], ids=["normalised", "recurrent"])
def test_model_starts_with_the_weights_of_a_version(make, rows, native, store):
    first = make()
    begin(first, None, rows)  # moves the statistics of normalisation
    version = publish(first, "base", store, sample=rows, native=native)
    second = make()
    result = begin(second, Start("base", store=store), rows, freeze=[name for name, _ in list(first.named_children())[:1]])
    wanted = state_of(first)
    for name, array in state_of(second).items():
        if name in dict(second.named_parameters()) or (make is Net and name.startswith("body")):
            check_same(array, wanted[name])
    told = result.describe_lineage()["training"]["start"]
    assert told == {"version": "base@1", "digest": version.digest, "weights": len(wanted)}


@pytest.mark.parametrize(
    "name", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "tensorflow", "jax"))]
)
def test_every_framework_starts_from_its_versions(name, store):
    framework = get_framework(name)
    layers = (Conv(3, 3), BatchNorm(), Relu(), Flatten(), Dense(64), Dense(2))
    rows = np.random.default_rng(0).normal(size=(40, 1, 4, 4)).astype(np.float32)

    def make(seed):
        return framework.build_network(layers, (1, 4, 4), draw_weights(layers, (1, 4, 4), seed))

    first = make(1)
    begin(first, None, rows)
    wanted = framework.get_weights(first)
    for native in (False, True):
        version = publish(first, "base", store, sample=rows, native=native)
        second = make(2)
        begin(second, Start("base", store=store), rows)
        found = framework.get_weights(second)
        for weight in framework.list_trainable(second):
            check_same(found[weight], wanted[weight])
        # What serves has them already, in whatever format.
        kept = store.open_artifact(version) / WEIGHTS_FILE
        assert kept.stat().st_size < sum(array.nbytes for array in wanted.values())


def test_parts_start_from_a_version_and_the_rest_as_the_model_is(store):
    first, second = Net(), Net(classes=5)
    publish(first, "base", store, sample=X)
    head = state_of(second, "head")
    result = begin(second, Start("base@1", parts=["body"], store=store), freeze="body")
    np.testing.assert_equal(state_of(second, "body"), state_of(first, "body"))
    for name, array in state_of(second, "head").items():
        check_same(array, head[name])
    lineage = result.publish("second", store).manifest.lineage["training"]
    assert lineage["start"]["parts"] == ["body"] and lineage["frozen"] == ["body"]


def test_adapters_start_as_they_are_and_what_they_adapt_from_the_version(store):
    peft = pytest.importorskip("peft")
    first, second = Net(), Net()
    publish(first, "base", store, sample=X)
    options = {"target_modules": ["0"], "modules_to_save": ["head"]}
    adapted = peft.get_peft_model(second, peft.LoraConfig(r=2, **options))
    begin(adapted, Start("base", store=store))
    made = {name.removeprefix("base_model.model."): array for name, array in state_of(adapted).items()}
    check_same(made["body.0.base_layer.weight"], first.body[0].weight.detach())
    check_same(made["head.modules_to_save.default.weight"], first.head.weight.detach())
    check_same(made["body.0.lora_B.default.weight"], 0.0)
    assert made["body.0.lora_A.default.weight"].any()


WEIGHTS = {"weight": np.arange(8, dtype=np.float32).reshape(2, 4), "bias": np.ones(2, np.float32)}
LINE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


def write_line(folder: Path, **options: Any) -> dict[str, Path]:
    """Write a graph that was made elsewhere; its files."""
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 4), ("y", 2))]
    tensors = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    graph = helper.make_graph([node], "line", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "m.onnx"), **options)
    return {path.name: path for path in folder.glob("m.*")}


@pytest.mark.parametrize(
    "options", [{}, {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}], ids=["within", "beside"]
)
def test_imported_onnx_file_gives_its_weights_by_their_names(options, store, tmp_path):
    store.publish("base", write_line(tmp_path, **options), signature=LINE, entry="m.onnx")
    model = torch.nn.Linear(4, 2)
    begin(model, Start("base", store=store))
    for name, array in state_of(model).items():
        check_same(array, WEIGHTS[name])


@pytest.mark.parametrize("is_kept", [True, False], ids=["own", "imported"])
def test_training_process_never_opens_an_onnx_file_of_a_version(is_kept, store, tmp_path, monkeypatch):
    if is_kept:
        publish(torch.nn.Linear(4, 2), "base", store, sample=X)
    else:
        store.publish("base", write_line(tmp_path), signature=LINE, entry="m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    begin(torch.nn.Linear(4, 2), Start("base", store=store))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(lambda tensor: tensor.dims.append(1 << 40), "m.onnx cannot be read: ValueError", id="endless"),
        pytest.param(
            lambda tensor: tensor.external_data.add(key="location", value="/etc/hostname"),
            "m.onnx cannot be read: PermissionError",
            id="elsewhere",
        ),
    ],
)
def test_onnx_file_that_reaches_out_is_refused(damage, told, store, tmp_path):
    if not describe_confinement().is_confined:
        pytest.skip("this machine confines nothing")
    path = write_line(tmp_path)["m.onnx"]
    model = onnx.load(str(path))
    damage(model.graph.initializer[0])
    if model.graph.initializer[0].external_data:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    store.publish("base", {"m.onnx": path}, signature=LINE, entry="m.onnx")
    with pytest.raises(InputError, match="Training cannot start from version base@1") as caught:
        begin(torch.nn.Linear(4, 2), Start("base", store=store))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("make", "start", "told"),
    [
        pytest.param(lambda: Net(width=7), "base", "body.0.weight is float32 [6, 4] there, float32 [7, 4] here", id="shape"),
        pytest.param(lambda: Net().double(), "base", "body.0.weight is float32 [6, 4] there, float64 [6, 4] here", id="type"),
        pytest.param(lambda: torch.nn.Linear(4, 2), "base", "it has no bias, weight", id="names"),
        pytest.param(lambda: torch.nn.Sequential(), "base", "which the model has not", id="spare"),
        pytest.param(Net, "code", "it keeps no weights by name", id="code"),
        pytest.param(Net, Start("base", parts=["tail"]), "`start.parts` is 'tail', expected parts of the model", id="part"),
        pytest.param(Net, 7, "`start` is 'builtins.int', expected a version, NAME@NUMBER", id="number"),
        pytest.param(Net, "base@9", "base", id="version"),
        pytest.param(Net, "other", "other", id="model"),
    ],
)
def test_what_does_not_fit_is_told_and_the_model_stays_as_it_is(make, start, told, home, monkeypatch):
    monkeypatch.setenv("ARGOSY_HOME", str(home.store.home))
    publish(Net(), "base", home.store, sample=X)
    home.publish_code("return {'y': x}")
    model = make()
    before = state_of(model)
    with pytest.raises((InputError, NotFoundError)) as caught:
        begin(model, start)
    assert told in str(caught.value)
    np.testing.assert_equal(state_of(model), before)


def head(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def hold(file: str = "m.onnx", start: int = 0, holders: object = {}) -> bytes:
    """Say that all weights of `Linear` stand in another file."""
    held = {
        name: {"file": file, "start": start, "dtype": "F32", "shape": shape, "is_transposed": False}
        for name, shape in (("weight", [2, 4]), ("bias", [2]))
    }
    return head(json.dumps({"__metadata__": {"held": json.dumps(held), "holders": json.dumps(holders)}}).encode())


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack("<Q", 2**60) + b"{}", id="endless-header"),
        pytest.param(head(b"[]"), id="no-table"),
        pytest.param(head(b'{"a": 17}'), id="no-place"),
        pytest.param(head(b'{"weight":{"dtype":"F32","shape":[2,4],"data_offsets":'), id="cut"),
        pytest.param(head(b'{"x":{"dtype":"F32","shape":[6,4],"data_offsets":[0,9999999]}}'), id="short"),
        pytest.param(hold(file="m.onnx"), id="not-its-file"),
        pytest.param(hold(file="other"), id="no-such-file"),
        pytest.param(hold(file="../../database.sqlite"), id="file-elsewhere"),
        pytest.param(hold(holders={"m.onnx": EMPTY}, start=-1), id="before-the-file"),
        pytest.param(hold(holders={"m.onnx": EMPTY}, start=1), id="behind-the-file"),
        pytest.param(hold(holders={"m.onnx": EMPTY}), id="short-file"),
        pytest.param(head(b'{"__metadata__":{"held":"[1"}}'), id="held-is-no-json"),
        pytest.param(head(b'{"__metadata__":{"held":"[1]"}}'), id="held-is-no-table"),
        pytest.param(head(b'{"__metadata__":7}'), id="metadata-is-no-table"),
        pytest.param(head(b'{"\\u001b[31m":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}'), id="name-that-colours"),
        pytest.param(head(b'{"%s":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}' % (b"a" * 2000)), id="long-name"),
        pytest.param(head(b'{"weight":{"dtype":"F32","shape":[%s1],"data_offsets":[0,0]}}' % (b"1," * 99)), id="many-axes"),
        pytest.param(head(b'{"weight":{"dtype":"\\u001b[31mF","shape":[2,4],"data_offsets":[0,0]}}'), id="no-type"),
        pytest.param(head(b"[" * 100_000), id="lists-without-end"),
        pytest.param(head(b'{"a":' + b"[" * 100_000), id="place-without-end"),
        pytest.param(head(b'{"__metadata__":{"held":"' + b"[" * 100_000 + b'"}}'), id="held-without-end"),
    ],
)
def test_weights_that_are_damaged_are_refused(content, store, tmp_path):
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    (tmp_path / "m.onnx").write_bytes(b"")
    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
    files = {name: tmp_path / name for name in ("m.onnx", WEIGHTS_FILE)}
    store.publish("base", files, signature=signature, entry="m.onnx")
    with pytest.raises(InputError, match="Training cannot start from version base@1") as caught:
        begin(torch.nn.Linear(4, 2), Start("base", store=store))
    assert caught.value.message.isprintable() and len(caught.value.message) < 1000


def test_run_that_started_from_a_version_resumes_from_its_own_checkpoint_alone(store, tmp_path):
    publish(Net(), "base", store, sample=X)
    publish(Net(), "base", store, sample=X)
    options = {"checkpoints": tmp_path / "run", "progress": False}

    def run(epochs, version, resume):
        torch.manual_seed(0)
        return train(Net(), (X, Y), start=Start(version, store=store), epochs=epochs, resume=resume, **options).model

    whole = state_of(train(Net(), (X, Y), start=Start("base@1", store=store), epochs=4, progress=False).model)
    run(2, "base@1", False)
    with pytest.raises(InputError, match="its start is"):
        run(4, "base@2", True)
    np.testing.assert_equal(state_of(run(4, "base@1", True)), whole)


def test_weights_that_are_kept_are_no_part_of_what_is_served(store):
    served = [open_version(store, publish(Recurrent(), "base", store, sample=IDS, native=native)) for native in (False, True)]
    for artifact in served:
        assert (artifact.folder / WEIGHTS_FILE).is_file() and WEIGHTS_FILE not in artifact.files
        assert artifact.size_bytes == sum(path.stat().st_size for path in artifact.files.values())


def test_run_that_cannot_begin_gives_the_model_its_own_weights_back(store):
    publish(Net(), "base", store, sample=X)
    model = Net()
    before = state_of(model)
    with pytest.raises(InputError, match="a model with weights to train"):
        begin(model, Start("base", store=store), freeze=["body", "head"])
    np.testing.assert_equal(state_of(model), before)
