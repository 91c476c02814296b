"""Clauses on health and metadata over HTTP."""

from __future__ import annotations

import re
from typing import Any, cast
from urllib.parse import quote

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import NotOffered
from argosy.conformance.http_wire import Answer, model_path
from argosy.conformance.target import Target
from argosy.conformance.tensors import DATATYPES

_UNKNOWN = "conformance-no-such-model"
_NO_VERSION = "987654321"


@clause("http.health.live", "A live server answers 200", Level.MUST, "inference_rest.md: Server Live")
def check_live(target: Target) -> None:
    answer = target.get("/v2/health/live")
    answer.expect(answer.status == 200, "status 200")


@clause(
    "http.health.live-body",
    'The answer is {"live": true}',
    Level.SHOULD,
    "inference_rest.md: Server Live Response JSON Object",
    "Triton, whose protocol this was, answers with an empty body; clients look at the status.",
)
def check_live_body(target: Target) -> None:
    answer = target.get("/v2/health/live")
    answer.expect(answer.read_object().get("live") is True, '{"live": true}')


@clause("http.health.ready", "A ready server answers 200", Level.MUST, "inference_rest.md: Server Ready")
def check_ready(target: Target) -> None:
    answer = target.get("/v2/health/ready")
    answer.expect(answer.status == 200, "status 200")


@clause(
    "http.health.ready-body",
    'The answer is {"ready": true}',
    Level.SHOULD,
    "inference_rest.md: Server Ready Response JSON Object",
    'The text shows {"live": ...} here, a slip; both are taken.',
)
def check_ready_body(target: Target) -> None:
    answer = target.get("/v2/health/ready")
    value = answer.read_object()
    answer.expect(value.get("ready") is True or value.get("live") is True, '{"ready": true}')


@clause("http.health.model-ready", "A model that is ready answers 200", Level.MUST, "inference_rest.md: Model Ready")
def check_model_ready(target: Target) -> None:
    answer = target.get(model_path(target.main.name, "", "ready"))
    answer.expect(answer.status == 200, "status 200")


@clause(
    "http.health.model-ready-body",
    "The answer has the model's name and ready = true",
    Level.SHOULD,
    "inference_rest.md: Model Ready Response JSON Object",
    "Triton answers with an empty body.",
)
def check_model_ready_body(target: Target) -> None:
    answer = target.get(model_path(target.main.name, "", "ready"))
    expected = {"name": target.main.name, "ready": True}
    found = answer.read_object()
    answer.expect({key: found.get(key) for key in expected} == expected, f"name {target.main.name} and ready true")


@clause("http.health.version-ready", "A version that is ready answers 200", Level.MUST, "inference_rest.md: Model Ready")
def check_version_ready(target: Target) -> None:
    answer = target.get(model_path(target.main.name, target.need_version(target.main), "ready"))
    answer.expect(answer.status == 200, "status 200")


@clause("http.health.unknown-model", "A model that does not exist is not ready", Level.MUST, "inference_rest.md: Model Ready")
def check_unknown_ready(target: Target) -> None:
    answer = target.get(model_path(_UNKNOWN, "", "ready"))
    answer.expect(answer.status >= 400, "a status of 400 or above")


@clause(
    "http.health.unknown-version",
    "A version that does not exist is not ready",
    Level.MUST,
    "inference_rest.md: Model Ready",
)
def check_unknown_version_ready(target: Target) -> None:
    target.need_version(target.main)
    answer = target.get(model_path(target.main.name, _NO_VERSION, "ready"))
    answer.expect(answer.status >= 400, "a status of 400 or above")


@clause(
    "http.metadata.server",
    "The server tells its name, version and extensions",
    Level.MUST,
    "inference_rest.md: Server Metadata Response JSON Object",
)
def check_server_metadata(target: Target) -> None:
    answer = target.get("/v2")
    value = answer.read_object()
    answer.field(value, "name", str, "a string")
    answer.field(value, "version", str, "a string")
    extensions = cast(list[Any], answer.field(value, "extensions", list, "an array of strings"))
    answer.expect(all(isinstance(item, str) for item in extensions), "extensions that are strings")


@clause(
    "http.metadata.slash",
    "GET /v2/ answers as GET /v2",
    Level.MAY,
    "open_inference_rest.yaml: paths",
    "The text has /v2, the YAML beside it /v2/.",
)
def check_slash(target: Target) -> None:
    answer = target.http.send("GET", "/v2/")
    if answer.status != 200:
        raise NotOffered("/v2/ is no path of the server")
    answer.expect(answer.read_object() == target.get("/v2").read_object(), "the server's metadata")


def _read_metadata(target: Target, version: str = "") -> tuple[Answer, dict[str, Any]]:
    answer = target.get(model_path(target.main.name, version))
    return answer, answer.read_object()


@clause(
    "http.metadata.model",
    "A model tells its name, platform, inputs and outputs",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Object",
)
def check_model_metadata(target: Target) -> None:
    answer, value = _read_metadata(target)
    name = answer.field(value, "name", str, "a string")
    answer.expect(name == target.main.name, f"the name {target.main.name}", name)
    answer.field(value, "platform", str, "a string")
    for kind in ("inputs", "outputs"):
        tensors = cast(list[Any], answer.field(value, kind, list, "an array of tensors"))
        answer.expect(bool(tensors), f"{kind} of the model", "none")
        answer.expect(all(isinstance(tensor, dict) for tensor in tensors), f"{kind} that are objects")
        for tensor in tensors:
            answer.field(tensor, "name", str, "a string")


def _read_all_tensors(target: Target) -> tuple[Answer, list[dict[str, Any]]]:
    answer, value = _read_metadata(target)
    tensors = [*answer.field(value, "inputs", list, "an array"), *answer.field(value, "outputs", list, "an array")]
    answer.expect(bool(tensors) and all(isinstance(tensor, dict) for tensor in tensors), "tensors that are objects")
    return answer, tensors


@clause(
    "http.metadata.datatypes",
    "Datatypes of tensors are those of the protocol",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Object",
    "BF16 is named in the text and missing from the table; it is taken.",
)
def check_datatypes(target: Target) -> None:
    answer, tensors = _read_all_tensors(target)
    for tensor in tensors:
        found = answer.field(tensor, "datatype", str, "a string")
        answer.expect(found in DATATYPES, f"one of {', '.join(DATATYPES)}", found)


@clause(
    "http.metadata.shapes",
    "Shapes are integers, -1 for any length",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Object",
)
def check_shapes(target: Target) -> None:
    answer, tensors = _read_all_tensors(target)
    for tensor in tensors:
        shape = cast(list[Any], answer.field(tensor, "shape", list, "an array"))
        answer.expect(all(type(dim) is int and dim >= -1 for dim in shape), "integers from -1", f"shape {shape}")


@clause(
    "http.metadata.versions",
    "`versions`, where there are some, are strings",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Object",
    "Optional, for servers and models without versions.",
)
def check_versions(target: Target) -> None:
    answer, value = _read_metadata(target)
    if "versions" not in value:
        raise NotOffered("the model's metadata names no versions")
    versions = cast(list[Any], answer.field(value, "versions", list, "an array of strings"))
    answer.expect(all(isinstance(item, str) for item in versions), "versions that are strings")


@clause(
    "http.metadata.platform",
    "The platform's name has the form <project>_<format>",
    Level.SHOULD,
    "inference_grpc.md: Platforms",
    "The text allows seven names, of which some are of frameworks that are gone; any name of the form is taken.",
)
def check_platform(target: Target) -> None:
    answer, value = _read_metadata(target)
    platform = answer.field(value, "platform", str, "a string")
    answer.expect(re.fullmatch(r"[a-z0-9]+_[a-z0-9_]+", platform) is not None, "a name such as onnx_onnxv1", platform)


@clause(
    "http.metadata.version-path",
    "The metadata of a version describes the same tensors",
    Level.MUST,
    "inference_rest.md: Model Metadata",
)
def check_version_metadata(target: Target) -> None:
    version = target.need_version(target.main)
    answer, value = _read_metadata(target, version)
    _, plain = _read_metadata(target)
    for kind in ("name", "inputs", "outputs"):
        answer.expect(value.get(kind) == plain.get(kind), f"the {kind} that the model's metadata has")


@clause(
    "http.metadata.quoted",
    "A name with quoted letters is the same name",
    Level.SHOULD,
    "RFC 3986: 6.2.2.2",
)
def check_quoted(target: Target) -> None:
    quoted = "".join(f"%{ord(char):02X}" if char.isascii() else quote(char) for char in target.main.name)
    answer = target.http.send("GET", f"/v2/models/{quoted}")
    answer.expect(answer.read_object().get("name") == target.main.name, f"the metadata of {target.main.name}")


@clause(
    "http.metadata.unknown-model",
    "The metadata of an unknown model is refused, with an error object",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Error Object",
)
def check_unknown_model(target: Target) -> None:
    target.get(model_path(_UNKNOWN)).expect_refusal()


@clause(
    "http.metadata.unknown-version",
    "The metadata of an unknown version is refused, with an error object",
    Level.MUST,
    "inference_rest.md: Model Metadata Response JSON Error Object",
)
def check_unknown_version(target: Target) -> None:
    target.get(model_path(target.main.name, _NO_VERSION)).expect_refusal()
