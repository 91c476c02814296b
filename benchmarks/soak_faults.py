"""One fault after the other, in random order, while clients ask one server: what they lose, and what it holds on to.

    python benchmarks/soak_faults.py [--seconds 1800] [--seed N] [--faults "kill worker;logs removed"] [--fronts 2]

Every answer is checked. What must hold, and is said at the end:

- no answer is wrong;
- no request fails; where a front is killed or stopped, each client may lose the one that was in flight, and asks again;
- within `--recover-s` of the end of each fault the server is ready, and answers every client, and new connections;
- memory, descriptors and zombies are at the end as they were at the beginning, seen in the quiet moments between faults.

Processes are killed and stopped, their limit of descriptors lowered, files taken away, versions rolled out that cannot load; as
root the home is on a small disk of its own, which is filled as well. It touches the processes of its own server alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import argosy
from machine import describe_machine
from soak_clients import Clients, FailedError, HttpConnection, Incident, LostError
from soak_kinds import FAULTS, BrokenError, Fault
from soak_server import DEPLOYMENTS, Subject, run_subject

NUM_HTTP, NUM_GRPC = 8, 2
DISK = "64m"
WARM_UP_S = 3.0
QUIET_S = 1.5
PROBE_TIMEOUT_S = 5.0
# Beyond it, a server that does not come back ends the soak.
GIVE_UP_S = 60.0
MORE_MEMORY, MORE_BYTES = 0.1, 10 << 20
MORE_DESCRIPTORS = 4
NUM_SHOWN = 5


@dataclass
class Record:
    """What came of one kind of fault."""

    times: int = 0
    longest_s: float = 0.0
    """From the end of the fault until all was answered."""
    counts: Counter[str] = field(default_factory=Counter)
    """Incidents by their kind."""


class Soak:
    """Does the faults, and keeps what came of them."""

    def __init__(self, subject: Subject, clients: Clients, rng: random.Random, recover_s: float) -> None:
        self.records: dict[str, Record] = {}
        self.held: list[dict[str, float]] = []
        self.broken: list[str] = []
        self._subject, self._clients, self._rng, self._recover_s = subject, clients, rng, recover_s
        self._num_seen = 0
        self._start_s = time.monotonic()

    def do(self, name: str, fault: Fault) -> None:
        """One fault, its end, and the quiet moment after it.

        Raises:
            BrokenError: the server does not come back.
        """
        record = self.records.setdefault(name, Record())
        record.times += 1
        begin_s = time.monotonic()
        try:
            fault.begin(self._subject, self._rng)
        except (BrokenError, argosy.ArgosyError) as error:
            self._say_broken(name, str(error))
        end_s, answered = time.monotonic(), list(self._clients.num_answered)
        took_s = self._await_answers(end_s, answered)
        record.longest_s = max(record.longest_s, took_s)
        if took_s > self._recover_s:
            self._say_broken(name, f"all was answered {took_s:.1f} s after its end only")
        self.rest(name)
        found = self._take_incidents(name, fault)
        record.counts.update(found)
        lost = "".join(f", {count} {kind}" for kind, count in found.items())
        print(
            f"{begin_s - self._start_s:7.1f} s  {name}: {end_s - begin_s:.1f} s, answers {took_s:.1f} s later{lost}", flush=True
        )

    def rest(self, name: str) -> None:
        """A quiet moment after a fault, at the end of which is measured what the server holds."""
        before = list(self._clients.num_answered)
        time.sleep(QUIET_S)
        if silent := self._find_silent(before):
            self._say_broken(name, f"clients {silent} had no answer in a quiet moment of {QUIET_S} s after it")
        self.held.append(self._subject.measure())

    def _say_broken(self, name: str, text: str) -> None:
        self.broken.append(f"{name} (at {time.monotonic() - self._start_s:.1f} s): {text}")
        print(f"broken: {self.broken[-1]}", flush=True)

    def _find_silent(self, answered: Sequence[int]) -> list[int]:
        """Clients that have had no answer since they had so many; the last ones speak gRPC."""
        return [place for place, count in enumerate(answered) if self._clients.num_answered[place] == count]

    def _await_answers(self, since_s: float, answered: Sequence[int]) -> float:
        """Wait until the server is ready and answers every client, and what comes on new connections; seconds since then."""
        while True:
            silent = self._find_silent(answered)
            problem = self._find_problem() or (f"clients {silent} have no answer" if silent else "")
            took_s = time.monotonic() - since_s
            if not problem:
                return took_s
            if took_s > GIVE_UP_S:
                raise BrokenError(f"not all is answered {took_s:.0f} s after the fault: {problem}")
            time.sleep(0.05)

    def _find_problem(self) -> str:
        url = self._subject.server.url
        try:
            with closing(HttpConnection(url, PROBE_TIMEOUT_S)) as connection:
                status = connection.get("/v2/health/ready")
                if status != 200:
                    return f"readiness is {status}"
            for name in DEPLOYMENTS:
                with closing(HttpConnection(url, PROBE_TIMEOUT_S)) as connection:
                    connection.ask(name, 7.0, "probe")
            self._subject.admin.status()
        except (FailedError, LostError, argosy.ArgosyError) as error:
            return str(error)
        return ""

    def _take_incidents(self, name: str, fault: Fault) -> Counter[str]:
        """Count what came since the fault before, and say what may not be."""
        incidents = self._clients.incidents[self._num_seen :]
        self._num_seen += len(incidents)
        lost = [incident for incident in incidents if incident.kind == "lost"]
        others = [incident for incident in incidents if incident.kind != "lost"]
        allowed = fault.num_fronts * (NUM_HTTP + NUM_GRPC)
        for incident in others[:NUM_SHOWN]:
            self._say_incident(name, incident)
        for incident in lost[allowed:][:NUM_SHOWN]:
            self._say_incident(name, incident)
        return Counter(incident.kind for incident in incidents)

    def _say_incident(self, name: str, incident: Incident) -> None:
        self.broken.append(f"{name}: {incident.kind} at {incident.at_s - self._start_s:.1f} s: {incident.text}")
        print(f"broken: {self.broken[-1]}", flush=True)

    def judge_held(self) -> list[str]:
        """Compare what was held in the first fifth of the quiet moments and in the last; lines for the reader."""
        fifth = max(1, len(self.held) // 5)
        lines = []
        for what in self.held[0]:
            first, last = (statistics.median(held[what] for held in part) for part in (self.held[:fifth], self.held[-fifth:]))
            if what == "memory":
                is_flat = last <= first * (1 + MORE_MEMORY) + MORE_BYTES
                line = f"memory (PSS of all processes): {first / 2**20:.1f} MB, at the end {last / 2**20:.1f} MB"
            else:
                is_flat = last <= first + (0 if what == "zombies" else MORE_DESCRIPTORS)
                line = f"{what}: {first:.0f}, at the end {last:.0f}"
            lines.append(line)
            if not is_flat:
                self.broken.append(line)
        return lines


def choose(rng: random.Random, names: list[str]) -> Iterator[str]:
    """Every fault once, in random order, again and again."""
    while True:
        yield from rng.sample(names, len(names))


@contextmanager
def make_folder(needs_disk: bool) -> Iterator[tuple[Path, bool]]:
    """A folder, and whether it is a small disk of its own, where that is needed and this process may make one."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", name]
        if not needs_disk or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            yield Path(name), False
            return
        try:
            yield Path(name), True
        finally:
            subprocess.run(["umount", name], check=True)


def print_table(records: dict[str, Record]) -> None:
    print("\n| fault | times | longest s until all was answered | wrong | failed | lost in flight |\n|---|---|---|---|---|---|")
    for name, record in sorted(records.items()):
        counts = record.counts
        print(f"| {name} | {record.times} | {record.longest_s:.2f} | {counts['wrong']} | {counts['failed']} | {counts['lost']} |")
    print()


def run(options: argparse.Namespace, names: list[str]) -> list[str]:
    """Soak, and print what came of it; what was broken."""
    with make_folder(any(FAULTS[name].needs_disk for name in names)) as (folder, has_disk):
        skipped = [name for name in names if FAULTS[name].needs_disk and not has_disk]
        if skipped:
            print(f"SKIPPED, for want of a disk to fill (needs root and tmpfs): {'; '.join(skipped)}")
        names = [name for name in names if name not in skipped]
        if not names:
            return ["no fault is left to do"]
        rng = random.Random(options.seed)
        chosen = choose(rng, names)
        with (
            run_subject(folder, options.fronts) as subject,
            Clients(subject.server.url, subject.server.grpc_address, NUM_HTTP, NUM_GRPC) as clients,
        ):
            time.sleep(WARM_UP_S)
            soak = Soak(subject, clients, rng, options.recover_s)
            soak.rest("the start")
            end_s = time.monotonic() + options.seconds
            # Those that were asked for are done once at least, however short the time.
            least = len(names) if options.faults else 0
            try:
                for count, name in zip(itertools.count(), chosen):
                    if time.monotonic() > end_s and count >= least:
                        break
                    soak.do(name, FAULTS[name])
            except BrokenError as error:
                soak.broken.append(f"{error}; no further faults")
        print_table(soak.records)
        print(f"answered {sum(clients.num_answered)}, slowest {clients.slowest_s:.2f} s")
        print("\n".join(soak.judge_held()))
    return soak.broken


def main() -> None:
    """Soak, and exit with 1 if anything is broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--faults", help=f"of these, split by semicolons: {'; '.join(FAULTS)}")
    parser.add_argument("--fronts", type=int, default=2)
    parser.add_argument("--recover-s", type=float, default=10.0)
    options = parser.parse_args()
    names = options.faults.split(";") if options.faults else list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"unknown faults: {'; '.join(unknown)}. Known: {'; '.join(FAULTS)}")
    print(f"{describe_machine()}; seed {options.seed}, fronts {options.fronts}, clients {NUM_HTTP} HTTP and {NUM_GRPC} gRPC")
    broken = run(options, names)
    for text in broken:
        print("broken:", text)
    print("FAIL" if broken else "PASS")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
