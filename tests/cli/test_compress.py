"""`argosy compress`: what it takes, what it says, and what it leaves behind."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from argosy.compress import get_recipe
from argosy.frameworks.onnx import OnnxModel
from argosy.store.local import Store
from tests.cli.site import Site, make_affine_model
from tests.home import Home
from tests.runtimes.words import publish_words


def test_compress_takes_calibration_rows_of_an_imported_model(call: Callable[..., Result], tmp_path: Path) -> None:
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((64, 2000), np.float32))
    missing = call("compress", "wide", "--method", "int8")
    assert missing.exit_code == 1 and "needs calibration rows of model 'wide'" in missing.stderr
    arguments = ("compress", "wide", "--method", "int8", "--without-gain", "--calibration", tmp_path / "rows.npy", "--max-loss")
    lines = call(*arguments, "0.5").stdout.splitlines()
    assert lines[0].startswith("wide@2  onnx, ")
    assert lines[1] == "made by int8"
    assert lines[2].split() == ["MEASURE", "VERSION", "1", "VERSION", "2"]
    assert re.match(r"fidelity \(8 golden rows\) +1\.0000 ", lines[3]) and lines[4].startswith("files ")
    assert lines[8] == "judged by fidelity: what the outputs are is not known: its lineage names no loss"
    assert lines[9].startswith("lost: 0.") and re.match(r"better: the file is (69|7\d)\.", lines[10])


@pytest.mark.parametrize(
    ("keys", "basis"),
    [
        pytest.param(("x", "y"), "r2", id="input-and-output"),
        pytest.param(("x", "targets"), "r2", id="input-and-targets"),
        pytest.param(("x",), "fidelity", id="input-alone"),
    ],
)
def test_compress_takes_evaluation_rows_of_any_version(
    call: Callable[..., Result], tmp_path: Path, keys: Any, basis: str
) -> None:
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    rows = np.random.default_rng(0).standard_normal((96, 2000), np.float32)
    answers = OnnxModel(tmp_path / "wide.onnx").run({"x": rows})["y"]
    np.save(tmp_path / "rows.npy", rows[:64])
    save: Any = np.savez  # Its stub takes every array for the option `allow_pickle`.
    save(tmp_path / "test.npz", **dict(zip(keys, (rows[64:], answers[64:]), strict=False)))
    options = (
        "--method",
        "int8",
        "--calibration",
        tmp_path / "rows.npy",
        "--eval",
        tmp_path / "test.npz",
        "--without-gain",
        "--json",
    )
    made = json.loads(call("compress", "wide", *options).stdout)
    assert (made["score"]["metric"], made["score"]["basis"], made["score"]["num_rows"]) == (basis, "evaluation", 32)
    assert re.match(r"the file is (69|7\d)\.", made["gains"][0])
    unfit = call("compress", "wide@1", *options, "--eval", tmp_path / "rows.npz")
    assert unfit.exit_code == 1 and json.loads(unfit.stdout)["key"] == "missing_file"


def test_failed_guard_publishes_nothing(call: Callable[..., Result], tmp_path: Path) -> None:
    # Rows a thousand times too small give scales that clip every real value.
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(tmp_path / "rows.npy", np.full((64, 2000), 1e-6, np.float32))
    result = call("compress", "wide", "--method", "int8", "--calibration", tmp_path / "rows.npy", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["key"] == "guard_failed"
    assert len(Store(tmp_path / "home").list_versions("wide")) == 1


@pytest.fixture
def wide(call: Callable[..., Result], tmp_path: Path) -> Path:
    """A file of rows for the imported model `wide`."""
    call("import", make_affine_model(tmp_path / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((200, 2000), np.float32))
    return tmp_path / "rows.npy"


def test_search_tells_what_it_tries_and_writes_a_page(
    call: Callable[..., Result], tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("argosy.compress.find.list_recipes", lambda *given: [get_recipe("simplify"), get_recipe("float16")])
    page = tmp_path / "page.html"
    done = call("compress", "wide", "--objective", "size", "--data", wide, "--report", page, "--no-served", "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["version"], made["parent"], made["objective"]) == (2, 1, "size")
    assert [one["recipe"][0]["name"] for one in made["tried"]] == ["simplify", "float16"] and made["recipe"] == made["tried"][1][
        "recipe"
    ]
    assert made["score"]["num_rows"] == 150 and made["score"]["interval"] is not None
    assert "simplify: fidelity 1.0000" in done.stderr and f"report: {page}" in done.stderr
    assert "float16, the best of 2 for size" in page.read_text()
    again = call("compress", "wide@1", "--objective", "size", "--data", wide, "--report", page)
    assert again.exit_code == 1 and "page.html is there already" in again.stderr
    assert len(Store(tmp_path / "home").list_versions("wide")) == 2


def test_report_without_its_package_is_refused_before_the_work(
    call: Callable[..., Result], tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "program.py").write_text("def make(units):\n    return 3\n")
    search = ("search", f"{tmp_path}/program.py:make", "--space", "units=1:9")
    for arguments in (("compress", "wide", "--data", wide), ("train", "recipe:digits"), search):
        done = call(*arguments, "--report", tmp_path / "page.html", "--json")
        assert done.exit_code == 1 and json.loads(done.stdout)["key"] == "missing_extra"
        assert "epoch" not in done.stderr and "simplify" not in done.stderr
    assert len(Store(tmp_path / "home").list_versions("wide")) == 1


def test_texts_of_a_file_are_made_tensors_as_a_worker_makes_them(home: Home, call: Callable[..., Result], tmp_path: Path) -> None:
    publish_words(home)
    # Signs at which `splitlines` would cut, too, are part of a text.
    (tmp_path / "texts.txt").write_bytes("\ufeffthe ship\r\n\nrich cargo\u2028over the sea\nred\x0csea\ngreen land\n".encode())
    (tmp_path / "texts.jsonl").write_text('"the ship"\n"over sea\u2028and\x85land"\n"blue"\n"green"\n', "utf-8")
    for name in ("texts.txt", "texts.jsonl"):
        options = ("--metric", "cosine", "--without-gain", "--method", "simplify", "--eval", tmp_path / name)
        done = call("compress", "words@1", *options, "--home", home.store.home, "--json")
        assert done.exit_code == 0, done.output
        score = json.loads(done.stdout)["score"]
        assert (score["num_rows"], score["basis"]) == (4, "evaluation") and score["after"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("gone.npy", None, "No such file", id="missing"),
        pytest.param("gone.txt", None, "No such file", id="missing-texts"),
        pytest.param("rows.npy", b"no numbers", "rows.npy", id="no-npy"),
        pytest.param("rows.npz", b"PK\x03\x04", "rows.npz", id="half-a-zip"),
        pytest.param("rows.json", b'{"x": [[1, 2', "rows.json", id="half-of-json"),
        pytest.param("rows.jsonl", b'"one"\n{"x": ', "rows.jsonl", id="half-a-line"),
        pytest.param("rows.txt", b"\xff\xfe\x00", "rows.txt", id="no-text"),
        pytest.param("rows.txt", b"one\ntwo\n", "x has type <U3, expected numbers", id="texts-for-tensors"),
        pytest.param("rows.txt", b"", "row", id="no-line"),
        pytest.param("rows.json", b'{"x": [[1, 2, 3]]}', "shape (1, 3)", id="shape"),
        pytest.param("rows.json", b'{"z": [[1, 2, 3]]}', "arrays for z", id="name"),
    ],
)
def test_bad_files_are_refused_and_named(
    call: Callable[..., Result], tmp_path: Path, wide: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = call("compress", "wide", "--method", "float16", "--data", tmp_path / name)
    assert done.exit_code == 1 and words in done.stderr, done.output
    assert done.stderr.startswith("error: ") and "Traceback" not in done.output
    assert len(Store(tmp_path / "home").list_versions("wide")) == 1


def test_bad_options_are_refused_with_the_choices(call: Callable[..., Result], wide: Path) -> None:
    for option, value, words in (
        ("--objective", "speed", "known: latency, memory, size, throughput"),
        ("--method", "int3", "known: bfloat16, distill, dynamic-int8"),
        ("--metric", "f1", "Unknown metric 'f1'"),
        ("--max-loss", "-1", "guard.max_loss"),
        ("--max-loss", "5", "0.05 allows 5 points of a hundred"),
        ("--max-loss", "1", "the metric is 1 at best"),
        ("--without-gain", "--no-served", "--without-gain (needs_gain=False) would do nothing without a method"),
        ("--max-seconds", "0", "budget.max_s"),
    ):
        done = call("compress", "wide", "--data", wide, option, value)
        assert done.exit_code == 1 and words in done.stderr, (option, done.output)


@pytest.mark.parametrize(
    "options",
    [
        ("--objective", "latency"),
        ("--search", "tpe"),
        ("--trials", "3"),
        ("--max-seconds", "9"),
        ("--search", "tpe", "--trials", "3"),
    ],
    ids=" ".join,
)
def test_what_only_a_search_is_told_is_refused_beside_a_method(
    call: Callable[..., Result], wide: Path, options: tuple[str, ...]
) -> None:
    done = call("compress", "wide", "--data", wide, "--method", "float16", *options)
    assert done.exit_code == 1 and "would do nothing beside a method" in done.stderr, done.output
    assert all(option in done.stderr for option in options if option.startswith("--"))


def test_compressed_version_is_rolled_out(site: Site) -> None:
    site.run("import", make_affine_model(site.folder / "wide.onnx", 1, width=2000), "--name", "wide")
    np.save(site.folder / "rows.npy", np.random.default_rng(0).standard_normal((40, 2000), np.float32))
    site.start("--deploy", "wide@1")
    compress = ("compress", "wide@1", "--method", "float16", "--data", site.folder / "rows.npy", "--deploy")
    made = site.read(*compress)
    assert (made["version"]["version"], made["version"]["recipe"][0]["name"]) == (2, "float16")
    answered = site.read("predict", "wide", "--golden", "0")
    assert "2" in str(answered["version"])
    assert site.read(*compress, "small")["rollout"]["spec"]["name"] == "small"
    assert [one["spec"]["version"] for one in site.read("status")["deployments"]] == [3, 2]


def test_models_shows_compressed_versions_beside_what_they_were_made_of(
    call: Callable[..., Result], tmp_path: Path, wide: Path
) -> None:
    assert "compressed" not in call("models", "wide").stdout
    call("compress", "wide", "--method", "float16", "--data", wide)
    shown = call("models", "wide").stdout
    assert "compressed, as parts of the version that each was made of:" in shown
    last = shown.splitlines()[-1]
    assert re.search(r"^2 +1 +float16 +fidelity 1\.0000 \(lost 0\.0000; 95 %: -?0\.0000 to 0\.0000\) +0\.5\d", last), last


def test_trace_without_a_server_is_refused(call: Callable[..., Result], tmp_path: Path, wide: Path) -> None:
    (tmp_path / "trace.jsonl").write_text('{"at_s": 0.0, "rows": 2}\n{"at_s": 0.1}\n')
    options = ("compress", "wide", "--method", "float16", "--data", wide, "--trace", tmp_path / "trace.jsonl")
    done = call(*options, "--no-served")
    assert done.exit_code == 1 and "served" in done.stderr
    (tmp_path / "trace.jsonl").write_text("no trace\n")
    assert "trace.jsonl" in call(*options).stderr
