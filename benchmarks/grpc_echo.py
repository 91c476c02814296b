"""Requests/s of the gRPC front alone: one process serves a fake engine that doubles its input, h2load asks it.

    PYTHONPATH=src .venv/bin/python benchmarks/grpc_echo.py [--connections 64] [--streams 1] [--seconds 5] [--runs 3]

All checks of the real front are on; the engine answers in the next turn of the event loop, as a worker's replies
would come. h2load runs beside the server, so two cores are needed for a figure of one. With --profile the server runs
under cProfile and its heaviest functions are printed; with --serve PORT it only serves.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import uvloop

from argosy.datatypes import DATATYPES
from argosy.errors import ArgosyError, DeadlineError, ModelError, NotFoundError, UnavailableError, list_choices
from argosy.serve.dispatch.call import Call
from argosy.serve.dispatch.intake import Intake
from argosy.serve.grpc.connection import make_grpc_protocol
from argosy.serve.grpc.messages import ModelInferRequest
from argosy.serve.grpc.server import GrpcServer
from argosy.serve.http2.limits import Limits
from argosy.signature import Signature, TensorSpec

ALL_TYPES = tuple(TensorSpec(f"in_{name}", name, (-1, -1)) for name in DATATYPES)


class FakeSeries:
    """Counters that nobody reads."""

    def add_failure(self, status: int) -> None:
        pass


class FakeLane:
    """One version that a fake engine serves."""

    def __init__(self, name: str, signature: Signature, version: str = "1") -> None:
        self.name = self.model = name
        self.version = version
        self.versions = [version]
        self.signature = signature
        self.platform = "fake"
        self.max_batch_rows = 64
        self.timeout_s = 10.0
        self.cache: dict[str, object] = {}
        self.series = FakeSeries()
        self.input_index = {spec.name: index for index, spec in enumerate(signature.inputs)}
        self.output_index = {spec.name: index for index, spec in enumerate(signature.outputs)}


def make_lanes() -> dict[str, FakeLane]:
    """Models for the benchmark and for tests/serve/grpc."""
    x = TensorSpec("x", "FP32", (-1, 64))
    free = TensorSpec("x", "FP32", (-1, -1))
    named = {
        "mlp": Signature((x,), (TensorSpec("y", "FP32", (-1, 64)),)),
        "any": Signature((free,), (TensorSpec("y", "FP32", (-1, -1)),)),
        "slow": Signature((free,), (TensorSpec("y", "FP32", (-1, -1)),)),
        "wrong": Signature((free,), (TensorSpec("y", "FP32", (-1, -1)),)),
        "fails": Signature((free,), (TensorSpec("y", "FP32", (-1, -1)),)),
        "raises": Signature((free,), (TensorSpec("y", "FP32", (-1, -1)),)),
        "pair": Signature(
            (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1, 3))),
            (TensorSpec("out_a", "FP32", (-1, 2)), TensorSpec("out_b", "INT64", (-1, 3))),
        ),
        "whole": Signature((TensorSpec("x", "INT32", (2, 3)),), (TensorSpec("y", "INT32", (2, 3)),)),
        "types": Signature(ALL_TYPES, tuple(TensorSpec(f"out_{spec.datatype}", spec.datatype, (-1, -1)) for spec in ALL_TYPES)),
    }
    for spec in ALL_TYPES:
        output = TensorSpec("y", spec.datatype, (-1, -1))
        named[f"one_{spec.datatype}"] = Signature((TensorSpec("x", spec.datatype, (-1, -1)),), (output,))
    return {name: FakeLane(name, signature) for name, signature in named.items()}


class FakeRouter:
    """Finds lanes as the real router does."""

    def __init__(self) -> None:
        self.lanes = make_lanes()
        self.is_server_ready = True
        self.not_ready: set[str] = set()

    def find(self, name: str, version: str = "") -> FakeLane:
        lane = self.lanes.get(name)
        if lane is None:
            raise NotFoundError("unknown_deployment", name=name[:128], known=list_choices(self.lanes))
        if version and version != lane.version:
            raise NotFoundError("version_not_served", name=name, version=version[:40], known=lane.version)
        if name in self.not_ready:
            raise UnavailableError("no_replica", model=name, retry_after_s=1.0)
        return lane

    describe = find

    def is_ready(self, name: str, version: str = "") -> bool:
        try:
            self.find(name, version)
        except UnavailableError:
            return False
        return True


class FakeAdmit:
    """Queues calls for the next turn, when all are answered with twice their input (BYTES and BOOL as they are)."""

    def __init__(self, max_body_bytes: int = 64 << 20) -> None:
        self.max_body_bytes = max_body_bytes
        self.intake = Intake()
        self.delay_s = 0.3
        self.calls: list[Call] = []
        self.queue: list[Call] = []

    def submit(self, call: Call) -> None:
        if call.deadline_s <= call.started_s:
            raise DeadlineError("deadline_passed", timeout_s=call.deadline_s - call.started_s)
        name = call.lane.name
        if name == "raises":
            raise RuntimeError("a fault of the engine")
        if name == "slow":
            self.calls.append(call)
            asyncio.get_running_loop().call_later(self.delay_s, self.run, call)
            return
        if not self.queue:
            asyncio.get_running_loop().call_soon(self.run_queue)
        self.queue.append(call)

    def run_queue(self) -> None:
        queue, self.queue = self.queue, []
        for call in queue:
            self.run(call)

    def run(self, call: Call) -> None:
        if call.is_done:
            return
        call.is_done = True
        if call.lane.name == "fails":
            error: ArgosyError = ModelError("model_failed", model="fails", version="1", detail="100 % of it: a\nb é")
            call.fail(error)
            return
        if call.lane.name == "wrong":
            call.answer([array.astype(np.float64) for array in call.inputs])
            return
        call.answer([array if array.dtype.kind in "Ob" else array + array for array in call.inputs])


def make_server(limits: Limits | None = None, max_body_bytes: int = 64 << 20) -> tuple[object, GrpcServer]:
    """The real protocol over the fake engine."""
    return make_grpc_protocol(FakeRouter(), FakeAdmit(max_body_bytes), version="0", limits=limits)  # type: ignore[arg-type]


class ServerThread:
    """The fake engine behind the real front, on a port of its own in a thread of its own; for tests."""

    def __init__(self, limits: Limits | None = None, max_body_bytes: int = 64 << 20, port: int = 0) -> None:
        self.errors: list[dict[str, object]] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run(limits, max_body_bytes, port)), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _run(self, limits: Limits | None, max_body_bytes: int, port: int) -> None:
        self.make_connection, self.server = make_server(limits, max_body_bytes)
        self.admit = self.server.admit
        self.router = self.server.router
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self._stop = asyncio.Event()
        listener = self.listener = await self._loop.create_server(self.make_connection, "127.0.0.1", port, reuse_port=True)
        self.address = listener.sockets[0].getsockname()
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for connection in list(self.server.connections):
            connection.abort()
        await asyncio.sleep(0.01)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.address[1]}"

    def run(self, function: Callable[..., object], *args: object) -> object:
        """Call a function on the server's loop."""

        async def call() -> object:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def make_body(num_floats: int) -> bytes:
    request = ModelInferRequest(model_name="mlp" if num_floats == 64 else "any")
    request.inputs.add(name="x", datatype="FP32", shape=[1, num_floats])
    request.raw_input_contents.append(np.ones((1, num_floats), np.float32).tobytes())
    data = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def check_answer(port: int, num_floats: int) -> None:
    """Refuse to measure a server whose answer is wrong."""
    import tritonclient.grpc as triton

    x = np.ones((1, num_floats), np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert np.array_equal(client.infer("mlp" if num_floats == 64 else "any", [tensor]).as_numpy("y"), x * 2)


async def serve(port: int) -> None:
    make_connection, server = make_server()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener = await loop.create_server(make_connection, "127.0.0.1", port)
    print("ready", flush=True)
    while not stop.is_set():
        server.sweep(time.monotonic())
        try:
            await asyncio.wait_for(stop.wait(), 1.0)
        except TimeoutError:
            continue
    listener.close()


def run_server(port: int, is_profiled: bool) -> None:
    profile = cProfile.Profile()
    if is_profiled:
        profile.enable()
    uvloop.run(serve(port))
    if is_profiled:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(28)


def run_load(args: argparse.Namespace, port: int, body: str, server_pid: int) -> None:
    url = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    for _ in range(args.runs):
        log = Path(body).with_suffix(".log")
        log.unlink(missing_ok=True)
        load = ["h2load", "-t1", f"-c{args.connections}", f"-m{args.streams}", f"-D{args.seconds}", "--warm-up-time=1"]
        before = cpu_s(server_pid)
        started = time.monotonic()
        out = subprocess.run([*load, f"--log-file={log}", "-d", body, *headers, url], capture_output=True, text=True, check=True)
        cores = (cpu_s(server_pid) - before) / (time.monotonic() - started)
        rate = float(re.search(r"([\d.]+) req/s", out.stdout)[1])
        failed = re.search(r"(\d+) failed, (\d+) errored", out.stdout)
        times = np.array([int(line.split()[2]) for line in log.read_text().splitlines()]) / 1000
        p50, p99 = np.percentile(times, [50, 99])
        cost = cores / rate * 1e6
        print(
            f"{rate:9.0f} req/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms  failed {failed[1]}  cores {cores:.2f}  {cost:.1f} us/request"
        )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--floats", type=int, default=64, help="values in a request")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT")
    args = parser.parse_args()
    if args.serve:
        run_server(args.serve, args.profile)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port), *(["--profile"] if args.profile else [])]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        body = Path(folder) / "body.bin"
        body.write_bytes(make_body(args.floats))
        try:
            server.stdout.readline()
            check_answer(port, args.floats)
            run_load(args, port, str(body), server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


if __name__ == "__main__":
    main()
