"""Rows of a stream that ruin their batch: the run survives them, ends as without them, and says where they stand."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest

import argosy
from argosy.errors import InputError
from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import Dense, Relu, draw_weights
from argosy.optim import Adam
from argosy.train.checkpoint import Checkpoints
from argosy.train.run import train
from tests.data.conftest import WRITERS
from tests.train.test_checkpoint import weights_of

pytestmark = pytest.mark.needs("pyarrow")

NUM_ROWS, POISONED = 600, (277, 401, 402)
LAYERS = (Dense(16), Relu(), Dense(2))


def write_rows(folder, suffix, poison, num_files=3):
    """Write two classes, and the rows that ruin whoever follows them; give all rows but these."""
    random = np.random.default_rng(2)
    x = random.normal(size=(NUM_ROWS, 4)).astype(np.float32)
    y = (x @ np.array([1.0, -1.0, 2.0, 0.5]) > 0).astype(np.int64)
    clean = np.delete(np.arange(NUM_ROWS), POISONED)
    rows = x[clean], y[clean]
    if poison is not None:
        x[list(POISONED)] = poison
    folder.mkdir(exist_ok=True)
    write = {"group": 50} if suffix == "parquet" else {}
    for number, part in enumerate(np.array_split(np.arange(NUM_ROWS), num_files)):
        WRITERS[suffix](folder / f"{number}.{suffix}", {"x": x[part], "y": y[part]}, **write)
    return rows


def fit(name, folder, *, epochs=10, **options):
    framework = get_framework(name)
    model = framework.build_network(LAYERS, (4,), draw_weights(LAYERS, (4,), 0))
    limit = {key: options.pop(key) for key in ("max_bad_rows",) if key in options}
    stream = argosy.data.open(folder, inputs="x", targets="y", schema={"x": "float32"}, buffer_rows=120, **limit)
    rule = Adam(learning_rate=0.01)
    return train(model, stream, optimizer=rule, batch_size=20, epochs=epochs, progress=False, **options)


@pytest.mark.parametrize(
    "name", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "tensorflow", "jax"))]
)
def test_huge_rows_cost_no_accuracy_and_their_batches_are_named(name, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = write_rows(tmp_path / "poisoned", "parquet", 1e30)
    write_rows(tmp_path / "clean", "parquet", None)
    clean, result = (fit(name, tmp_path / folder) for folder in ("clean", "poisoned"))
    accuracies = [run.evaluate(*rows)["accuracy"] for run in (clean, result)]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.02) and accuracies[0] > 0.95
    skipped = result.describe_lineage()["training"]["skipped"]
    assert {skip["epoch"] for skip in skipped} == set(range(1, 11))
    assert json.loads(json.dumps(skipped)) == skipped
    for skip in skipped:
        assert len(read_places(skip["rows"])) == 20
        assert set(read_places(skip["rows"])) & {divmod(row, 200) for row in POISONED}
    assert f"'{tmp_path}/poisoned/1.parquet', rows " in caplog.text


def read_places(texts):
    """Give the number of the file and of the row of each row that is named."""
    places = []
    for text in texts:
        file, rows = re.fullmatch(r"'.*/(\d)\.\w+', (?:rows|lines) ([-\d, ]+)", text).groups()
        for part in rows.split(", "):
            first, _, last = part.partition("-")
            places += [(int(file), row) for row in range(int(first), int(last or first) + 1)]
    return places


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("suffix", [*WRITERS])
def test_rows_of_a_batch_are_found_again(suffix, seed, tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.csv._BLOCK_BYTES", 500)
    monkeypatch.setattr("argosy.data.jsonl._BLOCK_BYTES", 500)
    numbers = np.arange(300)
    for number, part in enumerate(np.array_split(numbers, 3)):
        values = part.astype(float)
        values[5] = np.nan  # which is left out
        WRITERS[suffix](tmp_path / f"{number}.{suffix}", {"number": part, "a": values})
    stream = argosy.data.open(tmp_path, inputs="number", targets="a", buffer_rows=50, max_bad_rows=3)
    part = argosy.data.split(stream, (0.8,), key="number")[0]
    first = {"csv": 2, "jsonl": 1}.get(suffix, 0)
    for rows in (stream, part):
        for batch, found in enumerate(rows.iterate(16, epoch=2, seed=seed)):
            places = read_places(rows.locate(16, epoch=2, batch=batch, seed=seed))
            assert sorted(100 * file + row - first for file, row in places) == sorted(found.inputs.tolist())
        assert rows.locate(16, epoch=2, batch=1000, seed=seed) == []


def test_run_that_bad_rows_end_goes_on_when_they_may_be_left_out(tmp_path):
    """What was learned before them is kept, and ends as if they had been allowed from the beginning."""
    write_rows(tmp_path / "rows", "parquet", np.nan)
    with pytest.raises(InputError, match="rows cannot be used") as caught:
        fit("torch", tmp_path / "rows", checkpoints=Checkpoints(folder=tmp_path / "kept", every_s=None), shuffle=False)
    assert "1.parquet', row 77" in caught.value.message
    kept = sorted((tmp_path / "kept").glob("step-*.npz"))
    assert kept and int(kept[-1].stem[5:]) > 0
    options = {"shuffle": False, "max_bad_rows": 3}
    resumed = fit("torch", tmp_path / "rows", checkpoints=tmp_path / "kept", resume=True, **options)
    whole = fit("torch", tmp_path / "rows", **options)
    np.testing.assert_array_equal(weights_of(resumed.model), weights_of(whole.model))
    assert resumed.data["left_out"]["rows"] == 3
