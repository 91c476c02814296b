"""A JSON API of one's own: word counts, and a counter that is sent event by event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from argosy.raw import Event, Request, Response


class Model:
    """Answers `POST /words` and `GET /counter/N`."""

    def load(self, folder: Path) -> None:
        """Called once, before any request; `folder` holds the files of the version."""

    def raw(self, request: Request) -> Response | AsyncIterator[Event]:
        """Answer a request; several threads call this at once."""
        match (request.method, request.path.strip("/").split("/")):
            case ("POST", ["words"]):
                return self.count_words(request)
            case ("GET", ["counter", number]) if number.isdecimal():
                return self.count_up(int(number))
            case _:
                return Response.from_json({"error": f"no {request.method} {request.path} here"}, status=404)

    def count_words(self, request: Request) -> Response:
        """`{"text": "..."}` to the number of each word."""
        try:
            words = request.json()["text"].lower().split()
        except (ValueError, KeyError, TypeError, AttributeError):
            return Response.from_json({"error": 'expected {"text": "..."}'}, status=400)
        return Response.from_json({word: words.count(word) for word in dict.fromkeys(words)})

    async def count_up(self, number: int) -> AsyncIterator[Event]:
        """An event for each number; ends at once when the client goes away."""
        for value in range(number):
            yield Event.from_json({"value": value}, event="count", id=str(value))
            await asyncio.sleep(0.01)
