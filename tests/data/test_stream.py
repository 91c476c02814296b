"""Rows come as they were written, in an order that follows from seed and epoch, from any batch on."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import numpy as np
import pytest

import argosy
from argosy.errors import InputError
from tests.data.conftest import NUM_ROWS, write_parquet

pytestmark = pytest.mark.needs("pyarrow")


def join(stream, **options):
    return np.concatenate([rows.inputs for rows in stream.iterate(32, **options)])


def list_batches(stream, **options):
    return [rows.inputs.tolist() for rows in stream.iterate(32, **options)]


def count_threads():
    return sum(thread.name.startswith("argosy-data") for thread in threading.enumerate())


def test_rows_are_those_of_the_files(path, columns):
    given = ("key", "a") if path.suffix == ".csv" else ("key", "a", "x")
    stream = argosy.data.open(path, inputs={name: name for name in given}, targets="y")
    batches = list(stream.iterate(64))
    assert [len(rows.targets) for rows in batches] == [64] * 7 + [52]
    for name in given:
        np.testing.assert_array_equal(np.concatenate([rows.inputs[name] for rows in batches]), columns[name])
    np.testing.assert_array_equal(np.concatenate([rows.targets for rows in batches]), columns["y"])
    assert batches[0].weights is None
    if path.suffix in (".parquet", ".feather"):
        assert len(stream) == stream.num_rows == NUM_ROWS
    else:
        assert stream.num_rows is None
        with pytest.raises(TypeError, match="only reading tells"):
            len(stream)


def test_order_follows_from_seed_and_epoch_alone(path, columns):
    def open_stream(**options):
        return argosy.data.open(path, inputs="key", buffer_rows=100, **options)

    order = list_batches(open_stream(), seed=5, epoch=2)
    assert sorted(itertools.chain(*order)) == sorted(columns["key"])
    assert order != list_batches(open_stream(), seed=5, epoch=3) != list_batches(open_stream(), seed=6, epoch=2)
    assert list_batches(open_stream(num_threads=1), seed=5, epoch=2) == list_batches(open_stream(num_threads=5), seed=5, epoch=2)
    for start in (0, 1, 3, 9, 15, 16):
        assert list_batches(open_stream(), seed=5, epoch=2, start=start) == order[start:]
    parts = [list_batches(open_stream(), seed=5, epoch=2, part=(index, 3)) for index in range(3)]
    assert [[*itertools.chain(*shares)] for shares in zip(*parts, strict=True)] == order


def test_order_mixes_places_that_are_far_apart(path, columns):
    rows = [columns["key"].index(key) for key in join(argosy.data.open(path, inputs="key", buffer_rows=200), seed=1)]
    assert np.ptp(rows[:50]) > NUM_ROWS / 3
    assert np.mean(np.abs(np.diff(rows))) > 40


def test_batches_that_are_skipped_are_not_read_where_counts_are_known(tmp_path, columns, monkeypatch):
    write_parquet(tmp_path / "rows.parquet", columns)
    stream = argosy.data.open(tmp_path / "rows.parquet", inputs="key", buffer_rows=80)
    read = []
    own = type(stream._reader).read
    monkeypatch.setattr(
        type(stream._reader),
        "read",
        lambda self, block, *args, **options: read.append(block) or own(self, block, *args, **options),
    )
    assert len(list_batches(stream, start=13)) == 3
    assert len(read) <= 3


def test_columns_become_any_tree(tmp_path, columns):
    write_parquet(tmp_path / "rows.parquet", {**columns, "w": np.linspace(1, 2, NUM_ROWS)})
    stream = argosy.data.open(tmp_path, inputs=("x", {"both": ["a", "y"]}), targets={"class": "y"}, weights="w")
    rows = next(stream.iterate(10))
    x, named = rows.inputs
    np.testing.assert_array_equal(x, columns["x"][:10])
    np.testing.assert_array_equal(named["both"], np.stack([columns["a"], columns["y"]], axis=1)[:10])
    np.testing.assert_array_equal(rows.targets["class"], columns["y"][:10])
    np.testing.assert_array_equal(rows.weights, np.linspace(1, 2, NUM_ROWS)[:10])
    assert stream.columns["x"].shape == (4,)
    left = argosy.data.open(tmp_path, columns=["a", "y"], targets="y", schema={"a": "float32"})
    assert next(left.iterate(4)).inputs.dtype == np.float32


def test_files_of_numpy_are_columns(tmp_path, columns):
    np.save(tmp_path / "x.npy", columns["x"])
    np.save(tmp_path / "y.npy", columns["y"])
    stream = argosy.data.open({"x": tmp_path / "x.npy", "y": tmp_path / "y.npy"}, targets="y", buffer_rows=100)
    np.testing.assert_array_equal(join(stream), columns["x"])
    assert sorted(join(stream, seed=1)[:, 0]) == sorted(columns["x"][:, 0])
    np.testing.assert_array_equal(join(argosy.data.open(tmp_path / "x.npy")), columns["x"])


def test_many_files_are_one_stream(tmp_path, columns):
    for number in range(3):
        (tmp_path / f"part={number}").mkdir()
        write_parquet(tmp_path / f"part={number}" / "rows.parquet", {"key": [f"{number} {key}" for key in columns["key"]]})
    (tmp_path / "_SUCCESS").touch()
    whole = argosy.data.open(tmp_path)
    assert (whole.num_files, len(whole)) == (3, 3 * NUM_ROWS)
    assert join(whole)[0] == "0 key 0"
    pattern = argosy.data.open(str(tmp_path / "**" / "*.parquet"))
    assert pattern.describe() == whole.describe()
    some = argosy.data.open([tmp_path / "part=2", tmp_path / "part=0" / "rows.parquet"])
    assert join(some)[0] == "2 key 0"
    assert some.describe()["digest"] != whole.describe()["digest"]


def test_digest_stays_when_data_moves_and_changes_when_it_grows(tmp_path, columns):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_parquet(tmp_path / folder / "rows.parquet", columns)
    one, other = (argosy.data.open(tmp_path / folder).describe() for folder in ("a", "b"))
    assert one == other
    write_parquet(tmp_path / "b" / "more.parquet", columns)
    assert argosy.data.open(tmp_path / "b").describe()["digest"] != one["digest"]


def test_one_large_row_group_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.stream.CHUNK_BYTES", 8000)
    x = np.arange(30_000.0).reshape(-1, 3)
    write_parquet(tmp_path / "rows.parquet", {"x": x}, group=len(x))
    stream = argosy.data.open(tmp_path, buffer_rows=1000, num_threads=3)
    assert len(stream._blocks) == 1
    np.testing.assert_array_equal(join(stream), x)
    order = list_batches(stream, seed=1)
    assert list_batches(stream, seed=1, start=201) == order[201:]


def test_threads_end_with_the_iteration(path):
    before = count_threads()
    batches = argosy.data.open(path, inputs="key", buffer_rows=50).iterate(8)
    next(batches)
    assert count_threads() > before
    batches.close()
    assert count_threads() == before
    for _ in argosy.data.open(path, inputs="key", buffer_rows=50).iterate(8):
        break
    gc.collect()
    assert count_threads() == before


def test_reading_ahead_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.stream.CHUNK_BYTES", 800)
    write_parquet(tmp_path / "rows.parquet", {"x": np.arange(100_000.0)}, group=100)
    stream = argosy.data.open(tmp_path, buffer_rows=1000, num_threads=2)
    read = []
    own = type(stream._finish).apply
    monkeypatch.setattr(type(stream._finish), "apply", lambda self, chunk: read.append(len(chunk.rows)) or own(self, chunk))
    batches = stream.iterate(100)
    next(batches)
    time.sleep(0.2)
    assert sum(read) < 5000
    batches.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"inputs": "z"}, r"`inputs` is 'z', expected columns: a, key, x, y", id="column"),
        pytest.param({"inputs": ["a", "key"]}, "expected numbers, to be joined", id="join"),
        pytest.param({"inputs": 3}, "a column's name", id="no-name"),
        pytest.param({"weights": "key"}, "one number a row; this is string", id="weights"),
        pytest.param({"columns": ["b"]}, "`columns` is 'b'", id="columns"),
        pytest.param({"schema": {"b": "float32"}}, "`schema` is 'b'", id="schema"),
        pytest.param({"schema": {"a": "complex64"}}, "a type of numbers", id="type"),
        pytest.param({"schema": {"key": "float32"}}, "key holds no numbers", id="cast"),
        pytest.param({"classes": 3}, "where targets are not one column", id="classes-of-nothing"),
        pytest.param({"targets": "y", "classes": ["a", "a"]}, "each once", id="classes"),
        pytest.param({"targets": ["y", "a"], "classes": 3}, "not one column", id="classes-of-two"),
        pytest.param({"buffer_rows": 0}, "`buffer_rows` is 0", id="buffer"),
        pytest.param({"max_bad_rows": -1}, "at least 0", id="max-bad-rows"),
        pytest.param({"format": "xlsx"}, "Unknown format 'xlsx'; known: arrow, csv", id="format"),
        pytest.param({"size": [3, 3]}, "not given with parquet", id="option"),
    ],
)
def test_bad_options_are_refused(options, words, tmp_path, columns):
    write_parquet(tmp_path / "rows.parquet", columns)
    with pytest.raises(InputError, match=words):
        argosy.data.open(tmp_path / "rows.parquet", **options)
