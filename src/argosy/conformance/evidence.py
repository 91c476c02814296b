"""How a check ends that does not pass, and the exchange with the server that shows it."""

from __future__ import annotations

from typing import Final

__all__ = ["Evidence", "Failure", "NotOffered", "Skip", "show"]

MAX_SHOWN: Final = 400
"""Characters of a request or an answer that a report shows."""


class Failure(Exception):
    """The server does otherwise than the clause says."""

    def __init__(self, sent: str, expected: str, got: str) -> None:
        super().__init__(expected)
        self.sent = sent
        self.expected = expected
        self.got = got


class NotOffered(Exception):
    """The clause is about an optional part that the server does not have."""


class Skip(Exception):
    """The clause could not be checked: it needs a model, an address or a token that was not there."""


class Evidence:
    """An exchange with the server, which a failure is shown with.

    Args:
        sent: the request, for a reader.
        got: the answer, for a reader.
    """

    def __init__(self, sent: str, got: str) -> None:
        self.sent = sent
        self.got = got

    def failure(self, expected: str, got: str = "") -> Failure:
        """The failure that this exchange shows; `got` where it is more telling than the whole answer."""
        return Failure(self.sent, expected, f"{show(got)} in {self.got}" if got else self.got)

    def expect(self, holds: bool, expected: str, got: str = "") -> None:
        """Go on if a condition holds.

        Raises:
            Failure: it does not.
        """
        if not holds:
            raise self.failure(expected, got)


def show(value: object) -> str:
    """A value for a report: on one line, printable, and cut."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    text = "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
