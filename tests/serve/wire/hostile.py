"""What a peer that lies may send: numbers at the edges of what is allowed, and memory that is not what it should be."""

from __future__ import annotations

import fcntl
import os

from hypothesis import strategies as st

ARENA = 4096
U64 = st.one_of(
    st.integers(0, 70),
    st.sampled_from([ARENA - 1, ARENA, ARENA + 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1]),
)
GROW, SHRINK, SEAL = fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SEAL


def make_file(seals: int | None, size: int = 4096) -> int:
    flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if seals is not None else 0)
    fd = os.memfd_create("test", flags)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
