"""OpenAI's `/v1`: models, and embeddings of text models whose artifact holds a tokenizer.

The text travels to the worker as every raw input does, through the same admission, queue and batches.

Source: OpenAI's API reference, Embeddings and Models.
"""

from __future__ import annotations

import time
from binascii import b2a_base64
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from argosy.errors import ArgosyError, InputError, ModelError, NotFoundError, TooLargeError
from argosy.runtimes.preprocess_text import encode_ids
from argosy.serve.dispatch.call import Call, Lane
from argosy.serve.http.replies import Sender, encode_error
from argosy.serve.http.routes import HttpServer
from argosy.serve.wire.frames import FORM_COUNTED
from argosy.signature import Signature

__all__ = ["EmbeddingsCall", "answer", "encode_openai_error"]

MAX_INPUTS: Final = 2048
"""As OpenAI has it."""
MAX_BODY_BYTES: Final = 8 << 20
"""Several times what OpenAI takes (300,000 tokens). Reading so many token ids holds the front up for 0.1 s."""

_MAX_DIMENSIONS: Final = 1 << 20
_EMBEDDINGS: Final = ["v1", "embeddings"]


class _EmbeddingsJson(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(gt=0, le=_MAX_DIMENSIONS)] | None = None
    user: str | None = None


_decode_body: Final = msgspec.json.Decoder(_EmbeddingsJson).decode
_Ids = list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]]


class _EmbeddingPlan(NamedTuple):
    """How a version makes embeddings."""

    place: int
    """Of the output."""
    num_dimensions: int
    shorter: tuple[int, ...]
    """Lengths that an embedding may be cut to, as its publisher says."""


def _make_plan(signature: Signature) -> _EmbeddingPlan | None:
    """Say how a signature makes embeddings: one text in, one FP32 vector a row out; None where it does not."""
    if len(signature.raw_inputs) != 1 or [step.kind for step in signature.preprocess] != ["text"]:
        return None
    vectors = [
        (place, spec.shape[1])
        for place, spec in enumerate(signature.outputs)
        if spec.datatype == "FP32" and len(spec.shape) == 2 and spec.shape[1] > 0 and spec.labels is None
    ]
    if len(vectors) != 1:
        return None
    return _EmbeddingPlan(*vectors[0], tuple(signature.preprocess[0].options.get("dimensions", ())))


def _plan(lane: Lane) -> _EmbeddingPlan | None:
    if "openai" not in lane.cache:
        lane.cache["openai"] = _make_plan(lane.signature)
    return lane.cache["openai"]


class EmbeddingsCall(Call):
    """A request for embeddings."""

    __slots__ = ("_is_base64", "_num_dimensions", "_place", "_sender")

    def __init__(self, sender: Sender, lane: Lane, plan: _EmbeddingPlan, request: _EmbeddingsJson, size_bytes: int) -> None:
        rows = _read_input(request.input)
        elements = np.empty(len(rows), object)
        elements[:] = rows
        now = time.monotonic()
        super().__init__(lane, [elements], len(rows), size_bytes, now, now + lane.timeout_s, FORM_COUNTED)
        self._sender = sender
        self._is_base64 = request.encoding_format == "base64"
        self._num_dimensions = _read_dimensions(lane, plan, request.dimensions)
        self._place = plan.place

    def answer(self, outputs: list[NDArray[Any]]) -> None:
        """Send the embeddings, and how many tokens they cost."""
        try:
            body = self._encode(outputs[self._place], int(outputs[-1].sum()))
        except ArgosyError as error:
            self.fail(error)
            return
        self._sender.send(200, body)

    def _encode(self, vectors: NDArray[Any], num_tokens: int) -> bytes:
        if self._num_dimensions < vectors.shape[1]:
            vectors = vectors[:, : self._num_dimensions]
            # As OpenAI does: what is left has length 1 again.
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        if not np.isfinite(vectors).all():
            tensor = self.lane.signature.outputs[self._place].name
            raise ModelError("not_finite_output", tensor=tensor, model=self.lane.name, version=self.lane.version)
        rows: Any = vectors
        if self._is_base64:
            rows = [b2a_base64(row.tobytes(), newline=False).decode() for row in vectors.astype("<f4", copy=False)]
        body = {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": self.lane.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def fail(self, error: ArgosyError) -> None:
        """Send an error."""
        self._sender.send(*encode_openai_error(error))


def answer(sender: Sender, server: HttpServer, method: str, path: list[str], body: bytes | memoryview) -> EmbeddingsCall | None:
    """Answer a request below `/v1`; or submit it, and return the call that will be answered.

    Args:
        sender: where to.
        server: of the front.
        method: of the request.
        path: its segments, decoded; the first is `v1`.
        body: unpacked.

    Raises:
        ArgosyError: to be answered by `encode_openai_error`.
    """
    if path == _EMBEDDINGS and method == "POST":
        return _submit(sender, server, body)
    is_models = path[:2] == ["v1", "models"] and len(path) in (2, 3)
    if is_models and method in ("GET", "HEAD"):
        found = _describe_models(server) if len(path) == 2 else _describe_model(server, path[2])
        sender.send(200, orjson.dumps(found), has_body=method == "GET")
        return None
    shown = "/" + "/".join(path)[:200]
    if is_models or path == _EMBEDDINGS:
        raise InputError("method_not_allowed", method=method, path=shown)
    raise NotFoundError("no_path", method=method, path=shown)


def _submit(sender: Sender, server: HttpServer, body: bytes | memoryview) -> EmbeddingsCall:
    if len(body) > MAX_BODY_BYTES:
        raise TooLargeError("body_too_large", limit=MAX_BODY_BYTES)
    try:
        request = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("bad_json", detail=str(error)) from None
    lane = server.router.find(request.model)
    try:
        plan = _plan(lane)
        if plan is None:
            expected = "a model of text with one vector a row; GET /v1/models lists them"
            raise InputError("bad_parameter", name="model", got=lane.name, expected=expected)
        call = EmbeddingsCall(sender, lane, plan, request, len(body))
    except ArgosyError as error:
        lane.series.add_failure(error.status)
        raise
    server.admit.submit(call)
    return call


def _read_input(given: Any) -> list[bytes]:
    """One element a row: text, or token ids."""
    rows = cast("list[Any]", given) if isinstance(given, list) else [given]
    if rows and type(rows[0]) is int:
        rows = [rows]
    if not 0 < len(rows) <= MAX_INPUTS:
        raise InputError("bad_parameter", name="input", got=f"{len(rows)} inputs", expected=f"1 to {MAX_INPUTS}")
    try:
        if isinstance(rows[0], str):
            elements = [row.encode() for row in msgspec.convert(rows, list[str])]
        else:
            elements = [encode_ids(row) if row else b"" for row in msgspec.convert(rows, list[_Ids])]
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        expected = "a text, a list of texts, a list of token ids, or a list of such lists"
        raise InputError("bad_parameter", name="input", got=str(error), expected=expected) from None
    if not all(elements):
        raise InputError("bad_parameter", name="input", got=f"nothing in row {elements.index(b'')}", expected="no empty text")
    return elements


def _read_dimensions(lane: Lane, plan: _EmbeddingPlan, asked: int | None) -> int:
    if asked is None or asked == plan.num_dimensions:
        return plan.num_dimensions
    if asked not in plan.shorter or asked > plan.num_dimensions:
        known = sorted({plan.num_dimensions, *plan.shorter})
        expected = f"one that the embeddings of {lane.name} have a meaning at: {', '.join(map(str, known))}"
        raise InputError("bad_parameter", name="dimensions", got=asked, expected=expected)
    return asked


def _describe_models(server: HttpServer) -> dict[str, object]:
    served = [route for route in server.router.deployments.values() if not route.is_gone]
    lanes = [lane for route in served for lane in list(route.lanes.values())[-1:]]
    return {"object": "list", "data": [_describe_lane(lane) for lane in lanes if _plan(lane) is not None]}


def _describe_model(server: HttpServer, name: str) -> dict[str, object]:
    lane = server.router.find(name)
    if _plan(lane) is None:
        known = ", ".join(item["id"] for item in cast("list[Any]", _describe_models(server)["data"])) or "none"
        raise NotFoundError("unknown_deployment", name=name[:128], known=known)
    return _describe_lane(lane)


def _describe_lane(lane: Lane) -> dict[str, object]:
    return {"id": lane.name, "object": "model", "created": lane.created_s, "owned_by": "argosy"}


def encode_openai_error(error: ArgosyError) -> tuple[int, bytes, bytes]:
    """Status, body and header lines of an error, as OpenAI has it."""
    status, _, headers = encode_error(error)
    kind, code, parameter = ("invalid_request_error" if status < 500 else "server_error"), None, None
    if error.key == "unknown_deployment":
        code, parameter = "model_not_found", "model"
    elif error.key == "bad_parameter":
        parameter = error.fields["name"]
    elif error.key in ("bad_row", "too_many_rows"):
        parameter = "input"
    elif status == 429:
        kind, code = "requests", "rate_limit_exceeded"
    if error.key == "method_not_allowed":
        headers = b"Allow: POST\r\n" if error.fields["path"] == "/v1/embeddings" else b"Allow: GET, HEAD\r\n"
    body = {"error": {"message": str(error), "type": kind, "param": parameter, "code": code}}
    return status, orjson.dumps(body), headers
