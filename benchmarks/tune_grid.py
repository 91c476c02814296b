"""Hold `argosy tune` against an exhaustive grid: the ratio of its choice's requests/s to those of the grid's best.

    python benchmarks/tune_grid.py [--models mlp,minilm,crnn] [--seconds 2] [--rounds 9] [--budget-s 120]
                                   [--batches 1,8,32,64,128] [--fronts 1,2]

The grid is every engine that answers within cosine 0.9999 x replicas x largest batch x fronts: 90 points on two cores. Each
point is measured once; then the best three and tune's choice are measured in turn, `--rounds` times, and the choice compared,
round by round, with that of the three which has the best median: the best of many short runs is the luckiest of them. Wanted: a
ratio of at least 0.95. Needs the extras openvino and minilm.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import argosy
from argosy.environment import is_importable
from argosy.importers.onnx import import_onnx
from argosy.serve.worker.cores import count_cores
from argosy.tune.bench import Bench
from argosy.tune.candidate import Candidate, list_engines, list_replicas
from argosy.tune.engine import EngineBench
from argosy.tune.run import tune
from argosy.tune.search import Goal, describe
from argosy.tune.traffic import Traffic, build_requests
from machine import describe_machine
from models import make_mlp
from ratios import Ratio, find_interval, judge

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

HEIGHT, CHANNELS, CLASSES = 32, (1, 32, 64, 96), 97


def make_crnn(path: Path) -> Path:
    """Text lines of any width to class scores by column, as OCR recognisers are before their decoder; random weights.

    Three convolutions, each halving the height (the first two the width, too), then a linear layer over columns. Columns at the
    right edge see the padding, so widths are not joined by padding: only equal ones are.
    """
    random = np.random.default_rng(5)
    nodes, weights, current = [], [], "pixels"
    for index, (before, after) in enumerate(itertools.pairwise(CHANNELS)):
        kernel = random.standard_normal((after, before, 3, 3)) / (9 * before) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype("f4"), f"k{index}"))
        nodes.append(helper.make_node("Conv", [current, f"k{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        shape = [2, 2] if index < 2 else [2, 1]
        nodes.append(helper.make_node("MaxPool", [f"r{index}"], [f"p{index}"], kernel_shape=shape, strides=shape))
        current = f"p{index}"
    features = CHANNELS[-1] * HEIGHT // 8
    weights.append(numpy_helper.from_array(np.array([0, features, -1]), "flat"))
    weights.append(numpy_helper.from_array((random.standard_normal((features, CLASSES)) / features**0.5).astype("f4"), "w"))
    nodes += [
        helper.make_node("Reshape", [current, "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["steps"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["steps", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "crnn",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 1, HEIGHT, "W"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "T", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def publish(store: argosy.Store, name: str, folder: Path) -> tuple[argosy.Version, Traffic]:
    """A model, and the traffic that it is tuned for."""
    path = folder / f"{name}.onnx"
    if name == "mlp":
        return import_onnx(store, make_mlp(path), name), Traffic(connections=64)
    if name == "crnn":
        lines = np.random.default_rng(1).standard_normal((8, 1, HEIGHT, 128)).astype("f4")
        return import_onnx(store, make_crnn(path), name, golden_inputs={"pixels": lines}), Traffic(
            lengths=(32, 48), connections=32
        )
    from minilm import SENTENCES, export_minilm, tokenize

    return import_onnx(store, export_minilm(path), name, golden_inputs=tokenize(SENTENCES)), Traffic(
        lengths=(32, 32), connections=32
    )


def list_grid(engines: EngineBench, version: argosy.Version, min_cosine: float, options: argparse.Namespace) -> list[Candidate]:
    known = list_engines(version.manifest.runtime, ["openvino"] if is_importable("openvino") else [], count_cores())
    good = [engine for engine in known if not engines.measure(engine, known[0], min_cosine).problem]
    return [
        Candidate(engine, replicas, rows, fronts)
        for engine in good
        for replicas in list_replicas(engine, count_cores())
        for rows in map(int, options.batches.split(","))
        for fronts in map(int, options.fronts.split(","))
    ]


def compare(store: argosy.Store, name: str, folder: Path, options: argparse.Namespace) -> None:
    version, traffic = publish(store, name, folder)
    goal, seconds = Goal(budget_s=options.budget_s), options.seconds
    before = time.monotonic()
    outcome = tune(store, version, traffic, goal, restart=True, say=lambda text: print(f"  tune: {text}", flush=True))
    choice = outcome.choice.candidate
    tune_s = time.monotonic() - before
    golden, artifact = store.load_golden(version), store.open_artifact(version)
    requests = build_requests(version.manifest.signature, golden, traffic, name)
    work = folder / f"grid-{name}"
    engines = EngineBench(version, artifact, golden, requests, work / "engines", goal.p99_s)
    grid = sorted(list_grid(engines, version, goal.min_cosine, options), key=lambda candidate: candidate.num_fronts)
    before = time.monotonic()
    with Bench(version, artifact, golden, traffic, requests, work, goal.p99_s) as bench:
        rates: dict[Candidate, list[float]] = {}
        for candidate in grid:
            found = bench.measure(candidate, seconds)
            rates[candidate] = [found.good_per_s]
            print(f"  {candidate}: {describe(found)}, {found.other_cpu:.2f} cores taken by others", flush=True)
        grid_s = time.monotonic() - before
        best = sorted(grid, key=lambda candidate: rates[candidate], reverse=True)[:3]
        held: dict[Candidate, list[float]] = {candidate: [] for candidate in dict.fromkeys([*best, choice])}
        for _ in range(options.rounds):
            for candidate in held:
                held[candidate].append(bench.measure(candidate, seconds).good_per_s)
    medians = {candidate: statistics.median(values) for candidate, values in held.items()}
    top = max(best, key=lambda candidate: medians[candidate])
    ratios = [mine / other for mine, other in zip(held[choice], held[top], strict=True)]
    ratio = Ratio(statistics.median(ratios), *find_interval(ratios), f"{len(ratios)}")
    print(f"{name}: tune chose {choice}: {medians[choice]:.0f} requests/s ({tune_s:.0f} s)")
    print(f"{name}: best of {len(grid)} on the grid is {top}: {medians[top]:.0f} requests/s ({grid_s:.0f} s)")
    print(f"{name}: ratio {ratio}, limit 0.95: {judge(0.95, math.inf, ratio)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,minilm,crnn")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget-s", type=float, default=120.0)
    parser.add_argument("--batches", default="1,8,32,64,128")
    parser.add_argument("--fronts", default="1,2")
    options = parser.parse_args()
    print(f"{describe_machine()}; {options.seconds} s a measurement, {options.rounds} rounds of the best")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        for model in options.models.split(","):
            compare(store, model, folder, options)


if __name__ == "__main__":
    main()
