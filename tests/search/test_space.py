"""Spaces: from Python, TOML and a command line, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from argosy.errors import InputError
from argosy.search import Choice, Float, Int, Space, read_space

CHOICES = "act=relu,gelu", "norm=true,false", "depth=1,2,4"


def test_texts_tables_and_objects_give_the_same_space(tmp_path):
    expected = {
        "lr": Float(1e-4, 0.1, log=True),
        "units": Int(16, 256),
        "width": Int(8, 64, step=8),
        "drop": Float(0.0, 0.5, step=0.25),
        "act": Choice(("relu", "gelu")),
        "norm": Choice((True, False)),
        "depth": Choice((1, 2, 4)),
    }
    texts = (
        "lr=1e-4:1e-1:log",
        "units=16:256",
        "width=8:64:8",
        "drop=0.0:0.5:0.25",
        "act=relu,gelu",
        "norm=true,false",
        "depth=1,2,4",
    )
    assert dict(read_space(texts)) == expected
    path = tmp_path / "space.toml"
    path.write_text(
        'lr = {low = 1e-4, high = 0.1, log = true}\nunits = {low = 16, high = 256}\nwidth = "8:64:8"\n'
        'drop = {low = 0.0, high = 0.5, step = 0.25}\nact = ["relu", "gelu"]\nnorm = [true, false]\ndepth = [1, 2, 4]\n'
    )
    assert dict(read_space([str(path)])) == expected
    described = json.loads(json.dumps(Space(expected).describe()))
    assert dict(Space(described)) == expected


def test_points_of_a_grid_are_all_there_and_in_the_space():
    space = read_space(["a=0:1:0.1", "b=1:3", "c=x,y"])
    points = list(space.list_points())
    assert len(points) == space.size == 11 * 3 * 2
    assert points[0] == {"a": 0.0, "b": 1, "c": "x"} and points[-1] == {"a": 1.0, "b": 3, "c": "y"}
    assert {0.1 * 3, 0.3} & {point["a"] for point in points} == {0.3}
    for point in points:
        space.check(point)


def test_option_in_quotes_is_a_text():
    assert read_space(["bits='4',8"])["bits"] == Choice(("4", 8))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("lr=0.1:0.001", "from 0.1 to 0.001 is empty", id="reversed"),
        pytest.param("n=5:5", "from 5 to 5 is empty", id="one-value"),
        pytest.param("lr=0:1:log", "begins above 0, not at 0", id="log-from-0"),
        pytest.param("lr=-1.0:1.0:log", "begins above 0, not at -1", id="log-from-below-0"),
        pytest.param("lr=0.0:1.0:2.0", "a step is above 0 and at most 1", id="step-too-large"),
        pytest.param("lr=0:1:-0.5", "a step is above 0", id="negative-step"),
        pytest.param("lr=0:1:1e-9", "more than 1000000 steps", id="too-many-steps"),
        pytest.param("lr=0:1e999", "finite numbers", id="infinite"),
        pytest.param("n=1:99999999999999999999", "whole numbers, at most", id="beyond-float"),
        pytest.param("lr=1:2:3:4", "is no range", id="four-parts"),
        pytest.param("lr=1:x", "is no range", id="no-number"),
        pytest.param("lr=nan:1", "'nan:1' is no range; a text with a colon stands in quotes", id="nan"),
        pytest.param("lr=0,1:1", "'1:1' is no range", id="comma-for-point"),
        pytest.param("act=", "nothing to choose from", id="no-options"),
        pytest.param("act=relu,relu", "equals an earlier option", id="option-twice"),
        pytest.param("act=1,true", "equals an earlier option", id="true-is-1"),
        pytest.param("act=relu,,gelu", "nothing between two commas", id="option-left-out"),
        pytest.param("act=relu,", "'' stands for the empty text", id="comma-at-the-end"),
        pytest.param("act=relu,\udcff", "no finite number, text of Unicode", id="bytes-for-text"),
        pytest.param("a\udcff=1:2", "a name is a text", id="bytes-for-name"),
        pytest.param("lr=-1.7e308:1.7e308", "farther than a float64 goes", id="wider-than-floats"),
        pytest.param("=1:2", "a name is a text", id="no-name"),
        pytest.param("lr", "expected NAME=VALUES", id="no-values"),
    ],
)
def test_bad_parameter_is_refused_by_name(text, words):
    with pytest.raises(InputError, match="cannot be searched") as caught:
        read_space([text])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"low": 1}, id="no-high"),
        pytest.param({"low": 1, "high": 2, "lgo": True}, id="unknown-key"),
        pytest.param({"low": 1, "high": 2, "log": 1}, id="log-no-boolean"),
        pytest.param({"low": "1", "high": 2}, id="text-end"),
        pytest.param({"low": True, "high": 2}, id="boolean-end"),
        pytest.param({"low": 1, "high": 10**400, "step": 0.5}, id="no-float"),
        pytest.param({"kind": "real", "low": 1, "high": 2}, id="unknown-kind"),
        pytest.param({"kind": "int", "low": 0.5, "high": 2}, id="int-with-fractions"),
        pytest.param({"kind": "int", "low": 0, "high": 2, "step": 0.5}, id="int-with-a-fraction-for-step"),
        pytest.param(Choice("relu"), id="letters-for-options"),  # pyright: ignore[reportArgumentType]
        pytest.param(Choice(3), id="number-for-options"),  # pyright: ignore[reportArgumentType]
        pytest.param([[1]], id="list-option"),
        pytest.param([float("nan")], id="nan-option"),
        pytest.param(3, id="number"),
    ],
)
def test_bad_table_is_refused(given):
    with pytest.raises(InputError, match="`x` cannot be searched"):
        Space({"x": given})


def test_space_without_parameters_twice_or_from_a_bad_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no parameters"):
        Space({})
    with pytest.raises(InputError, match="given twice"):
        read_space(["lr=0:1", "lr=0:2"])
    with pytest.raises(InputError, match="does not exist"):
        read_space([str(tmp_path / "absent.toml")])
    (tmp_path / "bad.toml").write_text("lr = [")
    with pytest.raises(InputError, match="no TOML file"):
        read_space([str(tmp_path / "bad.toml")])
    (tmp_path / "bad.toml").write_bytes(b"x = [" + b"[" * 5000)
    with pytest.raises(InputError, match="no TOML file"):
        read_space([str(tmp_path / "bad.toml")])
    (tmp_path / "bad.toml").write_bytes(b"#" * 3_000_000)
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        read_space([str(tmp_path / "bad.toml")])
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(InputError, match="it is no file"):
        read_space([str(tmp_path / "pipe.toml")])


def test_file_of_a_space_may_stand_in_a_folder_with_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "space.toml").write_text("units = {low = 1, high = 3}")
    assert dict(read_space([f"{folder}/space.toml"])) == {"units": Int(1, 3)}
    assert dict(read_space(["file=a.toml,b.toml"])) == {"file": Choice(("a.toml", "b.toml"))}


def test_point_outside_of_the_space_is_refused():
    space = read_space(["n=1:3", "act=relu,gelu"])
    for point, words in [
        ({"n": 4, "act": "relu"}, "4 is not in it"),
        ({"n": 1.0, "act": "relu"}, "1.0 is not in it"),
        ({"n": 1}, "no value for it"),
        ({"n": 1, "act": "relu", "x": 1}, "no such parameter"),
    ]:
        with pytest.raises(InputError, match=words):
            space.check(point)
