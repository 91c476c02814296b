from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper

from argosy.cli.models import summarise_lineage
from argosy.signature import Ragged, RaggedInput
from argosy.store.local import Store
from tests.cli.site import make_affine_model
from tests.home import Home

Call = Callable[..., Result]

CODE = (
    "class Model:\n    def load(self, folder):\n        pass\n\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
)
SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


@pytest.fixture
def filled(call: Call, tmp_path: Path) -> Path:
    for seed in (1, 2):
        assert call("import", make_affine_model(tmp_path / f"a{seed}.onnx", seed), "--name", "affine").exit_code == 0
    return tmp_path


def test_import_publishes_an_onnx_file(call: Call, tmp_path: Path) -> None:
    result = call("import", make_affine_model(tmp_path / "a.onnx", 1), "--name", "affine", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    version = Store(tmp_path / "home").get_version("affine@1")
    assert found["name"] == "affine" and found["version"] == 1 and found["digest"] == version.digest
    assert found["runtime"] == "onnx" and found["num_golden"] == 8 and found["golden_is_synthetic"] is True


def test_import_publishes_a_python_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(CODE)
    (tmp_path / "m.json").write_text(json.dumps(SIGNATURE))
    arguments = ("import", tmp_path / "m.py", "--name", "code", "--signature", tmp_path / "m.json")
    assert call(*arguments).stdout.startswith("code@1  python, ")
    assert call(*arguments, "--repeatable").exit_code == 0
    versions = Store(tmp_path / "home").list_versions("code")
    assert [version.manifest.repeatable for version in versions] == [False, True]
    assert versions[0].manifest.signature.inputs[0].shape == (-1, 2)


@pytest.mark.parametrize("text", ["no JSON", '{"inputs": []}', '{"inputs": [], "outputs": [], "more": 1}'])
def test_import_says_what_is_wrong_with_a_signature(text: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(CODE)
    (tmp_path / "m.json").write_text(text)
    result = call("import", tmp_path / "m.py", "--name", "code", "--signature", tmp_path / "m.json")
    assert result.exit_code == 1
    assert "m.json is not valid" in result.stderr


def test_import_says_which_axes_requests_choose(call: Call, tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "L"]) for name in ("x", "mask=", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "mask="], ["y"])], "wide", tensors[:2], tensors[2:])
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    options = ("--ragged", "x=1:-2.5e1", "--ragged", "mask==1", "--ragged-output", "y=1")
    assert call("import", path, "--name", "wide", *options).exit_code == 0
    signature = Store(tmp_path / "home").get_version("wide").manifest.signature
    assert signature.ragged == Ragged({"x": RaggedInput(1, -25.0), "mask=": RaggedInput(1)}, {"y": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(["--ragged", "x"], "expected INPUT=AXIS", id="no axis"),
        pytest.param(["--ragged", "x=1:1e999"], "expected INPUT=AXIS", id="infinite padding"),
        pytest.param(["--ragged", "x=1:nan"], "expected INPUT=AXIS", id="no number"),
        pytest.param(["--ragged", "x=-1"], "expected INPUT=AXIS", id="negative axis"),
        pytest.param(["--ragged", "x=1", "--ragged-output", "y=1:0"], "expected OUTPUT=AXIS", id="padding of an output"),
        pytest.param(["--ragged-output", "y=1"], "needs --ragged", id="an output alone"),
        pytest.param(["--ragged", "x=1"], "expected an input with an axis 1 of any length", id="an axis of fixed length"),
        pytest.param(["--ragged", "z=0"], "expected an input with an axis 0 of any length", id="no such input"),
    ],
)
def test_import_refuses_axes_that_are_none(options: list[str], words: str, call: Call, tmp_path: Path) -> None:
    result = call("import", make_affine_model(tmp_path / "a.onnx", 1), "--name", "affine", *options)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert Store(tmp_path / "home").list_models() == []


def test_models_lists_models(call: Call, filled: Path) -> None:
    lines = call("models").stdout.splitlines()
    assert lines == ["NAME    VERSIONS  ALIASES", "affine  2         latest=2"]
    assert json.loads(call("models", "--json").stdout) == [{"name": "affine", "versions": [1, 2], "aliases": {"latest": 2}}]


def test_models_describes_the_versions_of_a_model(call: Call, filled: Path) -> None:
    store = Store(filled / "home")
    store.add_measurements(store.get_version("affine@1"), {"accuracy": 0.98, "load_s": 0.01, "service_s_batch_8": 0.1})
    lines = call("models", "affine").stdout.splitlines()
    assert lines[0].split() == ["VERSION", "ALIASES", "SIZE", "RUNTIME", "CREATED", "MEASUREMENTS", "LINEAGE"]
    assert lines[1].startswith("1 ") and "accuracy 0.98, load_s 10.00 ms" in lines[1] and "batch_8" not in lines[1]
    assert "source_file a2.onnx" in lines[2] and "latest" in lines[2]
    first = json.loads(call("models", "affine", "--json").stdout)[0]
    assert first["measurements"]["service_s_batch_8"] == 0.1
    assert first["signature"]["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 4]}


def test_models_keeps_its_lines_short(call: Call, filled: Path) -> None:
    store = Store(filled / "home")
    many = {f"loss_of_output_{number:02}": 0.5 for number in range(30)}
    store.add_measurements(store.get_version("affine@1"), {**many, "size_bytes": 1e6, "rows_per_s": 5.0})
    line = call("models", "affine").stdout.splitlines()[1]
    assert "loss_of_output_01 0.5, and 29 more" in line and "size_bytes" not in line and len(line) < 200
    assert len(json.loads(call("models", "affine", "--json").stdout)[0]["measurements"]) == 32
    assert summarise_lineage({"code": "x" * 90, "kind": "training"}) == f"code {'x' * 90}, and 1 more"


def test_runtime_that_is_not_here_is_told_when_it_is_recorded(call: Call, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "openvino" not in call("deploy", "affine@1").stderr
    monkeypatch.setattr("argosy.environment.is_importable", lambda package: False)
    done = call("deploy", "affine@1", "--runtime", "openvino")
    assert done.exit_code == 0 and "pip install 'argosy[openvino]'" in done.stderr


def test_alias_points_to_a_version(call: Call, filled: Path) -> None:
    found = json.loads(call("models", "affine", "--alias", "champion=1", "--json").stdout)
    assert [version["aliases"] for version in found] == [["champion"], ["latest"]]
    assert "champion of affine pointed to version 1 before" in call("models", "affine", "--alias", "champion=2").stderr
    result = call("models", "affine", "--alias", "champion=7")
    assert result.exit_code == 1 and "has no version 7" in result.stderr


def test_lineage_is_a_line() -> None:
    lineage = {
        "kind": "training",
        "data": {"digest": "sha256:0", "rows": 3},
        "recipe": {"name": "digits", "test_digest": "sha256:1"},
        "parent": {"name": "digits", "number": 3, "digest": "sha256:2"},
        "list": [1],
        "producer": "",
        "num_weights": 15,
    }
    assert summarise_lineage(lineage) == "kind training, recipe digits, parent digits@3, num_weights 15"


def test_versions_of_another_edition_of_the_proof_are_told(call: Call, home: Home) -> None:
    home.publish_scale()
    home.publish_scale(factor=3.0, edition=0)
    shown = call("models", "scale").stdout
    assert "version 2: unknown: another edition of the proof called it independent" in shown
    assert "version 1: unknown" not in shown
    first, second = json.loads(call("models", "scale", "--json").stdout)
    assert (first["joining"]["kind"], second["joining"]["kind"]) == ("independent", "unknown")
