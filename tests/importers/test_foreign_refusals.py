"""What is refused of a file of another framework before any library has opened it; and the attacks on those that are."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from argosy.cli.main import main
from argosy.confine.confine import describe_confinement
from argosy.errors import ArgosyError, InputError, TooLargeError
from argosy.importers.foreign import import_foreign
from argosy.importers.formats.archive import list_entries
from argosy.importers.formats.base import FORMATS
from argosy.importers.formats.copy import copy_file, copy_folder
from argosy.importers.formats.detect import detect_format
from argosy.store.local import Store
from tests.scripts import ROOT

KERAS = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b""}
CONTENTS: dict[str, bytes | dict[str, bytes]] = {
    "torchscript": {"m/constants.pkl": b"", "m/data.pkl": b"", "m/code/__torch__.py": b""},
    "pt2": {"m/archive_format": b"pt2", "m/models/model.json": b"{}"},
    "torch": {"m/data.pkl": b"", "m/version": b"3"},
    "keras": KERAS,
    "skops": {"schema.json": b"{}"},
    "mxnet": b'{\n  "nodes": [\n    {"op": "null"}]}',
    "safetensors": (2).to_bytes(8, "little") + b'{"a":{}}',
    "pickle": pickle.dumps([1], 4),
    "xgboost": b'{"learner":{"attributes":{}}}',
    "lightgbm": b"tree\nversion=v4\n",
    "openvino": b'<?xml version="1.0"?>\n<net name="n" version="11">\n',
}


def write(path: Path, content: bytes | dict[str, bytes]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def refuse(store: Store, path: Path, **options: Any) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        import_foreign(store, path, "refused", **options)
    assert store.list_models() == []
    return caught.value


@pytest.mark.parametrize("name", CONTENTS)
def test_format_is_told_by_content(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "copy", CONTENTS[name])
    for suffix in FORMATS[name].suffixes:
        assert detect_format(path, f"model{suffix}", None) == name
        assert detect_format(path, f"model{suffix.upper()}", name) == name
    assert detect_format(path, "model.whatever", None) == name


def test_older_and_other_writings_are_told(tmp_path: Path) -> None:
    for content, name in {
        b"{L" + (7).to_bytes(8, "big") + b"learner{": "xgboost",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80": "torch",
        b"tree\r\nversion=v3\r\n": "lightgbm",
    }.items():
        assert detect_format(write(tmp_path / "copy", content), "model", None) == name


@pytest.mark.parametrize("name", FORMATS)
def test_content_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    for other, content in CONTENTS.items():
        path = write(tmp_path / "copy", content)
        for suffix in FORMATS[name].suffixes:
            if other != name and suffix not in FORMATS[other].suffixes:
                with pytest.raises(InputError) as caught:
                    detect_format(path, f"model{suffix}", None)
                assert caught.value.key == "format_mismatch"
                assert FORMATS[other].title in caught.value.message and suffix in caught.value.message
        if other != name:
            with pytest.raises(InputError, match="as format"):
                detect_format(path, "model", name)


@pytest.mark.parametrize("content", [b"", b"once upon a time", bytes(4096), b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n"])
def test_content_of_no_format_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "copy", content)
    for name, known in FORMATS.items():
        if known.is_recognisable and known.suffixes:
            with pytest.raises(InputError) as caught:
                detect_format(path, f"model{known.suffixes[0]}", None)
            assert caught.value.key in ("format_mismatch", "bad_archive")
            with pytest.raises(InputError):
                detect_format(path, "model", name)
    with pytest.raises(InputError) as caught:
        detect_format(path, "model.docx", None)
    assert caught.value.key in ("unknown_format", "bad_archive")


def test_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown format 'torhc'; known: flax, jax, keras"):
        detect_format(write(tmp_path / "copy", b""), "model.pt", "torhc")


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a//x", "a\\x", "a\x07x", "x" * 300],
    ids=["up", "root", "through", "empty", "back", "bell", "long"],
)
def test_archive_with_a_name_that_is_no_plain_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read safely") as caught:
        list_entries(write(tmp_path / "a.keras", {**KERAS, name: b""}), "a.keras")
    assert caught.value.key == "bad_archive"


def test_archive_that_would_unpack_to_many_times_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(TooLargeError, match="unpacked content of 314572800"):
        list_entries(path, "bomb.keras")


def test_archive_that_lies_about_its_list_is_refused_before_it_is_read(tmp_path: Path) -> None:
    content = write(tmp_path / "a.keras", KERAS).read_bytes()
    path = write(tmp_path / "b.keras", content[:-10] + (1 << 31).to_bytes(4, "little") + content[-6:])
    with pytest.raises(TooLargeError, match="a list of entries of 2147483648"):
        list_entries(path, "b.keras")


def test_pickle_inside_an_archive_is_refused(tmp_path: Path) -> None:
    for name in ("keras", "skops"):
        content = CONTENTS[name]
        assert isinstance(content, dict)
        path = write(tmp_path / "copy", {**content, "assets/x": pickle.dumps({}, 4)})
        with pytest.raises(InputError, match="its entry 'assets/x' is a pickle"):
            detect_format(path, "model", None)


def test_folder_with_a_link_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("correct-horse")
    for link in ("saved_model.pb", "variables"):
        source = tmp_path / f"folder-{link}"
        source.mkdir()
        (source / link).symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match="Too many levels of symbolic links"):
            copy_folder(source, tmp_path / f"copy-{link}")


def test_folder_deeper_or_fuller_than_any_model_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "deep").joinpath(*"abcdefghijk").mkdir(parents=True)
    with pytest.raises(TooLargeError, match="folders inside of each other"):
        copy_folder(tmp_path / "deep", tmp_path / "copy")


def test_only_regular_files_are_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "nothing", tmp_path / "null\0byte"):
        with pytest.raises(InputError) as caught:
            copy_file(path, tmp_path / "copy")
        assert caught.value.key == "missing_file"
    # A link that the user names is the user's word.
    (tmp_path / "file").write_bytes(b"weights")
    (tmp_path / "link").symlink_to("file")
    assert copy_file(tmp_path / "link", tmp_path / "copy").size_bytes == 7


def test_folder_of_no_saved_model_is_refused(tmp_path: Path, store: Store) -> None:
    assert refuse(store, tmp_path).key == "unknown_format"
    (tmp_path / "model.bin").write_bytes(b"x")
    assert refuse(store, tmp_path).key == "unknown_format"
    assert refuse(store, tmp_path, format="savedmodel").key == "format_mismatch"
    assert refuse(store, tmp_path / "nothing").key == "missing_file"


def test_mxnet_parameters_are_found_beside_the_symbol(tmp_path: Path, store: Store) -> None:
    symbol = write(tmp_path / "net-symbol.json", CONTENTS["mxnet"])
    assert "found: none" in refuse(store, symbol).message
    (tmp_path / "net-0000.params").write_bytes(b"")
    (tmp_path / "net-0007.params").write_bytes(b"")
    assert "found: net-0000.params, net-0007.params" in refuse(store, symbol).message


def test_weights_need_code_and_others_take_none(tmp_path: Path, store: Store) -> None:
    weights = write(tmp_path / "w.safetensors", CONTENTS["safetensors"])
    assert refuse(store, weights).key == "needs_code"
    assert refuse(store, weights, code="build").key == "bad_code"
    assert refuse(store, weights, code="a.py:not a name").key == "bad_code"
    assert refuse(store, weights, code=f"{tmp_path}/a.py:build").key == "missing_file"
    assert refuse(store, write(tmp_path / "x.json", CONTENTS["xgboost"]), code="a.py:build").key == "bad_option"


def call(store: Store, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--home", str(store.home)])


def test_command_says_what_to_do(tmp_path: Path, store: Store) -> None:
    path = write(tmp_path / "model.pkl", CONTENTS["pickle"])
    result = call(store, "import", path, "--name", "m", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["key"] == "pickle_not_allowed"
    assert "--allow-pickle" in json.loads(result.stdout)["hint"]
    result = call(store, "import", path, "--name", "m", "--format", "lightgbm")
    assert result.exit_code == 1 and "should be a LightGBM model as format lightgbm says" in result.stderr


def test_command_refuses_options_that_would_do_nothing(tmp_path: Path, store: Store) -> None:
    for file, option in (
        ("m.py", "--allow-pickle"),
        ("m.onnx", "--code=a.py:b"),
        ("m.pkl", "--repeatable"),
        ("m.onnx", "--dynamic=x=1"),
    ):
        result = call(store, "import", write(tmp_path / file, b""), "--name", "m", option)
        assert result.exit_code == 2, option
        assert option.partition("=")[0] in result.stderr


def test_command_says_how_an_axis_is_named(tmp_path: Path, store: Store) -> None:
    for text in ("x", "x=one", "x=1:0", "=1"):
        result = call(store, "import", write(tmp_path / "m.pt", b""), "--name", "m", "--dynamic", text)
        assert result.exit_code == 2 and "expected INPUT=AXIS, such as ids=1" in result.stderr


def test_sample_becomes_golden_examples_of_an_onnx_file(tmp_path: Path, store: Store, make_onnx: Any) -> None:
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 4), np.float32))
    (tmp_path / "rows.json").write_text(json.dumps({"x": [[1.0, 2.0, 3.0, 4.0]]}))
    for name, count in (("rows.npz", 3), ("rows.json", 1)):
        result = call(store, "import", make_onnx(), "--name", "m", "--sample", tmp_path / name, "--json")
        described = json.loads(result.stdout)
        assert (described["num_golden"], described["golden_is_synthetic"]) == (count, False)


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("options", "count"), [(["--few"], 60), pytest.param([], 90, marks=SLOW)], ids=["few", "all"])
@pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel cannot confine a process")
def test_hostile_files_are_refused(options: list[str], count: int) -> None:
    script = ROOT / "attacks" / "hostile_model_files.py"
    result = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, timeout=500)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(lines) > count
    assert [line for line in lines if not line.startswith("refused (4")] == []
