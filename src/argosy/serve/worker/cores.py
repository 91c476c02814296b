"""The cores of this machine: how many there are for us, and how many of them a model is worth.

The standard library only.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from argosy.serve.wire.channel import die_with_parent
from argosy.serve.worker.bounds import Bounds

__all__ = ["choose_replicas", "choose_threads", "count_cores", "count_threads", "run_apart"]

THREADS_PAY_S: Final = 0.002
"""A row that takes less is run by one thread: two were slower on a perceptron of 0.04 ms, faster on a transformer of 8 ms."""
THREADS_GAIN: Final = 0.8
"""Twice as many threads are kept where a row then takes at most this part of the time."""
FRONT_S: Final = 25e-6
"""What a front takes for a request, from decoding to the answer."""


def count_cores() -> int:
    """Cores that this process may use: by its affinity, and by its container's share of the machine's time."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return min(cores, max(1, math.ceil(int(quota) / int(period)))) if quota.isdigit() else cores


def choose_threads(load: Callable[[int], object], measure: Callable[[], float], max_threads: int) -> int:
    """Find how many threads of one operator pay; when this returns, the model is loaded with them.

    Args:
        load: loads the model with so many threads.
        measure: seconds that one row takes.
        max_threads: the most.
    """
    threads = 1
    load(threads)
    row_s = measure()
    while threads < max_threads and row_s >= THREADS_PAY_S:
        more = min(2 * threads, max_threads)
        load(more)
        if (more_s := measure()) > THREADS_GAIN * row_s:
            load(threads)
            break
        threads, row_s = more, more_s
    return threads


def choose_replicas(row_s: float, num_cores: int) -> int:
    """Divide the cores between fronts and replicas as a request divides its time between them.

    Args:
        row_s: seconds of one row, in the batch that answers most rows/s.
        num_cores: of the machine.
    """
    return max(1, round(num_cores * row_s / (row_s + FRONT_S)))


def count_threads() -> int:
    """Count the threads of this process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names alone


def run_apart(find: Callable[[], bytes], limit_s: float | None = None) -> bytes:
    """Call a function in a fork of this process, for what it does to a process cannot be undone.

    Args:
        find: the function.
        limit_s: seconds after which it is given up, and the fork killed.

    Returns:
        What it returned; nothing where it came to grief, which its caller will then find out itself.
    """
    receiver, sender = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        try:
            die_with_parent(parent)
            # Whatever is left half done here ends with this process.
            Bounds.cuts = True
            with open(sender, "wb") as answer:  # noqa: PTH123 - a descriptor
                answer.write(find())
        finally:
            os._exit(0)
    os.close(sender)
    end_s = math.inf if limit_s is None else time.monotonic() + limit_s
    found = b""
    # A process of the function's own may hold the pipe for longer than the fork lives.
    while select.select([receiver], [], [], None if limit_s is None else max(0.0, end_s - time.monotonic()))[0]:
        if not (part := os.read(receiver, 1 << 16)):
            break
        found += part
    os.close(receiver)
    if limit_s is not None:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return found
