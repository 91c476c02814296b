"""Clients of a soak: each keeps its connection, sends values of its own without pause, and checks every answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from soak_server import DEPLOYMENTS, FACTORS, WIDTH

# Longer than the deadline that the server keeps by itself, so that what it says is heard.
TIMEOUT_S = 45.0
PAUSE_S = 0.01
# Values and their products are whole numbers that float32 holds exactly.
MAX_VALUE = 1 << 20
# What gRPC's core says where a connection was lost; a server's own words are none of these.
LOST_WORDS = (
    "Socket closed",
    "Connection reset",
    "Broken pipe",
    "Stream removed",
    "GOAWAY",
    "failed to connect",
    "Connection refused",
)


class LostError(Exception):
    """The connection ended before the answer came."""


class FailedError(Exception):
    """The server refused, or said nothing in time."""


class WrongError(Exception):
    """The answer is not that of the request."""


@dataclass(frozen=True)
class Incident:
    """A request that was not answered rightly."""

    at_s: float
    kind: str
    """wrong, failed or lost."""
    text: str


def check(name: str, version: str, sent_id: str, got_id: str, value: float, answer: list[float]) -> None:
    """Hold an answer against what its version makes of the value.

    Raises:
        WrongError: it is another one.
    """
    factor = FACTORS.get((name, version))
    if factor is None or got_id != sent_id or answer != [value * factor] * WIDTH:
        raise WrongError(f"{name} version {version} answered {answer} (id {got_id}) for {value} (id {sent_id})")


class HttpConnection:
    """One connection over HTTP, made when it is needed."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)

    def get(self, path: str) -> int:
        """The status of a page."""
        return self._send("GET", path, None)[0]

    def ask(self, name: str, value: float, request_id: str) -> None:
        """Send a row and check its answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [value] * WIDTH}
        status, text = self._send("POST", f"/v2/models/{name}/infer", json.dumps({"id": request_id, "inputs": [tensor]}))
        if status != 200:
            raise FailedError(f"{name}: {status} {text[:300]!r}")
        body = json.loads(text)
        check(name, body["model_version"], request_id, body["id"], value, body["outputs"][0]["data"])

    def _send(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, body)
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except TimeoutError:
            raise FailedError(f"no answer from {path} in {self._connection.timeout} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise LostError(repr(error)) from None

    def close(self) -> None:
        """Close it; the next request makes another one."""
        self._connection.close()


class GrpcConnection:
    """One connection over gRPC."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._open()

    def _open(self) -> None:
        # A pool of its own: channels to one address would share a connection.
        self._channel = grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, name: str, value: float, request_id: str) -> None:
        """Send a row and check its answer."""
        request = service_pb2.ModelInferRequest(model_name=name, id=request_id)
        request.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
        request.raw_input_contents.append(np.full(WIDTH, value, np.float32).tobytes())
        try:
            reply = self._stub.ModelInfer(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            text = str(error.details())
            is_lost = error.code() == grpc.StatusCode.UNAVAILABLE and any(words in text for words in LOST_WORDS)
            raise (LostError if is_lost else FailedError)(f"{name}: {error.code().name} {text[:300]}") from None
        answer = np.frombuffer(reply.raw_output_contents[0], np.float32).tolist()
        check(name, reply.model_version, request_id, reply.id, value, answer)

    def close(self) -> None:
        """Close it and make another one."""
        self._channel.close()
        self._open()


class Clients:
    """Threads that ask until the end of a `with` block.

    Attributes:
        incidents: requests that were not answered rightly, in their order.
        num_answered: requests that were, by the thread.
        slowest_s: the longest that an answer took.
    """

    def __init__(self, url: str, grpc_address: str, num_http: int, num_grpc: int) -> None:
        self.incidents: list[Incident] = []
        self.num_answered = [0] * (num_http + num_grpc)
        self.slowest_s = 0.0
        connections: list[HttpConnection | GrpcConnection] = [HttpConnection(url) for _ in range(num_http)]
        connections += [GrpcConnection(grpc_address) for _ in range(num_grpc)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(*found,)) for found in enumerate(connections)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int, connection: HttpConnection | GrpcConnection) -> None:
        turn = 0
        while not self._stop.wait(PAUSE_S):
            turn += 1
            value = float((turn * len(self._threads) + index) % MAX_VALUE)
            self._ask(index, connection, DEPLOYMENTS[turn % len(DEPLOYMENTS)], value)
        connection.close()

    def _ask(self, index: int, connection: HttpConnection | GrpcConnection, name: str, value: float) -> None:
        """Send one request until it is answered, again where the connection was lost."""
        while not self._stop.is_set():
            start_s = time.monotonic()
            try:
                connection.ask(name, value, f"{index}-{value:.0f}")
                self.num_answered[index] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - start_s)
                return
            except LostError as error:
                self._note("lost", error)
                connection.close()
            except FailedError as error:
                self._note("failed", error)
                connection.close()
                return
            except Exception as error:  # also an answer that is none at all
                self._note("wrong", error)
                return

    def _note(self, kind: str, error: Exception) -> None:
        self.incidents.append(Incident(time.monotonic(), kind, f"{type(error).__name__}: {error}"))
