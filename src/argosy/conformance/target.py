"""The server under test: what it is asked, the models that it has, what it says of itself."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from argosy.conformance.evidence import NotOffered, Skip, show
from argosy.conformance.grpc_wire import GrpcWire
from argosy.conformance.http_wire import Answer, HttpWire, model_path
from argosy.conformance.model import Model, Tensor, list_names, make_request, name_same
from argosy.conformance.tensors import DATATYPES, Array, from_json
from argosy.errors import InputError, NotFoundError, UnavailableError

__all__ = ["Target", "read_output_head", "read_outputs"]

TIMEOUT_S: Final = 10.0
_MAX_LISTED: Final = 16
"""Models that are taken from a server's index where it has none of the suite's."""


class Target:
    """A server, and what the checks know of it.

    Attributes:
        server: its name and version, as it tells them.
        extensions: that it announces, or that are tested all the same.
        models: those to test with, by name.

    Args:
        url: of HTTP, such as `http://localhost:8000`.
        grpc_address: such as `localhost:8001`; empty to leave gRPC out.
        models: names to test with beside those of the suite; the first is the one that most clauses use.
        admin_token: for loading and unloading; empty for none.
        extensions: to be tested though the server does not announce them.
        timeout_s: for each answer.

    Raises:
        InputError: `bad_option`, the URL is none.
        UnavailableError: `no_connection`, nothing answers there.
        NotFoundError: `no_test_model`, the server has none of the models.
    """

    def __init__(
        self,
        url: str,
        *,
        grpc_address: str = "",
        models: Sequence[str] = (),
        admin_token: str = "",
        extensions: Sequence[str] = (),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url = url
        self.http = HttpWire(_split_url(url), timeout_s)
        self._grpc = GrpcWire(grpc_address, timeout_s) if grpc_address else None
        self.admin_headers = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
        try:
            metadata = _parse(self.get("/v2")) or {}
            self.server = show(f"{metadata.get('name', 'a server without a name')} {metadata.get('version', '')}".rstrip())
            self.extensions = (*_read_extensions(metadata), *extensions)
            self.models = self._find_models([*models, name_same("FP32"), *list_names()]) or self._find_models(self._list_index())
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError("no_connection", url=url, detail=error) from error
        missing = [name for name in models if name not in self.models]
        if missing or not self.models:
            raise NotFoundError("no_test_model", url=url, got=", ".join(missing) or "conformance-...")

    def close(self) -> None:
        """End the connections."""
        if self._grpc is not None:
            self._grpc.close()

    @property
    def main(self) -> Model:
        """The model that most clauses use."""
        return next(iter(self.models.values()))

    @property
    def grpc(self) -> GrpcWire:
        """The way to the server over gRPC.

        Raises:
            Skip: no address was given.
        """
        if self._grpc is None:
            raise Skip("it needs --grpc HOST:PORT")
        return self._grpc

    def need_model(self, name: str) -> Model:
        """A model of the suite.

        Raises:
            Skip: the server does not have it.
        """
        if name not in self.models:
            raise Skip(f"it needs the model {name}")
        return self.models[name]

    def need_input(self, *datatypes: str) -> Model:
        """A model whose first input has one of these datatypes.

        Raises:
            Skip: there is none.
        """
        for model in self.models.values():
            if model.inputs and model.inputs[0].datatype in datatypes:
                return model
        raise Skip(f"it needs a model whose first input is {' or '.join(datatypes)}")

    def need_version(self, model: Model) -> str:
        """A version of a model that may be named.

        Raises:
            NotOffered: its metadata has none.
        """
        if not model.versions:
            raise NotOffered("the model's metadata names no versions")
        return model.versions[-1]

    def need_extension(self, name: str) -> None:
        """Go on if the server announces an extension.

        Raises:
            NotOffered: it does not.
        """
        if name not in self.extensions:
            raise NotOffered(f"the extension {name} is not announced")

    def get(self, path: str) -> Answer:
        """GET a path."""
        return self.http.send("GET", path)

    def infer(
        self,
        model: Model,
        request: Mapping[str, Any] | bytes | None = None,
        *,
        version: str = "",
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """Send an inference request: an object, a body as it is, or (None) one with the model's usual inputs."""
        request = make_request(model) if request is None else request
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return self.http.send("POST", model_path(model.name, version, "infer"), body, headers)

    def _list_index(self) -> list[str]:
        """Names of models that are ready, where the server tells them."""
        try:
            index = json.loads(self.http.send("POST", "/v2/repository/index", b'{"ready": true}').body)
        except (ValueError, RecursionError):
            return []
        entries = cast(list[Any], index) if isinstance(index, list) else []
        names = [cast(dict[str, Any], entry).get("name") for entry in entries if isinstance(entry, dict)]
        return [name for name in names if isinstance(name, str) and name.isprintable()][:_MAX_LISTED]

    def _find_models(self, names: Sequence[str]) -> dict[str, Model]:
        found = [self._find_model(name) for name in dict.fromkeys(names)]
        return {model.name: model for model in found if model is not None}

    def _find_model(self, name: str) -> Model | None:
        """Read a model's metadata as well as it goes: what is wrong with it is found by the clauses on metadata."""
        value = _parse(self.get(model_path(name)))
        if value is None:
            return None
        versions = value.get("versions")
        return Model(
            name,
            tuple(map(str, cast(list[Any], versions))) if isinstance(versions, list) else (),
            _read_tensors(value.get("inputs")),
            _read_tensors(value.get("outputs")),
        )


def _split_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise InputError("bad_option", option="URL", got=url, expected="http://HOST:PORT")
    return urlsplit(url)


def _read_extensions(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    extensions = metadata.get("extensions")
    return tuple(map(str, cast(list[Any], extensions))) if isinstance(extensions, list) else ()


def _parse(answer: Answer) -> dict[str, Any] | None:
    if answer.status != 200:
        return None
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], value) if isinstance(value, dict) else None


def _read_tensors(value: object) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    for item in cast(list[Any], value) if isinstance(value, list) else []:
        if isinstance(item, dict):
            fields = cast(dict[str, Any], item)
            shape, datatype = fields.get("shape"), fields.get("datatype")
            if isinstance(shape, list) and datatype in DATATYPES and all(type(dim) is int for dim in cast(list[Any], shape)):
                tensors.append(Tensor(str(fields.get("name")), str(datatype), tuple(cast(list[int], shape))))
    return tuple(tensors)


def read_outputs(answer: Answer, text: bytes | None = None) -> dict[str, Array]:
    """The JSON outputs of an inference answer, each checked against its own datatype and shape.

    Args:
        answer: of an inference request.
        text: the JSON of the answer, where it is not the whole body.

    Raises:
        Failure: the answer is not as V2 has it.
    """
    reply = answer.read_object() if text is None else cast(dict[str, Any], answer.read_json(text))
    outputs: dict[str, Array] = {}
    for item in answer.field(reply, "outputs", list, "an array of outputs"):
        name, datatype, shape = read_output_head(answer, item)
        answer.expect(name not in outputs, "each output once", f"output {name} twice")
        try:
            outputs[name] = from_json(item.get("data"), datatype, shape)
        except (ValueError, OverflowError) as error:
            raise answer.failure(
                f"data of output {name} that fits its datatype {datatype} and shape {list(shape)}", str(error)
            ) from None
    return outputs


def read_output_head(answer: Answer, item: object) -> tuple[str, str, tuple[int, ...]]:
    """Name, datatype and shape of an output.

    Raises:
        Failure: one of them is not as V2 has it.
    """
    if not isinstance(item, dict):
        raise answer.failure("outputs that are objects")
    fields = cast(dict[str, Any], item)
    name = answer.field(fields, "name", str, "a string")
    datatype = answer.field(fields, "datatype", str, "a string")
    answer.expect(datatype in DATATYPES, "a datatype of the protocol", datatype)
    shape = cast(list[Any], answer.field(fields, "shape", list, "an array of integers"))
    answer.expect(all(type(dim) is int and dim >= 0 for dim in shape), "a shape of integers from 0", f"shape {shape}")
    return name, datatype, tuple(shape)
