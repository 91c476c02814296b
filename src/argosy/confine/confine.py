"""Open a file that may be hostile in a process that can do no harm: a pickle, a TorchScript, a SavedModel, a .keras.

The process has no secret in its environment, no descriptor but its output, an empty folder as home, and dies with
its caller. Before the first byte of the file is read, it gives up (`child.py`):

| what | by |
|---|---|
| files but the Python installation, `read` and `write`; links, pipes, sockets, devices; programs | Landlock |
| the network, local sockets, new processes, signals, modes and owners of files | a filter of system calls |
| the rights of root, set-user-ID programs | capabilities, no-new-privileges |
| core dumps, more memory than allowed | limits; where memory runs out all the same, the kernel ends it first |

The filter needs no user namespace, which containers and some distributions forbid. What stays open: a process learns
whether a path exists, its size and its age (no content, no list of a folder); it can fill `write` and its temporary folder
until the time is up; it uses the processors; it may start threads. Devices such as GPUs cannot be opened. On Linux before
5.19 no file can be moved to another folder, which TensorFlow's SavedModel needs when it is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import secrets
import site
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from argosy.confine.ending import Completed, finish, kill_group
from argosy.confine.landlock import read_landlock_abi
from argosy.confine.seccomp import can_filter_calls
from argosy.errors import InputError, NotAllowedError

__all__ = [
    "Completed",
    "Confinement",
    "Waiting",
    "describe_confinement",
    "hostile_folder",
    "open_confined",
    "remove_hostile_folder",
    "run_confined",
    "start_ahead",
]

_CHILD: Final = Path(__file__).with_name("child.py")
_ARGOSY: Final = Path(__file__).parent.parent

_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # Libraries name their caches after the user; the list of users cannot be read.
    "LOGNAME": "argosy",
    # joblib tries whether it can start processes and warns if not.
    "JOBLIB_MULTIPROCESSING": "0",
}
"""Beside HOME and TMPDIR, which the process sets itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Confinement:
    """What this machine enforces on a confined process."""

    landlock_abi: int
    """Version of Landlock in the kernel; 0 is none: files cannot be confined."""
    has_call_filter: bool
    """False: sockets, processes and signals cannot be confined."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What cannot be enforced here."""
        files = () if self.landlock_abi else ("files (the kernel has no Landlock, or it is off)",)
        calls = () if self.has_call_filter else ("sockets and processes (no filter of system calls for this machine)",)
        return files + calls

    @property
    def is_confined(self) -> bool:
        """True if files that run code, pickles above all, may be opened by `run_confined` here."""
        return not self.missing


class Waiting:
    """A process that has not been told yet what it may reach and what to do. It ends with its caller, or by `close`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def close(self) -> None:
        """End it."""
        with self.process:
            if self.process.poll() is None:
                kill_group(self.process)


def describe_confinement() -> Confinement:
    """Tell what `run_confined` can enforce on this machine."""
    return Confinement(read_landlock_abi(), can_filter_calls())


def run_confined(
    arguments: Sequence[str],
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    timeout_s: float,
    memory_bytes: int | None = None,
    python: Path = Path(sys.executable),
    env: Mapping[str, str] | None = None,
    module_folders: Sequence[Path] = (),
    is_required: bool = True,
    title: str = "",
    folder: Path | None = None,
    waiting: Waiting | None = None,
) -> Completed:
    """Run `python -I -m MODULE ARGUMENT ...` in a process that reaches nothing but what is named here.

    Modules come from the interpreter's own site-packages, and `argosy` from this installation whatever the interpreter.
    It has a new, empty folder as HOME and TMPDIR, and works there if no other is given.

    Args:
        arguments: the module, then its arguments.
        read: files and folders that it may read. A link in them that leads elsewhere needs its target here as well.
        write: files and folders that it may read and change; new files keep the mode that they are created with.
        timeout_s: after that many seconds it is killed.
        memory_bytes: limit of its address space, of which frameworks reserve more than they use: small models of
            all of them fit in 4 GiB on 2 processors, TensorFlow's not in 2. None is no limit.
        python: the interpreter, this one by default.
        env: variables beside the few that every process gets, such as KERAS_BACKEND. The interpreter ignores its own, PYTHON*.
        module_folders: where else modules are looked for, after all others; it may read them. They may be hostile too.
        is_required: False runs it also where `describe_confinement()` misses something. Never for what can hold code.
        title: what messages call the process; by default its module.
        folder: where it works, one of `read` or `write`; by default its HOME. Root's process can reach no more than this one
            of what lies within another user's folder.
        waiting: of `start_ahead`, with the same `python` and `env`; it is gone afterwards. None starts one.

    Raises:
        InputError: `missing_file`, a path does not exist; `bad_option`; `not_started`, the interpreter cannot be run.
        NotAllowedError: `not_confined`, this machine cannot enforce all of it.
        ModelError: `confined_timeout`; `confined_output`, more than 16 MiB of standard output.
    """
    with contextlib.ExitStack() as stack:
        if waiting is not None:
            stack.callback(waiting.close)
        confinement = describe_confinement()
        if is_required and confinement.missing:
            raise NotAllowedError("not_confined", missing=" and ".join(confinement.missing))
        environment = dict(env or {})
        _check_options(arguments, timeout_s, memory_bytes, environment)
        home = stack.enter_context(hostile_folder("argosy-confined-"))
        plan = _make_plan(
            arguments,
            read=read,
            write=write,
            home=home,
            folder=home if folder is None else folder,
            module_folders=[*module_folders, *_list_user_site(python)],
            memory_bytes=memory_bytes,
        )
        process = (waiting or start_ahead((), python=python, env=environment)).process
        return finish(process, plan, title or arguments[0], timeout_s)


def open_confined(
    arguments: Sequence[str],
    *,
    read: Sequence[Path],
    home: Path,
    log: IO[bytes],
    python: Path = Path(sys.executable),
    env: Mapping[str, str] | None = None,
    module_folders: Sequence[Path] = (),
    is_required: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a process as `run_confined` does that one can talk to: its input and its output are pipes.

    It lives until the caller kills it, who bounds how long it takes. `home` is the only folder that it may change, and hostile
    afterwards (`hostile_folder`).

    Args:
        arguments: the module, then its arguments.
        read: files and folders that it may read.
        home: its HOME and TMPDIR, where it works.
        log: takes its standard error.
        python: the interpreter.
        env: variables beside the few that every process gets.
        module_folders: where else modules are looked for.
        is_required: as of `run_confined`.

    Raises:
        InputError, NotAllowedError: as `run_confined`.
    """
    confinement = describe_confinement()
    if is_required and confinement.missing:
        raise NotAllowedError("not_confined", missing=" and ".join(confinement.missing))
    environment = dict(env or {})
    _check_options(arguments, 1.0, None, environment)
    folders = [*module_folders, *_list_user_site(python)]
    plan = _make_plan(arguments, read=read, write=(), home=home, folder=home, module_folders=folders, memory_bytes=None)
    process = _start(_command((), python), {**_ENVIRONMENT, **environment}, log)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died, and its log says why
        process.stdin.write(json.dumps(plan).encode() + b"\n")
        process.stdin.flush()
    return process


def _make_plan(
    arguments: Sequence[str],
    *,
    read: Sequence[Path],
    write: Sequence[Path],
    home: Path,
    folder: Path,
    module_folders: Sequence[Path],
    memory_bytes: int | None,
) -> dict[str, object]:
    """Say what a confined process may do, as `child.py` reads it."""
    confinement = describe_confinement()
    return {
        "parent": os.getpid(),
        "home": str(home),
        "folder": _resolve(folder),
        "arguments": list(arguments),
        "read": [_resolve(path) for path in read],
        "write": [_resolve(path) for path in (*write, home)],
        "module_folders": [_resolve(path) for path in module_folders],
        "memory_bytes": memory_bytes,
        "has_landlock": confinement.landlock_abi > 0,
        "has_call_filter": confinement.has_call_filter,
    }


def _list_user_site(python: Path) -> list[Path]:
    """Packages of `pip install --user`, which the new HOME hides."""
    if not site.ENABLE_USER_SITE or python != Path(sys.executable):
        return []
    return [path for path in [Path(site.getusersitepackages())] if path.is_dir()]


def start_ahead(
    libraries: Sequence[str], *, python: Path = Path(sys.executable), env: Mapping[str, str] | None = None
) -> Waiting:
    """Start the process of a later `run_confined`; it imports libraries meanwhile.

    Args:
        libraries: modules to import before it is confined: of the interpreter's own packages, and of `argosy`. What leaves a
            thread behind is not imported ahead.
        python: as of `run_confined`.
        env: as of `run_confined`.

    Raises:
        InputError: `not_started`.
    """
    return Waiting(_start(_command(libraries, python), {**_ENVIRONMENT, **(env or {})}))


def _command(libraries: Sequence[str], python: Path) -> list[str]:
    # -I: nothing but the interpreter's own modules can be imported before the process is confined.
    return [str(python), "-I", "-B", str(_CHILD), str(_ARGOSY), *libraries]


def remove_hostile_folder(folder: Path) -> None:
    """Remove a folder that a confined process wrote to. It may be deeper than recursion goes and locked by modes.

    Raises:
        OSError: a file cannot be removed.
    """
    folder.chmod(0o700)
    numbers, prefix = itertools.count(), secrets.token_hex(8)
    while children := list(os.scandir(folder)):
        for child in children:
            if not child.is_dir(follow_symlinks=False):
                os.unlink(child.path)  # noqa: PTH108
                continue
            os.chmod(child.path, 0o700)  # noqa: PTH101
            # What lies deeper comes up here, so that no path ever has more than two steps.
            for inner in os.scandir(child.path):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)  # noqa: PTH101
                os.rename(inner.path, folder / f"{prefix}-{next(numbers)}")  # noqa: PTH104
            os.rmdir(child.path)  # noqa: PTH106
    folder.rmdir()


def _check_options(arguments: Sequence[str], timeout_s: float, memory_bytes: int | None, env: Mapping[str, str]) -> None:
    if not arguments:
        raise InputError("bad_option", option="arguments", got=list(arguments), expected="a module, then its arguments")
    if not 0 < timeout_s < math.inf:
        raise InputError("bad_option", option="timeout_s", got=timeout_s, expected="a positive number of seconds")
    if memory_bytes is not None and memory_bytes <= 0:
        raise InputError("bad_option", option="memory_bytes", got=memory_bytes, expected="a positive number of bytes")
    if ignored := [name for name in env if name.startswith("PYTHON")]:
        raise InputError("bad_option", option="env", got=ignored, expected="no variable that the interpreter ignores (PYTHON*)")


@contextlib.contextmanager
def hostile_folder(prefix: str) -> Generator[Path, None, None]:
    """Give a new folder for a confined process to write to; it is removed afterwards, whatever was made of it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        yield folder
    finally:
        remove_hostile_folder(folder)


def _resolve(path: Path) -> str:
    try:
        return str(path.resolve(strict=True))
    except (OSError, ValueError, RuntimeError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise InputError("missing_file", path=ascii(str(path)), detail=detail) from error


def _start(command: list[str], environment: dict[str, str], log: IO[bytes] | int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise InputError("not_started", python=command[0], detail=error) from error
