"""The faults of a soak. Each begins, lasts for what it needs, and is over when its function returns."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import argosy
from argosy.errors import UnavailableError
from soak_clients import FailedError, HttpConnection, LostError
from soak_server import DIES, HANGS, KINDS, REFUSES, Subject, is_alive, list_descriptors

LASTS_S = 2.0
"""How long a fault lasts that does not end by itself."""
REPLACED_S = 30.0
"""Within which what was stopped is replaced, or a file that was removed written anew."""
ROLLOUT_S = 60.0
SPARE_DESCRIPTORS = 2
"""What a process may open beyond what it has, while its limit is low."""


class BrokenError(Exception):
    """The server did not do what it must."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        begin: does it; raises BrokenError where the server did not do what it must.
        num_fronts: fronts that end by it, and take what is in flight in them along.
        needs_disk: it fills the disk, which must be one of the soak's own.
    """

    begin: Callable[[Subject, random.Random], None]
    num_fronts: int = 0
    needs_disk: bool = False


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BrokenError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.05)


def choose_victim(subject: Subject, rng: random.Random, kind: str) -> int:
    """One process of a kind; one that has just died is replaced first."""
    if kind == "template" and not subject.find(kind):
        # It is made anew when a worker needs it, and no sooner.
        _await_rollouts(subject, [_try(lambda: subject.deploy("scale", 3 - subject.live_version("scale")))])
    wait_until(lambda: subject.find(kind), REPLACED_S, f"a new {kind}")
    return rng.choice(subject.find(kind))


def make_signal(kind: str, number: signal.Signals) -> Fault:
    """Send a signal to one process of a kind, and wait until it is gone."""

    def begin(subject: Subject, rng: random.Random) -> None:
        pid = choose_victim(subject, rng, kind)
        os.kill(pid, number)
        wait_until(lambda: not is_alive(pid), REPLACED_S, f"the end of {kind} {pid} after {number.name}")

    return Fault(begin, num_fronts=int(kind == "front"))


def make_few_descriptors(kind: str) -> Fault:
    """Let every process of a kind open no more than it has, nearly, while there is work for it, and new workers begin."""

    def begin(subject: Subject, rng: random.Random) -> None:
        with contextlib.ExitStack() as stack:
            for pid in subject.find(kind):
                stack.enter_context(_limit_descriptors(pid))
            rollouts = [_try(lambda: subject.deploy("scale", rng.randint(1, 2)))]
            for connection in [HttpConnection(subject.server.url, LASTS_S / 4) for _ in range(4)]:
                with contextlib.suppress(FailedError, LostError), contextlib.closing(connection):
                    connection.get("/v2/health/live")
            time.sleep(LASTS_S)
        _await_rollouts(subject, rollouts)

    return Fault(begin)


@contextmanager
def _limit_descriptors(pid: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # The limit is of numbers, not of how many there are.
    taken = list_descriptors(pid)
    free = (number for number in itertools.count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, SPARE_DESCRIPTORS, None)), before[1]))
    try:
        yield
    finally:
        # It may have been replaced; then it took the limit with it.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _try(ask: Callable[[], int]) -> int | None:
    """What the admin API answers; None where the fault keeps it from answering, which it may."""
    try:
        return ask()
    except argosy.ArgosyError:
        return None


def _await_rollouts(subject: Subject, rollouts: list[int | None]) -> None:
    """Wait until rollouts that began in a fault are over, whatever became of them."""

    def is_over(rollout: int) -> bool:
        try:
            return subject.admin.rollout(rollout).is_over
        except UnavailableError:
            return False

    for rollout in rollouts:
        if rollout is not None:
            wait_until(lambda number=rollout: is_over(number), ROLLOUT_S, f"the end of rollout {rollout}")


def make_full_disk(killed: str | None) -> Fault:
    """Fill the disk; ask for a rollout, and kill a process meanwhile."""

    def begin(subject: Subject, rng: random.Random) -> None:
        filler = subject.server.home / "filler"
        victim = choose_victim(subject, rng, killed) if killed else 0
        try:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            if victim:
                os.kill(victim, signal.SIGKILL)
            rollouts = [_try(lambda: subject.deploy("scale", rng.randint(1, 2)))]
            time.sleep(LASTS_S)
        finally:
            filler.unlink()
        _await_rollouts(subject, rollouts)

    return Fault(begin, num_fronts=int(killed == "front"), needs_disk=True)


def remove_logs(subject: Subject, rng: random.Random) -> None:
    """Remove the folder of logs, and have a process die whose successor would write one there."""
    shutil.rmtree(subject.run / "logs")
    os.kill(choose_victim(subject, rng, "worker"), signal.SIGKILL)


def move_database(subject: Subject, rng: random.Random) -> None:
    """Move the store's database away for a while."""
    path = subject.server.home / "argosy.db"
    path.rename(path.with_suffix(".away"))
    try:
        rollouts = [_try(lambda: subject.deploy("scale", rng.randint(1, 2)))]
        time.sleep(LASTS_S)
        if path.exists():
            raise BrokenError("a database was made anew where one had gone")
    finally:
        path.with_suffix(".away").rename(path)
    _await_rollouts(subject, rollouts)


def remove_state(subject: Subject, rng: random.Random) -> None:
    """Remove the file that tells commands of the server; it is written anew."""
    path = subject.run / "serve.json"
    path.unlink()
    wait_until(path.exists, REPLACED_S, "run/serve.json written anew")


def roll_out(subject: Subject, rng: random.Random) -> None:
    """Roll out to the other version, and back."""
    for _ in range(2):
        _expect(subject, subject.deploy("scale", 3 - subject.live_version("scale")), "done")


def make_killed_rollout(kind: str) -> Fault:
    """Kill a process of a kind in the middle of a rollout, which goes on."""

    def begin(subject: Subject, rng: random.Random) -> None:
        version = 3 - subject.live_version("scale")
        rollout = subject.deploy("scale", version)
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(choose_victim(subject, rng, kind), signal.SIGKILL)
        _expect(subject, rollout, "done")

    return Fault(begin, num_fronts=int(kind == "front"))


def make_bad_rollout(version: int, words: str) -> Fault:
    """Roll out to a version that does not load, which these words say; the live one stays."""

    def begin(subject: Subject, rng: random.Random) -> None:
        steps = _expect(subject, subject.deploy("code", version), "failed")
        if words not in steps:
            raise BrokenError(f"the rollout does not say {words!r}: {steps}")

    return Fault(begin)


def roll_out_over_hanging(subject: Subject, rng: random.Random) -> None:
    """Roll out to a version that never has loaded; a good one takes its place."""
    hanging = subject.deploy("code", HANGS)
    time.sleep(LASTS_S)
    if subject.admin.rollout(hanging).is_over:
        raise BrokenError("the rollout to a version that hangs at load is over")
    _expect(subject, subject.deploy("code", 1), "done")


def _expect(subject: Subject, rollout: int, state: str) -> str:
    """Wait until a rollout is over, and is what it must be; its steps."""
    _await_rollouts(subject, [rollout])
    found = subject.admin.rollout(rollout)
    steps = "; ".join(f"{event.step} {event.detail}".strip() for event in found.events)
    if found.rollout.state != state:
        raise BrokenError(f"rollout {rollout} is {found.rollout.state}, expected {state}: {steps}")
    return steps


FAULTS: dict[str, Fault] = {
    **{f"kill {kind}": make_signal(kind, signal.SIGKILL) for kind in KINDS},
    **{f"stop {kind}": make_signal(kind, signal.SIGSTOP) for kind in KINDS},
    **{f"few descriptors of {kind}": make_few_descriptors(kind) for kind in ("front", "control", "supervisor")},
    "full disk": make_full_disk(None),
    **{f"full disk, kill {kind}": make_full_disk(kind) for kind in KINDS},
    "logs removed": Fault(remove_logs),
    "database moved": Fault(move_database),
    "serve.json removed": Fault(remove_state),
    "rollout to and fro": Fault(roll_out),
    **{f"rollout, kill {kind}": make_killed_rollout(kind) for kind in KINDS},
    "rollout that cannot load": make_bad_rollout(REFUSES, "ValueError: these weights are not mine"),
    "rollout that dies at load": make_bad_rollout(DIES, "exit code 9"),
    "rollout that hangs at load": Fault(roll_out_over_hanging),
}
