"""What a confined process does first: give up all rights but the few it was given, then run the module.

`confine.py` starts this file as a script, in any interpreter: `python -I -B child.py ARGOSY [LIBRARY ...]`, and writes the plan
to its standard input. Until the last line of `main` only Argosy's own code, the standard library and the libraries that it is
told to import have run, and none of them has read anything but its own files. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import resource
import runpy
import signal
import struct
import sys
from typing import Any, Final

__all__ = ["main"]

_SYSTEM_READ: Final = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)
"""What libraries read of a Linux system: shared libraries, time zones, the number of processors, memory, randomness."""

_MAX_FILE_BYTES: Final = 64 << 30
"""Of one file that is written: more than the largest file that models come in."""

_ENDS_FIRST: Final = "1000"

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION: Final = 0x20080522


def main() -> None:
    """Confine this process as the plan on its input says, and become the module that the plan names."""
    _register_argosy(sys.argv[1])
    _import_ahead(sys.argv[2:])
    from argosy.confine.landlock import make_rules, restrict_files
    from argosy.confine.seccomp import filter_calls

    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(1)  # who started it has ended
    plan: dict[str, Any] = json.loads(line)
    # What root may open by its privileges alone, a folder within another user's home, is opened before they are gone.
    os.chdir(plan["folder"])
    os.environ |= {"HOME": plan["home"], "TMPDIR": plan["home"]}
    _limit(plan["memory_bytes"])
    read = [*_list_readable(), sys.argv[1], *plan["read"], *plan["module_folders"]]
    rules = make_rules(read, ["/dev/null", *plan["write"]]) if plan["has_landlock"] else -1
    _drop_privileges(plan["parent"])
    if rules >= 0:
        restrict_files(rules)
    if plan["has_call_filter"]:
        filter_calls()
    # Not before: what lies in these folders may bear the name of any module.
    sys.path += plan["module_folders"]
    sys.argv = plan["arguments"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _import_ahead(libraries: list[str]) -> None:
    """Import libraries while the plan is being made."""
    # What is imported stays: to look among it for garbage is lost time.
    gc.disable()
    for library in libraries:
        # One of a folder that is named later is imported then.
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()
    gc.enable()
    if libraries and len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        # A thread of a library's own would not be confined: begin again, and import it once that is done.
        os.execv(sys.executable, [sys.executable, "-I", "-B", *sys.argv[:2]])  # noqa: S606


def _register_argosy(folder: str) -> None:
    """Make this Argosy importable, and nothing that lies beside it: its libraries are another interpreter's."""
    spec = importlib.util.spec_from_file_location("argosy", f"{folder}/__init__.py", submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None
    sys.modules["argosy"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _list_readable() -> list[str]:
    """List what the interpreter and the system's libraries need, as far as it is there."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    python = [f"{prefix}/{folder}" for prefix in prefixes for folder in ("lib", "lib64")]
    # Not every entry: one that a .pth file adds may be anybody's home.
    packages = [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]  # noqa: PTH119
    return [path for path in (*_SYSTEM_READ, *python, *packages) if os.path.exists(path)]  # noqa: PTH110


def _limit(memory_bytes: int | None) -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: _MAX_FILE_BYTES}
    if memory_bytes is not None:
        limits[resource.RLIMIT_AS] = memory_bytes
    for kind, limit in limits.items():
        highest = resource.getrlimit(kind)[1]
        lower = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(kind, (lower, lower))
    # Where the machine runs out of memory all the same, this process is the one to end, and no other for its sake.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(_ENDS_FIRST)


def _drop_privileges(parent: int) -> None:
    """Give up what root may do and what programs could gain, and die with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if libc.capset(header, bytes(24)) != 0 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the process cannot give up its privileges")
    # After the capabilities: the kernel forgets this when they change.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
