"""The classic beginner programs: both forms learn what can be learnt and are served, and their introductions say what is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.scripts import ROOT

FRAMEWORKS = ["torch", "keras", "tensorflow", "mxnet"]

MOMENTUM = {"has a class Momentum": False, "momentum of SGD": None}
# What is tried of the program as it is handed around: a key of `tests/classic_run.py`, and what comes of it.
FOUND: dict[str, dict[str, Any]] = {
    "torch": {"whole numbers as labels": "RuntimeError", "floats as labels": None} | MOMENTUM,
    "keras": {"output_dim": "TypeError", "lr": "ValueError", "nb_epoch": "TypeError"} | MOMENTUM,
    "tensorflow": {
        "calls that are left": [],
        "whose optimizers": "keras",
        "loss": pytest.approx(0.0, abs=0.01),
        "answers": [1.0],
        "accuracy less the share of ones": pytest.approx(0.0, abs=1e-6),
    },
    "mxnet": {
        "trainer of symbols": "ValueError",
        "symbol on an array": "TypeError",
        "labels in two dimensions": "MXNetError",
        "softmax": [1.0, 1.0, 1.0],
        "argmax": [0.0, 0.0, 0.0],
        "accuracy in the wrong order": 1.0,
        "gradient": [0.0, 1.0, 0.0],
        "batches of three epochs": [10, 0, 0],
        "chance that a label 1 has the larger logit": pytest.approx(0.0, abs=0.05),
    },
}


@pytest.mark.timeout(240)  # beside much other work; alone it is seconds
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_classic_program_learns_what_can_be_learnt_is_served_and_says_what_is_so(framework: str, tmp_path: Any) -> None:
    words = ["tests/classic_run.py", framework]
    if framework == "mxnet":
        words = ["-m", "argosy", "environment", "run", "mxnet", *words]
    variables = os.environ | {"ARGOSY_HOME": str(tmp_path / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=variables, timeout=220, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    check_accuracies(framework, done.stdout)
    check_answers(framework, done.stdout)
    assert json.loads(done.stdout.splitlines()[-1]) == FOUND[framework]


def check_accuracies(framework: str, printed: str) -> None:
    found = re.findall(r"rows ([\w ]+), ([\w. ]+): accuracy ([\d.]+) on rows .*?, ([\d.]+) on new ones", printed)
    by_form = {(rows, form): (float(known), float(new)) for rows, form, known, new in found}
    assert set(by_form) == {(rows, form) for rows in ("told apart", "by chance") for form in ("own loop", "argosy.train")}
    for (rows, _), (known, new) in by_form.items():
        if rows == "told apart":
            assert known > 0.95 and new > 0.95
        else:
            # A thousand coins: 0.5, give or take 0.016. Of the known rows a thousand steps on all of them learn some by heart.
            assert new == pytest.approx(0.5, abs=0.05)
            assert known == pytest.approx(0.6 if framework == "tensorflow" else 0.5, abs=0.1 if framework == "keras" else 0.05)


def check_answers(framework: str, printed: str) -> None:
    pairs = re.findall(r"^(\S+): served \[(.*?)\], in \w+ \[(.*?)\]$", printed, re.MULTILINE)
    answers = {name: [[float(number) for number in part.split()] for part in parts] for name, *parts in pairs}
    own, ours = answers[f"{framework}-own-loop"], answers[f"{framework}-argosy"]
    for served, expected in (own, ours):
        assert served == pytest.approx(expected, abs=1.1e-5)  # printed to five digits
    if framework != "keras":  # whose loop takes rows in an order of its own
        assert own[0] == pytest.approx(ours[0], abs=1e-4)
