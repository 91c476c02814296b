"""A home beside which `argosy` runs as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from argosy.home import find_server
from argosy.store.local import Store

ARGOSY = Path(sys.executable).with_name("argosy")
PORTS = ("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--admin-port=0")


def make_affine_model(path: Path, seed: int, width: int = 4) -> Path:
    """Write an ONNX file that answers y = x @ w + b, for random w and b."""
    generator = np.random.default_rng(seed)
    weights = {"w": generator.standard_normal((width, 3)), "b": generator.standard_normal(3)}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


class Site:
    """An ARGOSY_HOME beside which `argosy` runs as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment = os.environ | {"ARGOSY_HOME": str(self.home)}
        self.server: subprocess.Popen[str] | None = None

    @property
    def store(self) -> Store:
        return Store(self.home)

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it must end with `code`."""
        command = [str(ARGOSY), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=self.folder, timeout=60)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def read(self, *arguments: object, code: int = 0) -> Any:
        """Run a command with --json; its whole stdout is one JSON value."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> None:
        """Start `argosy serve` on free ports, and wait for its state."""
        log = (self.folder / "serve.log").open("w")
        with log:
            self.server = subprocess.Popen(
                [str(ARGOSY), "serve", *PORTS, *arguments], env=self.environment, stdout=log, stderr=log, text=True
            )
        deadline = time.monotonic() + 30
        while find_server(self.home) is None:
            assert self.server.poll() is None and time.monotonic() < deadline, (self.folder / "serve.log").read_text()
            time.sleep(0.02)

    def stop(self) -> int:
        """End the server that this started; its exit code."""
        if self.server is None:
            return 0
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(30)
