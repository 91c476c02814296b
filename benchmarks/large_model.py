"""A 2 GB ONNX model with external weights: publish, deploy, update; do replicas share the pages of its weights?

    python benchmarks/large_model.py [--layers 32] [--width 4096]

The weights are random. Prints seconds and memory of each step; PSS counts a shared page once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import argosy
from argosy.importers.onnx import import_onnx
from machine import describe_machine, private_bytes, pss_bytes


def make_model(folder: Path, layers: int, width: int, seed: int) -> Path:
    """A chain of square layers whose weights stand in one file beside the graph."""
    random = np.random.default_rng(seed)
    nodes, weights, current = [], [], "x"
    offset, size = 0, width * width * 4
    with (folder / "weights.bin").open("wb") as file:
        for index in range(layers):
            file.write((random.standard_normal((width, width), dtype=np.float32) / width**0.5).tobytes())
            tensor = TensorProto(
                name=f"w{index}", data_type=TensorProto.FLOAT, dims=[width, width], data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            weights.append(tensor)
            offset += size
            nodes += [
                helper.make_node("MatMul", [current, f"w{index}"], [f"m{index}"]),
                helper.make_node("Tanh", [f"m{index}"], [f"t{index}"]),
            ]
            current = f"t{index}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        weights,
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def memory_mb(server: argosy.Server) -> str:
    return f"PSS {pss_bytes(server.pid) / 2**20:,.0f} MB, private {private_bytes(server.pid) / 2**20:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    options = parser.parse_args()
    size = options.layers * options.width**2 * 4
    print(
        f"{describe_machine()}; {options.layers} layers of {options.width} x {options.width}, {size / 2**30:.2f} GiB of weights"
    )

    def timed(label: str, action) -> object:
        before = time.perf_counter()
        result = action()
        print(f"{label}: {time.perf_counter() - before:.2f} s", flush=True)
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        for seed in (1, 2):
            path = make_model(folder, options.layers, options.width, seed)
            timed(f"publish version {seed}", lambda path=path: import_onnx(store, path, "large"))
        x = np.ones((1, options.width), np.float32)
        with argosy.serve(home=store.home) as server, server.client() as client:
            for share in (False, True):
                print(f"-- share_weights={share}")
                timed("deploy version 1", lambda share=share: server.deploy("large@1", share_weights=share))
                print("one replica:", memory_mb(server))
                timed("second replica", lambda: server.deploy("large@1", replicas=2))
                print("two replicas:", memory_mb(server))
                for rows in (1, 32):
                    batch = np.repeat(x, rows, 0)
                    times = []
                    for _ in range(5):
                        before = time.perf_counter()
                        client.predict("large", {"x": batch}, timeout_s=120)
                        times.append(time.perf_counter() - before)
                    print(f"request of {rows} row(s): median {np.median(times) * 1e3:.0f} ms")
                timed("update to version 2, two replicas", lambda: server.deploy("large@2"))
                print(
                    "after the update:",
                    memory_mb(server),
                    "answered by version",
                    client.predict("large", {"x": x}, timeout_s=120).version,
                )
                with server.admin() as admin:
                    admin.undeploy("large")
                time.sleep(2)


if __name__ == "__main__":
    main()
