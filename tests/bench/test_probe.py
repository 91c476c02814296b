"""A process that runs one artifact: whatever the artifact does to it is told, and ends with it."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import argosy
from argosy.bench import probe as probe_module
from argosy.bench.artifact import Artifact
from argosy.bench.probe import Probe
from argosy.bench.rows import read_answers, stack_answers, write_rows
from argosy.confine.confine import describe_confinement
from argosy.errors import FaultError
from argosy.signature import Signature, TensorSpec

ROWS = [{"x": np.full((1, 3), index, np.float32)} for index in range(4)]
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))

MODEL = """
import os, sys, time
import numpy as np

class Model:
    def load(self, folder):
        {load}

    def infer(self, inputs):
        x = inputs["x"]
        {infer}
        return {{"y": x + 1}}
"""


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Give an artifact of Python code."""

    def write(infer: str = "pass", load: str = "pass") -> Artifact:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model.py").write_text(MODEL.format(infer=infer, load=load))
        return Artifact(folder, "model.py", "python", SIGNATURE)

    return write


def test_rows_are_answered_in_their_order_whatever_their_shapes(make: Any, tmp_path: Path) -> None:
    rows = [{"x": np.full((1, 3), index, np.float32)} for index in range(3)]
    rows.insert(1, {"x": np.zeros((1, 2), np.float32)})
    signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))
    made = make()
    with Probe(Artifact(made.folder, made.entry, made.runtime, signature)) as probe:
        answers = probe.answer(write_rows(rows, tmp_path / "rows"))
        assert probe.load_s > 0 and probe.take_memory() > 1 << 20
        probe.choose(write_rows(rows, tmp_path / "timed"))
        assert len(probe.time_rounds(1, 8)) == 8
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], row["x"] + 1)


@pytest.mark.parametrize(
    ("infer", "told"),
    [
        pytest.param("os._exit(7)", "its process ended with code 7", id="exit"),
        pytest.param("os.abort()", "its process ended with code -6", id="abort"),
        pytest.param("os.kill(os.getpid(), 9)", "its process ended with code -9", id="killed"),
        pytest.param("print('no more room', file=sys.stderr, flush=True); os._exit(1)", "no more room", id="last-words"),
        pytest.param("raise ValueError('no such token')", "ValueError: no such token", id="raises"),
        pytest.param("raise SystemExit(3)", "its process ended with code 3", id="system-exit"),
    ],
)
def test_fault_of_a_model_is_told_by_its_name(infer: str, told: str, make: Any, tmp_path: Path) -> None:
    with Probe(make(infer), title="the candidate") as probe, pytest.raises(FaultError) as caught:
        probe.answer(write_rows(ROWS, tmp_path / "rows"))
    assert caught.value.key == "engine_failed"
    assert "the candidate" in caught.value.message and told in caught.value.message


def test_fault_while_loading_leaves_no_process_and_no_folder(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder that no other test uses.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for load, told in (("os._exit(5)", "ended with code 5"), ("raise OSError('half a file')", "half a file")):
        folder = make(load=load).folder
        with pytest.raises(FaultError, match=told):
            Probe(Artifact(folder, "model.py", "python", SIGNATURE))
        (folder / "model.py").unlink()
        folder.rmdir()
    assert list(tmp_path.glob("argosy-bench-*")) == []


def test_model_that_hangs_is_given_up_and_ended(make: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with Probe(make("time.sleep(60)"), timeout_s=3.0) as probe:
        with pytest.raises(FaultError, match="it took more than 3 s"):
            probe.answer(write_rows(ROWS, tmp_path / "rows"))
        pid = probe._process.pid  # pyright: ignore[reportPrivateUsage]
    assert time.monotonic() - started < 20
    assert not Path(f"/proc/{pid}").exists()


def write_onnx(folder: Path, nodes: list[Any], weights: tuple[Any, ...] = ()) -> Artifact:
    import onnx

    helper: Any = onnx.helper
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, list(weights))
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx"))
    return Artifact(folder, "model.onnx", "onnx", SIGNATURE)


def write_endless(folder: Path) -> Artifact:
    import onnx

    helper: Any = onnx.helper
    value = helper.make_tensor_value_info
    step = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["now"], ["next"])]
    ins = [
        value("i", onnx.TensorProto.INT64, []),
        value("go", onnx.TensorProto.BOOL, []),
        value("now", onnx.TensorProto.FLOAT, None),
    ]
    outs = [value("on", onnx.TensorProto.BOOL, []), value("next", onnx.TensorProto.FLOAT, None)]
    body = helper.make_graph(step, "body", ins, outs)
    weights = [
        helper.make_tensor("n", onnx.TensorProto.INT64, [], [2**62]),
        helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]),
    ]
    return write_onnx(folder, [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)], weights)


def test_graph_runs_in_a_process_that_is_confined_and_bounded(tmp_path: Path) -> None:
    import onnx

    with Probe(write_onnx(tmp_path / "model", [onnx.helper.make_node("Neg", ["x"], ["y"])])) as probe:
        answers = probe.answer(write_rows(ROWS, tmp_path / "rows"))
        process = Path(f"/proc/{probe._process.pid}")  # pyright: ignore[reportPrivateUsage]
        limits = {line[:26].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()}
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        environment = (process / "environ").read_bytes().split(b"\0")
    np.testing.assert_array_equal(answers[3]["y"], -ROWS[3]["x"])
    assert limits["Max data size"] != "unlimited" and limits["Max core file size"] == "0"
    assert status["NoNewPrivs"].strip() == "1" and status["CapEff"].strip() == "0" * 16
    assert not describe_confinement().has_call_filter or status["Seccomp"].strip() == "2"
    assert not any(line.startswith(b"PYTEST") for line in environment)


@pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel confines no files")
def test_graph_reads_nothing_but_its_own_files(tmp_path: Path) -> None:
    openvino: Any = pytest.importorskip("openvino")
    weights = (onnx_numpy(np.ones((3, 3), np.float32)),)
    import onnx

    made = write_onnx(tmp_path / "onnx", [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], weights)
    folder, secret = tmp_path / "ir", tmp_path / "secret.bin"
    openvino.save_model(openvino.Core().read_model(str(made.path)), str(folder / "model.xml"), compress_to_fp16=False)
    artifact = Artifact(folder, "model.xml", "openvino", SIGNATURE, {"inputs": ["x"], "outputs": ["y"]})
    with Probe(artifact) as probe:
        np.testing.assert_array_equal(probe.answer(write_rows(ROWS, tmp_path / "rows"))[2]["y"], [[6, 6, 6]])
    (folder / "model.bin").rename(secret)
    (folder / "model.bin").symlink_to(secret)
    with pytest.raises(FaultError, match=r"model\.bin|bin file cannot be found"):
        Probe(artifact)


def onnx_numpy(array: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(array, "w")


def test_graph_without_an_end_is_given_up(tmp_path: Path) -> None:
    with Probe(write_endless(tmp_path / "model"), timeout_s=4.0) as probe:
        rows = write_rows(ROWS[:1], tmp_path / "rows")
        with pytest.raises(FaultError, match="it took more than 4 s"):
            probe.answer(rows)


def test_graph_that_takes_all_memory_fails_alone(tmp_path: Path) -> None:
    import onnx

    helper: Any = onnx.helper
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["row"]),
        helper.make_node("Cast", ["row"], ["shape"], to=onnx.TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    artifact = write_onnx(tmp_path / "model", nodes, (helper.make_tensor("zero", onnx.TensorProto.INT64, [], [0]),))
    with Probe(artifact) as probe:
        # More than any machine of ours has free, and less than what no machine would promise.
        side = float(round((psutil.virtual_memory().available * 1.5 / 4) ** (1 / 3)))
        with pytest.raises(FaultError, match=r"(?i)alloc"):
            probe.answer(write_rows([{"x": np.full((1, 3), side, np.float32)}], tmp_path / "large"))
        assert probe.answer(write_rows([{"x": np.ones((1, 3), np.float32)}], tmp_path / "small"))[0]["y"][0, 0] == 1.0


def test_what_a_model_prints_is_no_answer(make: Any, tmp_path: Path) -> None:
    noise = "print('{\"error\": \"from Python\"}', flush=True); os.write(1, b'from below it\\n'); print('x' * 100000, flush=True)"
    with Probe(make(noise, load=noise)) as probe:
        answers = probe.answer(write_rows(ROWS, tmp_path / "rows"))
    np.testing.assert_array_equal(
        np.concatenate([answer["y"] for answer in answers]), np.concatenate([row["x"] + 1 for row in ROWS])
    )


def test_runtime_that_lives_in_another_environment_is_started_there(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(argosy.__file__).parents[1]
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "path=$PYTHONPATH" > {tmp_path / "seen"}\nPYTHONPATH={source} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    asked: list[str] = []

    def find(package: str) -> Path:
        asked.append(package)
        return python

    monkeypatch.setattr(probe_module, "PACKAGES", {"python": "mxnet"})
    monkeypatch.setattr(probe_module, "is_importable", lambda package: False)
    monkeypatch.setattr(probe_module, "find_interpreter", find)
    with Probe(make()) as probe:
        answers = stack_answers(probe.answer(write_rows(ROWS, tmp_path / "rows")))
    assert answers is not None and answers["y"].shape == (4, 3)
    # What the user's own packages are is nothing to that environment.
    assert (asked, (tmp_path / "seen").read_text()) == (["mxnet"], "path=\n")


def test_written_rows_of_several_shapes_are_grouped_and_read_in_order(tmp_path: Path) -> None:
    rows = [{"x": np.zeros((1, length), np.float32)} for length in (3, 2, 3)]
    files = write_rows(rows, tmp_path / "rows")
    assert (files.num_rows, files.places) == (3, ((0, 2), (1,)))
    with pytest.raises(OSError, match="exists"):
        write_rows(rows, tmp_path / "rows")
    assert stack_answers([{"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}]) is None
    assert stack_answers([]) is None
    stacked = stack_answers([{"y": np.zeros(2)}, {"y": np.ones(2)}])
    assert stacked is not None and stacked["y"].shape == (2, 2)
    assert read_answers(write_rows([], tmp_path / "none"), []) == []
