"""What the benchmarks say of the machine, and read of processes."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterable

import psutil

STOP_TIMEOUT_S = 10.0
# What a root has told to end, it may not have waited for.
ORPHAN_TIMEOUT_S = 1.0


def describe_machine() -> str:
    """The head of a table: date, processor, cores, Python."""
    return f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def busy_seconds() -> float:
    """CPU that all processes of the machine have used."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


class Family:
    """A process and all below it, also those that a server has left behind or moved elsewhere.

    Every process that was seen once is remembered: psutil knows it by number and start time, so that another
    process that gets its number is never read nor ended.
    """

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self._seen: set[psutil.Process] = {self.root}

    def members(self) -> list[psutil.Process]:
        """Those that live, the root first."""
        for process in list(self._seen):
            try:
                self._seen.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue
        return sorted(filter(_is_alive, self._seen), key=lambda found: found.pid != self.root.pid)

    def cpu_seconds(self) -> float:
        """CPU of all, from the kernel's accounts."""
        return _sum(self.members(), lambda process: sum(process.cpu_times()[:2]))

    def pss_bytes(self) -> float:
        """Memory of all; a page that is shared by n counts 1/n in each."""
        return _sum(self.members(), lambda process: process.memory_full_info().pss)

    def stop(self) -> None:
        """End all: the root is asked; what is left soon after it has ended, or after a while, is killed."""
        members = self.members()
        if self.root.is_running():
            self.root.send_signal(signal.SIGTERM)
        psutil.wait_procs([self.root], timeout=STOP_TIMEOUT_S)
        _, left = psutil.wait_procs(members, timeout=ORPHAN_TIMEOUT_S)
        for process in {*left, *self.members()}:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self.members(), timeout=STOP_TIMEOUT_S)


def _is_alive(process: psutil.Process) -> bool:
    """Not ended, and not a zombie that only its parent keeps listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _sum(processes: Iterable[psutil.Process], read: Callable[[psutil.Process], float]) -> float:
    """Sum over processes; one that ends meanwhile counts nothing."""
    total = 0.0
    for process in processes:
        try:
            total += read(process)
        except psutil.NoSuchProcess:
            continue
    return total


def pss_bytes(pid: int) -> float:
    """Memory of a process and all below it; a page that is shared by n counts 1/n in each."""
    return Family(pid).pss_bytes()


def private_bytes(pid: int) -> float:
    """Memory that only one process has, summed over a process and all below it."""
    return _sum(Family(pid).members(), lambda process: process.memory_full_info().uss)
