"""Rows that cannot be used are counted and named, and above a limit an error; files of another schema are named first."""

from __future__ import annotations

import numpy as np
import pytest

import argosy
from argosy.errors import InputError
from tests.data.conftest import WRITERS, write_csv, write_jsonl, write_parquet

pytestmark = pytest.mark.needs("pyarrow")


def join(stream, **options):
    return np.concatenate([rows.inputs for rows in stream.iterate(7, **options)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("argosy.data.csv._BLOCK_BYTES", 200)
    monkeypatch.setattr("argosy.data.jsonl._BLOCK_BYTES", 200)


CSV_ROWS = {40: "oops,1,k", 120: "1.0,1", 121: ",1,k", 200: 'nan,1,"k', 300: "inf,1,k", 333: "1.0,1,k,4"}
JSON_ROWS = {
    40: '{"a": "oops", "y": 1, "key": "k"}',
    120: '{"a": 1.0, "y": 1}',
    121: '{"a": null, "y": 1, "key": "k"}',
    200: '{"a": 1.0, "y": 1, ',
    300: "[1, 2]",
    333: '{"a": 1.0, "y": 1.5, "key": "k"}',
    334: '{"a": 1e999, "y": 1, "key": "k"}',
    335: '{"a": 1.0, "y": 99999999999999999999999999, "key": "k"}',
    336: f'{{"a": 1{"0" * 400}, "y": 1, "key": "k"}}',
    337: "[" * 100_000,
}


@pytest.mark.parametrize(("suffix", "bad"), [("csv", CSV_ROWS), ("jsonl", JSON_ROWS)])
def test_lines_that_cannot_be_used_are_named(suffix, bad, tmp_path, columns):
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](path, {name: columns[name] for name in ("a", "y", "key")})
    lines = path.read_text().split("\n")
    for line, text in bad.items():
        lines[line - 1] = text
    lines.insert(10, "")  # which is no row, and is counted as a line
    path.write_text("\n".join(lines))
    expected = [line + 1 for line in bad]

    def open_stream(limit):
        return argosy.data.open(path, inputs={"a": "a", "key": "key"}, targets="y", max_bad_rows=limit)

    with pytest.raises(InputError) as caught:
        list(open_stream(len(bad) - 1).iterate(50))
    assert caught.value.key == "bad_rows"
    assert f"{len(bad)} rows cannot be used, at most {len(bad) - 1}" in caught.value.message
    for line in expected:
        assert f"{str(path)!r}, line {line}:" in caught.value.message
    stream = open_stream(len(bad))
    whole = [key for rows in stream.iterate(50) for key in rows.inputs["key"]]
    first = 1 if suffix == "csv" else 0
    left_out = {f"key {line - first - 1}" for line in bad}
    assert whole == [key for key in columns["key"] if key not in left_out]
    shuffled = list(stream.iterate(50, seed=2))
    again = list(stream.iterate(50, seed=2, start=4))
    for one, other in zip(shuffled[4:], again, strict=True):
        np.testing.assert_array_equal(one.inputs["key"], other.inputs["key"])


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_nulls_and_lists_of_another_length_are_named(suffix, tmp_path):
    a = [float(row) for row in range(300)]
    x = [[1.0, float(row)] for row in range(300)]
    a[100], a[101], x[150], x[151], x[152] = None, float("nan"), [1.0], None, [1.0, float("inf")]
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](path, {"a": a, "x": x})
    stream = argosy.data.open(path, max_bad_rows=5)
    np.testing.assert_array_equal(
        np.concatenate([rows.inputs["a"] for rows in stream.iterate(9)]),
        [row for row in range(300) if row not in (100, 101, 150, 151, 152)],
    )
    with pytest.raises(InputError, match=r"row 100: a is null.*row 101: a.*row 150: x is no list of 2.*row 151.*row 152"):
        list(argosy.data.open(path, max_bad_rows=4).iterate(300))


def test_labels_are_held_against_the_classes(tmp_path):
    write_parquet(
        tmp_path / "rows.parquet", {"x": np.arange(90.0), "y": np.arange(90) % 3, "s": ["abc"[row % 3] for row in range(90)]}
    )
    with pytest.raises(InputError, match="row 2: y is 2, which is none of the classes"):
        argosy.data.open(tmp_path, inputs="x", targets="y", classes=2)
    stream = argosy.data.open(tmp_path, inputs="x", targets="y", classes=2, max_bad_rows=30)
    assert sum(len(rows.targets) for rows in stream.iterate(8)) == 60
    named = argosy.data.open(tmp_path, inputs="x", targets="s", classes=["c", "a", "b"])
    assert next(named.iterate(4)).targets.tolist() == [1, 2, 0, 1]
    assert named.describe()["classes"] == ["c", "a", "b"]
    with pytest.raises(InputError, match="s holds no numbers"):
        argosy.data.open(tmp_path, inputs="x", targets="s", classes=3)


def test_one_bad_value_makes_no_strings_of_numbers(tmp_path):
    rows = ["1", "2", "x", *map(str, range(200))]
    (tmp_path / "rows.csv").write_text("a\n" + "\n".join(rows))
    assert argosy.data.open(tmp_path, max_bad_rows=1).columns["a"].dtype == np.int64
    with pytest.raises(InputError, match=r"line 4: .*'x'"):
        argosy.data.open(tmp_path)
    assert argosy.data.open(tmp_path, schema={"a": "string"}).sample.inputs[2] == "x"


def test_types_of_text_hold_in_all_files(tmp_path):
    (tmp_path / "a.csv").write_text("a,zip\n1,01234\n2,00001\n")
    (tmp_path / "b.csv").write_text("a,zip\n1.5,01234\n")
    stream = argosy.data.open(tmp_path, schema={"zip": "string"})
    rows = next(stream.iterate(10))
    assert rows.inputs["a"].tolist() == [1.0, 2.0, 1.5]
    assert rows.inputs["zip"].tolist() == ["01234", "00001", "01234"]


@pytest.mark.parametrize("suffix", [*WRITERS])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"y": ["a", "b"]}, "column 'y': got string, expected int64", id="type"),
        pytest.param({"y": None}, "column 'y': got not there", id="missing"),
        pytest.param({"z": [1, 2]}, "column 'z': got .*, expected no such column", id="more"),
    ],
)
def test_file_of_another_schema_is_named_before_the_first_step(suffix, change, words, tmp_path):
    write = WRITERS[suffix]
    write(tmp_path / f"1.{suffix}", {"a": [1.0, 2.0], "y": [1, 2]})
    other = {"a": [1.0, 2.0], "y": [1, 2], **change}
    write(tmp_path / f"2.{suffix}", {name: column for name, column in other.items() if column is not None})
    with pytest.raises(InputError, match=words) as caught:
        argosy.data.open(tmp_path)
    assert caught.value.key == "schema_differs"
    assert f"2.{suffix}" in caught.value.message.split(" differs ")[0]


def test_other_widths_of_numbers_and_columns_that_no_model_takes_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "1.parquet", {"a": np.zeros(3, np.float32)})
    write_parquet(tmp_path / "2.parquet", {"a": np.zeros(3, np.float64)})
    with pytest.raises(InputError, match="got double, expected float"):
        argosy.data.open(tmp_path)
    write_parquet(tmp_path / "1.parquet", {"a": [1.0], "when": np.array(["2026-01-01"], "datetime64[D]")})
    with pytest.raises(InputError, match=r"`inputs` is 'when', expected columns of numbers.*date32"):
        argosy.data.open(tmp_path / "1.parquet")
    assert argosy.data.open(tmp_path / "1.parquet", columns=["a"]).sample.inputs.tolist() == [1.0]
    for words in (pa.list_(pa.string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))):
        pq.write_table(pa.table({"a": pa.array([["x"], ["y"]], words)}), tmp_path / "1.parquet")
        with pytest.raises(InputError, match=r"`inputs` is 'a', expected columns of numbers.*not taken"):
            argosy.data.open(tmp_path / "1.parquet")


def test_columns_of_csv_in_another_order_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("b,a\n1,2\n")
    with pytest.raises(InputError, match=r"column 'a': got column 1, expected column 0"):
        argosy.data.open(tmp_path)


def test_text_in_the_ways_that_programs_write_it(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffa;b\r\n1;"x;1"\r\n\r\n2;"say ""hi"""'.encode())
    rows = next(argosy.data.open(tmp_path, delimiter=";").iterate(5))
    assert rows.inputs["a"].tolist() == [1, 2]
    assert rows.inputs["b"].tolist() == ["x;1", 'say "hi"']
    (tmp_path / "a.tsv").write_text("1\tx\n2\ty\n")
    rows = next(argosy.data.open(tmp_path / "a.tsv", header=["n", "s"]).iterate(5))
    assert rows.inputs["s"].tolist() == ["x", "y"]


def test_unclosed_quote_takes_no_other_rows(tmp_path):
    lines = [f'{row},"{row}"' for row in range(100)]
    lines[50] = '50,"50'
    (tmp_path / "a.csv").write_text("a,s\n" + "\n".join(lines))
    assert len(np.concatenate([rows.inputs["a"] for rows in argosy.data.open(tmp_path, max_bad_rows=1).iterate(9)])) == 99
    with pytest.raises(InputError, match="line 52: a quote is not closed"):
        list(argosy.data.open(tmp_path).iterate(9))


def test_numbers_that_a_smaller_type_has_not_are_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"a": [1, 2, 300], "b": [1.0, 1e300, 2.0]})
    with pytest.raises(InputError, match="line 3: a"):
        argosy.data.open(tmp_path, inputs="a", schema={"a": "int8"})
    with pytest.raises(InputError, match="line 2: b"):
        argosy.data.open(tmp_path, inputs="b", schema={"b": "float32"})


def test_csv_of_header_alone_is_refused(tmp_path):
    write_csv(tmp_path / "a.csv", {"a": []})
    with pytest.raises(InputError, match="no rows"):
        argosy.data.open(tmp_path)
