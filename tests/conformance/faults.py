"""For every clause a fault of the reference server that it has to find."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from argosy.conformance.grpc_wire import make_message
from argosy.conformance.model import RELOAD
from argosy.conformance.run import load_clauses
from tests.conformance.reference import Reference, Reply, Request
from tests.conformance.reference_models import Refusal

Fault = Callable[[Reference], None]
_HEADER = "inference-header-content-length"


def flag(name: str) -> Fault:
    return lambda server: server.flags.add(name)


def http(change: Callable[[Request, Reply], Reply | None]) -> Fault:
    """A fault that changes replies; None leaves one as it is."""

    def install(server: Reference) -> None:
        server.http_fault = lambda request, reply: change(request, reply) or reply

    return install


def edit(path: str, change: Callable[[Any], object], when: Callable[[Request], object] = lambda _: True) -> Fault:
    """A fault that changes the JSON of good replies to a path."""

    def fault(request: Request, reply: Reply) -> Reply | None:
        if reply.status != 200 or not re.search(path, request.path) or not when(request) or _HEADER in reply.headers:
            return None
        value = json.loads(reply.body)
        change(value)
        return Reply.of(value)

    return http(fault)


def put(path: str, name: str, value: object) -> Fault:
    return edit(path, lambda reply: reply.update({name: value}))


def status(path: str, code: int, method: str = "") -> Fault:
    def fault(request: Request, reply: Reply) -> Reply | None:
        return Reply(code, reply.body, reply.headers) if re.search(path, request.path) and method in request.method else None

    return http(fault)


def lenient(request: Request, reply: Reply) -> Reply | None:
    """Nothing is refused."""
    return None if reply.status < 400 else Reply.of({"model_name": "m", "outputs": [], "name": "m", "model_stats": []})


def speechless(_: Request, reply: Reply) -> Reply | None:
    """Refusals without the error object."""
    return None if reply.status < 400 else Reply.of({"detail": "wrong"}, reply.status)


def spoil(reply: Any) -> None:
    """Another value in each output's data."""
    for output in reply.get("outputs", []):
        first = output["data"][0]
        output["data"][0] = not first if isinstance(first, bool) else f"{first}x" if isinstance(first, str) else 0 if first else 1


def binary(change: Callable[[dict[str, Any], bytes, dict[str, str]], tuple[dict[str, Any], bytes]]) -> Fault:
    """A fault that changes the JSON, the tensors or the headers of binary replies."""

    def fault(_: Request, reply: Reply) -> Reply | None:
        if _HEADER not in reply.headers:
            return None
        length = int(reply.headers[_HEADER])
        headers = dict(reply.headers)
        head, tail = change(json.loads(reply.body[:length]), reply.body[length:], headers)
        text = json.dumps(head).encode()
        return Reply(200, text + tail, headers | ({_HEADER: str(len(text))} if _HEADER in headers else {}))

    return http(fault)


def drop_header(head: dict[str, Any], tail: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    del headers[_HEADER]
    return head, tail


def flip(head: dict[str, Any], tail: bytes, _: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    return head, bytes([tail[0] ^ 1]) + tail[1:]


def set_header(name: str, value: str) -> Fault:
    def change(head: dict[str, Any], tail: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], bytes]:
        headers[name] = value
        return head, tail

    return binary(change)


def add_header(_: Request, reply: Reply) -> Reply:
    return Reply(reply.status, reply.body, {**reply.headers, _HEADER: str(len(reply.body))})


def refuse_if(found: Callable[[Request], object]) -> Fault:
    """A server that refuses what it should take."""
    return http(lambda request, _: Reply.of({"error": "no"}, 400) if found(request) else None)


def answer_twice_otherwise() -> Fault:
    turns = itertools.count()
    return edit("/infer$", lambda reply: spoil(reply) if next(turns) % 2 else None)


def has_header(request: Request) -> bool:
    return _HEADER in request.headers


def inputs_of(request: Request) -> list[Any]:
    return request.json.get("inputs", [])


def reverse_outputs(reply: Any) -> None:
    reply["outputs"].reverse()


def ignore(action: str) -> Fault:
    """A server that says that it loads or unloads, and does not."""

    def install(server: Reference) -> None:
        def fault(request: Request, reply: Reply) -> Reply:
            if request.path.endswith(f"/{action}"):
                (server.loaded.discard if action == "load" else server.loaded.add)(RELOAD)
            return reply

        server.http_fault = fault

    return install


def grpc(*methods: str, **fields: Any) -> Fault:
    """A fault that sets fields of good answers."""

    def change(_: Any, reply: Any) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(reply, name)[:]
                getattr(reply, name).extend(value)
            else:
                setattr(reply, name, value)

    return grpc_edit(change, *methods)


def grpc_edit(change: Callable[[Any, Any], object], *methods: str) -> Fault:
    """A fault that changes good answers, given request and answer."""

    def install(server: Reference) -> None:
        def fault(method: str, request: Any, reply: Any) -> Any:
            if method in methods and not isinstance(reply, Refusal):
                change(request, reply)
            return reply

        server.grpc_fault = fault

    return install


def grpc_lenient(server: Reference) -> None:
    def fault(method: str, _: Any, reply: Any) -> Any:
        kind = "RepositoryModelLoadResponse" if method.startswith("Repository") else f"{method}Response"
        return make_message(kind) if isinstance(reply, Refusal) else reply

    server.grpc_fault = fault


def grpc_status(code: int) -> Fault:
    def install(server: Reference) -> None:
        server.grpc_fault = lambda _method, _request, reply: Refusal("no", code) if isinstance(reply, Refusal) else reply

    return install


def grpc_refuse(found: Callable[[Any], object]) -> Fault:
    def install(server: Reference) -> None:
        server.grpc_fault = lambda method, request, reply: Refusal("no") if method == "ModelInfer" and found(request) else reply

    return install


def grpc_spoil(request: Any, reply: Any) -> None:
    for place, raw in enumerate(reply.raw_output_contents):
        reply.raw_output_contents[place] = bytes([raw[0] ^ 1]) + raw[1:]


def stream(change: Callable[[list[Any]], list[Any]]) -> Fault:
    def install(server: Reference) -> None:
        server.stream_fault = change

    return install


def lose_health(server: Reference) -> None:
    server.has_lost_health = True


def set_item(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(reply: Any) -> None:
        for step in path[:-1]:
            reply = reply[step]
        reply[path[-1]] = value

    return change


_MAIN = "models/conformance-fp32$"
_VERSION = "models/conformance-fp32/versions/1$"
_CONFIG = "/config$"
_STATS = "/stats$"
_INFER = "/infer$"

FAULTS: dict[str, Fault] = {
    "http.basics.keep-alive": flag("close"),
    "http.basics.after-error": flag("close-on-error"),
    "http.basics.pipelined": put(_INFER, "id", "third"),
    "http.basics.chunked-request": flag("chunked"),
    "http.basics.expect-continue": flag("continue"),
    "http.basics.missing-host": flag("host"),
    "http.basics.head": flag("head"),
    "http.basics.unknown-path": http(lenient),
    "http.basics.wrong-method": status(_INFER, 400, "GET"),
    "http.basics.allow": http(lambda _, reply: Reply(405, reply.body) if reply.status == 405 else None),
    "http.basics.content-type": http(lambda _, reply: Reply(reply.status, reply.body, {"Content-Type": "text/plain"})),
    "http.basics.any-content-type": refuse_if(lambda request: "form" in request.headers.get("content-type", "")),
    "http.health.live": status("live", 503),
    "http.health.live-body": put("live", "live", "yes"),
    "http.health.ready": status("health/ready", 503),
    "http.health.ready-body": put("health/ready", "ready", 1),
    "http.health.model-ready": status("models/.*/ready", 503),
    "http.health.model-ready-body": put("models/.*/ready", "name", "other"),
    "http.health.version-ready": status("versions/1/ready", 404),
    "http.health.unknown-model": http(lenient),
    "http.health.unknown-version": http(lenient),
    "http.metadata.server": put("/v2$", "version", 1),
    "http.metadata.slash": put("/v2/$", "name", "other"),
    "http.metadata.model": put(_MAIN, "name", "other"),
    "http.metadata.datatypes": edit(_MAIN, set_item("inputs", 0, "datatype", value="float32")),
    "http.metadata.shapes": edit(_MAIN, set_item("outputs", 0, "shape", value=["N", 4])),
    "http.metadata.versions": put(_MAIN, "versions", [1]),
    "http.metadata.platform": put(_MAIN, "platform", "onnx"),
    "http.metadata.version-path": put(_VERSION, "inputs", []),
    "http.metadata.quoted": status("%", 404),
    "http.metadata.unknown-model": http(speechless),
    "http.metadata.unknown-version": http(speechless),
    "http.infer.plain": edit(_INFER, set_item("outputs", 0, "shape", value=[7])),
    "http.infer.values": edit(_INFER, spoil),
    "http.infer.outputs-as-metadata": edit(_INFER, set_item("outputs", 0, "datatype", value="FP64")),
    "http.infer.model-name": put(_INFER, "model_name", "other"),
    "http.infer.model-version": put(_INFER, "model_version", 1),
    "http.infer.version-path": put("versions/1/infer", "model_version", "2"),
    "http.infer.id-echoed": put(_INFER, "id", "other"),
    "http.infer.id-unicode": edit(_INFER, lambda reply: reply.update(id=reply["id"].encode("ascii", "replace").decode())),
    "http.infer.id-long": edit(_INFER, lambda reply: reply.update(id=reply["id"][:256])),
    "http.infer.id-not-invented": put(_INFER, "id", "made-up"),
    "http.infer.nested-data": edit(_INFER, spoil, lambda request: isinstance(inputs_of(request)[0]["data"][0], list)),
    "http.infer.outputs-subset": edit(_INFER, lambda reply: reply["outputs"].append({**reply["outputs"][0], "name": "more"})),
    "http.infer.outputs-order": edit(_INFER, reverse_outputs),
    "http.infer.outputs-empty": put(_INFER, "outputs", []),
    "http.infer.inputs-order": edit(_INFER, spoil, lambda request: inputs_of(request)[0]["name"] == "second"),
    "http.infer.rows": edit(_INFER, spoil, lambda request: inputs_of(request)[0]["shape"][0] == 5),
    "http.infer.large": status(_INFER, 413),
    "http.infer.parallel": put(_INFER, "id", "id-3"),
    "http.infer.empty-parameters": refuse_if(lambda request: "parameters" in request.json),
    "http.infer.own-parameters": refuse_if(lambda request: request.json.get("parameters")),
    "http.infer.unknown-fields": refuse_if(lambda request: "conformance_field" in request.json),
    "http.infer.not-finite": http(lambda _, reply: Reply(200, b'{"outputs": [NaN]}') if reply.status == 400 else None),
    "http.errors.client-fault": http(lambda _, reply: Reply(500, reply.body) if reply.status >= 400 else None),
    "http.errors.survives": lose_health,
    "binary.input": edit(_INFER, spoil, has_header),
    "binary.default-json": http(add_header),
    "binary.output": binary(drop_header),
    "binary.output-all": binary(flip),
    "binary.output-override": http(add_header),
    "binary.mixed-inputs": edit(_INFER, spoil, has_header),
    "binary.input-order": edit(_INFER, spoil, has_header),
    "binary.mixed-outputs": binary(lambda head, tail, _: (head, tail[8:] + tail[:8])),
    "binary.id-echoed": binary(lambda head, tail, _: ({**head, "id": "other"}, tail)),
    "binary.content-type": set_header("Content-Type", "application/json"),
    "binary.content-length": http(
        lambda _, reply: Reply(200, reply.body, {**reply.headers, "Content-Length": "", "Connection": "close"})
    ),
    "binary.raw-request": binary(drop_header),
    "config.name": put(_CONFIG, "name", "other"),
    "config.version": status("versions/1/config", 404),
    "config.max-batch-size": put(_CONFIG, "max_batch_size", "8"),
    "config.tensors": edit(_CONFIG, set_item("input", 0, "data_type", value="FP32")),
    "config.dims": edit(_CONFIG, set_item("output", 0, "dims", value=[-1, 4])),
    "config.unknown-model": http(speechless),
    "stats.model": edit(_STATS, set_item("model_stats", 0, "execution_count", value=None)),
    "stats.durations": edit(_STATS, set_item("model_stats", 0, "inference_stats", "queue", value={"count": 1, "ns": -1})),
    "stats.batches": edit(_STATS, set_item("model_stats", 0, "batch_stats", 0, "batch_size", value=0)),
    "stats.version": status("versions/1/stats", 404),
    "stats.all": edit(_STATS, lambda reply: reply["model_stats"].pop()),
    "stats.counts": edit(_STATS, set_item("model_stats", 0, "inference_count", value=7)),
    "stats.unknown-model": http(lenient),
    "repository.index": edit("/index$", lambda index: index.pop(0)),
    "repository.index-fields": edit("/index$", set_item(0, "version", value=1)),
    "repository.index-ready": edit("/index$", set_item(0, "state", value="LOADING")),
    "repository.index-empty-body": http(lambda request, _: None if request.body else Reply(500, b"")),
    "repository.load-unknown": http(lenient),
    "repository.unload-unknown": http(lenient),
    "repository.unload": ignore("unload"),
    "repository.load": ignore("load"),
    "schedule.priority": refuse_if(lambda request: request.json.get("parameters", {}).get("priority") == 2),
    "schedule.timeout": refuse_if(lambda request: request.json.get("parameters", {}).get("timeout")),
    "schedule.timeout-zero": refuse_if(lambda request: "timeout" in request.json.get("parameters", {})),
    "schedule.refuse-text": http(lenient),
    "grpc.health.live": grpc("ServerLive", live=False),
    "grpc.health.ready": grpc("ServerReady", ready=False),
    "grpc.health.model-ready": grpc("ModelReady", ready=False),
    "grpc.health.version-ready": grpc_edit(lambda request, reply: setattr(reply, "ready", not request.version), "ModelReady"),
    "grpc.health.unknown-model": grpc("ModelReady", ready=True),
    "grpc.metadata.server": grpc("ServerMetadata", version=""),
    "grpc.metadata.model": grpc("ModelMetadata", inputs=[]),
    "grpc.metadata.version": grpc("ModelMetadata", name="other"),
    "grpc.metadata.versions": grpc("ModelMetadata", versions=["1", "2"]),
    "grpc.metadata.unknown-model": grpc_lenient,
    "grpc.metadata.unknown-version": grpc_lenient,
    "grpc.status.unimplemented": flag("any-method"),
    "grpc.status.not-found": grpc_status(400),
    "grpc.status.client-fault": grpc_status(500),
    "grpc.status.survives": lose_health,
    "grpc.infer.raw": grpc_edit(grpc_spoil, "ModelInfer"),
    "grpc.infer.typed": grpc_refuse(lambda request: not request.raw_input_contents),
    "grpc.infer.contents-absent": grpc_edit(lambda _, reply: reply.outputs[0].contents.SetInParent(), "ModelInfer"),
    "grpc.infer.id-echoed": grpc("ModelInfer", id="other"),
    "grpc.infer.id-unicode": grpc_edit(lambda _, reply: setattr(reply, "id", reply.id[:1]), "ModelInfer"),
    "grpc.infer.id-not-invented": grpc("ModelInfer", id="made-up"),
    "grpc.infer.model-name": grpc("ModelInfer", model_name="other"),
    "grpc.infer.version": grpc("ModelInfer", model_version="2"),
    "grpc.infer.outputs-subset": grpc("ModelInfer", raw_output_contents=[b"", b"", b"", b""]),
    "grpc.infer.inputs-order": grpc_edit(
        lambda request, reply: grpc_spoil(request, reply) if request.inputs[0].name == "second" else None, "ModelInfer"
    ),
    "grpc.infer.own-parameters": grpc_refuse(lambda request: request.parameters),
    "grpc.infer.parallel": grpc("ModelInfer", id="id-3"),
    "grpc.stream.answers": stream(lambda messages: messages[:-1]),
    "grpc.stream.error": stream(lambda messages: messages[:1]),
    "grpc.stream.empty": stream(lambda messages: [*messages, make_message("ModelStreamInferResponse", error_message="empty")]),
    "grpc.config.model": grpc_edit(lambda _, reply: setattr(reply.config, "name", "other"), "ModelConfig"),
    "grpc.config.dims": grpc_edit(lambda _, reply: setattr(reply.config, "max_batch_size", 0), "ModelConfig"),
    "grpc.config.unknown-model": grpc_lenient,
    "grpc.stats.all": grpc_edit(lambda _, reply: reply.model_stats.pop(), "ModelStatistics"),
    "grpc.stats.counts": grpc_edit(lambda _, reply: setattr(reply.model_stats[0], "inference_count", 7), "ModelStatistics"),
    "grpc.stats.unknown-model": grpc_lenient,
    "grpc.repository.index": grpc_edit(lambda _, reply: reply.models.pop(0), "RepositoryIndex"),
    "grpc.repository.index-ready": grpc_edit(lambda _, reply: setattr(reply.models[0], "state", "LOADING"), "RepositoryIndex"),
    "grpc.repository.load-unknown": grpc_lenient,
    "equal.repeated": answer_twice_otherwise(),
    "equal.json-binary": edit(_INFER, spoil),
    "equal.json-grpc": edit(_INFER, spoil),
    "equal.raw-typed": grpc_edit(
        lambda request, reply: None if request.raw_input_contents else grpc_spoil(request, reply), "ModelInfer"
    ),
}

_FAMILIES: dict[str, Fault] = {
    "http.refuse.": http(lenient),
    "http.datatype.": edit(_INFER, spoil),
    "binary.refuse.": http(lenient),
    "binary.datatype.": binary(flip),
    "grpc.refuse.": grpc_lenient,
    "grpc.datatype.": grpc_edit(grpc_spoil, "ModelInfer"),
}
for _id in load_clauses():
    for _prefix, _fault in _FAMILIES.items():
        if _id.startswith(_prefix):
            FAULTS[_id] = _fault
