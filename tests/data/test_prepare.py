"""Preprocessing is recorded: raw rows that are sent to the server give the training pipeline's own predictions."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch

import argosy
from argosy.data import learn_row, split
from argosy.errors import InputError
from argosy.frameworks.base import framework_of
from argosy.train.publish import publish
from argosy.train.run import train
from tests.data.conftest import write_parquet

pytestmark = pytest.mark.needs("pyarrow")

CITIES = ["Köln", "Paris, TX", 'the "city"', "Oslo"]


def write_people(path, num_rows=300):
    """A table with numbers, categories of strings and of whole numbers, and a label."""
    random = np.random.default_rng(5)
    rows = [
        [round(float(random.normal(40, 10)), 3), CITIES[random.integers(4)], int(random.integers(1, 4)), int(random.integers(2))]
        for _ in range(num_rows)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "city", "class", "label"], *rows])
    return rows


def write_line(fields):
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue().encode()


def join(stream, **options):
    return np.concatenate([rows.inputs for rows in stream.iterate(64, **options)])


@pytest.fixture
def people(tmp_path):
    return write_people(tmp_path / "people.csv")


def open_people(tmp_path):
    return argosy.data.open(tmp_path / "people.csv", targets="label")


def test_numbers_are_scaled_and_categories_numbered_in_one_pass(tmp_path, people):
    stream = open_people(tmp_path)
    step = learn_row(stream, numbers=["age"], categories=["city", "class"])
    age, city, level = step["columns"]
    ages = np.array([row[0] for row in people])
    assert (age["mean"], age["std"]) == (pytest.approx(ages.mean()), pytest.approx(ages.std()))
    assert sorted(city["values"]) == sorted(CITIES) and sorted(level["values"]) == [1, 2, 3]
    x = join(stream.prepare(step))
    assert x.shape == (300, 1 + 5 + 4) and x.dtype == np.float32
    np.testing.assert_allclose(x[:, 0], (ages - ages.mean()) / ages.std(), rtol=1e-5, atol=1e-6)
    assert (x[:, 1:6].sum(axis=1) == 1).all() and (x[:, 1] == 0).all()
    assert x[0, 2 + city["values"].index(people[0][1])] == 1
    few = learn_row(stream, categories=["city"], max_values=2)
    assert join(stream.prepare(few))[:, 0].sum() == sum(row[1] not in few["columns"][0]["values"] for row in people) > 0
    places = stream.prepare(learn_row(stream, numbers=["age"], categories=["city"], one_hot=False))
    rows = next(places.iterate(20))
    assert {name: (array.dtype.name, array.shape) for name, array in rows.inputs.items()} == {
        "numbers": ("float32", (20, 1)),
        "city": ("int64", (20, 1)),
    }
    assert rows.targets.tolist() == [row[3] for row in people[:20]]


def test_preparing_changes_no_part_and_no_order(tmp_path, people):
    parts = split(open_people(tmp_path), (0.7, 0.3))
    step = learn_row(parts[0], numbers=["age"])
    for part in parts:
        ages = np.concatenate([rows.inputs["age"] for rows in part.iterate(32, seed=4)])
        scaled = join(part.prepare(step), seed=4)[:, 0]
        np.testing.assert_allclose(scaled * step["columns"][0]["std"] + step["columns"][0]["mean"], ages, rtol=1e-5)
    assert split(open_people(tmp_path).prepare(step), (0.7,))[0].iterate(1).__next__().targets is not None
    np.testing.assert_array_equal(join(split(open_people(tmp_path).prepare(step), (0.7,))[0]), join(parts[0].prepare(step)))


def test_raw_rows_that_are_served_give_the_pipelines_predictions(tmp_path, home, people):
    training, test = split(open_people(tmp_path), (0.8, 0.2))
    step = learn_row(training, numbers=["age"], categories=["city", "class"])
    stream = training.prepare(step)
    model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    result = train(model, stream, epochs=2, progress=False)
    assert result.data["preprocess"] == [step]
    publish(model, "people", home.store, sample=result.sample, preprocess=stream.preprocess)
    raw = next(rows.inputs for rows in test.iterate(1000))
    columns = [raw[name].tolist() for name in ("age", "city", "class")]
    expected = framework_of(model).predict(model, join(test.prepare(step)))
    lines = [write_line(row) for row in zip(*columns, strict=True)]
    objects = [
        json.dumps(dict(zip(("class", "city", "age"), row[::-1], strict=True))).encode() for row in zip(*columns, strict=True)
    ]
    with home.serve("people") as server, server.client() as client:
        for rows in (lines, objects):
            got = client.predict("people", {"row": rows})["output"]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        unknown = client.predict("people", {"row": [b"40,Rome,9"]})["output"]
        assert np.isfinite(unknown).all()
        for row, words in (
            (b"old,Oslo,1", "'old' in column 'age', expected a number"),
            (b"nan,Oslo,1", "expected a number"),
            (b"1e400,Oslo,1", "expected a number"),
            (b"40,Oslo", "2 fields, expected 3: age, city, class"),
            (b"40,Oslo,1.5", "'1.5' in column 'class', expected a whole number"),
            (b'40,"Oslo,1', "no line of CSV"),
            (b'{"age": 40, "city": "Oslo"}', "has the columns age, city, expected age, city, class"),
            (b'{"age": true, "city": "Oslo", "class": 1}', "expected a number"),
            (b'{"age": 40, "city": 3, "class": 1}', "expected a string"),
            (b'{"a":' * 5000, "is none"),
            (b"\xff", "no text in UTF-8"),
            (b"", "0 fields"),
        ):
            with pytest.raises(InputError, match=words):
                client.predict("people", {"row": [row]})


def test_pictures_that_are_served_give_the_pipelines_predictions(tmp_path, home):
    from PIL import Image

    random = np.random.default_rng(0)
    files = []
    for number in range(12):
        path = tmp_path / "pictures" / ("ab"[number % 2]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (9, 7 + number, 3), np.uint8)).save(path)
        files.append(path)
    stream = argosy.data.open(tmp_path / "pictures", size=[6, 6], resize="crop", scale=1 / 255, mean=0.5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
    result = train(model, stream, epochs=1, progress=False)
    publish(model, "pictures", home.store, sample=result.sample, preprocess=stream.preprocess)
    expected = framework_of(model).predict(model, join(stream))
    with home.serve("pictures") as server, server.client() as client:
        raw = [path.read_bytes() for path in sorted(files)]
        np.testing.assert_allclose(client.predict("pictures", {"image": raw})["output"], expected, rtol=1e-5, atol=1e-6)


def test_text_becomes_tokens_as_in_serving(tmp_path):
    (tmp_path / "words.txt").write_text("[PAD]\n[UNK]\na\ngood\nbad\nfilm\n")
    write_parquet(tmp_path / "a.parquet", {"text": ["a good film", "a bad one", "film " * 20], "y": [1, 0, 1]})
    step = {"kind": "text", "file": str(tmp_path / "words.txt"), "split": "whitespace", "max_length": 4, "pad_id": 0}
    stream = argosy.data.open(tmp_path / "a.parquet", inputs="text", targets="y", max_bad_rows=1)
    rows = next(stream.prepare(step).iterate(3))
    assert rows.inputs.tolist() == [[2, 3, 5, 0], [2, 4, 1, 0]]
    assert rows.targets.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"row 2: row 0 of input 'text' has 20 tokens, expected 1 to 4"):
        argosy.data.open(tmp_path / "a.parquet", inputs="text", targets="y").prepare(step)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"kind": "image"}, "Unknown preprocessing of columns 'image'"),
        ({"kind": "row"}, "no list of columns"),
        ({"kind": "row", "columns": [{"name": "z", "kind": "number"}]}, "`preprocess` is 'z', expected columns: age, city"),
        ({"kind": "row", "columns": [{"name": "age", "kind": []}]}, "has kind"),
        ({"kind": "row", "columns": [{"name": "age", "kind": "number", "std": 0}]}, "std 0.0, expected a number above 0"),
        ({"kind": "row", "columns": [{"name": "age", "kind": "number", "values": ["a"]}]}, "unknown options: values"),
        ({"kind": "row", "columns": [{"name": "city", "kind": "category", "values": ["a", "a"]}]}, "a value twice"),
        ({"kind": "row", "columns": [{"name": "city", "kind": "category", "values": [1]}]}, "a list of strings"),
        ({"kind": "row", "columns": [{"name": "age", "kind": "number"}], "delimiter": ""}, "expected one character"),
        ({"kind": "row", "columns": [{"name": "age", "kind": "number", "input": "label"}]}, "names that no target has"),
        ({"kind": "text", "column": "city"}, "the tokens of each row, and a path"),
    ],
)
def test_step_that_does_not_fit_is_refused(step, words, tmp_path, people):
    with pytest.raises(InputError, match=words):
        open_people(tmp_path).prepare(step)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "columns, each once"),
        ({"numbers": ["age"], "categories": ["age"]}, "columns, each once"),
        ({"numbers": ["city"]}, "one number a row"),
        ({"categories": ["age"]}, r"age \(float64\)', expected strings or whole numbers"),
        ({"numbers": ["z"]}, "expected columns: age, city"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, words, tmp_path, people):
    with pytest.raises(InputError, match=words):
        learn_row(open_people(tmp_path), **options)
