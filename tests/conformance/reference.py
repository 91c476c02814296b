"""A small V2 server that does everything right, over HTTP and gRPC, until it is given a fault.

A fault of HTTP is a function of a request and its right reply to the reply that is sent; a fault of gRPC likewise of
method, request and reply. Some faults of HTTP itself are words in `flags`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np

from argosy.conformance.http_wire import parse_json
from argosy.conformance.model import list_names
from argosy.conformance.tensors import Array, from_json, from_raw, to_json, to_raw
from tests.conformance.reference_grpc import Service
from tests.conformance.reference_models import Refusal, compute, describe_tensors

TOKEN = "reference-token"
EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics", "model_repository", "schedule_policy"]
_HEADER = "inference-header-content-length"
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class Request:
    """What came over HTTP."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON of the body; an empty object where it is none."""
        try:
            text = self.body[: int(self.headers.get(_HEADER, len(self.body)))]
            return parse_json(text)
        except ValueError:
            return {}


@dataclass
class Reply:
    """What goes back over HTTP."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(value: object, status: int = 200) -> Reply:
        """A JSON reply."""
        return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class Reference:
    """The server; also a context manager.

    Attributes:
        http_fault, grpc_fault: change replies.
        stream_fault: changes the messages of a stream.
        flags: `close`, `close-on-error`, `host`, `continue`, `chunked`, `head`, `any-method`: faults below the protocol.
        has_versions, is_typed, has_lost_health: other ways to be.
        extensions: that it announces, and offers.
    """

    def __init__(self) -> None:
        self.reset()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"reference": self}))
        self._grpc = grpc.server(ThreadPoolExecutor(16))
        self._grpc.add_generic_rpc_handlers((Service(self),))
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def reset(self) -> None:
        """Do everything right."""
        self.http_fault: Callable[[Request, Reply], Reply] = lambda _, reply: reply
        self.grpc_fault: Callable[[str, Any, Any], Any] = lambda _method, _request, reply: reply
        self.stream_fault: Callable[[list[Any]], list[Any]] = lambda messages: messages
        self.flags: set[str] = set()
        self.extensions = list(EXTENSIONS)
        self.has_versions = True
        self.is_typed = False
        self.has_lost_health = False
        self.names = list_names()
        self.loaded = set(self.names)
        self.counts = {name: [0, 0] for name in (*self.names, "mine")}

    def __enter__(self) -> Reference:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None).wait()

    # what both protocols share

    def find(self, name: str, version: str = "") -> str:
        """A model that is loaded."""
        if name not in self.loaded or version not in ("", "1"):
            raise Refusal(f"no model {name} {version}", 404)
        return name

    def describe(self, name: str) -> dict[str, Any]:
        """Metadata."""
        inputs, outputs = describe_tensors(name)
        versions = {"versions": ["1"]} if self.has_versions else {}
        return {"name": name, **versions, "platform": "numpy_reference", "inputs": inputs, "outputs": outputs}

    def describe_config(self, name: str) -> dict[str, Any]:
        """Configuration."""
        sides = [
            [
                {
                    "name": tensor["name"],
                    "data_type": "TYPE_STRING" if tensor["datatype"] == "BYTES" else f"TYPE_{tensor['datatype']}",
                    "dims": tensor["shape"][1:],
                }
                for tensor in side
            ]
            for side in describe_tensors(name)
        ]
        return {"name": name, "platform": "numpy_reference", "max_batch_size": 8, "input": sides[0], "output": sides[1]}

    def describe_stats(self, name: str) -> dict[str, Any]:
        """Counts."""
        rows, requests = self.counts[name]
        durations = {key: {"count": requests, "ns": requests} for key in _DURATIONS}
        batch = {"batch_size": 2, **{key: durations[key] for key in _DURATIONS if "compute" in key}}
        return {
            "name": name,
            "version": "1",
            "last_inference": int(time.time() * 1000),
            "inference_count": rows,
            "execution_count": requests,
            "inference_stats": durations,
            "batch_stats": [batch],
        }

    def run(self, name: str, inputs: dict[str, Array], wanted: list[str]) -> dict[str, Array]:
        """Check the inputs, count, and compute."""
        specs = describe_tensors(name)[0]
        if sorted(inputs) != sorted(spec["name"] for spec in specs):
            raise Refusal(f"inputs {sorted(inputs)}")
        outputs = compute(name, inputs)
        if unknown := set(wanted) - outputs.keys():
            raise Refusal(f"no output {unknown}")
        self.counts[name][0] += next(iter(inputs.values())).shape[0]
        self.counts[name][1] += 1
        return {each: outputs[each] for each in wanted or outputs}

    def check(self, name: str, tensor: str, datatype: object, shape: object) -> None:
        """Refuse what is not the model's."""
        for spec in describe_tensors(name)[0]:
            if spec["name"] == tensor:
                is_shape = isinstance(shape, list) and all(type(dim) is int and dim >= 0 for dim in shape)
                if not is_shape or len(shape) != len(spec["shape"]) or datatype != spec["datatype"]:
                    raise Refusal(f"datatype or shape of {tensor}")
                if any(want not in (-1, got) for want, got in zip(spec["shape"], shape, strict=True)):
                    raise Refusal(f"shape of {tensor}")
                return
        raise Refusal(f"no input {tensor!r}")

    def change_repository(self, name: str, action: str, token: str) -> None:
        """Load or unload."""
        if token != f"Bearer {TOKEN}":
            raise Refusal("token", 401)
        if name not in self.names:
            raise Refusal(f"no model {name}", 404)
        (self.loaded.add if action == "load" else self.loaded.discard)(name)

    # HTTP

    def answer(self, request: Request) -> Reply:
        """Answer a request as the protocol has it."""
        try:
            return self._route(request, [unquote(part) for part in request.path.strip("/").split("/")])
        except Refusal as error:
            return Reply.of({"error": str(error)}, error.status)

    def _route(self, request: Request, parts: list[str]) -> Reply:
        if len(parts) >= 5 and parts[1] == "models" and parts[3] == "versions":
            self.find(parts[2], parts[4])
            parts = parts[:3] + parts[5:]
        match [request.method if request.method != "HEAD" else "GET", *parts]:
            case ["GET", "v2"]:
                return Reply.of({"name": "reference", "version": "1.0", "extensions": self.extensions})
            case ["GET", "v2", "health", ("live" | "ready") as kind]:
                return Reply.of({kind: True})
            case ["GET", "v2", "models", "stats"]:
                return Reply.of({"model_stats": [self.describe_stats(name) for name in self.names]})
            case ["GET", "v2", "models", name]:
                return Reply.of(self.describe(self.find(name)))
            case ["GET", "v2", "models", name, "ready"]:
                return Reply.of({"name": self.find(name), "ready": True})
            case ["GET", "v2", "models", name, "config"]:
                return Reply.of(self.describe_config(self.find(name)))
            case ["GET", "v2", "models", name, "stats"]:
                return Reply.of({"model_stats": [self.describe_stats(self.find(name))]})
            case ["POST", "v2", "models", name, "infer"]:
                return self._infer(self.find(name), request)
            case [_, "v2", "models", _, "infer"]:
                return Reply(405, b'{"error": "POST"}', {"Allow": "POST"})
            case ["POST", "v2", "repository", "index"]:
                return Reply.of(self.list_index(request.json.get("ready", False)))
            case ["POST", "v2", "repository", "models", name, ("load" | "unload") as action]:
                self.change_repository(name, action, request.headers.get("authorization", ""))
                return Reply.of({})
        return Reply.of({"error": "no such path"}, 404)

    def list_index(self, only_ready: bool) -> list[dict[str, str]]:
        """The repository's index."""
        states = {name: "READY" if name in self.loaded else "UNAVAILABLE" for name in self.names}
        return [
            {"name": name, "version": "1", "state": state, "reason": ""}
            for name, state in [*states.items(), ("conformance-idle", "UNAVAILABLE")]
            if not only_ready or state == "READY"
        ]

    def _infer(self, name: str, request: Request) -> Reply:
        head, tail = self._split(request)
        inputs: dict[str, Array] = {}
        for item in _typed(head, "inputs", list):
            each, size = _typed(item, "name", str), _typed(item, "parameters", dict, {}).get("binary_data_size")
            self.check(name, each, item.get("datatype"), item.get("shape"))
            if each in inputs or (size is not None and "data" in item):
                raise Refusal(f"{each} twice")
            try:
                if size is None:
                    inputs[each] = from_json(item.get("data"), item["datatype"], tuple(item["shape"]))
                    if inputs[each].dtype.kind == "f" and np.isinf(inputs[each]).any():
                        raise Refusal(f"{each} is out of range")
                    continue
                if type(size) is not int or not 0 <= size <= len(tail):
                    raise Refusal("binary_data_size")
                inputs[each], tail = from_raw(tail[:size], item["datatype"], tuple(item["shape"])), tail[size:]
            except (ValueError, OverflowError) as error:
                raise Refusal(f"{each}: {error}") from None
        if tail:
            raise Refusal("too many bytes")
        return self._reply(name, head, inputs)

    def _split(self, request: Request) -> tuple[dict[str, Any], bytes]:
        text = request.headers.get(_HEADER, str(len(request.body)))
        if text == "0" and request.body:
            item = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": len(request.body)}}
            return {"inputs": [item], "parameters": {"binary_data_output": True}}, request.body
        if not text.isdigit() or int(text) > len(request.body):
            raise Refusal(_HEADER)
        try:
            head = parse_json(request.body[: int(text)])
        except ValueError as error:
            raise Refusal(str(error)) from None
        if not isinstance(head, dict):
            raise Refusal("no object")
        return head, request.body[int(text) :]

    def _reply(self, name: str, head: dict[str, Any], inputs: dict[str, Array]) -> Reply:
        parameters = _typed(head, "parameters", dict, {})
        _typed(parameters, "timeout", int, 0)
        default = _typed(parameters, "binary_data_output", bool, False)
        wanted = {item["name"]: item.get("parameters") or {} for item in _typed(head, "outputs", list, [])}
        outputs = self.run(name, inputs, list(wanted))
        reply: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": []}
        if "id" in head:
            reply["id"] = _typed(head, "id", str)
        tail = b""
        datatypes = {spec["name"]: spec["datatype"] for spec in describe_tensors(name)[1]}
        for each, array in outputs.items():
            item: dict[str, Any] = {"name": each, "datatype": datatypes[each], "shape": list(array.shape)}
            if wanted.get(each, {}).get("binary_data", default):
                raw = to_raw(array, datatypes[each])
                item["parameters"] = {"binary_data_size": len(raw)}
                tail += raw
            elif array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Refusal("not finite")
            else:
                item["data"] = to_json(array, datatypes[each])
            reply["outputs"].append(item)
        if not tail:
            return Reply.of(reply)
        text = json.dumps(reply).encode()
        return Reply(200, text + tail, {"Content-Type": "application/octet-stream", _HEADER: str(len(text))})


def _typed(place: Any, name: str, kind: type, default: Any = None) -> Any:
    if not isinstance(place, dict):
        raise Refusal("no object")
    value = place.get(name, default)
    if not isinstance(value, kind):
        raise Refusal(name)
    return value


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    reference: Reference
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def handle_expect_100(self) -> bool:
        return True if "continue" in self.reference.flags else super().handle_expect_100()

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if "host" not in headers and "host" not in self.reference.flags:
            return self._send(Reply.of({"error": "Host"}, 400))
        request = Request(self.command, self.path, headers, self._read_body(headers))
        reply = self.reference.http_fault(request, self.reference.answer(request))
        if self.reference.has_lost_health:
            reply = Reply.of({"error": "lost"}, 503)
        return self._send(reply)

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked" or "chunked" in self.reference.flags:
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        body = reply.body
        if self.command == "HEAD":
            body = b"" if "head" not in self.reference.flags else body
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        if "close" in self.reference.flags or (reply.status >= 400 and "close-on-error" in self.reference.flags):
            headers["Connection"] = "close"
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_HEAD = _handle  # noqa: N815 - as http.server has it
