"""The system calls that a confined process may not make. Standard library only.

Landlock (`confine_landlock.py`) guards the contents of files. What it leaves open on some kernel or on all of them is
refused here: sockets, other processes, modes and owners of files, memory that processes share by a number.

A filter can only look at a call's number and at its arguments, not at what they point to. So what hides its meaning
behind a pointer (`clone3`, `openat2`), and every call newer than this list, does not exist for the process (ENOSYS);
libraries then use the older call. All else that is refused fails with EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["can_filter_calls", "filter_calls"]

_PR_GET_SECCOMP: Final = 21
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LAST_KNOWN: Final = 462
"""mseal, Linux 6.10: whatever came later was not looked at."""

# Classic BPF: the instructions that the filter is made of, and what it answers.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER = 0x15, 0x25
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


class _When(NamedTuple):
    """Refuse only if `argument & mask` is `value`; or, negated, only if it is not."""

    argument: int
    mask: int
    value: int
    is_negated: bool = False


class _Call(NamedTuple):
    """A call with its number on each machine; -1 where it does not exist."""

    name: str
    x86_64: int
    aarch64: int
    when: _When | None = None


_ALL_BITS: Final = 0xFFFFFFFF
_CLONE_THREAD: Final = 0x00010000
_O_TRUNC: Final = 0o1000
_PR_SET_PDEATHSIG: Final = 1

_TRUNCATING_READ: Final = (_O_TRUNC, _O_TRUNC | 3)
"""Access modes 0 and 3 need no right to write, and truncate all the same."""

_MISSING: Final = (_Call("clone3", 435, 435), _Call("openat2", 437, 437))

_DENIED: Final = (
    # The network, and services of this machine that listen on a socket. Pairs of connected streams stay.
    _Call("socket", 41, 198),
    _Call("socketpair", 53, 199, _When(0, _ALL_BITS, 1, is_negated=True)),
    _Call("socketpair", 53, 199, _When(1, 0xF, 1, is_negated=True)),
    # io_uring makes calls that no filter sees.
    _Call("io_uring_setup", 425, 425),
    # Processes: none is started, so that one kill ends all. Threads are.
    _Call("fork", 57, -1),
    _Call("vfork", 58, -1),
    _Call("clone", 56, 220, _When(0, _CLONE_THREAD, 0)),
    _Call("execve", 59, 221),
    _Call("execveat", 322, 281),
    _Call("prctl", 157, 167, _When(0, _ALL_BITS, _PR_SET_PDEATHSIG)),
    _Call("unshare", 272, 97),
    _Call("setns", 308, 268),
    # Other processes of the same user: their signals, memory, limits and priority.
    _Call("tkill", 200, 130),
    _Call("rt_sigqueueinfo", 129, 138),
    _Call("rt_tgsigqueueinfo", 297, 240),
    _Call("pidfd_send_signal", 424, 424),
    _Call("pidfd_getfd", 438, 438),
    _Call("fcntl F_SETOWN", 72, 25, _When(1, _ALL_BITS, 8)),
    _Call("fcntl F_SETOWN_EX", 72, 25, _When(1, _ALL_BITS, 15)),
    _Call("ioctl FIOSETOWN", 16, 29, _When(1, _ALL_BITS, 0x8901)),
    _Call("ioctl SIOCSPGRP", 16, 29, _When(1, _ALL_BITS, 0x8902)),
    _Call("ptrace", 101, 117),
    _Call("process_vm_readv", 310, 270),
    _Call("process_vm_writev", 311, 271),
    _Call("prlimit64", 302, 261, _When(0, _ALL_BITS, 0, is_negated=True)),
    _Call("setpriority", 141, 140),
    _Call("ioprio_set", 251, 30),
    _Call("sched_setaffinity", 203, 122, _When(0, _ALL_BITS, 0, is_negated=True)),
    _Call("sched_setparam", 142, 118, _When(0, _ALL_BITS, 0, is_negated=True)),
    _Call("sched_setscheduler", 144, 119, _When(0, _ALL_BITS, 0, is_negated=True)),
    _Call("sched_setattr", 314, 274, _When(0, _ALL_BITS, 0, is_negated=True)),
    # Files outside: modes, owners, attributes and times by name; contents on kernels whose Landlock does not know truncation.
    _Call("chmod", 90, -1),
    _Call("fchmod", 91, 52),
    _Call("fchmodat", 268, 53),
    _Call("fchmodat2", 452, 452),
    _Call("chown", 92, -1),
    _Call("fchown", 93, 55),
    _Call("lchown", 94, -1),
    _Call("fchownat", 260, 54),
    _Call("setxattr", 188, 5),
    _Call("lsetxattr", 189, 6),
    _Call("fsetxattr", 190, 7),
    _Call("removexattr", 197, 14),
    _Call("lremovexattr", 198, 15),
    _Call("fremovexattr", 199, 16),
    _Call("utime", 132, -1),
    _Call("utimes", 235, -1),
    _Call("futimesat", 261, -1),
    _Call("utimensat", 280, 88),
    _Call("truncate", 76, 45),
    *(_Call("open", 2, -1, _When(1, _O_TRUNC | 3, value)) for value in _TRUNCATING_READ),
    *(_Call("openat", 257, 56, _When(2, _O_TRUNC | 3, value)) for value in _TRUNCATING_READ),
    _Call("open_by_handle_at", 304, 265),
    # A lease makes everybody else who opens the file wait; a watch tells what others do.
    _Call("fcntl F_SETLEASE", 72, 25, _When(1, _ALL_BITS, 1024)),
    _Call("inotify_add_watch", 254, 27),
    _Call("fanotify_init", 300, 262),
    # Memory, queues and keys that are named by a number or outside the file system.
    _Call("shmget", 29, 194),
    _Call("shmat", 30, 196),
    _Call("shmctl", 31, 195),
    _Call("semget", 64, 190),
    _Call("semop", 65, 193),
    _Call("semtimedop", 220, 192),
    _Call("semctl", 66, 191),
    _Call("msgget", 68, 186),
    _Call("msgsnd", 69, 189),
    _Call("msgrcv", 70, 188),
    _Call("msgctl", 71, 187),
    _Call("mq_open", 240, 180),
    _Call("mq_unlink", 241, 181),
    _Call("add_key", 248, 217),
    _Call("request_key", 249, 218),
    _Call("keyctl", 250, 219),
    # Nothing that reads a model needs these, and each has been a way into the kernel.
    _Call("bpf", 321, 280),
    _Call("perf_event_open", 298, 241),
    _Call("userfaultfd", 323, 282),
)


def can_filter_calls() -> bool:
    """Tell whether this kernel takes a filter and this file knows the machine's call numbers."""
    is_known = platform.machine() in _ARCHITECTURES and sys.maxsize > 1 << 32
    return is_known and ctypes.CDLL(None).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def filter_calls() -> None:
    """Refuse the calls above to this process from now on. It must be its only thread, and have no-new-privileges set.

    Raises:
        OSError: the kernel did not take the filter.
    """
    code = b"".join(_assemble(platform.machine(), os.getpid()))
    program = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of 8-byte instructions, and where they are.
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program)))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"the kernel did not take the filter of system calls: {os.strerror(error)}")


def _assemble(machine: str, pid: int) -> Iterator[bytes]:
    # A process may signal itself: abort() does.
    others = _When(0, _ALL_BITS, pid, is_negated=True)
    signals = (_Call("kill", 62, 129, others), _Call("tgkill", 234, 131, others))
    yield _step(_LOAD, _ARCHITECTURE_AT)
    # The numbers of another architecture's calls, which a process can make too, mean other things.
    yield _step(_JUMP_EQUAL, _ARCHITECTURES[machine], if_true=1)
    yield _step(_RETURN, _KILL)
    yield _step(_LOAD, _NUMBER_AT)
    yield _step(_JUMP_GREATER, _LAST_KNOWN, if_false=1)
    yield _step(_RETURN, _ERROR | errno.ENOSYS)
    for calls, error in ((_MISSING, errno.ENOSYS), (_DENIED + signals, errno.EPERM)):
        for call in calls:
            number = call.x86_64 if machine == "x86_64" else call.aarch64
            if number >= 0:
                yield from _refuse(number, error, call.when)
    yield _step(_RETURN, _ALLOW)


def _refuse(number: int, error: int, when: _When | None) -> Iterator[bytes]:
    if when is None:
        yield _step(_JUMP_EQUAL, number, if_false=1)
        yield _step(_RETURN, _ERROR | error)
        return
    yield _step(_JUMP_EQUAL, number, if_false=5)
    # The lower half of the argument: flags, descriptors and process ids have 32 bits.
    yield _step(_LOAD, _ARGUMENTS_AT + 8 * when.argument)
    yield _step(_AND, when.mask)
    yield _step(_JUMP_EQUAL, when.value, if_true=int(when.is_negated), if_false=int(not when.is_negated))
    yield _step(_RETURN, _ERROR | error)
    yield _step(_LOAD, _NUMBER_AT)


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
