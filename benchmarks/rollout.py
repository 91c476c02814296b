"""Twenty rollouts and rollbacks in a row under 32 public clients: failed, wrong, latency, memory.

    python benchmarks/rollout.py [--count 20] [--pause 2]

The versions are the digits network in float32 and in int8. Every answer is checked against bare ONNX Runtime on
the artifact of the version that the reply names. Latency "during" covers the requests that were under way
between the start of a rollout and its end: load, verify, shift, drain, unload.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from argosy.demo.run import answer_alone, prepare_versions

import argosy
from argosy.demo.crowd import Crowd


def pss_bytes(pid: int) -> int:
    root = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between rollouts")
    options = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        prepared = prepare_versions(store, "digits")
        images = prepared.images
        expected = {
            str(version.number): answer_alone(store, version, images) for version in (prepared.original, prepared.compressed)
        }
        during: list[tuple[float, float]] = []
        memory: list[int] = []
        with argosy.serve("digits@1", home=store.home) as server:
            with Crowd(server, "digits", folder, images, expected, ("image", "logits")) as crowd, server.admin() as admin:
                time.sleep(3)
                for index in range(options.count):
                    start = time.monotonic()
                    if index % 2 == 0:
                        server.deploy("digits@2")
                    else:
                        rollout = admin.rollback("digits")
                        steps = [event.step for event in admin.follow(rollout.id)]
                        assert steps[-1] == "done", steps
                    during.append((start, time.monotonic()))
                    time.sleep(options.pause)
                    memory.append(pss_bytes(server.pid))
        seen = crowd.seen
        assert seen is not None
    starts = [max(end, 0.0) for _, end in during]
    quiet = [(end + 0.2, next_start) for end, (next_start, _) in zip(starts, during[1:], strict=False)]

    def latencies(windows: list[tuple[float, float]]) -> np.ndarray:
        return np.concatenate([seen.between(a, b).column("latency_s") for a, b in windows]) * 1e3

    before, inside = latencies(quiet), latencies(during)
    ratio = float(np.quantile(inside, 0.99) / np.quantile(before, 0.99))
    growth = memory[-1] / memory[1] - 1
    print(
        f"requests {len(seen.rows)}, failed {seen.num_failed}, wrong {seen.num_wrong}; rollouts {len(during)}, "
        f"median {np.median([b - a for a, b in during]):.2f} s, slowest {max(b - a for a, b in during):.2f} s"
    )
    print(
        f"between rollouts: {len(before)} requests, p50 {np.quantile(before, 0.5):.2f} ms, p99 {np.quantile(before, 0.99):.2f} ms"
    )
    print(
        f"during rollouts:  {len(inside)} requests, p50 {np.quantile(inside, 0.5):.2f} ms, p99 {np.quantile(inside, 0.99):.2f} ms, ratio of p99 {ratio:.2f}"
    )
    print(
        f"memory (PSS of all processes) after the second {memory[1] / 2**20:.1f} MB, after the last {memory[-1] / 2**20:.1f} MB: {growth:+.1%}"
    )
    for problem in seen.problems[:5]:
        print("problem:", problem)
    is_good = not seen.num_failed and not seen.num_wrong and not seen.problems and ratio <= 2.0 and growth <= 0.1
    print("PASS" if is_good else "FAIL")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
