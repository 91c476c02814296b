"""The server of a soak: its home with models of which some cannot load, its processes by their kind, and what they hold."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

import argosy
from argosy.client import AdminClient
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from machine import pss_bytes

WIDTH = 4
FACTORS = {("scale", "1"): 2.0, ("scale", "2"): 3.0, ("code", "1"): 5.0}
"""What the versions that load multiply by."""
DEPLOYMENTS = ("scale", "code")
REFUSES, DIES, HANGS = 2, 3, 4
"""Versions of `code` that do not load."""
MODULES = {
    "control": "argosy.deploy.control",
    "front": "argosy.serve.front.front",
    "template": "argosy.serve.worker.template",
}
KINDS = ("worker", "front", "control", "template")
_SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, WIDTH)),))
_MODEL = """
import os, time


class Model:
    def load(self, folder):
        {load}

    def infer(self, inputs):
        return {{"y": inputs["x"] * 5}}
"""
_LOADS = ("pass", "raise ValueError('these weights are not mine')", "os._exit(9)", "time.sleep(3600)")
_ZOMBIE_S = 0.5


def fill_home(folder: Path) -> Path:
    """Publish all versions; the home."""
    store = argosy.Store(folder / "home")
    for number in ("1", "2"):
        path = folder / "scale.onnx"
        _write_scale(path, FACTORS["scale", number])
        import_onnx(store, path, "scale")
    x = np.ones((2, WIDTH), np.float32)
    golden = Golden({"x": x}, {"y": 5 * x})
    for load in _LOADS:
        path = folder / "model.py"
        path.write_text(_MODEL.format(load=load))
        publish_python(store, path, "code", signature=_SIGNATURE, golden=golden, repeatable=True)
    return store.home


def _write_scale(path: Path, factor: float) -> None:
    """Write an ONNX file that answers y = factor * x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y"))
    weight = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "scale", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


class Subject:
    """The server that is soaked, and what is known of its processes."""

    def __init__(self, server: Server, admin: AdminClient) -> None:
        self.server = server
        self.admin = admin
        self.run = server.home / "run"

    def deploy(self, name: str, version: int) -> int:
        """Ask for a rollout; its number."""
        return self.admin.deploy(argosy.DeploymentSpec(name=name, model=name, version=version, allow_code=name == "code")).id

    def live_version(self, name: str) -> int:
        """The version that has been asked for last."""
        return next(dep["spec"]["version"] for dep in self.admin.status()["deployments"] if dep["spec"]["name"] == name)

    def find(self, kind: str) -> list[int]:
        """Process ids of a kind; `supervisor` is one."""
        if kind == "supervisor":
            return [self.server.pid]
        workers = self._find_workers() if kind in ("worker", "template") else []
        return workers if kind == "worker" else [pid for pid in self._list(MODULES[kind]) if pid not in workers]

    def _find_workers(self) -> list[int]:
        lanes = [lane for dep in self.admin.status()["deployments"] for lane in dep["lanes"]]
        return [worker["pid"] for lane in lanes for worker in lane["workers"] if worker["pid"]]

    def _list(self, module: str) -> list[int]:
        """Children of the supervisor that run a module."""
        found = []
        for child in self.children():
            # One that has just ended has no file any more.
            with contextlib.suppress(OSError):
                if module in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                    found.append(child)
        return found

    def children(self) -> list[int]:
        """Children of the supervisor."""
        pid = self.server.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def measure(self) -> dict[str, float]:
        """What the server holds: bytes of memory, descriptors of what lives long, and zombies."""
        held = {"memory": pss_bytes(self.server.pid)}
        for kind in ("supervisor", "control", "front", "worker"):
            held[f"descriptors of {kind}"] = float(sum(len(list_descriptors(pid)) for pid in self.find(kind)))
        zombies = self._find_zombies()
        if zombies:
            # One that has just ended is nobody's fault.
            time.sleep(_ZOMBIE_S)
            zombies &= self._find_zombies()
        return {**held, "zombies": float(len(zombies))}

    def _find_zombies(self) -> set[int]:
        found = set()
        for process in psutil.Process(self.server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
        return found


def list_descriptors(pid: int) -> set[int]:
    """Descriptors that a process has open; none if it has just ended."""
    try:
        return {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()


def is_alive(pid: int) -> bool:
    """True while a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def run_subject(folder: Path, num_fronts: int) -> Iterator[Subject]:
    """A server on free ports with a home of its own in a folder, and both deployments."""
    home = fill_home(folder)
    with argosy.serve(home=home, num_fronts=num_fronts) as server, server.admin() as admin:
        subject = Subject(server, admin)
        for name in DEPLOYMENTS:
            admin.wait(subject.deploy(name, 1))
        yield subject
