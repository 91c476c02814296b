"""Files that lie, never end or change while they are read: a clear error each, in bounded memory."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

import argosy
from argosy.errors import InputError
from tests.data.conftest import WRITERS, write_csv, write_feather, write_parquet

pytestmark = pytest.mark.needs("pyarrow")


def read(path, **options):
    return list(argosy.data.open(path, **options).iterate(100))


@pytest.mark.parametrize("suffix", [*WRITERS, "npy", "png"])
@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"PAR1" + b"\xff" * 500 + b"PAR1", b"\n\n\n", bytes(range(256)) * 40])
def test_file_of_anything_is_refused(suffix, content, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path, **({"size": [4, 4]} if suffix == "png" else {}))
    assert str(path) in caught.value.message


@pytest.mark.parametrize("suffix", [*WRITERS])
def test_damaged_file_is_an_error_of_its_own_or_bad_rows(suffix, tmp_path, columns):
    path = tmp_path / f"a.{suffix}"
    WRITERS[suffix](path, {name: columns[name] for name in ("a", "key", "y")})
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(1)
    for _ in range(25):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] ^= 1 << int(random.integers(0, 8))
        cut = int(random.integers(len(whole) // 2, len(whole)))
        for content in (damaged, whole[:cut]):
            path.write_bytes(content)
            try:
                read(path)
            except InputError as error:
                assert str(path) in error.message or error.key == "bad_option"


@pytest.mark.parametrize("how", ["shrinks", "grows", "vanishes", "is written to", "becomes a pipe"])
@pytest.mark.parametrize("suffix", [*WRITERS, "npy"])
def test_file_that_changes_while_it_is_read_is_named(suffix, how, tmp_path, columns, monkeypatch):
    monkeypatch.setattr("argosy.data.csv._BLOCK_BYTES", 1000)
    monkeypatch.setattr("argosy.data.jsonl._BLOCK_BYTES", 1000)
    monkeypatch.setattr("argosy.data.numpy.CHUNK_BYTES", 400)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, columns["a"])
    else:
        WRITERS[suffix](path, {"a": columns["a"]})
    stream = argosy.data.open(path, buffer_rows=40, num_threads=1)
    batches = stream.iterate(40)
    next(batches)
    size = path.stat().st_size
    if how in ("shrinks", "grows"):
        os.truncate(path, size // 2 if how == "shrinks" else size + 1)
    elif how == "is written to":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
        if how == "becomes a pipe":
            os.mkfifo(path)
    with pytest.raises(InputError) as caught:
        list(batches)
    assert caught.value.key == "data_changed"
    assert str(path) in caught.value.message


def test_file_of_numpy_that_claims_more_than_it_has_is_refused(tmp_path):
    for shape in ("(1000000000000, 4)", "(-1,)", "(2,)", "()", "(3, 0)", "(True,)"):
        head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 24)
        with pytest.raises(InputError, match=r"a\.npy"):
            argosy.data.open(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="expected numbers"):
        argosy.data.open(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.asfortranarray(np.zeros((3, 2))))
    with pytest.raises(InputError, match="Fortran"):
        argosy.data.open(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.save(tmp_path / "b.npy", np.zeros(4))
    with pytest.raises(InputError, match="4 rows, and that of column 'a' has 3"):
        argosy.data.open({"a": tmp_path / "a.npy", "b": tmp_path / "b.npy"})


def test_links_out_of_a_folder_are_refused_and_those_within_are_followed(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    write_csv(tmp_path / "secret.csv", {"a": [1]})
    write_csv(tmp_path / "data" / "deep" / "own.csv", {"a": [1]})
    (tmp_path / "data" / "link.csv").symlink_to(tmp_path / "data" / "deep" / "own.csv")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    assert len(np.concatenate([rows.inputs for rows in read(tmp_path / "data")])) == 2
    (tmp_path / "data" / "out.csv").symlink_to(tmp_path / "secret.csv")
    for given in (tmp_path / "data", tmp_path / "data" / "*.csv"):
        with pytest.raises(InputError, match="leads out of the folder"):
            argosy.data.open(given)
    (tmp_path / "data" / "out.csv").unlink()
    (tmp_path / "data" / "gone.csv").symlink_to(tmp_path / "data" / "nowhere")
    with pytest.raises(InputError, match=r"gone\.csv.*No such file"):
        argosy.data.open(tmp_path / "data")


def test_names_of_any_kind_are_read_and_shown_on_one_line(tmp_path):
    for name in ("new\nline.csv", "*?[a].csv", "ünï.csv", os.fsdecode(b"\xff.csv")):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        path = folder / name
        write_csv(path, {"a": [1, 2]})
        assert read(path)[0].inputs.tolist() == read(folder)[0].inputs.tolist() == [1, 2]
        assert argosy.data.open(path).describe()["digest"]
        path.write_text("a\nx\n1\n2\n")
        with pytest.raises(InputError) as caught:
            read(path, schema={"a": "int64"})
        assert "\n" not in caught.value.message
        write_parquet(tmp_path / "a.parquet", {"a": [1, 2]})
        (tmp_path / "a.parquet").rename(path.with_suffix(".parquet"))
        assert read(path.with_suffix(".parquet"))[0].inputs.tolist() == [1, 2]
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda p: None, "No such file", id="missing"),
        pytest.param(lambda p: os.mkfifo(p), "no regular file", id="pipe"),
        pytest.param(lambda p: p.mkdir(), "has no file whose name ends in", id="empty-folder"),
    ],
)
def test_path_that_names_no_file_is_refused(make, words, tmp_path):
    make(tmp_path / "a.csv")
    with pytest.raises(InputError, match=words):
        argosy.data.open(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no file has a name"):
        argosy.data.open(tmp_path / "b*.csv")
    with pytest.raises(InputError, match="does not say its format"):
        (tmp_path / "a.xlsx").touch()
        argosy.data.open(tmp_path / "a.xlsx")


def test_folder_of_two_formats_asks_for_one(tmp_path):
    write_csv(tmp_path / "a.csv", {"a": [1]})
    write_parquet(tmp_path / "a.parquet", {"a": [2]})
    with pytest.raises(InputError, match="give the one that is meant"):
        argosy.data.open(tmp_path)
    assert read(tmp_path, format="parquet")[0].inputs.tolist() == [2]


HUGE = """
import re, sys
import argosy
from argosy.errors import ArgosyError
for path in sys.argv[1:]:
    try:
        for rows in argosy.data.open(path, max_bad_rows=10).iterate(100):
            pass
        print("read")
    except ArgosyError as error:
        print(error.key, error.message[:300])
# Not what getrusage says, which a new program inherits from its parent.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def read_apart(*paths):
    """Read in a process of its own; give what it says of each, and the most memory that it had, in MiB."""
    command = [sys.executable, "-c", HUGE, *map(str, paths)]
    *said, peak = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    return said, int(peak)


def test_lines_of_a_gigabyte_are_refused_in_bounded_memory(tmp_path):
    paths = [tmp_path / name for name in ("first.csv", "later.csv", "first.jsonl", "later.jsonl")]
    for path in paths:
        row = "1\n" if path.suffix == ".csv" else '{"a": 1}\n'
        text = ("a\n" if path.suffix == ".csv" else "") + (row * 1_000_000 if path.stem == "later" else row * 3)
        path.write_text(text + "7" * (2 << 20))
        with path.open("ab") as file:
            file.truncate(1 << 30)  # zeros that take no room on the disk
    said, peak = read_apart(*paths)
    for path, line in zip(paths, said, strict=True):
        assert line.startswith(f"bad_file File {str(path)!r}") and "16 MiB" in line
    assert peak < 500


def test_row_as_wide_as_no_row_is_refused_in_bounded_memory(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    wide = [np.zeros(3_000_000, np.float32), *([np.zeros(1, np.float32)] * 4000)]
    pq.write_table(pa.table({"a": pa.array(wide)}), tmp_path / "a.parquet")
    (said,), peak = read_apart(tmp_path / "a.parquet")
    assert said.startswith(("bad_data", "bad_rows"))
    assert peak < 500


def test_parquet_that_claims_rows_that_it_has_not_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"a": np.arange(300)}, group=300)
    whole = (tmp_path / "a.parquet").read_bytes()
    # 300 as Thrift's zigzag varint: of pages, of the row group, of the file.
    places = [place for place in range(len(whole)) if whole.startswith(b"\xd8\x04", place)]
    found = set()
    for place in places:
        (tmp_path / "a.parquet").write_bytes(whole[:place] + b"\xda\x04" + whole[place + 2 :])
        try:
            num_rows = sum(len(rows.inputs) for rows in read(tmp_path / "a.parquet"))
            assert num_rows == 300
        except InputError as error:
            found.add(error.key)
    assert found == {"bad_file"}


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_two_columns_of_one_name_are_refused(suffix, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"])
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("a,a\n1,3\n2,4\n")
    elif suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(InputError, match=r"two of its columns are called 'a'"):
        argosy.data.open(path)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_strings_that_are_written_as_differences_are_read(encoding, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    words, places = [f"word {row}" for row in range(300)], ["here", "there"] * 150
    encodings = {"a": encoding, "b": "PLAIN"}
    pq.write_table(
        pa.table({"a": words, "b": places}),
        tmp_path / "1.parquet",
        use_dictionary=False,
        column_encoding=encodings,
        row_group_size=70,
    )
    write_parquet(tmp_path / "2.parquet", {"a": words, "b": places})
    rows = read(tmp_path)
    assert [word for part in rows for word in part.inputs["a"]] == words * 2
    assert [word for part in rows for word in part.inputs["b"]] == places * 2


def test_strings_that_are_longer_than_the_file_tells_are_refused_in_bounded_memory(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array(["x" * 100, *["y" * (1 << 18)] * 2000])
    encodings = {"a": "DELTA_BYTE_ARRAY"}
    # The row group's own size is some kilobytes.
    pq.write_table(pa.table({"a": text}), tmp_path / "a.parquet", use_dictionary=False, column_encoding=encodings)
    (said,), peak = read_apart(tmp_path / "a.parquet")
    assert said == "read" or said.startswith(("bad_file", "bad_option Option `buffer_rows`"))
    assert peak < 700


def test_page_that_is_not_what_its_checksum_says_is_an_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": np.random.default_rng(0).standard_normal(4000)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none", write_page_checksum=True)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet'.*checksum"):
        read(tmp_path / "a.parquet")


def test_arrow_batch_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.ipc.MAX_BATCH_BYTES", 100)
    write_feather(tmp_path / "a.feather", {"a": np.arange(10_000)})
    with pytest.raises(InputError, match="smaller ones"):
        argosy.data.open(tmp_path / "a.feather")


def test_rows_that_grow_wider_than_the_buffer_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("argosy.data.stream.MAX_WINDOW_BYTES", 100_000)
    write_parquet(tmp_path / "a.parquet", {"a": ["x"] * 300 + ["y" * 1000] * 300}, group=100)
    with pytest.raises(InputError, match=r"`buffer_rows` is 500, expected fewer"):
        read(tmp_path, buffer_rows=500)
    assert sum(len(rows.inputs) for rows in read(tmp_path, buffer_rows=50)) == 600


def make_picture(size=(6, 4), kind="PNG"):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(file, kind)
    return file.getvalue()


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number:02}.png").write_bytes(make_picture())
    bad = {"cat/03.png": b"", "cat/07.png": make_picture()[:40], "dog/00.png": b"GIF89a", "dog/19.png": make_bomb()}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    options = {"size": [4, 6], "layout": "NHWC", "datatype": "UINT8"}
    with pytest.raises(InputError) as caught:
        read(tmp_path, max_bad_rows=3, **options)
    for name in bad:
        assert str(tmp_path / name) in caught.value.message
    assert "900000000 pixels" in caught.value.message
    rows = read(tmp_path, max_bad_rows=4, **options)
    assert sum(len(part.targets) for part in rows) == 36
    np.testing.assert_array_equal(rows[0].inputs[0], np.broadcast_to(np.array([10, 20, 30], np.uint8), (4, 6, 3)))
    assert rows[0].targets[:18].tolist() == [0] * 18


def make_bomb():
    """A picture of 900 million pixels in some kilobytes."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000)) + chunk(b"IEND", b"")


def test_folders_are_classes_in_a_stated_order(tmp_path):
    for label in ("b", "a"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(make_picture())
    assert read(tmp_path, size=[4, 4])[0].targets.tolist() == [0, 1]
    assert read(tmp_path, size=[4, 4], classes=["b", "a"])[0].targets.tolist() == [1, 0]
    with pytest.raises(InputError, match="label 'b' is none of the classes"):
        read(tmp_path, size=[4, 4], classes=["a"])
    with pytest.raises(InputError, match="of all pictures"):
        read(tmp_path)
    (tmp_path / "0.png").write_bytes(make_picture())
    with pytest.raises(InputError, match="stands in no folder"):
        read(tmp_path, size=[4, 4])
    assert read(tmp_path / "0.png", size=[4, 4])[0].targets is None


def test_string_that_all_rows_have_is_in_memory_once(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), ["x" * (1 << 17)])
    pq.write_table(pa.table({"a": text}), tmp_path / "a.parquet")
    (said,), peak = read_apart(tmp_path / "a.parquet")
    assert said == "read" or said.startswith("bad_option Option `buffer_rows`")
    assert peak < 500


def test_interrupted_program_ends_at_once(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"a": np.arange(200_000.0)}, group=100)
    # A shell that starts the tests in the background has them ignore the signal.
    program = """
import signal, sys, argosy
signal.signal(signal.SIGINT, signal.default_int_handler)
for number, rows in enumerate(argosy.data.open(sys.argv[1], buffer_rows=500).iterate(1)):
    if number == 10:
        print("reading", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "a.parquet")], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in said
