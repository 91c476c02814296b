"""Steps read files that may be a stranger's: what a hostile graph does to its process is told of its recipe and harms nothing."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import signal
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from argosy.bench.artifact import Artifact
from argosy.compress import Budget, Guard, compress, get_recipe
from argosy.compress.recipe import run_recipe
from argosy.compress.step_process import Made
from argosy.compress.steps.base import Workshop
from argosy.errors import ConflictError, InputError
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store
from tests.compress.artifacts import answer, make_artifact, make_perceptron

find = importlib.import_module("argosy.compress.find")
ROWS = [{"x": row[None]} for row in np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)]
SIGNATURE = [("x", "FP32", ("rows", 16))], [("y", "FP32", ("rows", 16))]
WEIGHT = np.eye(16, dtype=np.float32)


@pytest.fixture
def workshop(tmp_path: Path) -> Generator[Workshop]:
    made = Workshop(tmp_path / "made", ROWS)
    with closing(made.process):
        yield made


def make_bomb(folder: Path) -> Artifact:
    """Fold two constants, and there are terabytes of ones."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["one"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        helper.make_node("Expand", ["one", "wide"], ["many"]),
        helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
        helper.make_node("Mul", ["h", "most"], ["y"]),
    ]
    weights = {"shape": np.array([1], np.int64), "wide": np.array([1 << 20, 1 << 20], np.int64), "w": WEIGHT}
    return make_artifact(folder, nodes, *SIGNATURE, weights)


def make_body() -> onnx.GraphProto:
    """Of a loop that goes on as long as it may."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Tanh", ["state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )


def make_loop(folder: Path) -> Artifact:
    """Never ends once it is run."""
    nodes = [
        helper.make_node("Loop", ["count", "yes", "x"], ["t"], body=make_body(), name="loop"),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="matmul"),
    ]
    weights = {"count": np.array(1 << 60, np.int64), "yes": np.array(True), "w": WEIGHT}
    return make_artifact(folder, nodes, *SIGNATURE, weights)


def make_long(folder: Path) -> Artifact:
    """A hundred thousand layers."""
    names = ["x", *(f"t{place}" for place in range(1, 100_000)), "y"]
    nodes = [helper.make_node("MatMul", [first, "w"], [second], name=second) for first, second in itertools.pairwise(names)]
    return make_artifact(folder, nodes, *SIGNATURE, {"w": WEIGHT})


def make_outside(folder: Path) -> Artifact:
    """Has its weights in a file of somebody else's."""
    artifact = make_perceptron(folder)
    (folder.parent / "secret").write_bytes(bytes(8192))
    model = onnx.load(str(artifact.path))
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
    artifact.path.write_bytes(model.SerializeToString())
    return artifact


MAKERS = {"bomb": make_bomb, "loop": make_loop, "long": make_long, "outside": make_outside}
WORDS = {
    "bomb-int8": "it needs more memory than is free",
    "loop-int8": "it took more than 2 s",
    "long-simplify": "it took more than",
    "outside-simplify": "should be file inside",
    "outside-openvino": "outside the base directory",
}
METHODS = ("simplify", "int8", "dynamic-int8", "float16", "low-rank", "openvino", "weights", "merge-lora")
SLOW = sorted({f"{kind}-{name}" for kind in MAKERS for name in METHODS} - set(WORDS))


@pytest.mark.parametrize("case", [*WORDS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_hostile_graph_costs_its_own_recipe_and_the_next_one_is_made(case: str, workshop: Workshop, tmp_path: Path) -> None:
    kind, _, name = case.partition("-")
    pytest.importorskip("openvino")
    artifact = MAKERS[kind](tmp_path / "hostile")
    workshop.step_s = 2.0 if kind in ("loop", "long") else 60.0
    started = time.monotonic()
    try:
        made = run_recipe(get_recipe(name), artifact, workshop)
    except InputError as error:
        assert error.key in ("step_failed", "nothing_to_compress") and len(error.message) < 900
        assert WORDS.get(case, "") in error.message
    else:
        assert made.files and case not in WORDS and kind != "outside"
    assert time.monotonic() - started < 30
    workshop.step_s = 60.0
    good = run_recipe(get_recipe("float16"), make_perceptron(tmp_path / "good"), workshop)
    assert answer(good, x=np.concatenate([row["x"] for row in ROWS]))["y"].shape == (8, 4)


def test_step_that_never_ends_costs_a_search_its_recipe_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as the largest number of its rows says it does something: forever of those that it is calibrated with."""
    inner = make_body()
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "yes", "x"], ["t"], body=inner, name="loop"),
        helper.make_node("MatMul", ["t", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    random = np.random.default_rng(1)
    weights = {"yes": np.array(True), "w": draw(random, 16, 512), "v": draw(random, 512, 16)}
    artifact = make_artifact(tmp_path / "counting", nodes, *SIGNATURE, weights)
    version = import_onnx(store, artifact.path, "counting")
    monkeypatch.setattr(find, "list_recipes", lambda artifact, workshop: [get_recipe("int8"), get_recipe("float16")])
    monkeypatch.setattr(find, "_LEAST_STEP_S", 3.0)
    rows = random.normal(size=(120, 16)).astype(np.float32)
    endless = np.full((20, 16), 1e15, np.float32)
    result = compress(
        version, objective="size", calibration=endless, evaluation=(rows, None), budget=Budget(max_s=12.0), store=store
    )
    assert result.recipe == get_recipe("float16") and result.version is not None
    assert result.tried[0].problem == "Compression method int8 cannot do this model: it took more than 3 s"


def test_nothing_of_a_file_is_read_in_the_process_of_the_command(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = import_onnx(store, make_perceptron(tmp_path / "perceptron", 256).path, "quiet")
    rows = np.random.default_rng(3).normal(size=(240, 16)).astype(np.float32)

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("a file is parsed")

    for module, name in [("onnx", "load"), ("onnx", "load_model_from_string"), ("onnxruntime", "InferenceSession")]:
        monkeypatch.setattr(importlib.import_module(module), name, refuse)
    listed = importlib.import_module("argosy.compress.catalogue").list_recipes
    monkeypatch.setattr(
        find, "list_recipes", lambda *given: [recipe for recipe in listed(*given) if recipe == get_recipe("int8")]
    )
    said: list[str] = []
    given: dict[str, Any] = {"calibration": rows, "evaluation": (rows[:120] * 1.5, None)}
    with pytest.raises(ConflictError, match=r"int8\(exclude=1 nodes\): cosine"):
        compress(version, objective="size", **given, guard=Guard("cosine", 1e-9), store=store, say=said.append)
    assert any(line.startswith("looking at 2 groups of layers of int8") for line in said)
    result = compress(version, method="simplify+prune+int8", **given, guard=Guard("mae", 9.0), store=store)
    assert result.version is not None and result.version.manifest.joining.kind == "independent"


def test_process_that_dies_is_told_and_started_anew(workshop: Workshop, tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "perceptron")
    recipe = get_recipe("float16")
    first = run_recipe(recipe, artifact, workshop)
    os.kill(find_process(workshop), signal.SIGKILL)
    with pytest.raises(InputError, match="float16 cannot do this model: its process ended with code -9: it was killed"):
        run_recipe(recipe, artifact, workshop)
    second = run_recipe(recipe, artifact, workshop)
    assert first.path.read_bytes() == second.path.read_bytes() and first.folder != second.folder
    assert find_process(workshop) != 0
    workshop.process.close()
    assert not list(workshop.folder.glob("process-*")) and first.path.is_file()


def test_steps_of_one_search_share_a_process_that_reaches_no_network_and_no_other_file(
    workshop: Workshop, tmp_path: Path
) -> None:
    artifact = make_perceptron(tmp_path / "perceptron")
    run_recipe(get_recipe("simplify+int8"), artifact, workshop)
    process = find_process(workshop)
    run_recipe(get_recipe("weights"), artifact, replace(workshop, calibration=()))
    assert find_process(workshop) == process
    status = Path(f"/proc/{process}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status and "CapEff:\t0000000000000000" in status


@pytest.mark.parametrize("kind", ["link", "second-name", "folder", "no-entry", "device", "runtime", "precision", "elsewhere"])
def test_what_a_process_says_that_it_made_is_not_believed(kind: str, workshop: Workshop, tmp_path: Path) -> None:
    artifact = make_perceptron(tmp_path / "perceptron")
    run_recipe(get_recipe("float16"), artifact, workshop)
    (place,) = workshop.folder.glob("process-*")
    folder = place / "made" / "made-evil"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(artifact.path.read_bytes())
    said: dict[str, Any] = {"folder": "made-evil", "entry": "model.onnx", "runtime": "onnx", "options": {}}
    if kind == "link":
        (folder / "other").symlink_to("/etc/passwd")
    elif kind == "second-name":
        (place / "made" / "kept").hardlink_to(folder / "model.onnx")
    elif kind == "folder":
        (folder / "deep").mkdir()
    changes: dict[str, dict[str, Any]] = {
        "no-entry": {"entry": "../model.onnx"},
        "device": {"options": {"device": "cuda"}},
        "runtime": {"runtime": "python"},
        "precision": {"options": {"precision": "/etc"}},
        "elsewhere": {"folder": "../given"},
    }
    with pytest.raises(InputError, match="what its process made is no artifact") as caught:
        workshop.process.take(Made(**(said | changes.get(kind, {}))), artifact, workshop.make_folder(), "float16")
    assert caught.value.key == "step_failed"


def find_process(workshop: Workshop) -> int:
    """The number of the process in which files are read."""
    (place,) = workshop.folder.glob("process-*")
    for status in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            if status.readlink() == place / "log":
                return int(status.parts[2])
    return 0


def draw(random: np.random.Generator, *shape: int) -> Any:
    return (random.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)
