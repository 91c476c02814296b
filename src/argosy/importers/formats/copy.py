"""Copy what a user gives, so that what is looked at is what is opened, and neither leads elsewhere nor has no end."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from argosy.errors import InputError, TooLargeError, list_choices
from argosy.runtimes.mxnet_files import GRAPH_FILE, PARAMETERS_FILE
from argosy.store.staging import check_file_name, copy_hashed
from argosy.store.temporary import explain_write

__all__ = ["Copied", "copy_file", "copy_folder", "copy_parameters", "copy_weights", "list_files"]

_MAX_BYTES: Final = 64 << 30
"""Of all files together: more than the largest model that one machine serves."""
_MAX_FILES: Final = 10_000
_MAX_DEPTH: Final = 8


class Copied(NamedTuple):
    """A copy: its place, and what it holds."""

    path: Path
    digest: str
    """`sha256:...`; of several files, of the list of their digests, of a folder with their names."""
    size_bytes: int


def copy_file(source: Path, target: Path) -> Copied:
    """Copy a regular file; a link to one is followed, for it is the user's word.

    Raises:
        InputError: `missing_file`.
        TooLargeError: `model_file_too_large`.
        StoreError: `disk_full`, `write_failed`.
    """
    return _copy(source, target, os.O_RDONLY | os.O_NONBLOCK, _MAX_BYTES)


def copy_folder(source: Path, target: Path) -> Copied:
    """Copy a folder of regular files; a link in it is refused, for its maker may not be the user.

    Raises:
        InputError: `missing_file`, also for a link; `bad_file_name`.
        TooLargeError: `model_file_too_large`.
        StoreError: `disk_full`, `write_failed`.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    _make_folder(target)
    for name in sorted(list_files(source)):
        place = target / check_file_name(name)
        _make_folder(place.parent)
        copied = _copy(source / name, place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, _MAX_BYTES - size_bytes)
        size_bytes += copied.size_bytes
        digest.update(f"{name}\n{copied.digest}\n".encode())
    return Copied(target, f"sha256:{digest.hexdigest()}", size_bytes)


def copy_parameters(symbol: Path, copied: Copied) -> Copied:
    """Copy the parameters of an MXNet model, and give both copies the names that its runtime expects.

    Args:
        symbol: the user's file, `NAME-symbol.json`; the parameters are `NAME-0000.params`, with any number, beside it.
        copied: its copy.

    Raises:
        InputError: `bad_model_file`, there are no parameters, or several files of them; as `copy_file`.
    """
    prefix = symbol.name.removesuffix(".json").removesuffix("-symbol")
    pattern = re.compile(re.escape(prefix) + r"(-\d+)?\.params")
    found = sorted(file.name for file in symbol.parent.iterdir() if pattern.fullmatch(file.name))
    if len(found) != 1:
        detail = f"expected its parameters beside it, one file {prefix}-0000.params; found: {list_choices(found)}"
        raise InputError("bad_model_file", path=symbol.name, title="an MXNet model", detail=detail)
    parameters = copy_file(symbol.with_name(found[0]), copied.path.with_name(PARAMETERS_FILE))
    path = copied.path.rename(copied.path.with_name(GRAPH_FILE))
    digest = hashlib.sha256(f"{copied.digest}\n{parameters.digest}\n".encode()).hexdigest()
    return Copied(path, f"sha256:{digest}", copied.size_bytes + parameters.size_bytes)


def copy_weights(graph: Path, copied: Copied) -> Copied:
    """Copy the weights of an OpenVINO graph: the file `NAME.bin` beside `NAME.xml`.

    Args:
        graph: the user's file.
        copied: its copy, which has its last name.

    Raises:
        InputError: as `copy_file`.
    """
    weights = copy_file(graph.with_suffix(".bin"), copied.path.with_suffix(".bin"))
    digest = hashlib.sha256(f"{copied.digest}\n{weights.digest}\n".encode()).hexdigest()
    return Copied(copied.path, f"sha256:{digest}", copied.size_bytes + weights.size_bytes)


def list_files(folder: Path) -> Iterator[str]:
    """Name the files in a folder, in any depth that is reasonable; a link counts as a file.

    Raises:
        InputError: `missing_file`.
        TooLargeError: `model_file_too_large`.
    """
    waiting, num_entries = [("", folder, 0)], 0
    while waiting:
        prefix, current, depth = waiting.pop()
        try:
            entries = os.scandir(current)
        except OSError as error:
            raise InputError("missing_file", path=current, detail=error.strerror) from error
        with entries:
            for entry in entries:
                num_entries += 1
                if num_entries > _MAX_FILES or depth > _MAX_DEPTH:
                    what = "files and folders in it" if num_entries > _MAX_FILES else "folders inside of each other"
                    limit = _MAX_FILES if num_entries > _MAX_FILES else _MAX_DEPTH
                    raise TooLargeError("model_file_too_large", path=folder.name, what=what, got=f"over {limit}", limit=limit)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{prefix}{entry.name}/", Path(entry.path), depth + 1))
                else:
                    yield f"{prefix}{entry.name}"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_write(path, error) from error


def _copy(source: Path, target: Path, flags: int, max_bytes: int) -> Copied:
    try:
        source_fd = os.open(source, flags)
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError("missing_file", path=source, detail=detail) from error
    try:
        state = os.fstat(source_fd)
        if not stat.S_ISREG(state.st_mode):
            raise InputError("missing_file", path=source, detail="it is not a regular file")
        if state.st_size > max_bytes:
            raise TooLargeError("model_file_too_large", path=source.name, what="content", got=state.st_size, limit=max_bytes)
        with target.open("xb+") as file:
            digest, size_bytes = copy_hashed(source_fd, file.fileno())
    except OSError as error:
        raise explain_write(f"a copy of {source}", error) from error
    finally:
        os.close(source_fd)
    return Copied(target, digest, size_bytes)
