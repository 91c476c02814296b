"""Rows to calibrate with and rows to judge on: taken from what users have, checked, and never the same."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from argosy.compress.sample import remove_known, split_sample, take_sample, thin_rows
from argosy.errors import InputError
from argosy.signature import Signature, TensorSpec
from tests.home import Home
from tests.runtimes.words import publish_words

RANDOM = np.random.default_rng(5)
DENSE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 2)),))
TEXT = Signature(
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 2)),)
)
SOUND = Signature(
    (TensorSpec("wave", "FP32", (-1,)), TensorSpec("rate", "INT64", ())), (TensorSpec("y", "FP32", (1,)),), has_rows=False
)


def test_array_is_cut_into_rows_with_their_targets():
    x = RANDOM.normal(size=(5, 3))
    sample = take_sample(DENSE, x, [4, 3, 2, 1, 0])
    assert [row["x"].shape for row in sample.rows] == [(1, 3)] * 5 and sample.rows[0]["x"].dtype == np.float32
    np.testing.assert_allclose(np.concatenate([row["x"] for row in sample.rows]), x, rtol=1e-6)
    np.testing.assert_array_equal(sample.targets["y"], [4, 3, 2, 1, 0])
    picked = sample.pick([4, 1]).pick([1])
    assert picked.targets["y"].tolist() == [3] and picked.find_place(0) == 1


def test_requests_of_several_lengths_and_inputs_keep_their_shapes():
    requests = [{"ids": np.ones((1, length), np.int64), "mask": np.ones((1, length), np.int64)} for length in (3, 7, 5)]
    sample = take_sample(TEXT, requests)
    assert [row["ids"].shape for row in sample.rows] == [(1, 3), (1, 7), (1, 5)]
    columns = {"ids": np.ones((4, 6), np.int64), "mask": np.zeros((4, 6), np.int64)}
    assert [row["mask"].shape for row in take_sample(TEXT, columns).rows] == [(1, 6)] * 4


def test_requests_of_a_version_without_rows_are_taken_whole():
    requests = [{"wave": np.zeros(length, np.float32), "rate": np.array(16000)} for length in (512, 300)]
    assert [row["wave"].shape for row in take_sample(SOUND, requests).rows] == [(512,), (300,)]
    stacked = take_sample(SOUND, {"wave": np.zeros((4, 512), np.float32), "rate": np.full(4, 16000)})
    assert [(row["wave"].shape, row["rate"].shape) for row in stacked.rows] == [((512,), ())] * 4


@pytest.mark.parametrize(
    ("signature", "rows", "targets", "words"),
    [
        pytest.param(DENSE, np.ones((4, 2)), None, "input 'x' has type float32 and shape (4, 2)", id="shape"),
        pytest.param(DENSE, {"z": np.ones((4, 3))}, None, "arrays for z, the model takes x", id="name"),
        pytest.param(DENSE, np.ones((4, 3), np.complex64), None, "complex", id="type"),
        pytest.param(DENSE, np.ones((0, 3)), None, "row", id="none"),
        pytest.param(DENSE, [], None, "row", id="empty-list"),
        pytest.param(DENSE, [{"x": np.ones((2, 3))}], None, "input 'x' of a request has shape (2, 3), expected (1, 3)", id="two"),
        pytest.param(DENSE, [{"x": np.ones((1, 3)), "w": 1}], None, "arrays for w, x, the model takes x", id="one-too-many"),
        pytest.param(DENSE, {"x": [[1, 2, 3], [4]]}, None, "x: no array can be made of them", id="ragged"),
        pytest.param(
            DENSE, [{"x": [[1, 2, 3], [4]]}], None, "input 'x' of a request: no array can be made of them", id="ragged-request"
        ),
        pytest.param(DENSE, np.ones((2, 3)), [[1, 2], [3]], "targets: no array can be made of them", id="ragged-targets"),
        pytest.param(DENSE, np.ones((4, 3)), [1, 2], "evaluation has 4 rows, its targets have shape (2,)", id="targets"),
        pytest.param(DENSE, np.ones((4, 3)), {"z": [1] * 4}, "targets for z, the model gives y", id="target-name"),
        pytest.param(DENSE, np.ones((4, 3)), 3, "its targets have shape ()", id="one-target"),
        pytest.param(TEXT, {"ids": np.ones((4, 6)), "mask": np.ones((3, 6))}, None, "ids", id="floats-for-integers"),
        pytest.param(
            TEXT,
            {"ids": np.ones((4, 6), np.int64), "mask": np.ones((3, 6), np.int64)},
            None,
            "the inputs have different numbers of rows",
            id="unequal",
        ),
    ],
)
def test_unfit_rows_are_refused_with_the_reason(signature, rows, targets, words):
    with pytest.raises(InputError) as caught:
        take_sample(signature, rows, targets)
    assert caught.value.key == "bad_data" and words in caught.value.message


def test_equal_rows_never_stand_on_both_sides():
    x = np.repeat(RANDOM.normal(size=(40, 3)).astype(np.float32), 5, axis=0)
    calibration, training, sample = split_sample(take_sample(DENSE, x, np.arange(200)))
    assert len(calibration) == 10 and len(training.rows) == 50 and len(sample.rows) == 150
    np.testing.assert_array_equal([row["x"][0] for row in training.rows], x[training.targets["y"]])
    assert not {row["x"].tobytes() for row in training.rows} & {row["x"].tobytes() for row in sample.rows}
    seen = {row["x"].tobytes() for row in calibration}
    assert len(seen) == 10 and not seen & {row["x"].tobytes() for row in sample.rows}
    # Each row still has its own target, and its place among those that were given.
    for index, row in enumerate(sample.rows):
        np.testing.assert_array_equal(row["x"][0], x[sample.targets["y"][index]])
        assert sample.find_place(index) == sample.targets["y"][index]
    assert [row["x"].tobytes() for row in split_sample(take_sample(DENSE, x))[0]] == [row["x"].tobytes() for row in calibration]


def test_calibration_takes_a_quarter_and_at_most_512():
    for count, expected in ((3, 0), (4, 1), (100, 25), (5000, 512)):
        calibration, _, _ = split_sample(take_sample(DENSE, RANDOM.normal(size=(count, 3))))
        assert len(calibration) == expected


def test_rows_beyond_a_thousand_to_judge_on_are_trained_on_but_for_a_quarter():
    for count, judged in ((4, 3), (100, 75), (1333, 1000), (2000, 1000), (5000, 1250)):
        calibration, training, sample = split_sample(take_sample(DENSE, RANDOM.normal(size=(count, 3))))
        assert (len(training.rows), len(sample.rows)) == (count - judged, judged)
        assert {row["x"].tobytes() for row in calibration} <= {row["x"].tobytes() for row in training.rows}


def test_rows_that_are_known_are_left_out():
    x = RANDOM.normal(size=(10, 3)).astype(np.float32)
    sample = take_sample(DENSE, x, np.arange(10))
    left = remove_known(sample, take_sample(DENSE, x[[2, 5]]).rows)
    assert left.targets["y"].tolist() == [0, 1, 3, 4, 6, 7, 8, 9] and left.find_place(2) == 3
    assert remove_known(sample, take_sample(DENSE, x + 1).rows) is sample
    with pytest.raises(InputError, match="every evaluation row is a calibration row"):
        remove_known(sample, sample.rows)


def test_thinned_rows_reach_from_the_first_to_the_last():
    rows = [{"x": np.array([index])} for index in range(100)]
    assert [int(row["x"][0]) for row in thin_rows(rows, 5)] == [0, 24, 49, 74, 99]
    assert [int(row["x"][0]) for row in thin_rows(rows, 1)] == [0]
    assert thin_rows(rows[:4], 5) == rows[:4]


def test_texts_become_the_tensors_that_a_worker_makes_of_them(home: Home):
    publish_words(home, "words")
    version = home.store.get_version("words@1")
    signature, folder = version.manifest.signature, home.store.open_artifact(version)
    sample = take_sample(signature, ["the cat", "the cat sat on the mat"], folder=folder)
    lengths = [next(iter(row.values())).shape for row in sample.rows]
    assert lengths[0][0] == lengths[1][0] == 1 and lengths[0][1] < lengths[1][1]
    name = signature.raw_inputs[0].name
    named = take_sample(signature, {name: ["the cat"]}, folder=folder)
    for key, array in named.rows[0].items():
        np.testing.assert_array_equal(array, sample.rows[0][key])
    with pytest.raises(InputError, match="a row is a int, expected text"):
        take_sample(signature, {name: [3]}, folder=folder)
    assert msgspec.to_builtins(signature)["preprocess"]
