"""Programs that do what no program should: the search goes on, or says what is wrong, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import argosy
from argosy.errors import ConflictError, InputError
from argosy.store.local import Store

PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__)

def fork():
    if os.fork() == 0:
        os.setsid()
        HERE.with_name("orphan").write_text(str(os.getpid()))
        time.sleep(100)
    while not HERE.with_name("orphan").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def talk():
    for _ in range(200):
        os.write(1, b"so much to say\\n" * 50_000)
    raise RuntimeError("it is said")

def read():
    raise RuntimeError(f"it read {subprocess.run(['cat'], capture_output=True).stdout + sys.stdin.buffer.read()}")

def exit():
    sys.exit(3)

def edit():
    HERE.write_text(HERE.read_text() + "#")
    raise RuntimeError("it is another program now")

def threads():
    time.sleep(1)
    raise RuntimeError(os.environ.get("OMP_NUM_THREADS"))

def garbage():
    raise RuntimeError("\\x1b[2J\\udcff\\n" * 3)

def work(kind, place=0):
    globals()[kind]()
"""


@pytest.fixture
def work(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def search(*kinds: str, **options: Any) -> Any:
        given: dict[str, Any] = {"trials": 1, "method": "grid", "publish": False, "store": Store(tmp_path / "home"), **options}
        return argosy.search(f"{tmp_path}/program.py:work", {"kind": list(kinds), "place": "0:2"}, **given)

    return search


def test_trial_is_over_when_its_process_is_though_what_it_started_goes_on(work: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    try:
        (trial,) = work("fork", max_trial_s=60.0).trials
        assert trial.reason == "it was killed, as by the system when memory runs out"
        assert time.monotonic() - started < 50
    finally:
        os.kill(int((tmp_path / "orphan").read_text()), signal.SIGKILL)


def test_of_what_a_trial_prints_the_end_is_kept(work: Any, tmp_path: Path) -> None:
    (trial,) = work("talk").trials
    assert "RuntimeError: it is said" in trial.reason
    log = (tmp_path / "home" / "search" / "work" / "trials" / "00000" / "log.txt").read_text()
    assert len(log) <= 1 << 16 and "so much to say" in log and log.rstrip().endswith("it is said")


def test_program_finds_nothing_to_read(work: Any) -> None:
    (trial,) = work("read").trials
    assert "it read b''" in trial.reason


def test_program_that_ends_its_process_for_one_point_fails_there_alone(work: Any) -> None:
    result = work("exit", "garbage", trials=4)
    assert [trial.state for trial in result.trials] == ["failed"] * 4
    assert "by sys.exit(3)" in result.trials[0].reason and "RuntimeError: " in result.trials[3].reason
    assert all(trial.reason.isprintable() for trial in result.trials)


def test_program_that_is_changed_meanwhile_ends_the_search_with_its_reason(work: Any) -> None:
    with pytest.raises(ConflictError, match="the program's file was changed while it went on"):
        work("edit", trials=2)


def test_trials_side_by_side_share_the_cores_from_the_first_on(work: Any) -> None:
    shares = {trial.reason.split(" (")[0] for trial in work("threads", trials=3, jobs=2).trials}
    assert shares == {f"RuntimeError: {max(1, len(os.sched_getaffinity(0)) // 2)}"}


def test_program_that_hangs_when_it_is_imported_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("while True:\n    pass\n")
    with pytest.raises(InputError, match=r"it took more than 0\.5 s to be imported"):
        argosy.search(f"{tmp_path}/endless.py:work", {"x": "0:9"}, max_trial_s=0.5, store=Store(tmp_path / "home"))
    assert not (tmp_path / "home" / "search").exists()


def test_program_that_searches_when_it_is_imported_is_told_where_to_do_that(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    call = f"argosy.search(work, {{'place': '0:9'}}, trials=1, store=argosy.Store({str(tmp_path / 'home')!r}))"
    path.write_text(f"import argosy\n\ndef work(place):\n    return 3\n\n{call}\n")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode and "put it under `if __name__ == '__main__':`" in done.stderr
    with pytest.raises(InputError, match="put it under"):
        argosy.search(f"{path}:work", {"place": "0:9"}, store=Store(tmp_path / "home"))
