"""The runtime in a process of its own, as in a worker: MXNet is imported by the runtime, and the process has been forked.

    python -m tests.frameworks.mxnet_serving FOLDER

serves the models that `mxnet_cases` left in FOLDER/native, and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from argosy.runtimes.base import load_runtime_class

FOLDER = Path(sys.argv[1])
ENTRY = "model-symbol.json"


def load(name: str, entry: str = ENTRY, **options: Any) -> Any:
    runtime: Any = load_runtime_class("mxnet")()
    runtime.load(FOLDER / "native" / name, entry, {"threads": 1, "inputs": ["in"], "outputs": ["out"], **options})
    return runtime


def refuse(name: str, entry: str = ENTRY, **options: Any) -> str:
    try:
        load(name, entry, **options)
    except (ValueError, OSError) as error:
        return str(error)
    return "it was not refused"


def compare(name: str) -> dict[str, Any]:
    """Answer batches of several sizes, from memory that changes afterwards, and hold them against the framework's answers."""
    with np.load(FOLDER / "native" / f"{name}.npz") as kept:
        rows, expected = kept["rows"], kept["answers"]
    runtime = load(name)
    worst, is_contiguous = 0.0, True
    for num_rows in (1, 2, 7, 9, 1):
        batch = rows[:num_rows].copy()
        (answer,) = runtime.infer({"in": batch}).values()
        assert batch.flags.writeable
        batch[:] = 0
        assert answer.dtype == expected.dtype and answer.shape == expected[:num_rows].shape
        is_contiguous = is_contiguous and answer.flags.c_contiguous
        worst = max(worst, float(np.abs(answer - expected[:num_rows]).max()))
    return {"difference": worst, "contiguous": is_contiguous}


def count_busy_threads(num_threads: int) -> int:
    """How many threads work at a product that pays for several."""
    load("perceptron", threads=num_threads)
    from argosy.runtimes.mxnet import mx

    def read_times() -> dict[str, int]:
        tasks = Path("/proc/self/task")
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}

    a = mx.nd.ones((1000, 1000))
    mx.nd.FullyConnected(a, a, num_hidden=1000, no_bias=True).wait_to_read()
    before = read_times()
    for _ in range(3):
        mx.nd.FullyConnected(a, a, num_hidden=1000, no_bias=True).wait_to_read()
    return sum(time - before.get(task, 0) > 1_000_000 for task, time in read_times().items())


def refuse_changed(change: Callable[[dict[str, Any]], Any]) -> str:
    """Change the graph of the perceptron, and give what the runtime says of it."""
    folder = FOLDER / "native" / "perceptron"
    graph = json.loads((folder / ENTRY).read_text())
    (dense, *_) = [node for node in graph["nodes"] if node["op"] == "FullyConnected"]
    change(dense)
    (folder / "changed-symbol.json").write_text(json.dumps(graph))
    (folder / "changed-0000.params").write_bytes((folder / "model-0000.params").read_bytes())
    return refuse("perceptron", "changed-symbol.json")


def serve() -> dict[str, Any]:
    models = sorted(path.name for path in (FOLDER / "native").iterdir() if path.is_dir())
    broken = load("perceptron")
    try:
        broken.infer({"in": np.zeros((2, 7), np.float32)})
        failed = ""
    except ValueError as error:
        failed = str(error)
    (after,) = broken.infer({"in": np.zeros((2, 4), np.float32)}).values()
    return {
        "models": {name: compare(name) for name in models},
        "threads": [count_busy_threads(1), count_busy_threads(2)],
        "failed": failed,
        "after": list(after.shape),
        "two-inputs": refuse("perceptron", inputs=["a", "b"]),
        "two-outputs": refuse("perceptron", outputs=["a", "b"]),
        "other-entry": refuse("perceptron", "model.onnx"),
        "no-file": refuse("perceptron", "other-symbol.json"),
        "no-such-output": refuse_changed(lambda node: node["inputs"][0].__setitem__(1, 7)),
        "no-such-attribute": refuse_changed(lambda node: node["attrs"].update(depth="3")),
        "no-number": refuse_changed(lambda node: node["attrs"].update(num_hidden="many")),
        "too-many-inputs": refuse_changed(lambda node: node["inputs"].extend(node["inputs"])),
        "too-few-inputs": refuse_changed(lambda node: node["inputs"].pop()),
    }


def main() -> None:
    load_runtime_class("mxnet")
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(serve()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        print(pipe.read())


if __name__ == "__main__":
    main()
