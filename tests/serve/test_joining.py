"""An answer never depends on who shares the batch: through a server, under clients that send very different rows at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from argosy.importers.onnx import import_onnx
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from tests.home import SIGNATURE, WIDTH, Home, golden_scale, row
from tests.processes import wait_until

node = helper.make_node
NONE: Mapping[str, Any] = {}


def publish_graph(
    home: Home, nodes: list[Any], weights: Mapping[str, Any] = NONE, shape: tuple[int, ...] = (WIDTH,), **given: Any
) -> Path:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name in ("x", "y")]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], made)
    path = home.files / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    import_onnx(home.store, path, "graph", **given)
    return path


def ask_at_once(
    server: Server, name: str, draw: Callable[[np.random.Generator], np.ndarray], num: int = 40
) -> list[tuple[Any, Any]]:
    """Requests of eight clients at a time, and the answers."""
    found: list[tuple[Any, Any]] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        with server.client() as client:
            for _ in range(num):
                x = draw(random)
                found.append((x, client.predict(name, {"x": x})["y"]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * num
    return found


def describe_joining(server: Server, name: str) -> dict[str, Any]:
    with server.admin() as admin:
        return next(lane for lanes in admin.stats()["fronts"].values() for lane in lanes if lane["name"] == name)


def test_rows_scaled_by_the_largest_of_all_are_never_joined(home: Home) -> None:
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0, name="brightest"),
        node("Greater", ["m", "one"], ["c"]),
        node("Div", ["x", "k"], ["s"]),
        node("Where", ["c", "s", "x"], ["y"]),
    ]
    publish_graph(home, nodes, {"one": np.float32(1), "k": np.float32(255)})
    with home.serve("graph") as server:
        found = ask_at_once(server, "graph", lambda random: (random.random((1, WIDTH)) * random.choice([1, 255])).astype("f4"))
        for x, y in found:
            np.testing.assert_allclose(y, x / 255 if x.max() > 1 else x, rtol=1e-6)
        lane = describe_joining(server, "graph")
    assert (lane["can_join"], "ReduceMax 'brightest'" in lane["join_refusal"]) == (False, True)


def test_rows_quantised_by_the_range_of_all_are_never_joined(home: Home) -> None:
    nodes = [node("MatMul", ["x", "w"], ["l"]), node("Softmax", ["l"], ["y"], axis=-1)]
    weights = {"w": np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype("f4")}
    path = publish_graph(home, nodes, weights)
    quantize_dynamic(str(path), str(home.files / "int8.onnx"))
    import_onnx(home.store, home.files / "int8.onnx", "int8")
    session: Any = onnxruntime.InferenceSession(str(home.files / "int8.onnx"))
    with home.serve("int8") as server:
        for x, y in ask_at_once(
            server, "int8", lambda random: (random.standard_normal((1, WIDTH)) * random.choice([1, 5])).astype("f4")
        ):
            np.testing.assert_allclose(y, session.run(None, {"x": x})[0], rtol=1e-3)
        assert "DynamicQuantizeLinear" in describe_joining(server, "int8")["join_refusal"]


def test_independent_rows_are_joined_and_exact_ones_are_not(home: Home) -> None:
    publish_graph(home, [node("MatMul", ["x", "w"], ["y"])], {"w": np.eye(WIDTH, dtype="f4") * 3})
    with home.serve("graph") as server:
        lane = describe_joining(server, "graph")
        assert lane["can_join"] and lane["joining"].startswith("independent: ")
        server.deploy("graph", exact=True)
        assert "exact" in describe_joining(server, "graph")["join_refusal"]
        for x, y in ask_at_once(server, "graph", lambda random: random.standard_normal((1, WIDTH)).astype("f4"), 10):
            np.testing.assert_array_equal(y, x * 3)


def test_escape_of_a_row_is_found_ends_joining_and_is_remembered(home: Home) -> None:
    # No trial has this number; where one row has it, all that share its batch are tripled.
    home.publish_code("return {'y': x * (3 if (x == 777).any() else 2)}", golden=golden_scale())
    with home.serve() as server:
        server.deploy("code", allow_code=True, max_batch_rows=16)
        lane = describe_joining(server, "code")
        assert lane["can_join"] and lane["joining"].startswith("unknown: ")

        def has_ended() -> bool:
            ask_at_once(server, "code", lambda random: row(float(random.choice([1.0, 777.0]))), 50)
            return not describe_joining(server, "code")["can_join"]

        wait_until(has_ended, 60.0)
        refusal = describe_joining(server, "code")["join_refusal"]
        assert "a joined row, run again alone, answered differently: output 'y' moved by" in refusal
        for x, y in ask_at_once(server, "code", lambda random: row(float(random.choice([1.0, 777.0]))), 20):
            np.testing.assert_array_equal(y, x * (3 if x[0, 0] == 777 else 2))
        wait_until(lambda: home.store.get_version("code@1").measurements.get("joined_row_difference"))
    with home.serve() as server, server.client() as client:
        wait_until(lambda: client.is_ready("code"))
        # Joined before its worker's word on that has come, it never is.
        assert not describe_joining(server, "code")["can_join"]
        wait_until(lambda: "has moved by" in describe_joining(server, "code")["join_refusal"])
        assert not describe_joining(server, "code")["can_join"]


HARM = {"takes too long": "time.sleep(1.5)", "ends the process": "os._exit(1)"}


@pytest.mark.parametrize("harm", HARM)
def test_model_whose_code_a_made_up_row_harms_answers_clients_as_if_there_had_been_none(home: Home, harm: str) -> None:
    # Whoever cuts it off leaves it at its work.
    body = f"self.count += 1\nif (x < 0).any(): {HARM[harm]}\nself.count -= 1\nreturn {{'y': x * 2 if not self.count else x * 0}}"
    home.publish_code(body, golden=golden_scale())
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        np.testing.assert_array_equal(client.predict("code", {"x": row(3)})["y"], row(6))
        # It was left so in the copy in which rows were tried.
        assert not describe_joining(server, "code")["can_join"]


def test_model_that_has_threads_of_its_own_is_tried_where_they_are(home: Home) -> None:
    # As a library's pool has: a copy of the process would have none, and wait for ever.
    body = "return {'y': self.pool.submit(lambda: x * 2).result()}"
    load = "from concurrent.futures import ThreadPoolExecutor\nself.pool = ThreadPoolExecutor(1)\nself.pool.submit(int).result()"
    home.publish_code(body, load=load, golden=golden_scale())
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        assert describe_joining(server, "code")["can_join"]
        np.testing.assert_array_equal(client.predict("code", {"x": row(3)})["y"], row(6))


def test_ids_that_not_every_number_is_are_deployed(home: Home) -> None:
    nodes = [
        node("Cast", ["x"], ["ids"], to=7),
        node("Gather", ["table", "ids"], ["e"]),
        node("ReduceSum", ["e", "last"], ["y"], keepdims=0),
    ]
    weights = {"table": np.arange(100, dtype="f4").reshape(50, 2), "last": np.array([2])}
    ids = np.random.default_rng(0).integers(0, 50, (8, WIDTH)).astype("f4")
    publish_graph(home, nodes, weights, golden_inputs={"x": ids})
    home.publish_code("assert (x < 50).all(); return {'y': x * 2}", golden=golden_scale())
    with home.serve("graph") as server:
        server.deploy("code", allow_code=True)
        for name in ("graph", "code"):
            assert describe_joining(server, name)["can_join"], name


@pytest.mark.parametrize(
    ("nodes", "y", "weights", "sizes"),
    [
        pytest.param(
            [
                node("Gather", ["x", "z"], ["s"], axis=1),
                node("Greater", ["s", "h"], ["c"]),
                node("Compress", ["x", "c"], ["y"], axis=0),
            ],
            ["M", WIDTH],
            {"z": np.array(0), "h": np.float32(0.5)},
            [3, 1, 5],
            id="as many as it finds",
        ),
        pytest.param(
            [
                node("Gather", ["x", "z"], ["s"], axis=1),
                node("Greater", ["s", "h"], ["c"]),
                node("Compress", ["x", "c"], ["y"], axis=0),
            ],
            [None, WIDTH],
            {"z": np.array(0), "h": np.float32(0.5)},
            [3, 1, 5],
            id="as many as it finds, without a name",
        ),
        pytest.param([node("Concat", ["x", "x"], ["y"], axis=0)], ["M", WIDTH], {}, [1, 4], id="twice as many"),
    ],
)
def test_outputs_with_other_rows_are_served_one_request_a_run(
    home: Home, nodes: Any, y: Any, weights: Any, sizes: list[int]
) -> None:
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, y),
    ]
    made = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    path = home.files / "odd.onnx"
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    version = import_onnx(home.store, path, "odd")
    assert not version.manifest.signature.is_batched
    session: Any = onnxruntime.InferenceSession(str(path))
    with home.serve("odd") as server, server.client() as client:
        for size in sizes:
            x = np.random.default_rng(size).random((size, WIDTH)).astype("f4")
            np.testing.assert_array_equal(client.predict("odd", {"x": x})["y"], session.run(None, {"x": x})[0])


def test_nodes_and_edges_are_served_in_their_own_numbers(home: Home) -> None:
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("e", TensorProto.INT64, ["E", 2]),
    ]
    nodes = [
        node("Gather", ["e", "z"], ["s"], axis=1),
        node("Gather", ["x", "s"], ["g"], axis=0),
        node("ReduceSum", ["g", "first"], ["t"], keepdims=1),
        node("Add", ["x", "t"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.array(0), "z"), numpy_helper.from_array(np.array([0]), "first")]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])], weights)
    path = home.files / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    import_onnx(home.store, path, "net")
    x, edges = np.arange(12, dtype="f4").reshape(4, 3), np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
    with home.serve("net") as server, server.client() as client:
        np.testing.assert_array_equal(client.predict("net", {"x": x, "e": edges})["y"], x + x[edges[:, 0]].sum(0))


def test_waveform_is_one_request_however_many_samples_it_has(home: Home) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["samples"]) for name in ("wave", "y")]
    weights = [numpy_helper.from_array(np.array(0), "axis")]
    graph = helper.make_graph([node("CumSum", ["wave", "axis"], ["y"])], "g", infos[:1], infos[1:], weights)
    path = home.files / "wave.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    import_onnx(home.store, path, "wave")
    with home.serve("wave") as server, server.client() as client:
        assert client.predict("wave", {"wave": np.ones(16_000, "f4")})["y"][-1] == 16_000


def test_number_beside_rows_has_golden_examples(home: Home) -> None:
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2]),
        helper.make_tensor_value_info("k", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(
        [node("Mul", ["x", "k"], ["y"])], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    )
    path = home.files / "k.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    assert import_onnx(home.store, path, "k").manifest.num_golden == 8
    given = {"x": np.ones((2, 3, 2), "f4"), "k": np.array([2, 3], "f4")}
    assert import_onnx(home.store, path, "k", golden_inputs=given).manifest.num_golden == 2
    with home.serve("k") as server, server.client() as client:
        np.testing.assert_array_equal(client.predict("k", {"x": np.ones((1, 2), "f4"), "k": np.array(5, "f4")})["y"], [[5, 5]])


def test_python_model_may_say_that_its_first_axes_are_no_rows(home: Home) -> None:
    signature = Signature(SIGNATURE.inputs, (TensorSpec("y", "FP32", (-1,)),), has_rows=False)
    home.publish_code("return {'y': x.ravel()}", signature=signature)
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        x = np.arange(3 * WIDTH, dtype="f4").reshape(3, WIDTH)
        np.testing.assert_array_equal(client.predict("code", {"x": x})["y"], x.ravel())
