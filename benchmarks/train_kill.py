"""Kill training runs at random moments with SIGKILL, resume them, and hold the weights against an undisturbed run's.

    python benchmarks/train_kill.py [--kills 20] [--frameworks torch,keras,tensorflow,mxnet,jax] [--data memory,stream]
                                    [--workers 1] [--seed 0]

So many kills for rows in memory, and as many for the same rows as a stream of Parquet files. Every run trains the same small
network (convolution, batch normalisation, dropout), keeps a checkpoint at every step, and prints the SHA-256 of its final weights
and of its history. With several workers, one of them is killed in every other run, which goes on by itself. Exit status 1 if any
differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for what the tests share

from tests.frameworks.small_run import write_data  # noqa: E402

from argosy.environment import find_interpreter, lives_apart  # noqa: E402

PAUSE_S = 0.02
NUM_WORKERS = [1]
NUM_STEPS = 12 * 6


def start(framework: str, folder: Path, pause_s: float, data: Path | None) -> subprocess.Popen[str]:
    python = find_interpreter(framework) if lives_apart(framework) else sys.executable
    command = [str(python), "-W", "ignore", "-m", "tests.frameworks.small_run", framework, str(folder), str(pause_s)]
    command += [] if data is None else [str(data)]
    variables = {**os.environ, "WORKERS": str(NUM_WORKERS[0])}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit(f"a run ended with code {process.returncode}:\n{err[-3000:]}")
    return out.strip().splitlines()[-1]


def find_workers(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "argosy.train.member"], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def kill_and_resume(framework: str, folder: Path, after_step: int, data: Path | None, *, is_worker: bool) -> tuple[int, str]:
    """Kill a run, or one of its workers, once it has passed a step, resume it; from which step, and what it printed."""
    process = start(framework, folder, PAUSE_S, data)
    marker = folder / f"step-{after_step:09d}.npz"
    passed = 0
    while process.poll() is None and not passed:
        passed = after_step if marker.exists() else 0
        time.sleep(0.001)
    time.sleep(random.uniform(0, PAUSE_S))
    if is_worker and (workers := find_workers(process.pid)):
        os.kill(random.choice(workers), signal.SIGKILL)
        return after_step, finish(process)
    process.kill()
    process.wait()
    kept = sorted(folder.glob("step-*.npz"))
    return int(kept[-1].stem.removeprefix("step-")) if kept else 0, finish(start(framework, folder, 0.0, data))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--frameworks", default="torch,keras,tensorflow,mxnet,jax")
    parser.add_argument("--data", default="memory,stream")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    NUM_WORKERS[0] = options.workers
    random.seed(options.seed)
    broken = num_kills = 0
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch, "rows")
        write_data(rows)
        for kind in options.data.split(","):
            folder = Path(scratch, kind)
            num_kills += options.kills
            broken += kill_all(options.frameworks.split(","), options.kills, folder, rows if kind == "stream" else None)
    print(f"{num_kills} kills, {broken} runs that ended otherwise")
    raise SystemExit(1 if broken else 0)


def kill_all(frameworks: list[str], num_kills: int, folder: Path, data: Path | None) -> int:
    """Kill runs of each framework in turn; how many ended otherwise."""
    kind, broken = folder.name, 0
    expected = {name: finish(start(name, folder / f"{name}-whole", 0.0, data)) for name in frameworks}
    for number in range(num_kills):
        name = frameworks[number % len(frameworks)]
        after_step = random.randrange(1, NUM_STEPS - 5)
        is_worker = NUM_WORKERS[0] > 1 and number // len(frameworks) % 2 == 0
        step, got = kill_and_resume(name, folder / f"{name}-{number}", after_step, data, is_worker=is_worker)
        is_same = got == expected[name]
        broken += not is_same
        said = "same" if is_same else "DIFFERENT"
        victim = "worker" if is_worker else "run"
        print(f"{name:<11} {kind:<7} {victim:<6} killed after step {step:>2} of {NUM_STEPS}  {said}  {got[:12]}", flush=True)
    return broken


if __name__ == "__main__":
    main()
