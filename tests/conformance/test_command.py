"""The command `argosy conformance`, its reports, and the models that it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from argosy.cli.main import main
from argosy.conformance import write_models
from argosy.conformance.model import INVERSE, Model, Tensor, list_names
from argosy.conformance.tensors import DATATYPES
from tests.conformance.faults import FAULTS, put
from tests.conformance.reference import Reference
from tests.conformance.reference_models import describe_tensors

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def running() -> Iterator[Reference]:
    with Reference() as server:
        yield server


@pytest.fixture
def server(running: Reference) -> Reference:
    running.reset()
    return running


@pytest.fixture
def call() -> Call:
    return lambda *words: CliRunner().invoke(main, ["conformance", *map(str, words)])


def test_server_that_passes_ends_with_zero(call: Call, server: Reference) -> None:
    done = call(server.url, "--only", "http.health", "--only", "http.metadata")
    assert done.exit_code == 0
    assert "reference 1.0: no clause of level MUST fails" in done.stdout
    assert done.stderr == ""


def test_failure_of_a_must_ends_with_one_and_says_what_was_expected(call: Call, server: Reference) -> None:
    FAULTS["http.infer.id-echoed"](server)
    done = call(server.url, "--only", "http.infer.id-echoed", "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    (finding,) = found["result"]["findings"]
    assert not found["conforming"]
    assert (finding["outcome"], finding["level"], finding["expected"]) == ("fail", "MUST", "id 'request-42'")
    assert '"id": "request-42"' in finding["sent"]
    assert '"id": "other"' in finding["got"]
    assert "expected: id 'request-42'" in done.stderr


def test_failure_of_a_should_ends_with_zero(call: Call, server: Reference) -> None:
    FAULTS["http.metadata.platform"](server)
    done = call(server.url, "--only", "http.metadata.platform")
    assert done.exit_code == 0
    assert "SHOULD http.metadata.platform" in done.stderr


def test_only_takes_a_group_and_not_the_beginning_of_a_word(call: Call, server: Reference) -> None:
    found = json.loads(call(server.url, "--only", "http.infer.id-echoed", "--json").stdout)
    assert [finding["id"] for finding in found["result"]["findings"]] == ["http.infer.id-echoed"]
    done = call(server.url, "--only", "http.inf")
    assert done.exit_code == 1
    assert "Unknown group of clauses 'http.inf'; known: binary" in done.stderr


@pytest.mark.parametrize("words", [(), ("http://127.0.0.1:1", "--write-models", "folder")], ids=["neither", "both"])
def test_one_of_url_and_folder_is_given(call: Call, words: tuple[str, ...]) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert "Give either URL or --write-models FOLDER" in done.stderr


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("localhost:8000", "Option `URL` is 'localhost:8000', expected http://HOST:PORT"),
        ("http://", "expected http://HOST:PORT"),
        ("http://127.0.0.1:99999", "expected http://HOST:PORT"),
        ("http://[::1", "expected http://HOST:PORT"),
        ("http://127.0.0.1:1", "No answer from http://127.0.0.1:1: "),
    ],
    ids=["no-scheme", "no-host", "port", "bracket", "nobody"],
)
def test_url_that_leads_nowhere_is_an_error(call: Call, url: str, text: str) -> None:
    done = call(url)
    assert done.exit_code == 1
    assert text in done.stderr


def test_server_without_the_models_is_an_error(call: Call, server: Reference) -> None:
    server.loaded = set()
    done = call(server.url)
    assert done.exit_code == 1
    assert "has no model conformance-... to be tested with" in done.stderr
    server.reset()
    assert "has no model mine to be tested with" in call(server.url, "--model", "mine").stderr


def test_grpc_needs_its_extra(call: Call, server: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    done = call(server.url, "--grpc", server.grpc_address)
    assert done.exit_code == 1
    assert "needs the package grpcio" in done.stderr
    assert "argosy[conformance]" in done.stderr


def test_extension_that_is_not_announced_is_tested_if_asked_for(call: Call, server: Reference) -> None:
    server.extensions = []
    words = (server.url, "--only", "binary.output", "--json")
    assert json.loads(call(*words).stdout)["result"]["findings"][0]["outcome"] == "not offered"
    found = json.loads(call(*words, "--extension", "binary_tensor_data").stdout)
    assert found["result"]["findings"][0]["outcome"] == "pass"


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_report_holds_all_findings_and_nothing_of_the_server_is_markup(
    call: Call, server: Reference, tmp_path: Path, suffix: str
) -> None:
    put("/v2$", "name", "<script>alert(1)</script> | `code`")(server)
    path = tmp_path / f"report.{suffix}"
    assert call(server.url, "--only", "http.health", "--report", path).exit_code == 0
    text = path.read_text()
    assert "http.health.live-body" in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    FAULTS["http.infer.model-name"](server)
    call(server.url, "--only", "http.infer.model-name", "--report", path, "--overwrite")
    assert "expected model_name conformance-fp32" in path.read_text()


@pytest.mark.parametrize("name", ["report.txt", "no-folder/report.md"])
def test_report_that_cannot_be_written_is_an_error(call: Call, server: Reference, tmp_path: Path, name: str) -> None:
    done = call(server.url, "--only", "http.health.live", "--report", tmp_path / name)
    assert done.exit_code == 1
    assert "Option `--report`" in done.stderr


def test_written_models_answer_as_the_suite_believes(call: Call, tmp_path: Path) -> None:
    done = call("--write-models", tmp_path / "models", "--json")
    names = json.loads(done.stdout)["models"]
    assert set(names) == set(list_names()) - {"conformance-octets"}
    assert "conformance-octets" in (tmp_path / "models" / "README.md").read_text()
    for name in set(names) - {"conformance-bf16"}:  # ONNX Runtime takes no BF16 from NumPy
        session = onnxruntime.InferenceSession(str(tmp_path / "models" / name / "1" / "model.onnx"))
        inputs, outputs = (tuple(Tensor(*each.values()) for each in side) for side in describe_tensors(name))
        model = Model(name, (), inputs, outputs)
        arrays = model.make_inputs(seed=3)
        feed = {key: array if array.dtype.kind != "O" else array.astype(str).astype(object) for key, array in arrays.items()}
        found = dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))
        expected = {"y": 1 / arrays["x"]} if name == INVERSE else model.answer(arrays)
        assert expected is not None
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            values = array.astype(str) if array.dtype.kind == "O" else array
            np.testing.assert_array_equal(found[key], values, strict=array.dtype.kind != "O")


def test_written_configuration_names_every_tensor(tmp_path: Path) -> None:
    for name in write_models(tmp_path):
        text = (tmp_path / name / "config.pbtxt").read_text()
        assert f'name: "{name}"' in text
        for tensor in [each for side in describe_tensors(name) for each in side]:
            kind = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
            dims = ", ".join(map(str, tensor["shape"]))
            assert f'name: "{tensor["name"]}" data_type: TYPE_{kind} dims: [ {dims} ]' in text


def test_models_are_written_to_an_empty_folder_alone(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = call("--write-models", tmp_path)
    assert done.exit_code == 1
    assert "expected an empty folder, or a new one" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "a folder that can be written to" in call("--write-models", tmp_path / "mine").stderr


def test_every_datatype_has_its_model() -> None:
    assert {f"conformance-{datatype.lower()}" for datatype in DATATYPES} <= set(list_names())
