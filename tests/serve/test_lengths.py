"""Requests of different lengths on a real server: joined where warm-up proved it, answered as alone; times and their use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import argosy
from argosy.cli.main import main
from argosy.cli.status import _CLOSED
from argosy.importers.onnx import import_onnx
from argosy.serve.dispatch.service import BATCH_S, ServiceTimes
from argosy.serve.wire.counters import CLOSED
from argosy.serve.wire.padding import fill_padded
from argosy.serve.worker.agreement import largest_difference
from argosy.serve.worker.padding_proof import prove_padding
from argosy.server import Server
from argosy.signature import Ragged, RaggedInput
from tests.home import Home

RAGGED = Ragged({"x": RaggedInput(1)}, {"doubled": 1})


def publish(home: Home, name: str, reduction: str) -> None:
    """A model of x (rows, length): `doubled` = 2 x, and `reduced` = the sum or the mean of a row."""
    graph = helper.make_graph(
        [
            helper.make_node(reduction, ["x", "axes"], ["reduced"], keepdims=1),
            helper.make_node("Add", ["x", "x"], ["doubled"]),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L"])],
        [
            helper.make_tensor_value_info("reduced", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["N", "L"]),
        ],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    path = home.files / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    golden = {"x": np.random.default_rng(3).standard_normal((4, 10)).astype("f4")}
    import_onnx(home.store, path, name, golden_inputs=golden, ragged=RAGGED)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("lengths"))
    publish(home, "sum", "ReduceSum")
    publish(home, "mean", "ReduceMean")
    with home.serve("sum", "mean", num_fronts=3) as running:
        yield running


def ask(server: Server, name: str, rows: list[np.ndarray]) -> list[Any]:
    """Send all at once."""

    async def run() -> list[Any]:
        async with server.async_client() as client:
            return await asyncio.gather(*(client.predict(name, {"x": x}) for x in rows))

    return asyncio.run(run())


def find_series(server: Server, name: str) -> dict[str, Any]:
    with server.admin() as admin:
        return next(series for series in admin.stats()["series"] if series["name"] == name)


@pytest.mark.parametrize(("name", "reduce"), [("sum", np.sum), ("mean", np.mean)], ids=["sum", "mean"])
def test_each_row_answers_as_it_does_alone(server: Server, name: str, reduce: Any) -> None:
    random = np.random.default_rng(0)
    rows = [random.standard_normal((random.integers(1, 4), random.integers(1, 60))).astype("f4") for _ in range(120)]
    for x, answer in zip(rows, ask(server, name, rows), strict=True):
        # float32 sums of 60 values in another order.
        np.testing.assert_allclose(answer["reduced"], reduce(x, axis=1, keepdims=True), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(answer["doubled"], 2 * x)


def test_lengths_are_joined_where_padding_moves_no_answer(server: Server) -> None:
    ask(server, "sum", [np.ones((1, length), "f4") for length in range(1, 60)])
    series = find_series(server, "sum")
    assert series["mean_batch_rows"] > 1.5
    assert 0 < series["padding_share"] < 1
    assert series["closed"]["single"] == 0


def test_lengths_are_not_joined_where_it_does_and_stats_say_why(server: Server) -> None:
    ask(server, "mean", [np.ones((1, length), "f4") for length in range(1, 60)])
    assert find_series(server, "mean")["padding_share"] == 0
    with server.admin() as admin:
        status, fronts = admin.status(), admin.stats()["fronts"]
    (lane,) = next(dep["lanes"] for dep in status["deployments"] if dep["spec"]["name"] == "mean")
    assert lane["join_refusal"] == ""
    assert lane["pad_refusal"].startswith("a row answers differently when it is padded: output 'reduced' moved by ")
    for lanes in fronts.values():
        assert {each["name"]: each["pad_refusal"] for each in lanes} == {"sum": "", "mean": lane["pad_refusal"]}


def test_measured_times_are_kept_by_rows_and_by_length(server: Server) -> None:
    measured = argosy.Store(server.home).get_version("sum@1").measurements
    for name in ("service_s_batch_1", "service_s_batch_64", "service_s_batch_1_length_10", "service_s_batch_1_length_20"):
        assert 0 < measured[name] < 1, name


def test_three_fronts_share_a_worker(server: Server) -> None:
    # Every connection may land on another front: 30 clients reach all three.
    async def run() -> None:
        clients = [server.async_client() for _ in range(30)]
        try:
            asked = [
                client.predict("sum", {"x": np.full((1, 7), index, "f4")})
                for _ in range(3)
                for index, client in enumerate(clients)
            ]
            answers = await asyncio.gather(*asked)
        finally:
            for client in clients:
                await client.close()
        for place, answer in enumerate(answers):
            np.testing.assert_array_equal(answer["reduced"], [[7.0 * (place % 30)]])

    asyncio.run(run())
    with server.admin() as admin:
        stats = admin.stats()
    assert sorted(stats["fronts"]) == ["front-0", "front-1", "front-2"]
    assert all(lane["replicas"] == 1 for lanes in stats["fronts"].values() for lane in lanes)


def test_stats_explain_the_batches(server: Server) -> None:
    ask(server, "sum", [np.ones((1, 5), "f4")])
    shown = CliRunner().invoke(main, ["stats"], env={"ARGOSY_HOME": str(server.home)})
    assert shown.exit_code == 0, shown.output
    assert "sum version 1: batches by rows: <= 1 " in shown.output
    assert "a replica was idle and took all that waited" in shown.output
    assert "mean version 1: rows of different lengths are not joined: a row answers differently" in shown.output
    series = json.loads(CliRunner().invoke(main, ["stats", "--json"], env={"ARGOSY_HOME": str(server.home)}).stdout)["series"][0]
    assert sum(series["closed"].values()) == series["batches"] == sum(size["batches"] for size in series["sizes"])
    assert 0 < series["mean_worker_s"] < series["mean_latency_s"]
    assert 0 <= series["mean_queue_s"] < series["mean_latency_s"]


def test_every_reason_is_explained() -> None:
    assert tuple(_CLOSED) == CLOSED


# the proof


def run_masked(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids, mask = inputs["ids"], inputs["mask"]
    return {"y": (ids * mask).sum(1, keepdims=True).astype("f4"), "z": (ids * mask).astype("f4")}


IDS = {"ids": np.arange(1, 13).reshape(2, 6), "mask": np.ones((2, 6), np.int64)}
BOTH = {"inputs": {"ids": {"axis": 1, "pad": 5.0}, "mask": {"axis": 1, "pad": 0.0}}, "outputs": {"z": 1}}


def test_proof_accepts_a_model_that_heeds_its_mask() -> None:
    assert prove_padding(run_masked, IDS, BOTH, largest_difference) == ""


def forget_mask(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run_masked({**inputs, "mask": np.ones_like(inputs["mask"])})


def follow_longest(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    answer = run_masked(inputs)
    return {**answer, "y": answer["y"] / inputs["ids"].shape[1]}


def take_one_length(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if inputs["ids"].shape[1] != 6:
        raise ValueError("six")
    return run_masked(inputs)


def take_equal_rows(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if len(set(inputs["mask"].sum(1).tolist())) > 1:
        raise ValueError("equal")
    return run_masked(inputs)


def answer_one_length(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**run_masked(inputs), "z": np.zeros((len(inputs["ids"]), 3), "f4")}


@pytest.mark.parametrize(
    ("infer", "reason"),
    [
        (forget_mask, "answers differently when it is padded: output 'y'"),
        (follow_longest, "answers differently when it is padded: output 'y'"),
        (take_one_length, "of the lengths 6, 3, 12, 2 the model runs at one alone"),
        (take_equal_rows, "fails on rows of different lengths"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_proof_refuses_a_model_that_padding_moves(infer: Any, reason: str) -> None:
    assert reason in prove_padding(infer, IDS, BOTH, largest_difference)


def take_largest(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"].max(1)}


def weigh_by_size(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    powers = np.exp(inputs["x"].astype("f8") - inputs["x"].max(1, keepdims=True))
    return {"y": (powers / powers.sum(1, keepdims=True)).max(1).astype("f4")}


def count_positive(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": np.clip(inputs["x"], 0, None).sum(1)}


@pytest.mark.parametrize(
    ("infer", "pad", "reason"),
    [
        (take_largest, 0.0, "where its numbers are negative"),
        (take_largest, -np.inf, ""),
        (weigh_by_size, -1e4, "where its numbers are below the padding"),
        (count_positive, 0.0, ""),
    ],
    ids=["largest", "largest, none is below", "weights", "sum of what counts"],
)
@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_proof_tries_numbers_that_no_example_has(infer: Any, pad: float, reason: str, dtype: str) -> None:
    examples = np.random.default_rng(0).integers(1, 100, (4, 12)).astype(dtype)
    pad = pad if dtype == "f4" else max(pad, -(2.0**31))
    refusal = prove_padding(infer, {"x": examples}, {"inputs": {"x": {"axis": 1, "pad": pad}}, "outputs": {}}, largest_difference)
    assert reason in refusal if reason else refusal == "", refusal


@pytest.mark.parametrize(
    ("array", "pad", "reason"),
    [
        (np.zeros((2, 6), "u1"), -1.0, "cannot hold the pad value -1.0"),
        (np.zeros((2, 6), "i4"), 0.5, "cannot hold the pad value 0.5"),
        (np.zeros((2, 6), "i8"), float("nan"), "cannot hold the pad value nan"),
        (np.full((2, 6), b"a", object), 0.0, "is BYTES"),
    ],
    ids=["negative", "half", "nan", "bytes"],
)
def test_proof_refuses_a_pad_value_that_the_input_cannot_hold(array: np.ndarray, pad: float, reason: str) -> None:
    ragged = {"inputs": {"x": {"axis": 1, "pad": pad}}, "outputs": {}}
    assert reason in prove_padding(lambda inputs: {"y": inputs["x"][:, :1]}, {"x": array}, ragged, largest_difference)


def test_proof_needs_examples() -> None:
    assert "no examples" in prove_padding(run_masked, {}, BOTH, largest_difference)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=5),
    axis=st.integers(1, 2),
    more=st.integers(0, 3),
)
@settings(deadline=None, derandomize=True)
def test_padded_tensor_holds_every_row_and_the_pad_value_else(sizes: list[tuple[int, int]], axis: int, more: int) -> None:
    shapes = [(rows, 2, n) if axis == 2 else (rows, n, 2) for rows, n in sizes]
    parts = [np.random.default_rng(index).integers(1, 100, shape) for index, shape in enumerate(shapes)]
    length = max(n for _, n in sizes) + more
    rows = sum(rows for rows, _ in sizes)
    target = np.full((rows, 2, length) if axis == 2 else (rows, length, 2), -3)
    fill_padded(target, parts, axis, 0)
    expected = [
        np.pad(p, [(0, length - n) if a == axis else (0, 0) for a in range(3)]) for p, (_, n) in zip(parts, sizes, strict=True)
    ]
    np.testing.assert_array_equal(target, np.concatenate(expected))


# times


def test_times_between_measured_batches_are_interpolated() -> None:
    times = ServiceTimes([(1, 0, 0.010), (2, 0, 0.012), (4, 0, 0.020)])
    assert [times.estimate(rows) for rows in (1, 2, 3, 4)] == pytest.approx([0.010, 0.012, 0.016, 0.020])


@given(base=st.floats(1e-5, 1e-1), place=st.floats(1e-7, 1e-3), rows=st.integers(1, 64), length=st.integers(1, 300))
def test_times_that_grow_evenly_are_continued_beyond_what_was_measured(base: float, place: float, rows: int, length: int) -> None:
    measured = [(r, n, base + place * r * n) for r, n in ((1, 8), (2, 8), (4, 8), (1, 16), (1, 4))]
    times = ServiceTimes(measured)
    assert times.estimate(rows, length) == pytest.approx(base + place * rows * length, rel=1e-3)
    assert times.slack == pytest.approx(0.25 * (base + BATCH_S) / place, rel=1e-2)


def test_times_follow_what_batches_take() -> None:
    times = ServiceTimes([(1, 0, 0.010), (8, 0, 0.080)])
    for _ in range(200):
        times.update(6, 0, 0.030)
    assert times.estimate(6) == pytest.approx(0.030)
    # What was not seen lately is slower or faster by as much: half of 0.010 + 0.010 a row.
    assert times.estimate(32) == pytest.approx(0.16, rel=0.05)


def test_nothing_is_known_before_the_first_batch() -> None:
    times = ServiceTimes()
    assert (times.estimate(5), times.least_s, times.pick_range(64)) == (0.0, 0.0, (64, 64))
    times.update(1, 0, 0.010)
    # One batch alone does not say that more rows take longer: they are tried.
    assert (times.estimate(64), times.pick_range(64)) == (pytest.approx(0.010), (64, 64))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 0.010, 2: 0.010, 4: 0.010, 8: 0.010}, (8, 8)),
        ({1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080}, (1, 1)),
        ({1: 0.010, 2: 0.012, 4: 0.024, 8: 0.048}, (2, 2)),
        ({1: 0.010, 2: 0.016, 4: 0.026, 8: 0.060}, (4, 4)),
        ({1: 0.010, 2: 0.016, 4: 0.031, 8: 0.060}, (2, 8)),
        ({1: 10e-6, 2: 20e-6, 4: 40e-6, 8: 80e-6}, (8, 8)),
    ],
    ids=["flat", "linear", "flat_to_2", "worse_beyond_4", "little_gain_beyond_2", "tiny"],
)
def test_size_that_pays_is_the_smallest_that_no_larger_one_betters(seconds: dict[int, float], expected: tuple[int, int]) -> None:
    assert ServiceTimes([(rows, 0, took) for rows, took in seconds.items()]).pick_range(8) == expected


def test_size_that_pays_may_be_no_power_of_two() -> None:
    assert ServiceTimes([(1, 0, 0.01), (2, 0, 0.01), (4, 0, 0.01)]).pick_range(7) == (7, 7)
