"""The real gRPC front before an engine that doubles its input in the next turn of the loop, as a worker's replies would come.

    python -m tests.serve.grpc.echo PORT [--profile]

serves until it is told to end, and with --profile prints where its time went; `benchmarks/grpc_echo.py` measures it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import uvloop

from argosy.datatypes import DATATYPES
from argosy.errors import ArgosyError, DeadlineError, ModelError, NotFoundError, UnavailableError, list_choices
from argosy.serve.dispatch.call import Call
from argosy.serve.dispatch.intake import Intake
from argosy.serve.grpc.connection import make_grpc_protocol
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
    """Models of every datatype, and some that fail."""
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


class EchoServer:
    """The fake engine behind the real front, on a port of its own in a thread of its own."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    run_server(args.port, args.profile)


if __name__ == "__main__":
    main()
