"""Checkpoints of a run: all that its next step depends on, in files that a kill at any moment leaves whole.

    FOLDER/step-000001200.npz     the last few, by number of steps
    FOLDER/best.npz               the state after the best epoch so far
    FOLDER/lock                   held by the run that writes here

A file holds plain arrays (no pickle) and `meta`, JSON text. It is written under another name, made durable, renamed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from argosy.errors import ConflictError, InputError, StoreError
from argosy.frameworks.describe import find_difference
from argosy.optim.schedules import check_count, check_number
from argosy.signature import Arrays
from argosy.store.temporary import explain_write, fsync_folder, try_lock

__all__ = ["Checkpoints", "Keeper", "open_checkpoints", "read_checkpoint", "remove_checkpoints"]

_LOG = logging.getLogger(__name__)

_STEP_FILE: Final = re.compile(r"step-(\d{9,})\.npz")
_BEST: Final = "best.npz"
_LOCK: Final = "lock"
_META: Final = "meta"
_PARTIAL: Final = ".partial"
_PROGRAM: Final = "program"


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run keeps its state, how often, and how much of it."""

    folder: str | os.PathLike[str]
    """Made if there is none; one run at a time."""
    every_steps: int | None = None
    every_s: float | None = 60.0
    """Whichever is due first; None: only the other one, and the end of the run."""
    keep: int = 3
    """How many of the last ones stay, beside the best."""
    parent: str | os.PathLike[str] | None = None
    """The folder of another run of the same model, from whose newest checkpoint this one goes on, with options of its own; once
    it has checkpoints itself, it goes on from these."""

    def __post_init__(self) -> None:
        _check_path("checkpoints.folder", self.folder)
        if self.every_steps is not None:
            check_count("checkpoints.every_steps", self.every_steps)
        if self.every_s is not None:
            check_number("checkpoints.every_s", self.every_s, "a number of seconds above 0, or None", lowest=0.0, is_open=True)
        check_count("checkpoints.keep", self.keep)
        if self.parent is not None:
            _check_path("checkpoints.parent", self.parent)


class Keeper:
    """Writes and finds the checkpoints of one run."""

    def __init__(self, plan: Checkpoints, run: dict[str, Any]) -> None:
        """Begin; `run` is what a run must have in common with one that goes on from its checkpoints (JSON data)."""
        self._plan = plan
        self._folder = Path(plan.folder)
        self._run = json.loads(json.dumps(run))
        self._saved_s = time.monotonic()
        self._saved_step = 0
        self.latest: Path | None = None
        """What was written or read last."""
        self.is_inherited = False
        """Whether what was read is the parent's."""

    def is_due(self, step: int) -> bool:
        """Say whether the state after this step is to be kept."""
        every_steps, every_s = self._plan.every_steps, self._plan.every_s
        if every_steps is not None and step - self._saved_step >= every_steps:
            return True
        return every_s is not None and time.monotonic() - self._saved_s >= every_s

    def check_space(self, state: Arrays) -> None:
        """See that a state such as this can be kept, as often as the plan says, before a run spends its time.

        Raises:
            StoreError: `disk_full`.
        """
        size = sum(array.nbytes for array in state.values())
        there = len(_list_steps(self._folder)) + (self._folder / _BEST).exists()
        # One is written before the oldest goes, and one is the best.
        needed = size * max(self._plan.keep + 2 - there, 1)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            detail = (
                f"{needed / 1e6:,.1f} MB are needed for {self._plan.keep} checkpoints and the best, {free / 1e6:,.1f} MB are free"
            )
            raise StoreError("disk_full", what=self._folder, detail=detail)

    def save(self, state: Arrays, progress: dict[str, Any], step: int) -> None:
        """Keep a state and how far the run is (JSON data); remove the oldest beyond the last few.

        Raises:
            StoreError: `disk_full`, `write_failed`; what was kept before is there still.
        """
        self.latest = self._write(f"step-{step:09d}.npz", state, progress)
        self._saved_s, self._saved_step = time.monotonic(), step
        for path in _list_steps(self._folder)[: -self._plan.keep]:
            path.unlink(missing_ok=True)

    def save_best(self, state: Arrays, progress: dict[str, Any]) -> None:
        """Keep the best state; it replaces the one before."""
        self._write(_BEST, state, progress)

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Give the newest state that is whole, and its progress; None if there is none.

        Raises:
            InputError: `bad_checkpoint`, it was made by another run, or all of them are damaged; or the parent has none.
        """
        damaged: InputError | None = None
        for path in reversed(_list_steps(self._folder)):
            try:
                state, meta = read_checkpoint(path)
            except InputError as error:
                _LOG.warning("%s; the one before is taken", error.message)
                damaged = error
                continue
            self._check_run(meta["run"])
            self.latest = path
            self._saved_step = meta["progress"]["step"]
            return state, meta["progress"]
        if damaged is not None:
            raise damaged
        return None if self._plan.parent is None else self._load_parent(Path(self._plan.parent))

    def load_best(self) -> Arrays | None:
        """Give the best state that was kept, here or by the parent that was gone on from."""
        path = self._folder / _BEST
        if self.is_inherited and not path.exists():
            path = Path(self._plan.parent or self._folder) / _BEST
        return read_checkpoint(path)[0] if path.exists() else None

    @property
    def is_empty(self) -> bool:
        """Whether no run has left a checkpoint here."""
        return not _list_steps(self._folder)

    def clear(self) -> None:
        """Remove every checkpoint."""
        for path in [*_list_steps(self._folder), self._folder / _BEST]:
            path.unlink(missing_ok=True)

    def _load_parent(self, folder: Path) -> tuple[Arrays, dict[str, Any]]:
        """Give another run's newest state; whether it fits is for the step to say, as options may differ."""
        found = _list_steps(folder) if folder.is_dir() else []
        if not found:
            raise InputError("bad_checkpoint", detail=f"{folder} holds none to go on from")
        state, meta = read_checkpoint(found[-1])
        self.is_inherited = True
        self._saved_step = meta["progress"]["step"]
        return state, meta["progress"]

    def _write(self, name: str, state: Arrays, progress: dict[str, Any]) -> Path:
        path = self._folder / name
        partial = path.with_name(name + _PARTIAL)
        meta = json.dumps({"run": self._run, "progress": progress})
        try:
            with partial.open("wb") as file:
                write: Any = np.savez  # Its stub takes every array for the option `allow_pickle`.
                write(file, **{_META: np.array(meta)}, **state)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            fsync_folder(self._folder)
        except OSError as error:
            raise explain_write(path, error) from error
        return path

    def _check_run(self, made_by: dict[str, Any]) -> None:
        for key, value in self._run.items():
            if made_by.get(key) != value:
                where, got, wanted = key, made_by.get(key), value
                if key == _PROGRAM:  # Too long to show it all.
                    where, got, wanted = find_difference(got, wanted, key) or (where, got, wanted)
                raise InputError("bad_checkpoint", detail=f"its {where} is {got}, that of this run {wanted}")


@contextmanager
def open_checkpoints(plan: Checkpoints | None, run: dict[str, Any]) -> Generator[Keeper | None]:
    """Hold a folder of checkpoints within the block; None for no plan.

    Raises:
        ConflictError: `run_active`, another run writes here.
        StoreError: `disk_full`, `write_failed`.
    """
    if plan is None:
        yield None
        return
    folder = Path(plan.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / _LOCK)
    except OSError as error:
        raise explain_write(folder, error) from error
    if lock is None:
        raise ConflictError("run_active", folder=folder)
    try:
        for path in folder.glob(f"*.npz{_PARTIAL}"):
            if _is_checkpoint(path.name.removesuffix(_PARTIAL)):
                path.unlink(missing_ok=True)
        yield Keeper(plan, run)
    finally:
        os.close(lock)


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, and the folder with them if it holds nothing else."""
    for path in folder.iterdir():
        if path.name == _LOCK or _is_checkpoint(path.name.removesuffix(_PARTIAL)):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _list_steps(folder: Path) -> list[Path]:
    """Give the checkpoints of a folder, the oldest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _is_checkpoint(name: str) -> bool:
    return name == _BEST or _STEP_FILE.fullmatch(name) is not None


def read_checkpoint(path: Path | str) -> tuple[Arrays, dict[str, Any]]:
    """Read a checkpoint: arrays by name, and its `meta` (`run` and `progress`).

    Raises:
        InputError: `bad_checkpoint`, it is damaged, or no checkpoint.
    """
    path = Path(path)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            state = {name: file[name] for name in file.files}
        meta: dict[str, Any] = json.loads(str(state.pop(_META)))
        if not {"run", "progress"} <= meta.keys():
            raise ValueError("its meta is not that of a checkpoint")
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError("bad_checkpoint", detail=f"{path.name} cannot be read: {error}") from error
    return state, meta


def _check_path(option: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike) or not str(cast("object", value)):
        raise InputError("bad_option", option=option, got=cast("object", value), expected="a path")
