"""`argosy search FILE.py:FUNCTION`: trials in processes of their own, from the shell to a version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import argosy
from argosy.errors import InputError
from argosy.search import read_space
from argosy.search.run import choose_objectives
from argosy.store.local import Store
from tests.processes import is_alive, list_children, wait_until

PROGRAM = """
import os, signal, time
from pathlib import Path

def blobs(units, kind="plain", validation=0.25):
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise RuntimeError("no data today")
    if kind == "hang" and not Path("begun").exists():
        Path("begun").touch()
        time.sleep(100)
    import numpy as np, torch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    y = np.tile(np.arange(3), 40)
    x = (4 * random.normal(size=(3, 4))[y] + random.normal(size=(120, 4))).astype("float32")
    model = torch.nn.Sequential(torch.nn.Linear(4, units), torch.nn.ReLU(), torch.nn.Linear(units, 3))
    return {"model": model, "data": (x, y), "epochs": 2, "validation_split": validation}

def nothing(units):
    return 3

def any_of(**parameters):
    return blobs(**parameters)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "argosy", "search", *arguments]
        environment = {**os.environ, "ARGOSY_HOME": str(tmp_path / "home")}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


@pytest.fixture
def run(start):
    def call(*arguments: str) -> tuple[int, str, str]:
        process = start(*arguments)
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err

    return call


@pytest.mark.slow
def test_best_trial_within_the_guard_becomes_a_version_and_failures_are_told(run, tmp_path):
    arguments = "program.py:blobs", "--space", "units=4,32", "--space", "kind=plain,crash", "--method", "grid", "--trials", "9"
    arguments += "--objective", "size,latency", "--guard", "accuracy=0.3", "--report", "page.html", "--jobs", "2", "--json"
    code, out, err = run(*arguments)
    assert code == 0, err
    found = json.loads(out)
    assert [trial["state"] for trial in found["trials"]] == ["done", "failed", "done", "failed"]
    assert "it was killed" in found["trials"][1]["reason"] and "gives no more than 4 points" in err
    assert found["best"]["parameters"] == {"units": 4, "kind": "plain"}  # the smaller one; accuracy is but guarded
    values = found["best"]["values"]
    assert 0 < values["latency"] < 1 and values["accuracy"] >= 0.3
    version = Store(tmp_path / "home").get_version("blobs@1")
    assert version.manifest.measurements["size_bytes"] == values["size"]
    assert version.manifest.lineage["kind"] == "training" and version.manifest.lineage["training"]["epochs"] == 2
    search = version.manifest.lineage["search"]
    assert (search["trial"], search["parameters"], search["journal"]) == (0, found["best"]["parameters"], found["journal"])
    page = Path(tmp_path, "page.html").read_text()
    assert all(word in page for word in ("Front", "History", "Parameters", "it was killed")) and "<svg" in page

    (tmp_path / "page.html").unlink()
    code, out, err = run(*arguments)  # Nothing is left to do, and nothing is published twice.
    assert code == 0 and json.loads(out)["version"] == 1 and "is blobs@1 already" in err


def test_killed_search_ends_its_trials_and_goes_on_with_them(start, run, tmp_path):
    arguments = "program.py:blobs", "--space", "units=4:8", "--space", "kind=hang", "--trials", "1", "--json"
    process = start(*arguments)
    wait_until((tmp_path / "begun").exists, 60.0)
    children = list_children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(is_alive(child) for child in children))
    code, out, err = run(*arguments)
    assert code == 0, err
    (trial,) = json.loads(out)["trials"]
    assert (trial["number"], trial["state"], trial["attempts"]) == (0, "done", 2)
    assert "trial 0 is begun again" in err


@pytest.mark.parametrize(
    ("target", "space", "options", "words"),
    [
        pytest.param("program.py:blobs", "unit=4:8", {}, "cannot be called with the parameters unit", id="unknown-name"),
        pytest.param("program.py:blobs", "kind=a,b", {}, "missing a required argument: 'units'", id="missing-name"),
        pytest.param("program.py:other", "units=4:8", {}, "defines no function other", id="no-function"),
        pytest.param("program.py:nothing", "units=4:8", {}, "gives a builtins.int", id="no-dict"),
        pytest.param("absent.py:blobs", "units=4:8", {}, "there is no such file", id="no-file"),
        pytest.param("recipe:digits", "units=4:8", {}, "expected FILE.py:FUNCTION", id="recipe"),
        pytest.param("program.py:blobs", "units=4:8", {"method": "gradient"}, "a score of each option", id="gradient"),
        pytest.param("program.py:blobs", "units=4:8", {"method": "magic"}, "Unknown method", id="method"),
        pytest.param("program.py:blobs", "units=4:8", {"objectives": ["speed"]}, "a direction", id="objective"),
        pytest.param("program.py:blobs", "units=4:8", {"metric": "auc"}, "--metric auc:maximize", id="metric-without-direction"),
        pytest.param("program.py:blobs", "units=4:8", {"guard": {"size": 1}}, "bounds of objectives", id="guard"),
        pytest.param("program.py:blobs", "units=4:8", {"name": "a/b"}, "is not valid", id="name"),
        pytest.param("program.py:blobs", "units=4:8", {"trials": 0}, "at least 1", id="trials"),
        pytest.param("program.py:blobs", "units=4:8", {"max_s": -1.0}, "a number of seconds", id="seconds"),
    ],
)
def test_search_that_cannot_work_is_refused_and_leaves_nothing_behind(target, space, options, words, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        argosy.search(target, read_space([space]), store=Store(tmp_path / "home"), **options)
    assert words in str(caught.value)
    left = [path.name for path in (tmp_path / "home").glob("search/*/*")]
    assert left in ([], ["lock"])


def test_bad_options_of_the_command_are_told_without_a_traceback(run):
    for option, words in [("--space=units=8:4", "from 8 to 4 is empty"), ("--guard=size", "NAME=BOUND")]:
        code, _, err = run("program.py:blobs", "--space", "kind=plain", option)
        assert code == 1 and words in err and "Traceback" not in err


def test_program_that_always_fails_publishes_nothing_and_says_why(run, tmp_path):
    code, out, _ = run(
        "program.py:blobs", "--space", "units=4:8", "--space", "kind=raise", "--trials", "1", "--report", "page.html", "--json"
    )
    told = json.loads(out)
    assert code == 1 and told["key"] == "search_empty"
    assert "1 of 1 failed, the last one: RuntimeError: no data today (program.py:" in told["error"]
    assert "no data today" in (tmp_path / "page.html").read_text()
    log = tmp_path / "home" / "search" / "blobs" / "trials" / "00000" / "log.txt"
    assert "RuntimeError: no data today" in log.read_text()


def test_program_without_validation_rows_is_refused(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    target, store = f"{tmp_path}/program.py:any_of", Store(tmp_path / "home")
    with pytest.raises(InputError, match="trains without validation rows"):
        argosy.search(target, {"units": "4:8", "validation": [0.0]}, store=store)
    assert [path.name for path in (tmp_path / "home" / "search" / "any_of").iterdir()] == ["lock"]


def test_trial_that_takes_too_long_has_failed_and_time_ends_the_search(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ndef slow(n):\n    time.sleep(100)\n")
    said: list[str] = []
    started = time.monotonic()
    result = argosy.search(
        f"{tmp_path}/slow.py:slow",
        {"n": "1:9"},
        max_trial_s=0.5,
        max_s=0.2,
        publish=False,
        store=Store(tmp_path / "home"),
        say=said.append,
    )
    assert [(one.state, one.reason) for one in result.trials] == [("failed", "it took more than 0.5 s")]
    assert time.monotonic() - started < 30 and "0.2 s are over: no other trial is begun" in said
    assert result.best is None and result.version is None


def test_objectives_have_directions():
    assert choose_objectives("accuracy", ["size"]) == {"accuracy": "maximize", "size": "minimize"}
    assert choose_objectives("auc", {"auc": "maximize"}) == {"auc": "maximize"}
    for metric, objectives in [("auc", []), ("accuracy", {"size": "maximize"}), ("size", []), ("accuracy", ["loss"])]:
        with pytest.raises(InputError):
            choose_objectives(metric, objectives)


def test_training_calls_a_function_after_each_epoch_which_may_end_it():
    epochs = []
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    data = x, (x.sum(1) > 0).astype(np.int64)

    def end_third(epoch):
        epochs.append(epoch)
        return epoch.number == 3

    model = torch.nn.Linear(4, 2)
    result = argosy.train(model, data, epochs=9, validation_split=0.2, progress=False, on_epoch=end_third)
    assert [epoch.number for epoch in epochs] == [1, 2, 3] and tuple(epochs) == result.history
    assert epochs[0].validation_metrics["accuracy"] >= 0
    with pytest.raises(InputError, match="expected a function"):
        argosy.train(model, data, on_epoch=3, progress=False)
