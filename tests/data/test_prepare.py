"""Preprocessing is recorded: raw rows that are sent to the server give the training pipeline's own predictions."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import argosy
from argosy.data import learn_row, split
from argosy.environment import find_interpreter, lives_apart
from argosy.errors import InputError
from argosy.train.run import train
from tests.data.conftest import write_parquet
from tests.frameworks import raw_rows
from tests.frameworks.raw_rows import CITIES, write_rows
from tests.scripts import ROOT

pytestmark = pytest.mark.needs("pyarrow")


def write_line(fields):
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return out.getvalue().encode()


def join(stream, **options):
    return np.concatenate([rows.inputs for rows in stream.iterate(64, **options)])


@pytest.fixture
def people(tmp_path):
    return write_rows(tmp_path)


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


@pytest.mark.parametrize(
    "framework",
    ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "tensorflow", "jax", "mxnet"))],
)
def test_raw_rows_and_pictures_that_are_served_give_the_pipelines_predictions(framework, tmp_path, home):
    rows = write_rows(tmp_path / "data")
    if framework == "torch":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["raw_rows", framework, str(home.store.home), str(tmp_path / "data")])
            raw_rows.main()
    else:
        python = find_interpreter(framework) if lives_apart(framework) else sys.executable
        command = [python, "-W", "ignore", "-m", "tests.frameworks.raw_rows", framework, home.store.home, tmp_path / "data"]
        subprocess.run([*map(str, command)], cwd=ROOT, check=True, timeout=200)
    people, pictures = (np.load(tmp_path / "data" / f"{name}.npy") for name in ("people", "pictures"))
    lines = [write_line(row[:3]) for row in rows]
    objects = [json.dumps(dict(zip(("class", "city", "age"), row[2::-1], strict=True))).encode() for row in rows]
    files = [path.read_bytes() for path in sorted((tmp_path / "data" / "pictures").glob("*/*"))]
    with home.serve() as server, server.client() as client:
        for name in ("people", "pictures"):
            server.deploy(name, allow_code=True)
        for raw in (lines, objects):
            check(client.predict("people", {"row": raw})["output"], people)
        check(client.predict("pictures", {"image": files})["output"], pictures)
    assert home.store.get_version("pictures").manifest.signature.outputs[0].labels == ("cat", "dog")


def write_pictures(folder, size=(20, 30), bad=()):
    """Write pictures of two kinds as files, and as bytes in a column, where those of `bad` are cut off; give the others."""
    random, table, files = np.random.default_rng(3), {"image": [], "label": []}, []
    for number in range(30):
        picture = Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8))
        path = folder / "files" / f"{number % 2}" / f"{number // 2:02}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        files.append(path.read_bytes())
        table["image"].append(files[-1][:40] if number in bad else files[-1])
        table["label"].append(number % 2)
    write_parquet(
        folder / "rows.parquet", {"image": np.array(table["image"], object), "label": np.array(table["label"])}, group=8
    )
    return [file for number, file in enumerate(files) if number not in bad]


PICTURES = {"size": [6, 6], "resize": "crop", "scale": 1 / 255, "mean": 0.5}


def test_pictures_in_a_column_become_what_their_files_do_and_are_served_so(tmp_path, home):
    files = write_pictures(tmp_path)
    stream = argosy.data.open(tmp_path / "rows.parquet", targets="label").prepare({"kind": "image", **PICTURES})
    folder = argosy.data.open(tmp_path / "files", **PICTURES)
    made = join(stream)
    np.testing.assert_array_equal(np.concatenate([made[::2], made[1::2]]), join(folder))
    assert stream.preprocess == folder.preprocess
    result = train(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2)), stream, epochs=1, progress=False)
    assert result.describe_lineage()["data"]["preprocess"] == folder.preprocess
    result.publish("pictures", home.store)
    with home.serve("pictures") as server, server.client() as client:
        check(client.predict("pictures", {"image": files})["output"], result.predict(made))


def test_picture_that_is_cut_off_is_a_bad_row(tmp_path):
    files = write_pictures(tmp_path, bad=(3, 17))
    step = {"kind": "image", **PICTURES}
    stream = argosy.data.open(tmp_path / "rows.parquet", targets="label", max_bad_rows=2).prepare(step)
    assert sum(rows.num_rows for rows in stream.iterate(7)) == len(files)
    with pytest.raises(InputError, match="rows cannot be used") as caught:
        join(argosy.data.open(tmp_path / "rows.parquet", targets="label").prepare(step))
    assert "no picture that can be read" in str(caught.value)


def test_rows_that_grow_are_not_all_held_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.stream.BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr("argosy.data.stream.MAX_WINDOW_BYTES", 2 << 20)
    write_pictures(tmp_path, size=(2, 2))
    stream = argosy.data.open(tmp_path / "rows.parquet", targets="label")
    step = {"kind": "image", "size": [100, 100]}
    prepared = stream.prepare(step)
    assert 5 < prepared.buffer_rows < 10 < stream.buffer_rows
    assert sum(rows.num_rows for rows in prepared.iterate(7, seed=1)) == 30
    assert argosy.data.open(tmp_path / "rows.parquet", targets="label", buffer_rows=20).prepare(step).buffer_rows == 20


def check(got, expected):
    assert got.shape == expected.shape
    # Float32 kernels may sum in another order.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_bad_raw_rows_are_refused_when_served(tmp_path, home, people):
    stream = open_people(tmp_path)
    stream = stream.prepare(learn_row(stream, numbers=["age"], categories=["city", "class"]))
    result = train(torch.nn.Linear(10, 2), stream, epochs=1, progress=False)
    result.publish("people", home.store)
    with home.serve("people") as server, server.client() as client:
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


class Reviews(torch.nn.Module):
    """Takes numbers, the place of a category, and tokens."""

    def __init__(self):
        super().__init__()
        self.cities, self.words = torch.nn.Embedding(8, 3), torch.nn.Embedding(16, 3)
        self.last = torch.nn.Linear(1 + 3 + 3, 2)

    def forward(self, numbers, city, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return self.last(torch.cat([numbers, self.cities(city).flatten(1), mean], 1))


def write_reviews(folder):
    (folder / "words.txt").write_text("[PAD]\n[UNK]\na\ngood\nbad\nfilm\n")
    rows = [
        {"age": 20.5 + n, "city": CITIES[n % 4], "text": ("a good film", "bad bad film", "a")[n % 3], "y": n % 2}
        for n in range(60)
    ]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


TEXT = {"kind": "text", "split": "whitespace", "max_length": 4, "pad_id": 0, "inputs": ["input_ids", "attention_mask"]}


def test_table_and_text_together_are_served_as_they_were_trained(tmp_path, home):
    rows = write_reviews(tmp_path)
    stream = argosy.data.open(tmp_path / "reviews.jsonl", targets="y")
    table = learn_row(stream, numbers=["age"], categories=["city"], one_hot=False)
    stream = stream.prepare(table, {**TEXT, "file": str(tmp_path / "words.txt")})
    result = train(Reviews(), stream, epochs=1, progress=False)
    assert [step["kind"] for step in result.data["preprocess"]] == ["row", "text"]
    result.publish("reviews", home.store)
    expected = np.concatenate([result.predict(part.inputs) for part in stream.iterate(7)])
    with home.serve("reviews") as server, server.client() as client:
        raw = [write_line([row["age"], row["city"]]) for row in rows]
        got = client.predict("reviews", {"row": raw, "text": [row["text"].encode() for row in rows]})["output"]
        check(got, expected)
        with pytest.raises(InputError, match="text"):
            client.predict("reviews", {"row": raw})


def test_chunk_may_have_more_text_than_a_worker_takes_at_once(tmp_path, monkeypatch):
    rows = write_reviews(tmp_path)
    stream = argosy.data.open(tmp_path / "reviews.jsonl", targets="y")
    step = {**TEXT, "file": str(tmp_path / "words.txt"), "inputs": ["input_ids"]}
    whole = join(stream.prepare(step))
    monkeypatch.setattr("argosy.runtimes.preprocess_text.MAX_BATCH_BYTES", 40)
    np.testing.assert_array_equal(join(stream.prepare(step)), whole)
    assert len(whole) == len(rows)


@pytest.mark.parametrize("inputs", [["ids"], None])
def test_tensor_of_text_has_the_name_that_the_step_says(inputs, tmp_path, home):
    write_reviews(tmp_path)
    step = {key: value for key, value in {**TEXT, "file": str(tmp_path / "words.txt")}.items() if key != "inputs"}
    stream = argosy.data.open(tmp_path / "reviews.jsonl", targets="y").prepare(step | ({"inputs": inputs} if inputs else {}))
    model = torch.nn.Sequential(torch.nn.Embedding(8, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    version = train(model, stream, epochs=1, progress=False).publish("words", home.store)
    assert [spec.name for spec in version.manifest.signature.inputs] == (inputs or ["input"])
    assert [step.name for step in version.manifest.signature.preprocess] == ["text"]


def test_what_is_served_may_be_said_otherwise(tmp_path, home, people):
    stream = open_people(tmp_path)
    step = learn_row(stream, numbers=["age"])
    result = train(torch.nn.Linear(1, 2), stream.prepare(step), epochs=1, progress=False)
    assert not result.publish("plain", home.store, preprocess=()).manifest.signature.preprocess
    named = result.publish("named", home.store, preprocess=[{**step, "name": "person"}]).manifest.signature.preprocess
    assert [step.name for step in named] == ["person"]


def test_tokenizer_that_was_changed_since_is_not_served(tmp_path, home):
    write_reviews(tmp_path)
    step = {**TEXT, "file": str(tmp_path / "words.txt"), "inputs": ["input_ids"]}
    stream = argosy.data.open(tmp_path / "reviews.jsonl", targets="y").prepare(step)
    model = torch.nn.Sequential(torch.nn.Embedding(8, 3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    result = train(model, stream, epochs=1, progress=False)
    assert result.data["preprocess"][0]["file"] == "words.txt" and len(result.data["preprocess"][0]["sha256"]) == 64
    (tmp_path / "words.txt").write_text("[PAD]\n[UNK]\ngood\na\n")
    with pytest.raises(InputError, match=r"words\.txt' changed while it was used as data: it holds something else"):
        result.publish("words", home.store)
    (tmp_path / "words.txt").unlink()
    with pytest.raises(InputError, match=r"words\.txt' changed"):
        result.publish("words", home.store)
    assert not home.store.list_models()


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
        ({"kind": "sound"}, "Unknown preprocessing of columns 'sound'; known: image, row, text"),
        ({"kind": "image"}, r"`size` is None, expected \[height, width\]"),
        ({"kind": "image", "size": [4, 4]}, "`preprocess` is 'image', expected columns: age, city"),
        ({"kind": "image", "size": [4, 4], "column": "city"}, r"city \(text\)', expected a column of bytes"),
        ({"kind": "image", "size": [4, 4], "column": "age"}, r"age \(float64\)', expected a column of bytes"),
        ({"kind": "image", "size": [4, 4], "inputs": ["a", "b"]}, "the name of the one tensor of a picture"),
        ({"kind": "image", "size": [4, 4], "scael": 2}, "unknown options scael"),
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
        ([], "expected tables, one after the other"),
    ],
)
def test_step_that_does_not_fit_is_refused(step, words, tmp_path, people):
    with pytest.raises(InputError, match=words):
        open_people(tmp_path).prepare(step)


def test_steps_that_would_be_confused_are_refused(tmp_path):
    write_reviews(tmp_path)
    stream = argosy.data.open(tmp_path / "reviews.jsonl", targets="y")
    text = {**TEXT, "file": str(tmp_path / "words.txt")}
    for steps, words in (
        ((), "at least one step"),
        ((text, text), "tensors that one step makes each"),
        ((text, {**text, "inputs": ["ids"]}), "another `name` for each step"),
        ((text, {**text, "inputs": ["ids"], "name": "input_ids"}), "another `name` for each step"),
        (({**text, "column": "age"},), r"age \(float64\)', expected a column of text"),
    ):
        with pytest.raises(InputError, match=words):
            next(stream.prepare(*steps).iterate(4))


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
