"""What clients see of versions behind a real server: measured in turn with the original, and what the choice goes by."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from argosy.bench.artifact import open_version
from argosy.compress import Guard, compress
from argosy.compress.measure import Cost, Gain, Overhead, Served
from argosy.compress.recipe import get_recipe, run_recipe
from argosy.compress.sample import take_sample
from argosy.compress.served import Candidate, Stage
from argosy.compress.steps.base import Workshop
from argosy.deploy.spec import Arrival, DeploymentSpec
from argosy.deploy.worker_spec import estimate_memory
from argosy.errors import InputError
from argosy.importers.onnx import import_onnx
from argosy.server import serve
from argosy.tune.traffic import build_mix
from tests.graphs import write_graph

served = importlib.import_module("argosy.compress.served")
SEEN = Served(2e-4, 9e-4, 3e-3, 8e-3, 8000.0, 32, 12_000_000, 5)
COST = Cost(1000, 50_000_000, 0.1, 1e-4, 3e-4, 2e-5, 32, 0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rounds as there are at least, each as short as can be."""
    for name, value in {"_LEAST_S": 0.05, "_WARM_S": 0.02, "_ROUNDS": 2, "_FIRST_ROUNDS": 1, "_CALM": 9.0}.items():
        monkeypatch.setattr(served, name, value)


def make_wide(path: Path, *, rows: Any = "N", layers: int = 1) -> Path:
    """Layers of 512 numbers."""
    random = np.random.default_rng(0)
    names = ["x", *(f"h{index}" for index in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]]) for index in range(layers)]
    weights = {f"w{index}": (random.normal(size=(512, 512)) / 23).astype(np.float32) for index in range(layers)}
    return write_graph(path, nodes, [("x", "FP32", [rows, 512])], [("y", "FP32", [rows, 512])], weights)


@pytest.mark.alone
def test_given_method_is_served_beside_its_original_and_the_version_keeps_what_was_seen(
    store: Any, tmp_path: Any, as_served: None
) -> None:
    import_onnx(store, make_wide(tmp_path / "wide.onnx"), "wide")
    rows = np.random.default_rng(1).normal(size=(120, 512)).astype(np.float32)
    result = compress("wide", method="float16", data=rows, served=True, store=store)
    before, after = result.before.served, result.after.served
    assert before is not None and after is not None and result.unserved == ""
    for seen in (before, after):
        assert 0 < seen.p50_s <= seen.p99_s and 0 < seen.load_p50_s <= seen.load_p99_s
        assert seen.rows_per_s > 0 and seen.memory_bytes > 1 << 20 and (seen.connections, seen.rounds) == (32, 2)
    assert result.before.overhead == result.after.overhead and result.before.overhead is not None
    assert result.before.overhead.alone_s == pytest.approx(before.p50_s - result.before.latency_s)
    assert result.version is not None
    found = result.version.measurements
    assert (found["p50_s"], found["rows_per_s"], found["memory_bytes"]) == (after.p50_s, after.rows_per_s, after.memory_bytes)
    assert result.version.manifest.lineage["compression"]["after"]["served"]["load_p99_s"] == after.load_p99_s
    # A rollout goes by that.
    assert estimate_memory(DeploymentSpec("wide", "wide", 2), result.version) == after.memory_bytes
    with serve(home=store.home) as server, server.admin() as admin:
        rollout = admin.deploy(DeploymentSpec("wide", "wide", 2))
        told = [event.detail for event in admin.follow(rollout.id) if event.step == "verify"]
    assert "; a row takes 0." in told[0] and f"{result.after.latency_s * 1e3:.3g} ms when it was compressed" in told[0]


@pytest.mark.alone
def test_version_without_rows_is_served_too(store: Any, tmp_path: Any, as_served: None) -> None:
    import_onnx(store, make_wide(tmp_path / "fixed.onnx", rows=1), "fixed")
    requests = np.random.default_rng(1).normal(size=(40, 1, 512)).astype(np.float32)
    result = compress("fixed", method="float16", data=requests, guard=Guard("cosine"), served=True, store=store)
    assert result.after.served is not None and result.version is not None
    golden = store.load_golden(result.version)
    assert golden.outputs["y"].shape[1:] == (1, 512)


@pytest.mark.slow
@pytest.mark.alone
def test_requests_are_like_those_of_a_trace_and_who_is_behind_is_left_out(store: Any, tmp_path: Any) -> None:
    version = import_onnx(store, make_wide(tmp_path / "deep.onnx", layers=12), "deep")
    parent = open_version(store, version)
    rows = take_sample(parent.signature, np.random.default_rng(1).normal(size=(20, 512)).astype(np.float32)).rows
    same = run_recipe(get_recipe("simplify"), parent, Workshop(tmp_path / "same"))
    slow = run_recipe(get_recipe("simplify"), parent, Workshop(tmp_path / "slow"))
    make_wide(slow.path, layers=120)
    broken = run_recipe(get_recipe("simplify"), parent, Workshop(tmp_path / "broken"))
    broken.path.write_bytes(b"no model")
    trace = [Arrival(at_s=0.0, rows=3), Arrival(at_s=0.1, rows=5)]
    recipe = get_recipe("simplify")
    with Stage(parent, version, rows, tmp_path / "stage", trace) as stage:
        found = stage.race([Candidate(recipe, made, 1) for made in (same, slow, broken)], COST, "latency")
    (old, new), (_, behind) = (one for one in found[:2] if not isinstance(one, str))
    problem = found[2]
    assert isinstance(problem, str) and problem.startswith("it cannot be served: ") and "Protobuf" in problem
    assert (old.rounds, new.rounds, behind.rounds) == (2, 2, 1)
    assert behind.p50_s > 2 * new.p50_s and old.connections == 32
    # Rows, and not requests, by the second: three and five in turn.
    assert old.rows_per_s > 2 / old.load_p50_s


def test_mix_has_each_kind_as_often_as_the_trace(store: Any, tmp_path: Any) -> None:
    version = import_onnx(store, make_wide(tmp_path / "wide.onnx"), "wide")
    trace = [Arrival(at_s=float(place), rows=1 if place % 4 else 6) for place in range(400)]
    mix = build_mix(version.manifest.signature, store.load_golden(version), trace, "wide")
    assert len(mix.arrays) == 64 and set(mix.rows) == {1, 6}
    assert [len(arrays["x"]) for arrays in mix.arrays] == mix.rows
    with pytest.raises(InputError, match="has no free axis but rows"):
        build_mix(version.manifest.signature, store.load_golden(version), [Arrival(0.0, 1, 9), Arrival(1.0, 1, 8)], "wide")


def test_trace_needs_a_server(store: Any, tmp_path: Any) -> None:
    import_onnx(store, make_wide(tmp_path / "wide.onnx"), "wide")
    with pytest.raises(InputError, match="served"):
        compress("wide", method="float16", trace=[Arrival(0.0), Arrival(1.0)], served=False, store=store)


def test_cost_is_what_clients_saw_or_what_is_to_be_expected() -> None:
    overhead = Overhead(alone_s=1e-4, row_s=1e-4, memory_bytes=-40_000_000)
    expected = dataclasses.replace(COST, overhead=overhead)
    assert (COST.request_s, COST.row_s, COST.worker_bytes) == (1e-4, 2e-5, 50_000_000)
    assert (expected.request_s, expected.row_s, expected.worker_bytes) == pytest.approx((2e-4, 1.2e-4, 10_000_000))
    seen = dataclasses.replace(expected, served=SEEN)
    assert (seen.request_s, seen.row_s, seen.worker_bytes) == (2e-4, 1 / 8000, 12_000_000)


def test_gain_is_what_clients_saw_and_no_gain_what_is_within_the_noise() -> None:
    def served_in(p50_s: float, noise: float) -> Cost:
        # Alone it is ten times faster, which nobody sees.
        return dataclasses.replace(COST, latency_s=1e-5, served=dataclasses.replace(SEEN, p50_s=p50_s, noise=noise))

    before = dataclasses.replace(COST, served=SEEN)
    assert Gain(before, served_in(1.9e-4, 0.0)).gains == []
    assert Gain(before, served_in(1e-4, 0.0)).gains == ["an answer to one client is 2.00 times faster (200.0 -> 100.0 us)"]
    assert Gain(before, served_in(1.6e-4, 0.3)).gains == []


def test_rare_slow_answers_are_a_loss_only_beyond_their_own_noise() -> None:
    def served_in(load_p99_s: float, tail_noise: float) -> Cost:
        seen = dataclasses.replace(SEEN, p50_s=1.6e-4, load_p99_s=load_p99_s, tail_noise=tail_noise)
        return dataclasses.replace(COST, size_bytes=COST.size_bytes * 98 // 100, served=seen)

    before = dataclasses.replace(COST, served=dataclasses.replace(SEEN, tail_noise=0.1))
    assert Gain(before, served_in(11e-3, 0.15)).is_one
    slow = Gain(before, served_in(11e-3, 0.0))
    assert not slow.is_one and slow.losses == ["the 99th percentile of 32 clients is 1.38 times slower (8000.0 -> 11000.0 us)"]
