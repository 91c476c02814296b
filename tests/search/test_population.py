"""Population-based training: a schedule of parameters, by intervals that go on from one another's weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import argosy
from argosy.errors import ConflictError, InputError
from argosy.search import Study, read_space
from argosy.search.record import list_ancestry
from argosy.store.local import Store
from tests.processes import is_alive, list_children, wait_until

INTERVAL = 8
START = 100.0


def descend(error: float, rate: float, steps: int = INTERVAL) -> float:
    """The squared error that steps of noisy descent on a parabola leave: a large rate is fast, and keeps the noise."""
    for _ in range(steps):
        error = (1 - rate) ** 2 * error + rate**2
    return error


def run(study: Study, count: int) -> None:
    kept: dict[int, float] = {}
    for _ in range(count):
        trial = study.ask()
        kept[trial.number] = descend(START if trial.parent is None else kept[trial.parent], trial.parameters["rate"])
        study.tell(trial, kept[trial.number])


def test_schedule_beats_every_constant_and_is_repeatable_by_its_seed():
    num_generations = 12
    best_constant = min(descend(START, 10 ** (-3 + place / 200), num_generations * INTERVAL) for place in range(601))
    found = []
    for seed in (0, 0, 1):
        with Study({"rate": "0.001:1.0:log"}, method="pbt", population=8, seed=seed) as study:
            run(study, 8 * num_generations)
            best = study.best()
            way = list_ancestry(study.trials, best)
            rates = [record.parameters["rate"] for record in way]
            assert best.values["value"] < 0.8 * best_constant
            assert [record.number // 8 for record in way] == list(range(num_generations))
            assert rates[-1] < rates[0] / 4
            assert {record.state for record in study.trials} == {"done"}
            assert study.importance()["rate"] == 1.0
        found.append([(record.parameters, record.parent) for record in study.trials])
    assert found[0] == found[1] != found[2]


def test_worst_quarter_goes_on_from_the_best_with_other_parameters_within_the_space():
    space = {"rate": "0.1:1:0.3", "k": "1:3", "act": ["relu", "gelu"], "drop": "0.0:0.5"}
    with Study(space, {"score": "maximize"}, method="pbt", population=8) as study:
        for generation in range(5):
            trials = [study.ask() for _ in range(8)]
            for place, trial in enumerate(trials):
                study.space.check(trial.parameters)
                if generation == 0:
                    assert trial.parent is None
                elif place < 2:  # The worst two of the last one.
                    assert trial.parent in (generation * 8 - 1, generation * 8 - 2)
                    assert trial.parameters != study.trials[trial.parent].parameters
                else:
                    assert trial.parent == trial.number - 8
                    assert trial.parameters == study.trials[trial.parent].parameters and trial.same_as is None
            with pytest.raises(ConflictError, match="these still run: "):
                study.ask()
            for trial in reversed(trials):
                assert not trial.should_stop()
                study.tell(trial, trial.number)


def test_failed_members_are_replaced_and_the_search_is_over_when_all_have():
    with Study({"x": "0.0:1.0"}, method="pbt", population=4) as study:
        for number in range(4):
            trial = study.ask()
            if number < 3:
                study.fail(trial, "diverged")
            else:
                study.tell(trial, 1.0)
        trials = [study.ask() for _ in range(4)]
        assert [trial.parent for trial in trials] == [3, 3, 3, 3]
        assert len({trial.parameters["x"] for trial in trials}) == 4
        for trial in trials:
            study.fail(trial, "diverged")
        with pytest.raises(ConflictError, match="all 4 members of the last generation failed"):
            study.ask()


LOOP = """
import sys
from argosy.search import Study
with Study({"x": "-1.0:1.0", "k": "1:5"}, method="pbt", population=4, name="loop", home=sys.argv[1]) as study:
    while sum(one.seconds is not None for one in study.trials) < 24:
        trial = study.ask()
        print(trial.number, trial.attempt, flush=True)
        study.tell(trial, trial.parameters["x"] ** 2 + trial.parameters["k"] / (1 + trial.number))
"""


def test_killed_population_goes_on_as_if_it_had_not_been(tmp_path):
    for num_lines in (6, 7, 1000):
        with subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in zip(range(num_lines), process.stdout, strict=False):
                pass
            process.send_signal(signal.SIGKILL)
    space = {"x": "-1.0:1.0", "k": "1:5"}
    with Study(space, method="pbt", population=4, name="loop", home=tmp_path) as study:
        assert [(one.number, one.state) for one in study.trials] == [(number, "done") for number in range(24)]
    with Study(space, method="pbt", population=4) as other:
        for _ in range(24):
            trial = other.ask()
            other.tell(trial, trial.parameters["x"] ** 2 + trial.parameters["k"] / (1 + trial.number))
    assert [(one.parameters, one.parent) for one in other.trials] == [(one.parameters, one.parent) for one in study.trials]
    with pytest.raises(ConflictError, match="population was 4, is 5"):
        Study(space, method="pbt", population=5, name="loop", home=tmp_path)


PROGRAM = """
import time
from pathlib import Path

def blobs(lr, units=4):
    import numpy as np, torch, argosy
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    y = np.tile(np.arange(3), 40)
    x = (4 * random.normal(size=(3, 4))[y] + random.normal(size=(120, 4))).astype("float32")

    def hang(epoch):
        if epoch.number == 3 and not Path("begun").exists():
            Path("begun").touch()
            time.sleep(100)

    model = torch.nn.Sequential(torch.nn.Linear(4, units), torch.nn.Linear(units, 3))
    optimizer = argosy.optim.Adam(learning_rate=lr)
    return {"model": model, "data": (x, y), "optimizer": optimizer, "epochs": 9, "validation_split": 0.25, "on_epoch": hang}
"""


@pytest.mark.slow
def test_population_of_a_program_is_killed_goes_on_and_becomes_a_version(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = [
        "--space",
        "lr=1e-3:0.1:log",
        "--method",
        "pbt",
        "--population",
        "2",
        "--interval",
        "2",
        "--trials",
        "4",
        "--metric",
        "loss",
        "--json",
    ]
    command = [sys.executable, "-m", "argosy", "search", "program.py:blobs", *arguments, "--report", "page.html"]
    environment = {**os.environ, "ARGOSY_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until((tmp_path / "begun").exists, 100.0)  # In the second generation.
    children = list_children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(is_alive(child) for child in children))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    trials = found["trials"]
    assert [(one["state"], one["attempts"]) for one in trials] == [("done", 1), ("done", 1), ("done", 2), ("done", 1)]
    assert [list(one["steps"]) for one in trials] == [["1", "2"], ["1", "2"], ["3", "4"], ["3", "4"]]
    first = min((0, 1), key=lambda number: trials[number]["values"]["loss"])
    assert [one["parent"] for one in trials] == [None, None, first, first]
    assert all(one["values"]["loss"] < trials[first]["values"]["loss"] for one in trials[2:])
    assert found["schedule"] == [first, found["best"]["number"]]
    version = Store(tmp_path / "home").get_version("blobs@1")
    assert version.manifest.lineage["training"]["epochs"] == 4
    schedule = version.manifest.lineage["search"]["schedule"]
    assert [(one["epochs"], one["parameters"]) for one in schedule] == [
        (2, trials[first]["parameters"]),
        (4, found["best"]["parameters"]),
    ]
    page = Path(tmp_path, "page.html").read_text()
    assert all(word in page for word in ("Its schedule: epochs 1 to", '<th class="text">from</th>', "Curves"))
    # The last generation alone keeps its weights, as others may go on from these.
    kept = sorted(path.parent.name for path in (tmp_path / "home").glob("search/blobs/trials/*/checkpoint"))
    assert kept == ["00002", "00003"] or kept == ["00000", "00001", "00002", "00003"]


@pytest.mark.slow
def test_parameter_that_changes_the_layers_is_refused_with_the_reason(tmp_path):
    (tmp_path / "begun").touch()
    (tmp_path / "program.py").write_text(PROGRAM.replace('Path("begun")', f'Path("{tmp_path}/begun")'))
    with pytest.raises(InputError, match=r"left no weights that go on with lr=.*leave a model's layers as they are"):
        argosy.search(
            f"{tmp_path}/program.py:blobs",
            {"lr": [0.01], "units": "4:64"},
            method="pbt",
            population=2,
            trials=4,
            metric="loss",
            store=Store(tmp_path / "home"),
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"method": "pbt", "population": 1}, "`population` is 1, expected an integer, at least 2", id="one-member"),
        pytest.param({"method": "pbt", "population": 2.5}, "`population` is 2.5", id="half-a-member"),
        pytest.param({"method": "pbt", "interval": 0}, "`interval` is 0, expected an integer, at least 1", id="no-interval"),
        pytest.param({"method": "pbt", "epochs": 3}, "`interval` says how many", id="epochs"),
        pytest.param({"method": "tpe", "population": 4}, "None with the method tpe", id="population-of-tpe"),
        pytest.param({"interval": 4}, "None with the method tpe", id="interval-of-tpe"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(options, words, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with pytest.raises(InputError, match=words):
        argosy.search(f"{tmp_path}/program.py:blobs", read_space(["lr=0.1,0.2"]), store=Store(tmp_path / "home"), **options)
    assert not list((tmp_path / "home").glob("search/*/journal.log"))
