"""Files that users name: one that is there stays as it is, unless the user says otherwise; a new one is whole or not there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from argosy.errors import InputError
from argosy.output_file import OutputFile
from tests.home import Home


def refuse(path: Path, *, overwrite: bool = False) -> InputError:
    with pytest.raises(InputError) as caught:
        OutputFile(path, overwrite=overwrite)
    return caught.value


def test_new_file_is_written_whole_with_the_usual_rights(tmp_path: Path) -> None:
    OutputFile(tmp_path / "a").write("é")
    OutputFile(tmp_path / "b").write(b"\0")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_bytes()) == ("é", b"\0")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


def test_file_that_is_there_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    error = refuse(tmp_path / "a")
    assert error.key == "file_exists" and "--overwrite" in error.hint
    (tmp_path / "link").symlink_to("a")
    assert refuse(tmp_path / "link").key == "file_exists"
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_file_that_came_meanwhile_is_not_replaced(tmp_path: Path, is_streamed: bool) -> None:
    file = OutputFile(tmp_path / "a")
    (tmp_path / "a").write_text("another's")
    with pytest.raises(InputError, match="is there already"):
        _ = file.open() if is_streamed else file.write("mine")
    assert (tmp_path / "a").read_text() == "another's"
    assert len(list(tmp_path.iterdir())) == 1


def test_file_is_replaced_where_the_user_says_so_and_keeps_its_rights(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    (tmp_path / "link").symlink_to("a")
    OutputFile(tmp_path / "link", overwrite=True).write("new")
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    file = OutputFile(tmp_path / "a", overwrite=True)

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"Cannot write .*: No space left"):
        file.write("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_folders_that_cannot_take_it_are_told_before_the_work(tmp_path: Path) -> None:
    assert "it is a folder" in refuse(tmp_path, overwrite=True).message
    assert "there is no folder" in refuse(tmp_path / "no" / "a").message
    (tmp_path / "file").touch()
    assert refuse(tmp_path / "file" / "a").key == "unwritable"
    assert refuse(tmp_path / ("n" * 300)).key == "unwritable"


def test_device_and_pipe_hold_nothing_that_could_be_lost(tmp_path: Path) -> None:
    OutputFile("/dev/null").write("gone")
    program = "from argosy.output_file import OutputFile; OutputFile('/dev/stdout').write('shown')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"shown"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    OutputFile(tmp_path / "pipe").write("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


COMMANDS = {
    "record": ["record", "scale", "FILE"],
    "tune": ["tune", "scale", "--plot", "FILE"],
    "train": ["train", "recipe:digits", "--report", "FILE"],
    "demo": ["demo", "--report", "FILE"],
    "demo-picture": ["demo", "--picture", "FILE"],
    "conformance": ["conformance", "http://127.0.0.1:9", "--report", "FILE"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_replaces_a_file_without_a_word(command: str, home: Home) -> None:
    home.publish_scale()
    file = home.files / "result.html"
    file = file.with_suffix({"tune": ".svg"}.get(command, ".html"))
    file.write_text("an earlier one")
    words = [str(file) if word == "FILE" else word for word in COMMANDS[command]]
    done = subprocess.run(
        [sys.executable, "-m", "argosy", *words, "--home", str(home.store.home)],
        capture_output=True, text=True, timeout=60, cwd=home.files,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"{file} is there already" in done.stderr and "--overwrite" in done.stderr
    assert file.read_text() == "an earlier one"
