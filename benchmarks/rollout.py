"""Twenty rollouts and rollbacks in a row under 32 public clients: failed, wrong, latency, memory.

    python benchmarks/rollout.py [--count 20] [--pause 2]

The versions are the digits network in float32 and as the search makes it smallest. Every answer is checked against the bare
runtime on the artifact of the version that the reply names. Latency "during" covers the requests that were under way
between the start of a rollout and its end: load, verify, shift, drain, unload.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import argosy
from argosy.demo.crowd import Crowd
from argosy.demo.run import answer_alone, choose_tolerances, prepare_versions
from machine import describe_machine, pss_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between rollouts")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        prepared = prepare_versions(store, "digits")
        images = prepared.images
        expected = {
            str(version.number): answer_alone(store, version, images) for version in (prepared.original, prepared.compressed)
        }
        tolerances = choose_tolerances((prepared.original, prepared.compressed))
        during: list[tuple[float, float]] = []
        memory: list[float] = []
        with argosy.serve("digits@1", home=store.home) as server:
            crowd = Crowd(server, "digits", folder, images, expected, ("image", "logits"), tolerances)
            with crowd, server.admin() as admin:
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
    quiet = [(end + 0.2, following) for (_, end), (following, _) in itertools.pairwise(during)]

    def latencies(windows: list[tuple[float, float]]) -> np.ndarray:
        return np.concatenate([seen.between(a, b).column("latency_s") for a, b in windows]) * 1e3

    before, inside = latencies(quiet), latencies(during)
    ratio = float(np.quantile(inside, 0.99) / np.quantile(before, 0.99))
    growth = memory[-1] / memory[1] - 1
    seconds = [end - start for start, end in during]
    print(f"requests {len(seen.rows)}, failed {seen.num_failed}, wrong {seen.num_wrong}")
    print(f"rollouts {len(during)}, median {np.median(seconds):.2f} s, slowest {max(seconds):.2f} s")
    for label, found in (("between rollouts", before), ("during rollouts", inside)):
        p50, p99 = np.quantile(found, (0.5, 0.99))
        print(f"{label}: {len(found)} requests, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(f"p99 during / p99 between: {ratio:.2f}")
    second, last = memory[1] / 2**20, memory[-1] / 2**20
    print(f"memory (PSS of all processes) after the second {second:.1f} MB, after the last {last:.1f} MB: {growth:+.1%}")
    for problem in seen.problems[:5]:
        print("problem:", problem)
    is_good = not seen.num_failed and not seen.num_wrong and not seen.problems and ratio <= 2.0 and growth <= 0.1
    print("PASS" if is_good else "FAIL")
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
