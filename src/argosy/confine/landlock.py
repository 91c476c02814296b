"""The files that a confined process may open, by the kernel's Landlock. Standard library only.

A right is given for a file or for a folder and all below it, and holds for what is really there: a symbolic link
that leads elsewhere gives nothing. Nobody may make links, pipes, sockets or devices, so that whoever reads what the
process wrote meets plain files and folders only. Programs may not be started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

__all__ = ["make_rules", "read_landlock_abi", "restrict_files"]

# Of all architectures: these calls are younger than the numbers that differ.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_READ: Final = _READ_FILE | _READ_DIR
_WRITE: Final = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_OF_A_FILE: Final = _WRITE_FILE | _READ_FILE | _TRUNCATE

_KNOWN_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many kinds of file access the first versions know; later ones know the 16th too, commands to devices."""

_TCP: Final = 0b11
_TCP_SINCE: Final = 4
_SCOPES: Final = 0b11
_SCOPES_SINCE: Final = 6
_ABSTRACT_SOCKETS: Final = 0b01


def read_landlock_abi() -> int:
    """Tell the version of Landlock that this kernel enforces; 0 is none."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def make_rules(read: Iterable[str], write: Iterable[str]) -> int:
    """Open files and folders, and give the descriptor of the rules that allow these and no others, for `restrict_files`.

    Args:
        read: files and folders to read.
        write: files and folders to read and write.

    Raises:
        OSError: a path cannot be opened, or the kernel refused.
    """
    abi = read_landlock_abi()
    handled = (1 << _KNOWN_BITS.get(abi, 16)) - 1
    ruleset = _create_ruleset(abi, handled)
    try:
        for paths, rights in ((read, _READ), (write, _WRITE)):
            for path in paths:
                _add_rule(ruleset, path, rights & handled)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def restrict_files(rules: int) -> None:
    """Let this process read and write only what rules allow from now on. It must be its only thread.

    Where the kernel knows more, TCP, the abstract sockets of others and signals to others end as well.

    Args:
        rules: of `make_rules`; closed afterwards.

    Raises:
        OSError: the kernel refused.
    """
    try:
        _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _create_ruleset(abi: int, handled: int) -> int:
    tcp = _TCP if abi >= _TCP_SINCE else 0
    scopes = _SCOPES if abi >= _SCOPES_SINCE else 0
    try:
        return _create(handled, tcp, scopes)
    except OSError as error:
        # Some kernels of distributions say version 6 and know no scope for signals.
        if error.errno != errno.EINVAL or not scopes:
            raise
        return _create(handled, tcp, _ABSTRACT_SOCKETS)


def _create(handled: int, tcp: int, scopes: int) -> int:
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    return _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))


def _add_rule(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_A_FILE
        rule = struct.pack("=Qi", rights, fd)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock refused: {os.strerror(error)}")
    return result
