"""What the `raw` method of a Python model gets and gives: `Request`, `Response`, `Event`.

Needs the standard library only: it is imported in workers, by the model's own file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, Final, cast

__all__ = ["Body", "Event", "Item", "Request", "Response", "encode_item"]

EVENT_STREAM: Final = "text/event-stream"


class Event:
    """One server-sent event.

    Args:
        data: text; each of its lines becomes a line of its own, as the format has it.
        event: name of the event, on one line; the browser's default is `message`.
        id: what a client that comes back sends as Last-Event-ID, on one line.
        retry_s: seconds after which a client that lost the connection shall come back; the format has milliseconds.

    Raises:
        ValueError: a name or id has several lines: it would forge others.

    Source: WHATWG HTML, server-sent events, 9.2.5.
    """

    __slots__ = ("data", "event", "id", "retry_s")

    def __init__(self, data: str, *, event: str | None = None, id: str | None = None, retry_s: float | None = None) -> None:
        for field, value in (("event", event), ("id", id)):
            if value is not None and not {"\r", "\n", "\0"}.isdisjoint(value):
                raise ValueError(f"{field} of a server-sent event is {value[:80]!r}, expected one line")
        self.data = data
        self.event = event
        self.id = id
        self.retry_s = retry_s

    @classmethod
    def from_json(cls, value: Any, *, event: str | None = None, id: str | None = None) -> Event:
        """An event whose data is JSON.

        Raises:
            TypeError, ValueError: JSON has no words for the value; NaN is none of its numbers.
        """
        return cls(json.dumps(value, allow_nan=False), event=event, id=id)

    def encode(self) -> bytes:
        """The lines of the event, and the empty one that ends it."""
        lines = [f"event: {self.event}"] if self.event is not None else []
        lines += [f"id: {self.id}"] if self.id is not None else []
        lines += [f"retry: {round(self.retry_s * 1000)}"] if self.retry_s is not None else []
        # The three ends of a line that the format knows; str.splitlines knows more.
        lines += [f"data: {line}" for line in self.data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


Item = bytes | bytearray | memoryview | str | Event
"""A part of an answer that is sent as it is made."""
Body = Item | Iterable[Item] | AsyncIterable[Item]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Request:
    """What a client asked of a model's raw endpoint.

    Attributes:
        method: GET, POST ...
        path: what stands in the URL behind `/raw`, percent-decoded: nothing, or it begins with a slash. It is text of the
            client's; as the name of a file it must be checked.
        query: what stands behind the question mark, as it was sent; `urllib.parse.parse_qs` takes it apart.
        headers: lower-case name to value; of one that was sent several times the values are joined, as HTTP has it: with a comma,
            cookies with a semicolon. Those of the connection itself, and Authorization, are left out.
        body: as it was sent; a Content-Encoding is not undone.
    """

    __slots__ = ("_ask", "body", "headers", "method", "path", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, is_cancelled: Callable[[], bool]
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self._ask = is_cancelled

    @property
    def is_cancelled(self) -> bool:
        """True when nobody waits for the answer any more: the client left, or the deadline passed."""
        return self._ask()

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)


class Response:
    """An answer with a status and headers.

    Args:
        body: bytes or text, which are sent whole; or an iterable, generator or asynchronous generator of them or of
            events, which is sent as it is made.
        status: 200 to 599.
        content_type: default: `text/plain` for text, `text/event-stream` for events, else `application/octet-stream`.
        headers: further ones, by name or as pairs, of which one name may have several, such as Set-Cookie; those of the
            connection itself, and Content-Length, are the server's to write.
    """

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, body: Body = b"", *, status: int = 200, content_type: str | None = None, headers: Headers = ()) -> None:
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers

    @classmethod
    def from_json(cls, value: Any, *, status: int = 200, headers: Headers = ()) -> Response:
        """An answer of JSON.

        Raises:
            TypeError, ValueError: JSON has no words for the value; NaN is none of its numbers.
        """
        return cls(json.dumps(value, allow_nan=False).encode(), status=status, content_type="application/json", headers=headers)


def encode_item(item: Any) -> tuple[bytes, str]:
    """The bytes of an item, and the content type that it suggests.

    Raises:
        TypeError: it is no item.
    """
    if isinstance(item, bytes):
        return item, "application/octet-stream"
    if isinstance(item, str):
        return item.encode(), "text/plain; charset=utf-8"
    if isinstance(item, Event):
        return item.encode(), EVENT_STREAM
    if isinstance(item, bytearray | memoryview):
        return bytes(cast("bytearray", item)), "application/octet-stream"
    raise TypeError(f"raw gave {type(item).__name__}, expected bytes, str, Event, Response or a generator of the first three")
