"""Requests in the form that each server takes, and the answers read back.

| kind | request | answer |
|---|---|---|
| v2 | JSON of the Open Inference Protocol | the same |
| binary | V2's binary tensor extension, both ways | the same |
| grpc | V2's ModelInferRequest with raw contents, framed | ModelInferResponse |
| plain | JSON: a list of numbers by the input's name | `{"y": [...]}` |
| stacked | JSON: `{"x": [...]}`, the inputs of a row stacked into one array | a nested list |
| raw | the bytes of the one input | bytes |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models import Case, Row

JSON = {"Content-Type": "application/json"}
BYTES = {"Content-Type": "application/octet-stream"}
LENGTH_HEADER = "Inference-Header-Content-Length"
Request = tuple[bytes, Mapping[str, str]]


def _dump(item: object) -> bytes:
    return json.dumps(item, separators=(",", ":")).encode()


def _list(values: np.ndarray) -> list[Any]:
    # float32 as the shortest text that gives it back, not as the longer float64 that it equals.
    return [float(str(value)) for value in values.ravel()] if values.dtype == np.float32 else values.ravel().tolist()


def _datatype(values: np.ndarray) -> str:
    return {"float32": "FP32", "int64": "INT64"}[values.dtype.name]


def _describe(row: Row) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(values.shape), "datatype": _datatype(values)} for name, values in row.items()]


def encode(kind: str, model: str, row: Row) -> Request:
    """The body of a request for one row, and its headers."""
    if kind == "v2":
        tensors = zip(_describe(row), row.values(), strict=True)
        return _dump({"inputs": [{**tensor, "data": _list(values)} for tensor, values in tensors]}), JSON
    if kind == "binary":
        tensors = zip(_describe(row), row.values(), strict=True)
        inputs = [{**tensor, "parameters": {"binary_data_size": values.nbytes}} for tensor, values in tensors]
        head = _dump({"inputs": inputs, "parameters": {"binary_data_output": True}})
        return head + b"".join(values.tobytes() for values in row.values()), BYTES | {LENGTH_HEADER: str(len(head))}
    if kind == "plain":
        return _dump({name: _list(values) for name, values in row.items()}), JSON
    if kind == "stacked":
        columns = [_list(values) for values in row.values()]
        return _dump({"x": [columns if len(columns) > 1 else columns[0]]}), JSON
    if kind == "raw":
        return next(iter(row.values())).tobytes(), BYTES
    return _encode_grpc(model, row), {"content-type": "application/grpc", "te": "trailers"}


def _encode_grpc(model: str, row: Row) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    for tensor, values in zip(_describe(row), row.values(), strict=True):
        request.inputs.add(**tensor)
        request.raw_input_contents.append(values.tobytes())
    message = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(message)) + message


def decode(kind: str, headers: Mapping[str, str], body: bytes) -> np.ndarray:
    """The numbers of an answer, flat."""
    if kind == "grpc":
        return _decode_grpc(body)
    if kind == "raw":
        return np.frombuffer(body, np.float32)
    if kind == "binary":
        return np.frombuffer(body[int(headers[LENGTH_HEADER]) :], np.float32)
    answer = json.loads(body)
    found = answer["outputs"][0]["data"] if kind == "v2" else answer["y"] if kind == "plain" else answer
    return np.ravel(np.array(found, np.float32))


def _decode_grpc(body: bytes) -> np.ndarray:
    from tritonclient.grpc import service_pb2

    reply = service_pb2.ModelInferResponse.FromString(body[5:])
    if reply.raw_output_contents:
        return np.frombuffer(reply.raw_output_contents[0], np.float32)
    return np.array(reply.outputs[0].contents.fp32_contents, np.float32)


def write_requests(case: Case, kind: str, model: str, path: Path) -> Mapping[str, str]:
    """Write all rows as `post.lua` reads them: a length, a line's end, the body; returns the headers, equal for all."""
    made = [encode(kind, model, row) for row in case.rows]
    path.write_bytes(b"".join(b"%d\n%b" % (len(body), body) for body, _ in made))
    headers = {tuple(sorted(each.items())) for _, each in made}
    assert len(headers) == 1
    return dict(headers.pop())
