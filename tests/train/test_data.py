from __future__ import annotations

import numpy as np
import pytest

from argosy.errors import InputError
from argosy.frameworks.base import Batch
from argosy.frameworks.describe import digest_arrays
from argosy.train.data import check_dataset, check_rows, count_taken, iterate_batches, split_rows
from argosy.train.datasets import Dataset, load_digits, split_test
from argosy.train.losses import get_metric, prepare_targets

X, Y = np.ones((4, 2)), np.arange(4)
NAN, HUGE = X.copy(), X.copy()
NAN[2, 1] = np.nan
HUGE[3, 0] = 1e39


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param((X[:0], Y[:0]), "at least one row", id="empty"),
        pytest.param((np.float32(3), Y), "at least one row", id="scalar"),
        pytest.param(([[1], [1, 2]], Y), "x: no array can be made of them", id="lengths"),
        pytest.param((X, [[1], [1, 2]]), "y: no array can be made of them", id="target-lengths"),
        pytest.param((np.ones((4, 0)), Y), "at least one row", id="no-columns"),
        pytest.param((X, Y[:3]), "x has 4 rows, y has shape (3,)", id="rows-differ"),
        pytest.param((NAN, Y), "1 values that are NaN, infinite or beyond float32, the first in row 2", id="nan"),
        pytest.param((HUGE, Y), "the first in row 3", id="beyond-float32"),
        pytest.param((np.array([["a"]]), [0]), "x has type <U1, expected numbers", id="text"),
        pytest.param((X, Y.astype("M8[s]")), "y has type datetime64[s]", id="dates-as-targets"),
        pytest.param(X, "expected a pair", id="no-pair"),
        pytest.param((X, Y, Y, Y), "expected a pair", id="four"),
        pytest.param((X, Y, -Y), "weights hold a number that is negative", id="negative-weights"),
        pytest.param((X, Y, X), "expected one number for each of 4 rows", id="wide-weights"),
    ],
)
def test_unusable_data_is_refused_with_its_fault(data, words):
    with pytest.raises(InputError) as caught:
        check_dataset(data)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "words"),
    [
        pytest.param("cross_entropy", np.array([0, 3]), (2, 3), "from 0 to 3, the model has 3 classes", id="label-too-large"),
        pytest.param("cross_entropy", np.array([-1, 2]), (2, 3), "from -1 to 2", id="label-negative"),
        pytest.param("cross_entropy", np.array([0.0, 0.5]), (2, 3), "integer type", id="labels-are-floats"),
        pytest.param("cross_entropy", np.zeros((2, 1), int), (2, 3), "shape (rows,)", id="labels-two-dimensional"),
        pytest.param("cross_entropy", np.array([0, 1]), (2,), "outputs of shape (rows, classes)", id="no-classes"),
        pytest.param("mse", np.ones(2), (2, 3), "the model gives (2, 3)", id="would-broadcast"),
        pytest.param("mse", np.ones((2, 1)), (2,), "the model gives (2,)", id="would-broadcast-the-other-way"),
        pytest.param("mse", np.array([1.0, np.nan]), (2, 1), "NaN", id="target-nan"),
        pytest.param("binary_cross_entropy", np.array([0.0, 2.0]), (2, 1), "0 to 1", id="target-not-a-probability"),
    ],
)
def test_targets_that_do_not_fit_the_model_are_refused(loss, y, outputs, words):
    with pytest.raises(InputError) as caught:
        prepare_targets(loss, y, outputs)
    assert caught.value.key == "bad_data"
    assert words in caught.value.message


def test_targets_of_one_column_may_be_flat():
    assert prepare_targets("mse", np.arange(3), (3, 1)).shape == (3, 1)
    assert prepare_targets("cross_entropy", np.array([2, 0], np.uint8), (2, 3)).dtype == np.int64


def test_rows_are_float32_unless_they_are_integers():
    assert check_rows([[1.5, 2.0]]).dtype == np.float32
    assert check_rows(np.ones((1, 2), np.float16)).dtype == np.float32
    assert check_rows(np.ones((1, 2), ">i4")).dtype == np.dtype("=i4")


def test_batches_hold_every_row_once_and_the_short_last_one():
    batches = list(iterate_batches(10, 4, shuffle=True, seed=1, epoch=1))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))


def test_order_of_rows_follows_from_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(list(iterate_batches(50, 7, shuffle=True, seed=seed, epoch=epoch))).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert np.concatenate(list(iterate_batches(5, 2, shuffle=False, seed=0, epoch=1))).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("fraction", "num_taken"), [(0.25, 5), (1e-9, 1), (0.999, 19)])
def test_split_takes_the_fraction_and_leaves_the_rest(fraction, num_taken):
    data = Batch({"a": np.arange(20.0)[:, None]}, np.arange(20), np.arange(20.0))
    kept, taken = split_rows(data, fraction, seed=3)
    assert len(taken.targets) == num_taken == count_taken(20, fraction)
    assert sorted([*kept.targets, *taken.targets]) == list(range(20))
    np.testing.assert_array_equal(kept.inputs["a"][:, 0], kept.targets)
    np.testing.assert_array_equal(kept.weights, kept.targets)


def test_one_row_cannot_be_split():
    with pytest.raises(InputError, match="1 row cannot be split"):
        split_rows(Batch(X[:1], Y[:1]), 0.5, seed=0)


def test_test_split_takes_the_same_part_of_every_class():
    data = Dataset(np.arange(60.0)[:, None], np.repeat([0, 1, 2], [10, 20, 30]))
    _, testing = split_test(data, 0.2, seed=0)
    assert np.bincount(testing.y).tolist() == [2, 4, 6]
    np.testing.assert_array_equal(testing.x, split_test(data, 0.2, seed=0)[1].x)
    assert not np.array_equal(testing.x, split_test(data, 0.2, seed=1)[1].x)


def test_digits_are_scaled_images_split_without_overlap():
    training, testing = load_digits()
    assert (training.x.shape, testing.x.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert training.x.dtype == np.float32
    assert (float(training.x.min()), float(training.x.max())) == (0.0, 1.0)
    assert sorted(np.unique(testing.y)) == list(range(10))
    rows = {row.tobytes() for row in training.x}
    assert sum(row.tobytes() in rows for row in testing.x) == 0


def test_digest_depends_on_content_shape_and_datatype_alone():
    array = np.arange(6, dtype=np.int32)
    assert digest_arrays(array) == digest_arrays(array.astype(">i4")) == digest_arrays(np.arange(12, dtype=np.int32)[::2] // 2)
    different = {digest_arrays(a) for a in (array, array.reshape(2, 3), array.astype(np.int64), array + 1)}
    assert len(different) == 4
    assert digest_arrays(array, array) != digest_arrays(np.concatenate([array, array]))


def test_metrics_equal_their_definitions():
    outputs, labels = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6]]), np.array([1, 1, 1])
    assert get_metric("accuracy").compute(outputs, labels) == pytest.approx(2 / 3)
    logits, targets = np.array([[-1.0], [2.0], [3.0], [-4.0]]), np.array([[0.0], [1.0], [0.0], [0.0]], np.float32)
    assert get_metric("accuracy").compute(logits, targets) == pytest.approx(3 / 4)
    assert get_metric("mae").compute(logits, targets) == pytest.approx((1 + 1 + 3 + 4) / 4)
    assert get_metric("mse").compute(logits, targets) == pytest.approx((1 + 1 + 9 + 16) / 4)
