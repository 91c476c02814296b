"""HTTP to the server under test: each request on a connection of its own, and answers with what they answer.

Only `http.client` and sockets are used: a comfortable client would repair what the suite has to see.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast
from urllib.parse import SplitResult, quote

from argosy.conformance.evidence import Evidence, show

__all__ = ["Answer", "HttpWire", "model_path", "parse_json", "read_reply"]

MAX_ANSWER_BYTES: Final = 256 << 20
_JSON: Final = "application/json"


class Answer(Evidence):
    """What came back over HTTP.

    Attributes:
        status: of HTTP.
        headers: by their names in lower case; the last of a name.
        body: all of it.
    """

    def __init__(self, sent: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(sent, f"{status} {show(body)}".rstrip())
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def is_refusal(self) -> bool:
        """True for an error status with the error object that V2 demands."""
        return self.status >= 400 and is_error(self.body)

    def expect_refusal(self) -> None:
        """Go on if the server refused.

        Raises:
            Failure: it answered otherwise.
        """
        self.expect(self.is_refusal, 'a status of 400 or above, and a body {"error": "..."}')

    def read_object(self) -> dict[str, Any]:
        """The JSON object of a good answer.

        Raises:
            Failure: the status is not 200, or the body no JSON object.
        """
        self.expect(self.status == 200, "status 200")
        value = self.read_json(self.body)
        if not isinstance(value, dict):
            raise self.failure("a JSON object")
        return cast(dict[str, Any], value)

    def read_json(self, text: bytes) -> object:
        """Parse JSON, strictly: NaN and Infinity are none.

        Raises:
            Failure: it is none.
        """
        try:
            return parse_json(text)
        except ValueError as error:
            raise self.failure("JSON", show(error)) from None

    def field(self, place: Mapping[str, Any], name: str, kind: type | tuple[type, ...], what: str) -> Any:
        """A field of an object in the answer.

        Raises:
            Failure: it is not there, or of another kind.
        """
        value = place.get(name)
        is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        self.expect(
            is_right, f"a field `{name}`: {what}", f"{name} = {show(json.dumps(value))}" if name in place else "no such field"
        )
        return value


def parse_json(text: bytes) -> object:
    """Parse JSON as RFC 8259 has it.

    Raises:
        ValueError: it is none, or too deep.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text.decode(), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_error(body: bytes) -> bool:
    """True for the error object of V2: `{"error": "..."}`."""
    try:
        value = parse_json(body)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(cast(dict[str, Any], value).get("error"), str)


class HttpWire:
    """Requests to one server.

    Args:
        url: of the server; a path in it stands before every path.
        timeout_s: for a connection, and for each read of an answer.
    """

    def __init__(self, url: SplitResult, timeout_s: float) -> None:
        self.host = url.hostname or ""
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self.prefix = url.path.rstrip("/")
        self.timeout_s = timeout_s

    def connect(self) -> http.client.HTTPConnection:
        """A new connection, which is opened by its first request."""
        if self._tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self._tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)

    @contextmanager
    def send_raw(self, data: bytes) -> Generator[BinaryIO, None, None]:
        """Send bytes that no HTTP client sends, and give what comes back as a stream."""
        plain = socket.create_connection((self.host, self.port), timeout=self.timeout_s)
        used = plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=self.host)
        with used, used.makefile("rb") as stream:
            used.sendall(data)
            yield stream

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = {},
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Send a request and read its answer.

        Args:
            method: of HTTP.
            path: below the server's URL, quoted.
            body: None for none.
            headers: beside Host and Content-Length; a body is JSON if they do not say otherwise.
            connection: to use and leave open; None for one of its own.

        Raises:
            OSError, http.client.HTTPException: no answer, or none that is HTTP.
        """
        sent_headers = {"Content-Type": _JSON, **headers} if body is not None else dict(headers)
        used = connection or self.connect()
        try:
            used.request(method, self.prefix + path, body, sent_headers)
            response = used.getresponse()
            content = response.read(MAX_ANSWER_BYTES)
        finally:
            if connection is None:
                used.close()
        sent = f"{method} {path}" + "".join(f" {name}: {value}" for name, value in headers.items())
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(f"{sent} {show(body)}" if body else sent, response.status, found, content)


class _Opened:
    """As much of a socket as `http.client` needs to read an answer from a stream, which it leaves open."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def makefile(self, _: str) -> _Opened:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Leave the stream to the next answer."""

    def flush(self) -> None:
        """Nothing is written."""


def read_reply(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Status and body of the next answer in a stream; None at its end.

    Raises:
        OSError, http.client.HTTPException: it is no answer.
    """
    response = http.client.HTTPResponse(cast(socket.socket, _Opened(stream)))
    try:
        response.begin()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except http.client.RemoteDisconnected:
        return None


def model_path(name: str, version: str = "", suffix: str = "") -> str:
    """The path of a model, or of something below it."""
    middle = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{middle}{f'/{suffix}' if suffix else ''}"
