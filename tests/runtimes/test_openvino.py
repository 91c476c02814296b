"""The runtime openvino: ONNX versions and its own files, in float32 and bfloat16, next to what ONNX Runtime answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import argosy
from argosy.cli.main import main
from argosy.deploy.ledger import Ledger
from argosy.errors import FaultError, InputError
from argosy.importers.foreign import import_foreign
from argosy.importers.onnx import import_onnx
from argosy.serve.worker.agreement import measure_cosine
from argosy.server import Server
from tests.home import Home
from tests.processes import find_workers

openvino: Any = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")

WIDTH = 16
# float32 kernels that sum in another order: 1e-6 was seen.
TOLERANCE = 1e-5


def make_network(path: Path, *, offset: float = 0.0) -> Path:
    """y = relu(x @ w + offset) @ v - offset; over any number of rows. A large offset leaves bfloat16 no digits."""
    random = np.random.default_rng(3)
    weights = {
        "w": random.standard_normal((WIDTH, WIDTH)).astype("f4"),
        "v": np.eye(WIDTH, dtype="f4"),
        "b": np.full(WIDTH, offset, "f4"),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["m"]),
        helper.make_node("Sub", ["m", "b"], ["y"]),
    ]
    return save_graph(path, nodes, {"x": (TensorProto.FLOAT, ["N", WIDTH])}, {"y": (TensorProto.FLOAT, ["N", WIDTH])}, weights)


def save_graph(
    path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, np.ndarray]
) -> Path:
    infos = [[helper.make_tensor_value_info(name, *kind) for name, kind in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Server]]:
    home = Home(tmp_path_factory.mktemp("openvino"))
    import_onnx(home.store, make_network(home.files / "net.onnx"), "net")
    import_onnx(home.store, make_network(home.files / "steep.onnx", offset=65536.0), "steep")
    with home.serve() as server:
        yield home, server


def ask(server: Server, name: str, x: np.ndarray) -> np.ndarray:
    with server.client() as client:
        return client.predict(name, {"x": x})["y"]


def test_onnx_version_runs_by_openvino_and_back(shared: tuple[Home, Server]) -> None:
    home, server = shared
    rows = [np.random.default_rng(n).standard_normal((n, WIDTH)).astype("f4") for n in (1, 2, 7, 64, 3)]
    server.deploy("net", name="moved")
    expected = [ask(server, "moved", x) for x in rows]
    server.deploy("net", name="moved", runtime="openvino")
    for x, want in zip(rows, expected, strict=True):
        np.testing.assert_allclose(ask(server, "moved", x), want, atol=TOLERANCE)
    assert httpx.get(f"{server.url}/v2/models/moved").json()["platform"] == "openvino_model"

    server.deploy("net", name="moved", precision="bfloat16")
    for x, want in zip(rows, expected, strict=True):
        got = ask(server, "moved", x)
        assert got.dtype == np.float32
        assert 0.9999 < measure_cosine(got, want) < 1.0, "bfloat16 rounds, and no more than that"
    with server.admin() as admin:
        (lane,) = next(d for d in admin.status()["deployments"] if d["spec"]["name"] == "moved")["lanes"]
    assert (lane["runtime"], lane["precision"], lane["join_refusal"]) == ("openvino", "bfloat16", "")

    server.deploy("net", name="moved", runtime="onnx")
    # A worker that loads anew may find another number of threads best, which sum in another order.
    np.testing.assert_allclose(ask(server, "moved", rows[2]), expected[2], rtol=0, atol=1e-5 * np.abs(expected[2]).max())
    assert httpx.get(f"{server.url}/v2/models/moved").json()["platform"] == "onnxruntime_onnx"
    spec = Ledger(home.store).find_deployment("moved").spec
    assert (spec.runtime, spec.precision) == (None, None), "a precision is forgotten with its runtime"


def test_measurements_of_another_runtime_stand_beside_the_own(shared: tuple[Home, Server]) -> None:
    home, server = shared
    server.deploy("net", name="measured")
    server.deploy("net", name="measured", runtime="openvino", precision="bfloat16")
    known = home.store.get_version("net").measurements
    assert {"memory_bytes", "load_s", "openvino_bfloat16_memory_bytes", "openvino_bfloat16_load_s"} <= known.keys()


def test_version_that_bfloat16_spoils_is_refused_and_the_live_one_stays(shared: tuple[Home, Server]) -> None:
    _, server = shared
    x = np.random.default_rng(0).standard_normal((2, WIDTH)).astype("f4")
    server.deploy("steep", runtime="openvino")
    expected = ask(server, "steep", x)
    with pytest.raises(FaultError, match=r"loses too much in bfloat16: .* output 'y' has cosine .* at least 0\.999"):
        server.deploy("steep", precision="bfloat16")
    np.testing.assert_array_equal(ask(server, "steep", x), expected)


def test_worker_leaves_the_cores_to_others(shared: tuple[Home, Server]) -> None:
    _, server = shared
    server.deploy("net", name="quiet", runtime="openvino", threads=2)
    (pid,) = find_workers(server, "quiet")
    for thread in Path(f"/proc/{pid}/task").iterdir():
        assert os.sched_getaffinity(int(thread.name)) == os.sched_getaffinity(0), "no thread is pinned"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        pytest.param({"runtime": "torch"}, "`runtime` is 'torch', expected for this version one of onnx, openvino", id="other"),
        pytest.param({"precision": "bfloat16"}, "expected none with runtime onnx", id="precision-of-onnx"),
        pytest.param({"runtime": "openvino", "precision": "int3"}, "one of bfloat16, float32", id="unknown-precision"),
    ],
)
def test_setting_that_cannot_be_is_refused_at_once(home: Home, settings: dict[str, str], text: str) -> None:
    home.publish_scale()
    with pytest.raises(InputError, match=text):
        Ledger(home.store).plan("scale", **settings)
    spec = argosy.DeploymentSpec("scale", "scale", 1, **settings)
    with pytest.raises(InputError, match=text):
        Ledger(home.store).request_rollout(spec)


def test_precision_reaches_the_ledger_from_the_command_line(home: Home) -> None:
    home.publish_scale()
    options = ["--runtime", "openvino", "--precision", "bfloat16", "--home", str(home.store.home)]
    result = CliRunner().invoke(main, ["deploy", "scale", *options])
    assert result.exit_code == 0, result.output
    spec = Ledger(home.store).find_deployment("scale").spec
    assert (spec.runtime, spec.precision) == ("openvino", "bfloat16")


@pytest.mark.parametrize(
    ("kind", "shown"),
    [(TensorProto.STRING, r"text \(BYTES\)"), (TensorProto.DOUBLE, r"float64 \(FP64\)")],
    ids=["text", "float64"],
)
def test_datatype_that_openvino_lacks_is_refused_by_name(home: Home, kind: int, shown: str) -> None:
    tensor = (kind, ["N", 2])
    nodes = [helper.make_node("Identity", ["words"], ["same"])]
    import_onnx(home.store, save_graph(home.files / "m.onnx", nodes, {"words": tensor}, {"same": tensor}, {}), "m")
    with home.serve() as server, pytest.raises(FaultError, match=rf"tensor [\w, ]+ is {shown}.* deploy .* runtime onnx"):
        server.deploy("m", runtime="openvino")


def test_integer_that_would_be_cut_fails_alone(home: Home) -> None:
    counts, shares = (TensorProto.INT64, ["N", 2]), (TensorProto.FLOAT, ["N", 2])
    nodes = [helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT)]
    import_onnx(home.store, save_graph(home.files / "n.onnx", nodes, {"n": counts}, {"y": shares}, {}), "n")
    with home.serve() as server, server.client() as client:
        server.deploy("n", runtime="openvino")
        good = np.array([[1, -(2**30)]])
        np.testing.assert_array_equal(client.predict("n", {"n": good})["y"], good)
        with pytest.raises(InputError, match="an integer lies beyond -2147483648 to 2147483647"):
            client.predict("n", {"n": np.array([[1, 2**40]])})
        np.testing.assert_array_equal(client.predict("n", {"n": good})["y"], good)


NAN = np.array([[1.0, np.nan]], np.float32)


@pytest.mark.parametrize("op", ["Relu", "Exp"])
def test_nan_that_would_be_taken_for_a_number_fails_alone(home: Home, op: str) -> None:
    tensor = (TensorProto.FLOAT, ["N", 2])
    nodes = [helper.make_node(op, ["x"], ["y"])]
    import_onnx(home.store, save_graph(home.files / "n.onnx", nodes, {"x": tensor}, {"y": tensor}, {}), "n")
    with home.serve("n") as server, server.client() as client:
        expected = client.predict("n", {"x": NAN})["y"]
        assert np.isnan(expected).tolist() == [[False, True]]
        server.deploy("n", runtime="openvino")
        with pytest.raises(InputError, match="input 'x' holds NaN, which this runtime takes for a number"):
            client.predict("n", {"x": NAN})
        np.testing.assert_allclose(client.predict("n", {"x": NAN[:, [0, 0]]})["y"], expected[:, [0, 0]], rtol=1e-6)


def test_nan_that_stays_one_is_answered(home: Home) -> None:
    tensor = (TensorProto.FLOAT, ["N", 2])
    nodes = [helper.make_node("Tanh", ["x"], ["y"])]
    import_onnx(home.store, save_graph(home.files / "n.onnx", nodes, {"x": tensor}, {"y": tensor}, {}), "n")
    with home.serve() as server, server.client() as client:
        server.deploy("n", runtime="openvino")
        assert np.isnan(client.predict("n", {"x": NAN})["y"]).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("op", "weight"),
    [
        pytest.param("Mul", 1_000_003, id="product"),
        pytest.param("Add", 2**31 - 5, id="sum"),
        pytest.param("Sub", 2**31 - 5, id="difference"),
    ],
)
def test_model_that_needs_64_bits_is_refused_by_a_runtime_of_32(home: Home, op: str, weight: int) -> None:
    tensor = (TensorProto.INT64, ["N", 2])
    path = save_graph(
        home.files / "n.onnx", [helper.make_node(op, ["n", "w"], ["y"])], {"n": tensor}, {"y": tensor}, {"w": np.array(weight)}
    )
    import_onnx(home.store, path, "n", golden_inputs={"n": np.array([[1, 2], [3, 4]])})
    with home.serve("n") as server, server.client() as client:
        with pytest.raises(
            FaultError,
            match=r"does not compute what the version's own does: for .* values output 'y' has . of 2 elements that are not",
        ):
            server.deploy("n", runtime="openvino")
        expected = {"Mul": 3000 * weight, "Add": 3000 + weight, "Sub": 3000 - weight}[op]
        assert client.predict("n", {"n": np.array([[3000, 3000]])})["y"].tolist() == [[expected] * 2]


def test_own_files_are_imported_and_served(home: Home) -> None:
    graph = openvino.Core().read_model(str(make_network(home.files / "net.onnx")))
    openvino.save_model(graph, home.files / "net.xml", compress_to_fp16=False)
    result = CliRunner().invoke(main, ["import", str(home.files / "net.xml"), "--name", "ir", "--home", str(home.store.home)])
    assert result.exit_code == 0, result.output
    import_onnx(home.store, home.files / "net.onnx", "net")
    x = np.random.default_rng(5).standard_normal((3, WIDTH)).astype("f4")
    with home.serve("ir", "net") as server:
        np.testing.assert_allclose(ask(server, "ir", x), ask(server, "net", x), atol=TOLERANCE)
        assert httpx.get(f"{server.url}/v2/models/ir").json()["platform"] == "openvino_model"
        server.deploy("ir", precision="bfloat16")
        assert measure_cosine(ask(server, "ir", x), ask(server, "net", x)) > 0.9999


def test_own_file_without_weights_or_with_damage_is_refused(home: Home) -> None:
    graph = openvino.Core().read_model(str(make_network(home.files / "net.onnx")))
    path = home.files / "net.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match=r"net\.bin does not exist"):
        import_foreign(home.store, path, "ir")
    path.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"net\.xml is not an OpenVINO IR graph that can be imported"):
        import_foreign(home.store, path, "ir")
    assert home.store.list_models() == []


def test_cosine_counts_lengths_and_places_of_what_is_no_number() -> None:
    a = np.array([3.0, 4.0], "f4")
    assert measure_cosine(a, a) == 1.0
    assert measure_cosine(a * 1.1, a) == pytest.approx(2 * 1.1 / (1 + 1.21))
    assert measure_cosine(-a, a) == -1.0
    assert measure_cosine(np.zeros(2), np.zeros(2)) == 1.0
    assert measure_cosine(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])) == 1.0
    assert measure_cosine(np.array([np.inf, 1.0]), np.array([-np.inf, 1.0])) == -1.0
    assert measure_cosine(np.array([1.0, 1.0]), np.array([np.nan, 1.0])) == -1.0
