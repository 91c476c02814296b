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


class _SystemCall(NamedTuple):
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

_MISSING: Final = (_SystemCall("clone3", 435, 435), _SystemCall("openat2", 437, 437))

_DENIED: Final = (
    # The network, and services of this machine that listen on a socket. Pairs of connected streams stay.
    _SystemCall("socket", 41, 198),
    _SystemCall("socketpair", 53, 199, _When(0, _ALL_BITS, 1, is_negated=True)),
    _SystemCall("socketpair", 53, 199, _When(1, 0xF, 1, is_negated=True)),
    # io_uring makes calls that no filter sees.
    _SystemCall("io_uring_setup", 425, 425),
    # Processes: none is started, so that one kill ends all. Threads are.
    _SystemCall("fork", 57, -1),
    _SystemCall("vfork", 58, -1),
    _SystemCall("clone", 56, 220, _When(0, _CLONE_THREAD, 0)),
    _SystemCall("execve", 59, 221),
    _SystemCall("execveat", 322, 281),
    _SystemCall("prctl", 157, 167, _When(0, _ALL_BITS, _PR_SET_PDEATHSIG)),
    _SystemCall("unshare", 272, 97),
    _SystemCall("setns", 308, 268),
    # Other processes of the same user: their signals, memory, limits and priority.
    _SystemCall("tkill", 200, 130),
    _SystemCall("rt_sigqueueinfo", 129, 138),
    _SystemCall("rt_tgsigqueueinfo", 297, 240),
    _SystemCall("pidfd_send_signal", 424, 424),
    _SystemCall("pidfd_getfd", 438, 438),
    _SystemCall("fcntl F_SETOWN", 72, 25, _When(1, _ALL_BITS, 8)),
    _SystemCall("fcntl F_SETOWN_EX", 72, 25, _When(1, _ALL_BITS, 15)),
    _SystemCall("ioctl FIOSETOWN", 16, 29, _When(1, _ALL_BITS, 0x8901)),
    _SystemCall("ioctl SIOCSPGRP", 16, 29, _When(1, _ALL_BITS, 0x8902)),
    _SystemCall("ptrace", 101, 117),
    _SystemCall("process_vm_readv", 310, 270),
    _SystemCall("process_vm_writev", 311, 271),
    _SystemCall("prlimit64", 302, 261, _When(0, _ALL_BITS, 0, is_negated=True)),
    _SystemCall("setpriority", 141, 140),
    _SystemCall("ioprio_set", 251, 30),
    _SystemCall("sched_setaffinity", 203, 122, _When(0, _ALL_BITS, 0, is_negated=True)),
    _SystemCall("sched_setparam", 142, 118, _When(0, _ALL_BITS, 0, is_negated=True)),
    _SystemCall("sched_setscheduler", 144, 119, _When(0, _ALL_BITS, 0, is_negated=True)),
    _SystemCall("sched_setattr", 314, 274, _When(0, _ALL_BITS, 0, is_negated=True)),
    # Files outside: modes, owners, attributes and times by name; contents on kernels whose Landlock does not know truncation.
    _SystemCall("chmod", 90, -1),
    _SystemCall("fchmod", 91, 52),
    _SystemCall("fchmodat", 268, 53),
    _SystemCall("fchmodat2", 452, 452),
    _SystemCall("chown", 92, -1),
    _SystemCall("fchown", 93, 55),
    _SystemCall("lchown", 94, -1),
    _SystemCall("fchownat", 260, 54),
    _SystemCall("setxattr", 188, 5),
    _SystemCall("lsetxattr", 189, 6),
    _SystemCall("fsetxattr", 190, 7),
    _SystemCall("removexattr", 197, 14),
    _SystemCall("lremovexattr", 198, 15),
    _SystemCall("fremovexattr", 199, 16),
    _SystemCall("utime", 132, -1),
    _SystemCall("utimes", 235, -1),
    _SystemCall("futimesat", 261, -1),
    _SystemCall("utimensat", 280, 88),
    _SystemCall("truncate", 76, 45),
    *(_SystemCall("open", 2, -1, _When(1, _O_TRUNC | 3, value)) for value in _TRUNCATING_READ),
    *(_SystemCall("openat", 257, 56, _When(2, _O_TRUNC | 3, value)) for value in _TRUNCATING_READ),
    _SystemCall("open_by_handle_at", 304, 265),
    # A lease makes everybody else who opens the file wait; a watch tells what others do.
    _SystemCall("fcntl F_SETLEASE", 72, 25, _When(1, _ALL_BITS, 1024)),
    _SystemCall("inotify_add_watch", 254, 27),
    _SystemCall("fanotify_init", 300, 262),
    # Memory, queues and keys that are named by a number or outside the file system.
    _SystemCall("shmget", 29, 194),
    _SystemCall("shmat", 30, 196),
    _SystemCall("shmctl", 31, 195),
    _SystemCall("semget", 64, 190),
    _SystemCall("semop", 65, 193),
    _SystemCall("semtimedop", 220, 192),
    _SystemCall("semctl", 66, 191),
    _SystemCall("msgget", 68, 186),
    _SystemCall("msgsnd", 69, 189),
    _SystemCall("msgrcv", 70, 188),
    _SystemCall("msgctl", 71, 187),
    _SystemCall("mq_open", 240, 180),
    _SystemCall("mq_unlink", 241, 181),
    _SystemCall("add_key", 248, 217),
    _SystemCall("request_key", 249, 218),
    _SystemCall("keyctl", 250, 219),
    # Nothing that reads a model needs these, and each has been a way into the kernel.
    _SystemCall("bpf", 321, 280),
    _SystemCall("perf_event_open", 298, 241),
    _SystemCall("userfaultfd", 323, 282),
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
    signals = (_SystemCall("kill", 62, 129, others), _SystemCall("tgkill", 234, 131, others))
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
