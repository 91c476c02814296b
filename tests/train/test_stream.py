"""Training on streams of files: as on the same rows in memory, and killed and resumed without loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import argosy
from argosy.errors import InputError
from argosy.train.run import train
from tests.data.conftest import WRITERS, write_parquet
from tests.train.test_checkpoint import Interrupt, fit, weights_of

pytestmark = pytest.mark.needs("pyarrow")


@pytest.fixture(params=["parquet", "jsonl"])
def path(request, tmp_path, blobs):
    (tmp_path / "data").mkdir()
    x, y = blobs
    for number in range(3):
        rows = slice(40 * number, 40 * (number + 1))
        WRITERS[request.param](tmp_path / "data" / f"{number}.{request.param}", {"x": x[rows], "y": y[rows]})
    return tmp_path / "data"


def open_stream(path, **options):
    return argosy.data.open(path, inputs="x", targets="y", buffer_rows=60, **options)


def test_stream_in_order_trains_as_the_same_arrays_do(path, blobs, make_model):
    one, other = make_model(), make_model()
    result = train(one, open_stream(path), epochs=3, shuffle=False, progress=False, validation_data=open_stream(path))
    expected = train(other, blobs, epochs=3, shuffle=False, progress=False, validation_data=blobs)
    np.testing.assert_array_equal(weights_of(one), weights_of(other))
    assert result.history[-1].validation_loss == pytest.approx(expected.history[-1].validation_loss)
    assert result.data["files"] == 3
    np.testing.assert_array_equal(result.sample[:8], blobs[0][:8])


@pytest.mark.parametrize("after", [1, 5, 8, 15])
def test_interrupted_run_takes_the_same_rows_in_the_same_order(after, path, make_model, tmp_path):
    whole, broken, resumed = (Interrupt(make_model(), left) for left in (0, after, 0))
    fit(whole, open_stream(path), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, open_stream(path), tmp_path / "broken")
    fit(resumed, open_stream(path, num_threads=1), tmp_path / "broken", resume=True)
    np.testing.assert_array_equal(weights_of(resumed), weights_of(whole))


def test_what_was_left_out_is_in_the_lineage(tmp_path, blobs, make_model):
    x = [list(map(float, row)) for row in blobs[0]]
    x[50][2] = float("nan")
    write_parquet(tmp_path / "rows.parquet", {"x": x, "y": blobs[1]})
    result = train(make_model(), open_stream(tmp_path, max_bad_rows=1), epochs=3, progress=False)
    assert result.data["left_out"]["rows"] == 1
    assert f"{str(tmp_path / 'rows.parquet')!r}, row 50" in result.data["left_out"]["first"][0]
    with pytest.raises(InputError, match="row 50"):
        train(make_model(), open_stream(tmp_path), epochs=3, progress=False)


def test_run_on_other_files_is_not_resumed(path, make_model, tmp_path, blobs):
    fit(make_model(), open_stream(path), tmp_path / "run", epochs=1)
    write_parquet(tmp_path / "other.parquet", {"x": blobs[0], "y": blobs[1]})
    with pytest.raises(InputError, match="does not fit this run: its data is"):
        fit(make_model(), open_stream(tmp_path / "other.parquet"), tmp_path / "run", resume=True)


def test_parts_train_and_validate(path, make_model):
    parts = argosy.data.split(open_stream(path), {"train": 0.7, "validation": 0.3})
    result = train(make_model(), parts["train"], validation_data=parts["validation"], epochs=1, progress=False)
    assert result.data["part"] == {"key": None, "from": 0, "to": 0.7, "seed": 0}
    assert result.history[0].validation_loss is not None


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        pytest.param({}, {"validation_split": 0.1}, r"give .*validation_data", id="split"),
        pytest.param({"targets": None}, {}, "targets", id="no-targets"),
        pytest.param({"inputs": ("x", "y")}, {}, r"several columns|rows of shape", id="two-inputs"),
        pytest.param({"inputs": "s"}, {}, r"expected .*numbers", id="strings"),
    ],
)
def test_bad_use_of_a_stream_is_refused(options, given, words, tmp_path, blobs, make_model):
    write_parquet(tmp_path / "rows.parquet", {"x": blobs[0], "y": blobs[1], "s": ["a"] * 120})
    stream = argosy.data.open(tmp_path / "rows.parquet", **{"inputs": "x", "targets": "y", **options})
    with pytest.raises(InputError, match=words):
        train(make_model(), stream, progress=False, **given)


class TwoInputs(torch.nn.Module):
    """Takes a matrix and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = torch.nn.Linear(4, 3), torch.nn.Linear(1, 3)

    def forward(self, x, a):
        return self.wide(x) + self.narrow(a)


def test_columns_are_inputs_targets_and_weights_of_any_model(tmp_path, blobs):
    x, y = blobs
    weights = np.linspace(0.5, 1.5, len(x))
    names = np.array(["red", "green", "blue"])[y]
    write_parquet(tmp_path / "rows.parquet", {"x": x, "a": x[:, 0], "y": names, "w": weights})
    stream = argosy.data.open(tmp_path, inputs=("x", ["a"]), targets="y", weights="w", classes=["red", "green", "blue"])
    trained = []
    for data in (stream, ((x, x[:, :1]), y, weights)):
        torch.manual_seed(1)
        trained.append(TwoInputs())
        train(trained[-1], data, epochs=2, shuffle=False, progress=False)
    np.testing.assert_allclose(weights_of(trained[0]), weights_of(trained[1]), rtol=1e-6)


def test_step_of_ones_own_takes_rows_of_a_stream(path, make_model):
    def step(model, rows, fit):
        x, y = rows
        return torch.nn.functional.cross_entropy(model(x.float()), y)

    result = train(make_model(), open_stream(path), step=step, epochs=2, progress=False)
    assert result.num_steps == 8
