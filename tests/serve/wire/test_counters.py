"""Counters of a node: which versions have a series of their own."""

from __future__ import annotations

import os

import pytest

from argosy.serve.wire.counters import MEMORY_BYTES, Counters


def test_versions_beyond_those_that_are_counted_apart_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("argosy.serve.wire.counters.MAX_SERIES", 8)
    fd = os.memfd_create("counters", os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY_BYTES)
    counters = Counters(os.dup(fd))
    assert [counters.name_series(f"m{number}", "1") for number in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]
    assert counters.name_series("m3", "1") == 3
    assert (len(counters.list_series()), counters.list_series()[-1]) == (8, ("(others)", ""))
    # The next control process goes on with the same.
    following = Counters(fd)
    assert [following.name_series(name, "1") for name in ("m6", "m8")] == [6, 7]
