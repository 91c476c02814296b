"""Replies of the V2 protocol over HTTP/1.1: statuses, heads, error bodies."""

from __future__ import annotations

import re
from typing import Final, Protocol

import orjson

from argosy.errors import ArgosyError

__all__ = ["OK_HEAD", "Sender", "encode_binary_head", "encode_error", "encode_reply"]

_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    413: b"Content Too Large",
    414: b"URI Too Long",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
# Of errors that other protocols have no status of their own for.
_STATUSES: Final = {"method_not_allowed": 405, "url_too_long": 414, "headers_too_large": 431}
_TAKES_POST: Final = re.compile(r"/(infer|load|unload|repository/index)/?(\?|$)")
OK_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
"""Before the length and the body of a good answer in JSON."""


class Sender(Protocol):
    """The connection that an answer goes to, each request's exactly once."""

    def send(self, status: int, body: bytes, headers: bytes = b"", *, has_body: bool = True) -> None:
        """Answer with a JSON body."""
        ...

    def send_json(self, body: bytes) -> None:
        """As `send(200, body)`."""
        ...

    def send_binary(self, head: bytes, tail: list[bytes]) -> None:
        """Answer with JSON and the binary tensors that follow it."""
        ...

    def send_error(self, error: ArgosyError) -> None:
        """Answer with an error body, as V2 has it."""
        ...

    def send_outcome(self, error: ArgosyError | None) -> None:
        """Answer a request that has no answer but that it was done, or why not."""
        ...

    def report(self, error: Exception) -> None:
        """Answer that something failed that must not, and say what in the log."""
        ...


def encode_reply(status: int, body: bytes, headers: bytes, *, keep_alive: bool, has_body: bool) -> bytes:
    """A whole reply with a JSON body, which HEAD leaves out; `headers` are lines of their own, each with its end."""
    return b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
        status,
        _REASONS[status],
        len(body),
        headers,
        b"" if keep_alive else b"Connection: close\r\n",
        body if has_body else b"",
    )


def encode_binary_head(head: bytes, tail: list[bytes], *, keep_alive: bool) -> bytes:
    """The HTTP head of an answer of JSON (`head`) and the binary tensors that follow it (`tail`)."""
    length = len(head) + sum(map(len, tail))
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
        b"Content-Length: %d\r\n%b\r\n" % (len(head), length, b"" if keep_alive else b"Connection: close\r\n")
    )


def encode_error(error: ArgosyError) -> tuple[int, bytes, bytes]:
    """Status, body and header lines of an error, as V2 has it."""
    headers = b"" if error.retry_after_s is None else b"Retry-After: %d\r\n" % max(1, round(error.retry_after_s))
    status = _STATUSES.get(error.key, error.status)
    if status == 405:
        takes_post = _TAKES_POST.search(str(error.fields["path"]))
        headers += b"Allow: POST\r\n" if takes_post else b"Allow: GET, HEAD\r\n"
    elif status == 401:
        headers += b"WWW-Authenticate: Bearer\r\n"
    return status, orjson.dumps({"error": str(error)}), headers
