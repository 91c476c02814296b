"""Replies of the V2 protocol over HTTP/1.1: statuses, heads, error bodies."""

from __future__ import annotations

from typing import Final

import orjson

from argosy.errors import ArgosyError

__all__ = ["encode_binary_head", "encode_error", "encode_reply"]

_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_OK_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "


def encode_reply(status: int, body: bytes, headers: bytes, *, keep_alive: bool, has_body: bool) -> bytes:
    """A whole reply with a JSON body, which HEAD leaves out; `headers` are lines of their own, each with its end."""
    if status == 200 and keep_alive and has_body:
        # All that differs between good answers.
        return b"%b%d\r\n\r\n%b" % (_OK_HEAD, len(body), body)
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
    status = error.status
    if error.key == "method_not_allowed":
        status = 405
        is_infer = str(error.fields["path"]).partition("?")[0].endswith("/infer")
        headers += b"Allow: POST\r\n" if is_infer else b"Allow: GET, HEAD\r\n"
    return status, orjson.dumps({"error": str(error)}), headers
