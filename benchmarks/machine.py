"""What the benchmarks say of the machine, and read of processes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import psutil


def describe_machine() -> str:
    """The head of a table: date, processor, cores, Python."""
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _sum_over_family(pid: int, read: Callable[[psutil.Process], float]) -> float:
    """Sum over a process and all below it; one that ends meanwhile counts nothing."""
    total = 0.0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            total += read(process)
        except psutil.NoSuchProcess:
            continue
    return total


def cpu_seconds(pid: int) -> float:
    """CPU of a process and all below it, from the kernel's accounts."""
    return _sum_over_family(pid, lambda process: sum(process.cpu_times()[:2]))


def pss_bytes(pid: int) -> float:
    """Memory of a process and all below it; a page that is shared by n counts 1/n in each."""
    return _sum_over_family(pid, lambda process: process.memory_full_info().pss)


def private_bytes(pid: int) -> float:
    """Memory that only one process has, summed."""
    return _sum_over_family(pid, lambda process: process.memory_full_info().uss)
