"""Rows/s of bare ONNX Runtime: the ceiling of whatever serves a model with it.

    python benchmarks/raw_ort.py MODEL ROWS.npz --threads 1 --batch 32 --seconds 5

A batch is run again and again in one process. `serve.py` tries a grid of threads, processes and batches, and then measures
the best of it in turn with the servers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

from machine import busy_seconds
from models import Case

BATCHES = (1, 8, 32)
PROBE_S = 2.0
START_TIMEOUT_S = 60.0


class RawRuntime:
    """Bare ONNX Runtime at the best of a grid; measured as a server is, a row in place of a request."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.file, self.rows = case.file, folder / "rows.npz"
        names = case.rows[0]
        np.savez(self.rows, **{name: np.concatenate([row[name] for row in case.rows]) for name in names})
        cores = os.cpu_count() or 1
        # (threads, processes): one alone, all cores in one process, a process a core.
        grid = itertools.product(sorted({(1, 1), (cores, 1), (1, cores)}), BATCHES)
        tried = {point: self._run(*point[0], point[1], PROBE_S)["rps"] for point in grid}
        (self.threads, self.processes), self.batch = max(tried, key=lambda point: tried[point])
        self.start_s = 0.0
        self.label = f"{self.processes} x {self.threads} thread{'s' * (self.threads > 1)}, batches of {self.batch}"

    def load(self, connections: int, seconds: float) -> dict[str, float]:
        return self._run(self.threads, self.processes, self.batch, seconds)

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        """Rows/s, CPU in us a row and the time of a batch; the number of connections has no meaning here."""
        return self._run(self.threads, self.processes, self.batch, seconds)

    def _run(self, threads: int, processes: int, batch: int, seconds: float) -> dict[str, float]:
        options = [f"--threads={threads}", f"--batch={batch}", f"--seconds={seconds}"]
        command = [sys.executable, __file__, str(self.file), str(self.rows), *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, **pipes) for _ in range(processes)]
        try:
            for each in started:
                assert each.stdout.readline() == "ready\n"
            busy, begin = busy_seconds(), time.perf_counter()
            for each in started:
                each.stdin.write("go\n")
                each.stdin.flush()
            found = [json.loads(each.stdout.readline()) for each in started]
            elapsed, busy = time.perf_counter() - begin, busy_seconds() - busy
        finally:
            for each in started:
                each.kill()
                each.communicate(timeout=START_TIMEOUT_S)
        rows, cpu = sum(each["rows"] for each in found), sum(each["cpu_s"] for each in found)
        return {
            "requests": rows,
            "seconds": seconds,
            "rps": sum(each["rows"] / each["seconds"] for each in found),
            "p50_ms": float(np.median([each["p50_ms"] for each in found])),
            "p99_ms": max(each["p99_ms"] for each in found),
            "errors": 0,
            "cpu_us": cpu / rows * 1e6,
            "client_cores": 0.0,
            "other_cores": max(0.0, busy - cpu) / elapsed,
        }


@contextmanager
def start_raw(case: Case, folder: Path) -> Iterator[RawRuntime]:
    yield RawRuntime(case, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])
    rows = dict(np.load(given.rows))
    feed = {name: np.resize(values, (given.batch, *values.shape[1:])) for name, values in rows.items()}
    for _ in range(3):
        session.run(None, feed)
    print("ready", flush=True)
    sys.stdin.readline()
    times, cpu, start = [], time.process_time(), time.perf_counter()
    while time.perf_counter() - start < given.seconds:
        begin = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - begin)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    p50_ms, p99_ms = np.percentile(times, (50, 99)) * 1000
    found = {"rows": len(times) * given.batch, "seconds": elapsed, "cpu_s": cpu, "p50_ms": p50_ms, "p99_ms": p99_ms}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
