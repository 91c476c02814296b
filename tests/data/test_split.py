"""A row stays in its part when the data grows, moves or changes its format; rows of one key stay together."""

from __future__ import annotations

import numpy as np
import pytest

import argosy
from argosy.data.split import hash_rows, split
from argosy.errors import InputError
from tests.data.conftest import write_csv, write_feather, write_jsonl, write_parquet

pytestmark = pytest.mark.needs("pyarrow")


def read(stream):
    found = [rows.inputs for rows in stream.iterate(50)]
    return np.concatenate(found).tolist() if found else []


def test_parts_are_all_rows_once_in_the_fractions_asked_for(path, columns):
    stream = argosy.data.open(path, inputs="key")
    parts = argosy.data.split(stream, {"train": 0.6, "validation": 0.3, "test": 0.1})
    found = {name: read(part) for name, part in parts.items()}
    assert sorted(sum(map(len, found.values())) and [k for p in found.values() for k in p]) == sorted(columns["key"])
    assert [round(len(found[name]) / 500, 1) for name in ("train", "validation", "test")] == [0.6, 0.3, 0.1]
    assert [read(part) for part in argosy.data.split(stream, (0.6, 0.3))] == [found["train"], found["validation"]]
    assert read(argosy.data.split(stream, (0.6, 0.4), seed=1)[0]) != found["train"]


@pytest.mark.parametrize("key", ["key", "y", "a", None])
def test_row_stays_in_its_part_when_data_grows_and_changes_its_format(key, tmp_path, columns):
    rows = {"key": columns["key"], "a": columns["a"], "y": np.arange(500) % 37}
    write_parquet(tmp_path / "one.parquet", rows)
    turned = {name: np.array([*column, *column])[::-1] for name, column in rows.items()}
    turned["y"] = turned["y"].astype(np.int16)
    for write, name in ((write_csv, "a.csv"), (write_jsonl, "a.jsonl"), (write_feather, "a.feather")):
        write(tmp_path / name, turned)

    def list_keys(name):
        stream = argosy.data.open(tmp_path / name, inputs="key", targets="y", weights="a")
        return set(read(argosy.data.split(stream, (0.5, 0.5), key=key)[0]))

    expected = list_keys("one.parquet")
    assert 0 < len(expected) < 500
    assert [list_keys(name) for name in ("a.csv", "a.jsonl", "a.feather")] == [expected] * 3


def test_rows_of_one_key_stay_together_and_the_key_need_be_no_input(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"x": np.arange(300), "customer": np.arange(300) % 10})
    train, test = argosy.data.split(argosy.data.open(tmp_path, inputs="x"), (0.5, 0.5), key="customer")
    assert {x % 10 for x in read(train)}.isdisjoint(x % 10 for x in read(test))
    assert train.describe()["part"]["key"] == "customer" and train.num_rows is None
    order = [rows.inputs.tolist() for rows in train.iterate(16, seed=3)]
    assert [rows.inputs.tolist() for rows in train.iterate(16, seed=3, start=2)] == order[2:]


def test_row_stays_in_its_part_however_it_is_used(tmp_path, columns):
    write_parquet(tmp_path / "a.parquet", {**columns, "s": np.array(["a", "b", "c"])[columns["y"]]})

    def list_keys(part):
        return [row for rows in part.select(["key"]).iterate(64) for row in rows.inputs["key"].tolist()]

    expected = None
    for options in ({}, {"classes": ["c", "b", "a"]}, {"schema": {"a": "float32"}}):
        stream = argosy.data.open(tmp_path, inputs=["a"], targets="s", **options)
        found = list_keys(split(stream, (0.5,))[0])
        assert found == (expected := expected or found) and 0 < len(found) < 500


def test_equal_numbers_of_any_type_have_one_hash():
    whole = np.array([0, 1, 5, 100])
    hashes = {tuple(hash_rows([whole.astype(kind)], 0).tolist()) for kind in ("i1", "u1", "i8", "u8", "f4", "f8")}
    assert len(hashes) == 1
    assert len(set(hash_rows([np.linspace(0, 1, 1000)], 0).tolist())) == 1000
    assert hash_rows([np.array([0.0])], 0) == hash_rows([np.array([-0.0])], 0)
    # Pinned: another hash would move rows of all who have trained before.
    assert hash_rows([np.array(["a"], object), np.array([7])], 0).tolist() == [11219201552832627872]


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        ((), {}, "fractions above 0"),
        ((0.5, 0.6), {}, "together at most 1"),
        ((0.5, 0.0), {}, "fractions above 0"),
        ((0.5, float("nan")), {}, "fractions above 0"),
        ((0.5,), {"key": "z"}, "`key` is 'z', expected columns: x"),
    ],
)
def test_bad_parts_are_refused(parts, options, words, tmp_path):
    write_parquet(tmp_path / "a.parquet", {"x": np.arange(30)})
    stream = argosy.data.open(tmp_path)
    with pytest.raises(InputError, match=words):
        argosy.data.split(stream, parts, **options)
    with pytest.raises(InputError, match="split it once"):
        argosy.data.split(argosy.data.split(stream, (0.5,))[0], (0.5,))
