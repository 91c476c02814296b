"""Ask and tell: methods, guards, fronts, early stopping, and journals that survive whatever happens to their writer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from argosy.errors import ConflictError, InputError
from argosy.search import Float, Int, Score, Study

SPACE = {"x": Float(-1.0, 1.0), "k": "1:5", "act": ["relu", "gelu", "tanh"]}
STEPPED = {**SPACE, "x": "-1:1:0.25"}
SIZES = {"loss": "minimize", "size": "minimize"}


def measure(point) -> float:
    return (point["x"] - 0.3) ** 2 + 0.1 * abs(point["k"] - 4) + (0.2 if point["act"] == "tanh" else 0.0)


def run(study: Study, count: int) -> list[dict]:
    asked = []
    for _ in range(count):
        trial = study.ask()
        study.tell(trial, measure(trial.parameters))
        asked.append(trial.parameters)
    return asked


@pytest.mark.parametrize("method", ["random", "grid", "tpe", "genetic", "hyperband"])
def test_method_is_repeatable_by_its_seed_and_finds_what_is_good(method):
    space = STEPPED if method == "grid" else SPACE
    count = 135 if method == "grid" else 60
    with Study(space, method=method, seed=3) as one, Study(space, method=method, seed=3) as other:
        assert run(one, count) == run(other, count)
        assert one.best().values["value"] < 0.12
        assert len(one.trials) == count
    if method != "grid":
        with Study(space, method=method, seed=4) as third:
            assert run(third, 5) != [record.parameters for record in one.trials[:5]]


def test_grid_ends_when_every_point_was_tried():
    with Study({"a": "1:2", "b": "x,y"}, method="grid") as study:
        for _ in range(4):
            study.tell(study.ask(), 0.0)
        with pytest.raises(ConflictError, match="no more than 4 points"):
            study.ask()
    with pytest.raises(InputError, match="`lr` cannot be searched: a grid over it needs a step"):
        Study({"lr": "0.1:0.2"}, method="grid")


def test_better_methods_come_nearer_than_chance():
    found = {}
    for method in ("random", "tpe"):
        best = []
        for seed in range(3):
            with Study(SPACE, method=method, seed=seed) as study:
                run(study, 50)
                best.append(study.best().values["value"])
        found[method] = float(np.median(best))
    assert found["tpe"] < found["random"]


def test_guard_decides_what_is_best_and_what_stands_on_the_front():
    objectives = {"accuracy": "maximize", "size": "minimize"}
    with Study({"k": "1:6"}, objectives, method="grid", guard={"accuracy": 0.85}) as study:
        for _ in range(6):
            trial = study.ask()
            k = trial.parameters["k"]
            study.tell(trial, {"accuracy": 1 - 0.2 / k, "size": k * 10 if k != 4 else 100}, constraint=1.0 if k == 2 else 0.0)
        assert study.best().parameters == {"k": 3}  # 1 breaks the guard, 2 the constraint
        assert study.best({}).parameters == {"k": 6}
        assert study.best({"size": 15.0}).parameters == {"k": 1}  # another guard takes the place of the study's own
        assert study.best({}, objective="size").parameters == {"k": 1}
        assert study.best({"size": 35.0}).parameters == {"k": 3}
        assert study.best({"accuracy": 0.99}) is None
        for guard in ({"size": math.nan}, {"size": "15"}, 15.0):
            with pytest.raises(InputError, match="finite bounds by the names of objectives"):
                study.best(guard)
        assert [record.parameters["k"] for record in study.front()] == [6, 5, 3]
        assert study.trials[0].violation > 0 and not study.trials[0].is_valid


def test_hypervolume_is_that_of_boxes_counted_one_by_one():
    names = ("a", "b", "c")
    random = np.random.default_rng(0)
    points = random.integers(0, 6, (12, 3))
    with Study({"k": "0:11"}, dict.fromkeys(names, "minimize"), method="grid") as study:
        for point in points:
            study.tell(study.ask(), dict(zip(names, map(float, point), strict=True)))
        cells = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3)
        covered = sum(any((point <= cell).all() for point in points) for cell in cells)
        assert study.hypervolume(dict.fromkeys(names, 6.0)) == covered
        for reference in ({"a": 1.0}, dict.fromkeys(names, math.nan), dict.fromkeys(names, "6"), 6.0):
            with pytest.raises(InputError, match="a finite value for each of a, b, c"):
                study.hypervolume(reference)


def test_importance_names_the_parameter_that_decides():
    with Study({"x": "-1.0:1.0", "y": "-1.0:1.0"}, {"score": "maximize"}, method="random") as study:
        assert study.importance() == {}
        for _ in range(60):
            trial = study.ask()
            study.tell(trial, -((trial.parameters["x"] - 0.5) ** 2) + 0.01 * trial.parameters["y"])
        found = study.importance()
        assert list(found) == ["x", "y"] and found["x"] > 0.8
        assert math.isclose(sum(found.values()), 1.0)


@pytest.mark.parametrize(
    ("method", "part", "every"),
    [
        pytest.param("tpe", 0.8, 1, id="tpe"),
        pytest.param("hyperband", 0.55, 1, id="hyperband"),
        pytest.param("hyperband", 0.75, 5, id="hyperband-every-5-steps"),
    ],
)
def test_bad_trials_stop_early_and_the_best_is_as_good(method, part, every):
    def curve(point, step):
        return measure(point) + 1.0 / step

    num_steps, best = 0, []
    with Study(SPACE, method=method) as study:
        for _ in range(40):
            trial = study.ask()
            for step in range(1, 28):
                num_steps += 1
                if step % every:
                    continue
                trial.report(step, curve(trial.parameters, step))
                if trial.should_stop():
                    study.stop(trial, "not worth it")
                    break
            else:
                study.tell(trial, curve(trial.parameters, 27))
        best.append(study.best().values["value"])
        assert {record.state for record in study.trials} == {"done", "stopped"}
    with Study(SPACE, method=method) as study:
        for _ in range(40):
            trial = study.ask()
            study.tell(trial, curve(trial.parameters, 27))
        best.append(study.best().values["value"])
    assert num_steps < part * 40 * 27
    assert best[0] < best[1] + 0.05


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_tpe_goes_on_with_trials_among_the_best_third_of_those_that_came_as_far(direction):
    sign = 1.0 if direction == "minimize" else -1.0
    with Study(SPACE, {"value": direction}, method="tpe") as study:

        def try_out(*values):
            """Report values step by step; returns after which the study would stop it."""
            trial = study.ask()
            stops = []
            for step, value in enumerate(values, 1):
                trial.report(step, sign * value)
                stops.append(trial.should_stop())
            study.tell(trial, sign * values[-1])
            return stops

        # Of three others nothing can be told, and nothing of a first step.
        assert [try_out(10.0 * place, 10.0 * place)[-1] for place in (1, 2, 3, 4)] == [False] * 4
        for place in (5, 6, 7, 8, 9):
            assert try_out(10.0 * place, 10.0 * place) == [False, True]
        # The third best of nine is 30, and what counts is the best so far.
        assert try_out(99.0, 30.0) == [False, False]
        assert try_out(99.0, 30.5) == [False, True]
        assert try_out(5.0, 99.0) == [False, False]
        # No other has come to a third step.
        assert try_out(99.0, 98.0, 97.0) == [False, True, False]


def test_of_several_objectives_only_what_breaks_the_guard_stops_early():
    def run_bad(guard):
        with Study({"k": "1:9"}, {"accuracy": "maximize", "size": "minimize"}, method="grid", guard=guard) as study:
            for _ in range(6):
                trial = study.ask()
                for step in (1, 2):
                    trial.report(step, 0.9 - 0.1 * trial.number)
                    stops = trial.should_stop()
                study.tell(trial, {"accuracy": 0.9 - 0.1 * trial.number, "size": 1.0})
            return stops

    assert [run_bad({}), run_bad({"accuracy": 0.3}), run_bad({"accuracy": 0.5})] == [False, False, True]


LAYERS = {f"layer{index}": ["int4", "int8", "float"] for index in range(5)}


def make_scores() -> dict:
    random = np.random.default_rng(1)
    scores = {}
    for name in LAYERS:
        loss, cost = random.random(), 1.0 + random.random()
        scores[name] = {"int4": Score(loss, cost / 8), "int8": Score(loss / 16, cost / 4), "float": Score(0.0, cost)}
    return scores


def test_linear_programme_finds_the_cheapest_point_within_the_guard_in_few_trials():
    scores = make_scores()

    def add(point, place):
        return sum(scores[name][value][place] for name, value in point.items())

    with Study(LAYERS, {"cost": "minimize", "loss": "minimize"}, method="gradient", scores=scores, guard={"loss": 0.9}) as study:
        for _ in range(12):
            try:
                trial = study.ask()
            except ConflictError:
                break
            # What is measured is not the sum of the scores, but grows with it.
            study.tell(trial, {"cost": add(trial.parameters, 1), "loss": 1.5 * add(trial.parameters, 0)})
        best = study.best()
    with Study(LAYERS, {"cost": "minimize", "loss": "minimize"}, method="grid", guard={"loss": 0.9}) as grid:
        for _ in range(3**5):
            trial = grid.ask()
            grid.tell(trial, {"cost": add(trial.parameters, 1), "loss": 1.5 * add(trial.parameters, 0)})
        assert best.parameters == grid.best().parameters


def test_linear_programme_without_a_guard_walks_along_the_front():
    scores = make_scores()
    with Study(LAYERS, {"cost": "minimize", "loss": "minimize"}, method="gradient", scores=scores) as study:
        for _ in range(6):
            trial = study.ask()
            point = trial.parameters
            costs, losses = (sum(scores[name][value][place] for name, value in point.items()) for place in (1, 0))
            study.tell(trial, {"cost": costs, "loss": losses})
        assert len(study.front()) == 6
        assert set(study.trials[1].parameters.values()) == {"float"}


def test_method_that_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(InputError, match="needs a score of each option"):
        Study(LAYERS, method="gradient")
    with pytest.raises(InputError, match="`layer4` = 'int4' has no score"):
        Study(LAYERS, method="gradient", scores={name: table for name, table in make_scores().items() if name != "layer4"})
    with pytest.raises(InputError, match="cannot be listed"):
        Study({"x": "0.1:0.2"}, method="gradient", scores={})
    with pytest.raises(InputError, match="expected None with the method tpe"):
        Study(LAYERS, scores=make_scores())
    with pytest.raises(InputError, match="Unknown method 'annealing'; known: genetic, gradient, grid"):
        Study(LAYERS, method="annealing")


def test_what_is_told_is_checked_and_told_once():
    with Study(SPACE, SIZES) as study:
        trial = study.ask()
        for values, words in [
            (1.0, "a value for each of loss, size"),
            ({"loss": 1.0}, "a value for each of loss, size"),
            ({"loss": 1.0, "size": math.nan}, "a finite number"),
            ({"loss": "low", "size": 1.0}, "a finite number"),
            ({"loss": "0.5", "size": 1.0}, "is told '0.5', expected a finite number"),
            ({"loss": True, "size": 1.0}, "is told True, expected a finite number"),
        ]:
            with pytest.raises(InputError, match=words):
                study.tell(trial, values)
        trial.report(2, 0.5)
        for step, value in [(2, 0.5), (1, 0.5), (3, math.inf), (2.5, 1.0)]:
            with pytest.raises(InputError, match="is told"):
                trial.report(step, value)
        study.tell(trial, {"loss": 1.0, "size": np.float32(2.0)}, notes={"what": [1]})
        assert study.trials[0].notes == {"what": [1]} and study.trials[0].steps == {2: 0.5}
        with pytest.raises(ConflictError, match="has ended already: it is done"):
            study.fail(trial, "late")
        with pytest.raises(InputError, match="a trial that this study was asked for"):
            study.tell(7, {"loss": 1.0, "size": 1.0})
        other = study.ask()
        study.fail(other, "out of memory")
        assert [(one.state, one.reason) for one in study.trials] == [("done", ""), ("failed", "out of memory")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"objectives": {"loss": "least"}}, "`minimize` or `maximize`", id="direction"),
        pytest.param({"objectives": {}}, "`minimize` or `maximize`", id="no-objectives"),
        pytest.param({"guard": {"size": 3.0}}, "finite bounds of objectives: value", id="guard-of-nothing"),
        pytest.param({"guard": {"value": math.nan}}, "finite bounds", id="guard-nan"),
        pytest.param({"watch": "size"}, "one of the objectives", id="watch"),
        pytest.param({"seed": -1}, "an integer, at least 0", id="seed"),
        pytest.param({"guard": {"value": 10**400}}, "finite bounds", id="guard-no-float"),
        pytest.param({"name": "../up"}, "search name '../up' is not valid", id="name"),
        pytest.param({"name": 5}, "search name 5 is not valid", id="name-no-text"),
        pytest.param({"objectives": {"loss\udcff": "minimize"}}, "`minimize` or `maximize`", id="objective-no-text"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Study(SPACE, **options)


def test_point_that_is_enqueued_is_tried_next_and_once():
    with Study(SPACE) as study:
        point = {"x": 0.5, "k": 2, "act": "relu"}
        study.enqueue(point)
        study.enqueue(point)
        assert study.ask().parameters == point
        assert study.ask().parameters != point
        with pytest.raises(InputError, match="99 is not in it"):
            study.enqueue({**point, "k": 99})


def test_second_trial_of_a_point_names_the_first():
    with Study({"k": "1:2"}, method="random") as study:
        trials = [study.ask() for _ in range(6)]
        first = {trial.parameters["k"]: trial.number for trial in reversed(trials)}
        assert [trial.same_as for trial in trials] == [
            None if first[trial.parameters["k"]] == trial.number else first[trial.parameters["k"]] for trial in trials
        ]


LOOP = """
import sys
from argosy.search import Study
with Study({"x": "-1.0:1.0", "k": "1:5", "act": ["relu", "gelu"]}, method=sys.argv[2], name="loop", home=sys.argv[1]) as study:
    while sum(one.seconds is not None for one in study.trials) < 30:
        trial = study.ask()
        print(trial.number, trial.attempt, flush=True)
        value = trial.parameters["x"] ** 2 + trial.parameters["k"]
        trial.report(1, value)
        study.tell(trial, value)
"""


@pytest.mark.parametrize("method", ["tpe", "genetic"])
def test_killed_search_goes_on_as_if_it_had_not_been(method, tmp_path):
    command = [sys.executable, "-c", LOOP, str(tmp_path), method]
    begun: list[list[int]] = []
    for num_lines in (7, 14, 1000):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _, line in zip(range(num_lines), process.stdout, strict=False):
                begun.append([int(word) for word in line.split()])
            process.send_signal(signal.SIGKILL)
    with Study({"x": "-1.0:1.0", "k": "1:5", "act": ["relu", "gelu"]}, method=method, name="loop", home=tmp_path) as study:
        assert [(one.number, one.state) for one in study.trials] == [(number, "done") for number in range(30)]
        again = [number for number, attempt in begun if attempt > 1]
        # The line of an attempt may not have been read before the kill; the journal has them all.
        assert set(again) <= {one.number for one in study.trials if one.attempts > 1}
        kept = [one.parameters for one in study.trials]
    with Study({"x": "-1.0:1.0", "k": "1:5", "act": ["relu", "gelu"]}, method=method) as other:
        for _ in range(30):
            trial = other.ask()
            value = trial.parameters["x"] ** 2 + trial.parameters["k"]
            trial.report(1, value)
            other.tell(trial, value)
        assert [one.parameters for one in other.trials] == kept


def test_journal_cut_at_any_byte_is_gone_on_with_and_no_ended_trial_is_lost(tmp_path):
    path = tmp_path / "search" / "cut" / "journal.log"
    with Study(SPACE, name="cut", home=tmp_path) as study:
        expected = run(study, 4)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for size in sorted(random.integers(0, len(whole), 25)):
        path.write_bytes(whole[:size])
        lines = whole[: whole.rfind(b"\n", 0, size) + 1]
        ended = lines.count(b'"state":1,')  # Optuna's number of COMPLETE
        with Study(SPACE, name="cut", home=tmp_path) as study:
            assert len([one for one in study.trials if one.seconds is not None]) == ended
            run(study, 4 - ended)
            assert [one.parameters for one in study.trials] == expected


def test_journal_of_other_settings_is_refused_and_restart_begins_anew(tmp_path):
    with Study(SPACE, name="mine", home=tmp_path, guard={"value": 0.5}) as study:
        run(study, 2)
        with pytest.raises(ConflictError, match="Another process searches 'mine' now"):
            Study(SPACE, name="mine", home=tmp_path, guard={"value": 0.5})
        digest = study.digest
    for options, words in [
        ({"space": {**SPACE, "k": "1:6"}}, r"space: k: high was 5, is 6"),
        ({"objectives": {"value": "maximize"}}, "objectives: value was .minimize., is .maximize."),
        ({"method": "random"}, "method was"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"guard": {}}, "guard"),
        ({"about": {"rows": 5}}, "about"),
    ]:
        given = {"space": SPACE, "guard": {"value": 0.5}, **options}
        with pytest.raises(ConflictError, match=words):
            Study(name="mine", home=tmp_path, **given)
    with Study(SPACE, name="mine", home=tmp_path, guard={"value": 0.5}) as study:
        assert study.digest == digest and len(study.trials) == 2
    with Study({"z": "1:3"}, name="mine", home=tmp_path, restart=True) as study:
        assert study.trials == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x00\xff not JSON\n{}\n", id="bytes"),
        pytest.param(b'{"op_code": 99}\n', id="unknown-operation"),
        pytest.param(b"[1, 2]\n" * 2, id="no-object"),
        pytest.param(b'{"op_code":4,"worker_id":"w","study_id":7,"datetime_start":"x"}\n', id="no-study"),
    ],
)
def test_damaged_journal_is_told_and_left_as_it_is(content, tmp_path):
    path = tmp_path / "search" / "mine" / "journal.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match="The journal of search 'mine' cannot be read"):
        Study(SPACE, name="mine", home=tmp_path)
    assert path.read_bytes() == content


def test_journal_on_a_full_disk_stays_whole(tmp_path):
    limit = """
import resource, sys
from argosy.errors import StoreError
from argosy.search import Study
with Study({"x": "-1.0:1.0"}, name="full", home=sys.argv[1]) as study:
    study.tell(study.ask(), 1.0)
    size = (study.folder / "journal.log").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, -1))
    try:
        study.ask()
    except StoreError as error:
        print(error.key)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    study.tell(study.ask(), 2.0)
"""
    command = [sys.executable, "-c", limit, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "disk_full\n", done.stderr
    with Study({"x": "-1.0:1.0"}, name="full", home=tmp_path) as study:
        assert [one.values for one in study.trials] == [{"value": 1.0}, {"value": 2.0}]


def test_search_without_its_library_names_the_extra(tmp_path):
    code = "import sys, importlib.util as u; found = u.find_spec\n"
    code += "u.find_spec = lambda name, *rest: None if name == 'optuna' else found(name, *rest)\n"
    code += "from argosy.search import Study; Study({'x': '1:2'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=False)
    assert "needs the package optuna" in done.stderr and "argosy[search]" in done.stderr


def test_process_that_is_forked_from_one_that_searches_takes_no_part(tmp_path):
    code = "import os\nfrom argosy.errors import ConflictError\nfrom argosy.search import Study\n"
    code += f"study = Study({{'x': '1:9'}}, name='mine', home={str(tmp_path)!r})\n"
    code += "study.ask()\nif os.fork():\n    os.wait()\n    study.tell(0, 1.0)\n    print(len(study.trials))\n"
    code += "else:\n    try:\n        study.ask()\n    except ConflictError as error:\n        print(error.key, flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["search_active", "1"]


def test_closed_study_tells_what_it_knows_and_takes_nothing():
    study = Study(SPACE)
    trial = study.ask()
    study.tell(trial, 1.0)
    other = study.ask()
    study.close()
    assert study.best().number == 0
    for act in (study.ask, lambda: study.tell(other, 1.0), lambda: study.enqueue(trial.parameters)):
        with pytest.raises(ConflictError, match="was closed"):
            act()


def test_copy_of_a_point_that_failed_counts():
    with Study({"k": "1:2"}, method="random") as study:
        trials = [study.ask() for _ in range(6)]
        for trial in trials:
            if trial.same_as is None:
                study.fail(trial, "out of memory")
            else:
                study.tell(trial, float(trial.number))
        copies = [trial for trial in trials if trial.same_as is not None]
        assert study.best().number == copies[0].number == study.front()[0].number


def test_scores_and_notes_that_are_none_are_refused():
    scores = make_scores()
    scores["layer0"] = {**scores["layer0"], "int4": (math.nan, 1.0)}
    with pytest.raises(InputError, match="no two finite numbers"):
        Study(LAYERS, method="gradient", scores=scores)
    scores["layer0"]["int4"] = 3
    with pytest.raises(InputError, match="no two finite numbers"):
        Study(LAYERS, method="gradient", scores=scores)
    with Study(SPACE) as study, pytest.raises(InputError, match="notes"):
        study.tell(study.ask(), 1.0, notes={"what": object()})


def test_record_is_json():
    with Study(SPACE) as study:
        run(study, 1)
        assert json.loads(json.dumps(study.trials[0].describe()))["values"]["value"] >= 0


@pytest.mark.parametrize(
    ("space", "settings", "key"),
    [
        pytest.param([1], {}, "bad_space", id="space"),
        pytest.param({1: "0:1"}, {}, "bad_space", id="parameter"),
        pytest.param({"x": "0:1"}, {"objectives": "loss"}, "bad_option", id="objectives"),
        pytest.param({"x": "0:1"}, {"objectives": {1: "minimize"}}, "bad_option", id="objective"),
        pytest.param({"x": "0:1"}, {"guard": 5}, "bad_option", id="guard"),
    ],
)
def test_values_of_other_types_are_refused_by_name(space: Any, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        Study(space, **settings)
    assert caught.value.key == key


def test_reason_that_is_no_text_is_refused_and_the_trial_goes_on() -> None:
    with Study({"x": "0:1"}) as study:
        trial = study.ask()
        for end in (study.fail, study.stop):
            with pytest.raises(InputError, match="expected a text"):
                end(trial, 5)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="expected JSON data"):
            study.fail(trial, "it is over", notes="why")  # pyright: ignore[reportArgumentType]
        assert study.fail(trial, "it is\nover\x1b[2J\udcff").reason == "it is over [2J "


@pytest.mark.parametrize("method", ["random", "tpe", "genetic"])
@pytest.mark.filterwarnings("error")
def test_ranges_and_values_as_wide_as_floats_go_are_searched(method: str) -> None:
    space = {"x": Float(-8e307, 8e307), "y": Float(5e-324, 1.7e308, log=True), "z": Int(-(1 << 53), 1 << 53)}
    with Study(space, {"a": "minimize", "b": "maximize"}, method=method, guard={"a": 1e-300}) as study:
        for number in range(14):
            study.tell(study.ask(), {"a": 1.7e308 * (-1) ** number, "b": -1.7e308})
        assert len(study.front()) == 7 and study.best() is not None
