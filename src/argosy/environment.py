"""Environments of frameworks that cannot live in the user's own: built once, on demand, from a lock.

MXNet 1.9.1 needs a NumPy older than 1.24. In such an environment Argosy itself runs: this very package is linked
into it, and nothing else of the user's packages is seen there.

    CACHE/environments/mxnet-0123456789ab/      a virtual environment; the file `complete` in it is written last
    CACHE/environments/mxnet-0123456789ab.lock  held by whoever builds it

CACHE is ARGOSY_CACHE, else argosy in XDG_CACHE_HOME, else ~/.cache/argosy. Which environments there are is told by
`locks/NAME.txt`, where NAME is the package that they are for. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from argosy.errors import FaultError, InputError, NotAllowedError, list_choices

__all__ = [
    "Environment",
    "find_interpreter",
    "get_environment",
    "is_importable",
    "list_environments",
    "lives_apart",
    "run_in",
    "run_where_it_lives",
]

_LOCKS: Final = Path(__file__).parent / "locks"
_MARKER: Final = "complete"
_BUILD_TIMEOUT_S: Final = 1800.0
"""Of one step. The longest took 62 s, with pip; a slow connection needs many times as much."""
_MAX_OUTPUT_CHARS: Final = 2000
# Each would show the tools or the environment's Python packages of another one.
_FOREIGN_VARIABLES: Final = ("PYTHONPATH", "PYTHONHOME")


class Environment(NamedTuple):
    """An environment that can be built, or has been."""

    name: str
    """Of the package that it is for."""
    lock: Path
    """pip's requirements, with a hash for every package."""
    folder: Path
    python_version: str
    """What the lock was made for, such as `3.11`."""

    @property
    def python(self) -> Path:
        """Its interpreter, once it is built."""
        return self.folder / "bin" / "python"

    @property
    def is_built(self) -> bool:
        """Complete; also false when the Python that it was built with has been removed."""
        return (self.folder / _MARKER).exists() and self.python.exists()


def is_importable(package: str) -> bool:
    """Say whether this interpreter finds a top-level package, without importing it."""
    spec = importlib.util.find_spec(package)
    # A folder that happens to have the package's name, such as one of data, is found too, but has no origin.
    return spec is not None and spec.origin is not None


def lives_apart(name: str) -> bool:
    """Say whether a package is to be had in an environment of its own, and not here."""
    return name in _list_names() and not is_importable(name)


def list_environments() -> list[Environment]:
    """Give every environment that there is a lock for, by name."""
    return [get_environment(name) for name in _list_names()]


def get_environment(name: str) -> Environment:
    """Give an environment by name; nothing is built.

    Raises:
        InputError: `unknown_choice`.
    """
    names = _list_names()
    if name not in names:
        raise InputError("unknown_choice", kind="environment", got=name, known=list_choices(names))
    lock = _LOCKS / f"{name}.txt"
    content = lock.read_bytes()
    version = re.search(rb"Python (\d+\.\d+)", content)
    assert version is not None, f"the head of {lock} names no Python"
    # The package is a link to this one: another copy of Argosy has an environment of its own.
    parts = (content, sysconfig.get_platform().encode(), os.fsencode(_find_package()))
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    return Environment(name, lock, _find_cache(os.environ) / "environments" / f"{name}-{digest}", version[1].decode())


def find_interpreter(name: str) -> Path:
    """Give the Python of an environment, which is built if it is not there yet.

    Building takes 2 to 60 s, told on stderr. Of several processes that want it at once, one builds and the others wait.

    Raises:
        InputError: `unknown_choice`.
        NotAllowedError: `unsafe_cache`, other users may change what would be run.
        FaultError: `environment_failed`, `environment_python`.
    """
    environment = get_environment(name)
    try:
        _make_private(environment.folder.parent)
        if not environment.is_built:
            with _hold_lock(environment) as lock_fd:
                # Another process may have built it while this one waited.
                if not environment.is_built:
                    _build(environment, lock_fd)
        _link_package(next(environment.folder.glob("lib/python*/site-packages")))
    except OSError as error:
        raise FaultError("environment_failed", name=name, detail=str(error)) from error
    return environment.python


def run_in(name: str, arguments: Sequence[str]) -> NoReturn:
    """Become the Python of an environment; the process stays the same one. Built first if it is not there yet.

    Args:
        name: of the environment.
        arguments: of the interpreter: `-m argosy ...`, or a file and its arguments.

    Raises:
        FaultError: `environment_loop`, this is that Python already; else as `find_interpreter`.
    """
    environment = get_environment(name)
    if environment.folder.exists() and environment.folder.samefile(sys.prefix):
        raise FaultError("environment_loop", name=name, folder=environment.folder)
    python = str(find_interpreter(name))
    # -P: no module of the folder where the command was given may shadow a library. A file's own folder is its user's will.
    flags = ["-P"] if arguments[:1] == ["-m"] else []
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, [python, *flags, *arguments], _own_variables())  # noqa: S606 - nothing goes through a shell


def run_where_it_lives(error: ModuleNotFoundError, arguments: Sequence[str]) -> NoReturn:
    """Become a command in the environment of the package that is missing here.

    Args:
        error: says which package.
        arguments: as for `run_in`.

    Raises:
        ModuleNotFoundError: it lives in no environment of its own.
    """
    if not error.name or not lives_apart(error.name):
        raise error
    run_in(error.name, arguments)


def _list_names() -> list[str]:
    return sorted(path.stem for path in _LOCKS.glob("*.txt"))


def _find_package() -> Path:
    return Path(__file__).parent.resolve()


def _find_cache(variables: Mapping[str, str]) -> Path:
    if variables.get("ARGOSY_CACHE"):
        return Path(variables["ARGOSY_CACHE"]).expanduser().absolute()
    return Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "argosy"


def _own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN_VARIABLES}


def _make_private(folder: Path) -> None:
    """Make the folder of all environments, and see that nobody else can put a program there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotAllowedError("unsafe_cache", folder=folder)


@contextlib.contextmanager
def _hold_lock(environment: Environment) -> Generator[int, None, None]:
    path = environment.folder.with_name(environment.folder.name + ".lock")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that builds the environment of {environment.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _build(environment: Environment, lock_fd: int) -> None:
    name, folder = environment.name, environment.folder
    _say(f"building the environment of {name} in {folder}; this is done once")
    started = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    for command in _list_commands(environment):
        _run(environment, command, lock_fd)
    (folder / _MARKER).touch()
    _say(f"built the environment of {name} in {time.monotonic() - started:.1f} s")


def _list_commands(environment: Environment) -> tuple[list[str], list[str]]:
    """What makes the environment, and what installs its packages. No code of a package runs: all of them are wheels."""
    folder, version = str(environment.folder), environment.python_version
    # The lock is whole: what it does not list is not wanted.
    install = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(environment.lock)]
    base = _find_base(version)
    if uv := _find_uv():
        # uv finds a Python by its version, and brings one where there is none.
        make = [*uv, "venv", "--quiet", "--python", base or version, folder]
        # pip compiles by itself. What is not compiled would be anew in each process where PYTHONDONTWRITEBYTECODE is set.
        return make, [*uv, "pip", "install", "--compile-bytecode", "--python", str(environment.python), *install]
    if base is None:
        raise FaultError("environment_python", name=environment.name, version=version, got=sys.version.split()[0])
    pip = [str(environment.python), "-P", "-m", "pip", "--no-input", "--disable-pip-version-check"]
    return [base, "-m", "venv", folder], [*pip, "install", *install]


def _find_base(version: str) -> str | None:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    return shutil.which(f"python{version}")


def _find_uv() -> list[str]:
    beside = Path(sys.executable).with_name("uv")
    if beside.exists():
        return [str(beside)]
    if is_importable("uv"):
        return [sys.executable, "-P", "-m", "uv"]
    found = shutil.which("uv")
    return [found] if found else []


def _run(environment: Environment, command: list[str], lock_fd: int) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not where the user is: a project there may have settings for these tools.
            cwd=environment.folder.parent,
            env=_own_variables(),
            # The lock lasts as long as the tool does: should this process be killed, nobody builds beside the orphan.
            pass_fds=(lock_fd,),
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        detail = f"{command[0]} did not end within {error.timeout:.0f} s"
        raise FaultError("environment_failed", name=environment.name, detail=detail) from error
    if done.returncode:
        output = done.stdout.decode(errors="replace")[-_MAX_OUTPUT_CHARS:].strip()
        detail = f"{' '.join(command[:4])} ... ended with code {done.returncode}:\n{output}"
        raise FaultError("environment_failed", name=environment.name, detail=detail)


def _link_package(site: Path) -> None:
    """Let the environment import this package, and nothing that lies beside it; again after an update of it."""
    links = {target.name: target for target in (_find_package(), *_find_metadata())}
    for stale in site.glob("argosy*"):
        if stale.name not in links or not stale.exists():
            stale.unlink(missing_ok=True)
    for name, target in links.items():
        with contextlib.suppress(FileExistsError):
            (site / name).symlink_to(target)


def _find_metadata() -> list[Path]:
    """The folder that tells this package's version; none where it runs from its source, not installed."""
    # Which takes as long to import as the rest of this module, and is needed where an environment is built alone.
    from importlib import metadata

    try:
        files = metadata.files("argosy") or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())).parent.resolve() for file in files if file.name == "METADATA"]


def _say(text: str) -> None:
    print(f"argosy: {text}", file=sys.stderr, flush=True)
