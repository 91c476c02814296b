"""Cases of `test_mxnet.py`: what a run depends on, and loaders.

With `resume` after the folder, the runs whose first half `whole_runs` left there are finished.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np

from argosy.frameworks.base import Batch, FitOptions, loader_framework
from argosy.frameworks.mxnet.library import count_threads, mx
from argosy.optim import Adam, LinearDecay, Momentum
from tests.frameworks.mxnet_models import (
    CONVOLUTIONAL,
    FOLDER,
    FRAMEWORK,
    ROW,
    build,
    case,
    digest,
    make_rows,
    print_cases,
    refuse,
)


def make_run(kind: str) -> tuple[Any, Any]:
    model = build(CONVOLUTIONAL, ROW)
    optimizers = {
        "rule": lambda: Momentum(learning_rate=LinearDecay(0.1, steps=8), weight_decay=0.01, clip_norm=0.5),
        "double": lambda: Adam(),
        # Both keep numbers in attributes; the rate is a whole number at first.
        "own": lambda: mx.optimizer.Nadam(
            learning_rate=1, lr_scheduler=mx.lr_scheduler.FactorScheduler(step=3, factor=0.1, base_lr=1)
        ),
        "noisy": lambda: mx.optimizer.SGLD(learning_rate=0.01),
    }
    if kind == "double":
        model = build(CONVOLUTIONAL, ROW, "float64")
    return model, FRAMEWORK.build_step(model, "cross_entropy", optimizers[kind](), FitOptions(seed=9))


def take_steps(step: Any, kind: str, first: int, last: int) -> None:
    x, y = make_rows(12, ROW, "float64" if kind == "double" else "float32")
    for number in range(first, last + 1):
        step(Batch(x, y), number)


KINDS = ("rule", "double", "own", "noisy")


@case
def whole_runs() -> Any:
    """Ten steps; what there is after the fifth is left for another process."""
    found = {}
    for kind in KINDS:
        _, step = make_run(kind)
        take_steps(step, kind, 1, 5)
        np.savez(FOLDER / f"{kind}.npz", **{name.replace("/", "|"): array for name, array in step.get_state().items()})
        take_steps(step, kind, 6, 10)
        _, again = make_run(kind)
        take_steps(again, kind, 1, 10)
        found[kind] = [digest(step.get_state()), digest(again.get_state())]
    return found


def resume() -> Any:
    found = {}
    for kind in KINDS:
        _, step = make_run(kind)
        with np.load(FOLDER / f"{kind}.npz") as kept:
            step.set_state({name.replace("|", "/"): kept[name] for name in kept})
        take_steps(step, kind, 6, 10)
        found[kind] = digest(step.get_state())
    return found


@case
def state_names() -> Any:
    _, step = make_run("rule")
    state = step.get_state()
    missing = {name: array for name, array in state.items() if name != "optimizer/dense1.weight/v"}
    return {
        "names": sorted(state),
        "missing": refuse(lambda: step.set_state(missing)),
        "shape": refuse(lambda: step.set_state(state | {"weights/dense1.bias": np.zeros(2, np.float32)})),
        "own": sorted(name for name in make_run("own")[1].get_state() if not name.startswith("weights")),
    }


@case
def sessions() -> Any:
    before = count_threads()
    np.random.seed(1)
    random.seed(1)
    mx.random.seed(1)
    with FRAMEWORK.session(3, 2):
        inside = count_threads()
        first = [random.random(), np.random.rand(), float(mx.nd.random.uniform(shape=(1,)).asscalar())]
    followed = float(mx.nd.random.uniform(shape=(1,)).asscalar())
    kept = [random.random(), np.random.rand()]
    mx.random.seed(1)
    with FRAMEWORK.session(3, None):
        second = [random.random(), np.random.rand(), float(mx.nd.random.uniform(shape=(1,)).asscalar())]
        mx.nd.random.uniform(shape=(100,)).wait_to_read()
    np.random.seed(1)
    random.seed(1)
    return {
        "threads": [before, inside, count_threads()],
        "same": first == second,
        "restored": kept == [random.random(), np.random.rand()],
        "followed": followed == float(mx.nd.random.uniform(shape=(1,)).asscalar()),
    }


# loaders


@case
def loaders() -> Any:
    x, y = np.arange(7, dtype=np.float32)[:, None], np.arange(7)

    def read(loader: Any, seed: int = 0) -> Any:
        FRAMEWORK.seed(seed)
        return [[part.asnumpy().ravel().tolist() for part in batch] for batch in FRAMEWORK.read_loader(loader)]

    def read_alone(loader: Any) -> Any:
        batches = FRAMEWORK.read_loader(loader)
        return [(batch[0] if isinstance(batch, tuple | list) else batch).asnumpy().ravel().tolist() for batch in batches]

    def shuffled() -> Any:
        np.random.seed(4)
        return mx.io.NDArrayIter(x, y, batch_size=3, shuffle=True)

    padded = mx.io.NDArrayIter(x, y, batch_size=3)
    dataset = mx.gluon.data.ArrayDataset(x, y)
    first, second = shuffled(), shuffled()
    orders = [read(first, seed) for seed in (1, 2, 1)]
    return {
        "owner": [loader_framework(loader).name for loader in (padded, mx.gluon.data.DataLoader(dataset, 3))],
        "padded": [read(padded), read(padded)],
        "discarded": read(mx.io.NDArrayIter(x, y, batch_size=3, last_batch_handle="discard")),
        "shuffled": [orders[0] == orders[2], orders[0] != orders[1], read(second, 2) == orders[1]],
        "gluon": read(mx.gluon.data.DataLoader(dataset, 3)),
        "gluon-shuffled": [read(mx.gluon.data.DataLoader(dataset, 3, shuffle=True), seed) for seed in (1, 1)],
        "rolled": refuse(lambda: read(mx.io.NDArrayIter(x, y, batch_size=3, last_batch_handle="roll_over"))),
        "alone": read_alone(mx.gluon.data.DataLoader(mx.gluon.data.ArrayDataset(x), 3)),
        "unlabelled": read_alone(mx.io.NDArrayIter(x, batch_size=3)),
        "several": [len(rows) for rows, _ in FRAMEWORK.read_loader(mx.io.NDArrayIter({"a": x, "b": x}, y, batch_size=3))],
    }


if __name__ == "__main__":
    if sys.argv[2:] == ["resume"]:
        print(json.dumps(resume()))
    else:
        print_cases()
