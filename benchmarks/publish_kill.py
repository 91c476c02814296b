"""Kill publishers with SIGKILL at random moments, and check after each kill what the store promises.

    python benchmarks/publish_kill.py [--kills 100] [--seed 0]

Two processes publish versions of one model at once, without a pause. At random moments one of them is killed
and another one started; every tenth time both start in a new ARGOSY_HOME, so that making the store is hit too.
After each kill the store must open; each listed version must verify; each version whose `publish` had
returned must be listed with the digest it was given; numbers must be 1, 2, 3 ... without a gap or a repetition.
At the end of a home nothing temporary and no blob without a version may be left, and index.json must equal a
rebuilt one.
Exits 1 on any broken promise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
KILLS_PER_HOME = 10
MODEL = "model"


class Publisher(NamedTuple):
    pid: int
    acks: int
    """Read end of a pipe: a line NUMBER DIGEST for each publish that returned."""


def publish_for_ever(home: Path, seed: int, acks: int) -> None:
    rng = random.Random(seed)
    store = Store(home)
    source = home.parent / f"source-{seed}"
    while True:
        source.write_bytes(rng.randbytes(rng.randrange(1, 400_000)))
        files = {"model.onnx": source, "shared.bin": bytes(50_000), "vocab.txt": rng.randbytes(8)}
        version = store.publish(MODEL, files, signature=SIGNATURE, entry="model.onnx", measurements={"seed": seed})
        os.write(acks, f"{version.number} {version.digest}\n".encode())
        if rng.random() < 0.3:
            store.set_alias(MODEL, "champion", version.number)


def start_publisher(home: Path, seed: int) -> Publisher:
    acks, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            publish_for_ever(home, seed, child_end)
        finally:
            os._exit(1)
    os.close(child_end)
    os.set_blocking(acks, False)
    return Publisher(pid, acks)


def read_acks(publisher: Publisher) -> list[tuple[int, str]]:
    data = b""
    try:
        while chunk := os.read(publisher.acks, 1 << 16):
            data += chunk
    except BlockingIOError:
        pass
    pairs = [line.split() for line in data.decode().splitlines()]
    return [(int(number), digest) for number, digest in pairs]


class Checker:
    """Collects what was acknowledged in one home and holds the store against it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.acks: dict[int, str] = {}
        self.verified: set[int] = set()
        self.broken: list[str] = []

    def take(self, pairs: list[tuple[int, str]]) -> None:
        for number, digest in pairs:
            if number in self.acks:
                self.broken.append(f"number {number} was given twice")
            self.acks[number] = digest

    def check(self) -> None:
        store = Store(self.home)
        versions = {version.number: version for version in store.list_versions(MODEL)} if store.list_models() else {}
        if sorted(versions) != list(range(1, len(versions) + 1)):
            self.broken.append(f"numbers have gaps: {sorted(versions)}")
        for number, digest in self.acks.items():
            if number not in versions or versions[number].digest != digest:
                self.broken.append(f"version {number} was acknowledged with {digest} and is not listed so")
        for number in set(versions) - self.verified:
            store.verify(versions[number])
            store.open_artifact(versions[number])
            self.verified.add(number)

    def check_at_rest(self) -> None:
        """Check a home in which nobody publishes."""
        self.verified.clear()
        self.check()
        leftovers = list((self.home / "store").rglob(".incoming-*"))
        if leftovers:
            self.broken.append(f"left over: {leftovers}")
        index = self.home / "store" / "index.json"
        derived = index.read_bytes()
        store = Store(self.home)
        store.rebuild_index()
        if index.read_bytes() != derived:
            self.broken.append("index.json was not up to date after opening")
        unpacked = {path.stat().st_ino for path in (self.home / "store" / "unpacked").rglob("*") if path.is_file()}
        blobs = {path.stat().st_ino for path in (self.home / "store" / "blobs" / "sha256").iterdir()}
        # Of each version two blobs are in no folder: its image manifest and its config.
        if len(blobs - unpacked) != 2 * len(self.verified):
            self.broken.append(f"{len(blobs - unpacked)} blobs are in no folder, of {len(self.verified)} versions")


def run_home(folder: Path, num_kills: int, rng: random.Random) -> Checker:
    checker = Checker(folder / "home")
    publishers = [start_publisher(checker.home, rng.randrange(1 << 30)) for _ in range(2)]
    for index in range(num_kills):
        # The first kill falls into the making of the store, the others anywhere.
        time.sleep(rng.uniform(0, 0.02 if index == 0 else 0.15))
        slot = rng.randrange(2)
        victim = publishers[slot]
        os.kill(victim.pid, signal.SIGKILL)
        _, status = os.waitpid(victim.pid, 0)
        if not os.WIFSIGNALED(status):
            checker.broken.append("a publisher failed by itself")
        checker.take(read_acks(victim))
        os.close(victim.acks)
        checker.take(read_acks(publishers[1 - slot]))
        checker.check()
        publishers[slot] = start_publisher(checker.home, rng.randrange(1 << 30))
    for publisher in publishers:
        os.kill(publisher.pid, signal.SIGKILL)
        os.waitpid(publisher.pid, 0)
        checker.take(read_acks(publisher))
        os.close(publisher.acks)
    checker.check_at_rest()
    return checker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    start_s = time.monotonic()
    num_kills = num_homes = num_acked = num_listed = 0
    broken: list[str] = []
    while num_kills < arguments.kills:
        with tempfile.TemporaryDirectory(prefix="publish-kill-") as folder:
            count = min(KILLS_PER_HOME, arguments.kills - num_kills)
            checker = run_home(Path(folder), count, rng)
        num_kills += count
        num_homes += 1
        num_acked += len(checker.acks)
        num_listed += len(checker.verified)
        broken += checker.broken
    for line in broken:
        print(line, file=sys.stderr)
    print(
        f"publish_kill: {num_kills} kills in {num_homes} homes, {num_acked} versions acknowledged, "
        f"{num_listed} listed and verified, {len(broken)} broken promises, "
        f"seed {arguments.seed}, {time.monotonic() - start_s:.1f} s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
