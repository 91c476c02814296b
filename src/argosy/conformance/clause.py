"""What a clause of the protocol is, and the four ways in which its check ends.

A check returns (pass), or raises `Failure`, `NotOffered` or `Skip`; the clause that stands above it says what it checks.
Nothing in this package uses the code of the server: a suite that shares a mistake with what it tests does not find it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from argosy.conformance.target import Target

__all__ = ["CLAUSES", "SOURCES", "Clause", "Evidence", "Failure", "Level", "NotOffered", "Outcome", "Skip", "clause", "show"]

MAX_SHOWN: Final = 400
"""Characters of a request or an answer that a report shows."""

_OIP: Final = "https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/"
_TRITON: Final = "https://github.com/triton-inference-server/server/blob/main/docs/protocol/"
SOURCES: Final = {
    "inference_rest.md": _OIP + "inference_rest.md",
    "inference_grpc.md": _OIP + "inference_grpc.md",
    "open_inference_rest.yaml": _OIP + "open_inference_rest.yaml",
    "extension_binary_data.md": _TRITON + "extension_binary_data.md",
    "extension_model_configuration.md": _TRITON + "extension_model_configuration.md",
    "extension_model_repository.md": _TRITON + "extension_model_repository.md",
    "extension_schedule_policy.md": _TRITON + "extension_schedule_policy.md",
    "extension_statistics.md": _TRITON + "extension_statistics.md",
    "grpc_service.proto": "https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto",
    "gRPC status codes": "https://github.com/grpc/grpc/blob/master/doc/statuscodes.md",
    "RFC 3986": "https://www.rfc-editor.org/rfc/rfc3986",
    "RFC 8259": "https://www.rfc-editor.org/rfc/rfc8259",
    "RFC 9110": "https://www.rfc-editor.org/rfc/rfc9110",
    "RFC 9112": "https://www.rfc-editor.org/rfc/rfc9112",
}
"""Documents that clauses come from; a clause's source begins with one of these names."""


class Level(StrEnum):
    """How strongly the source asks for it, in the words of RFC 2119."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"


class Outcome(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    NOT_OFFERED = "not offered"
    SKIPPED = "skipped"


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


class Clause(NamedTuple):
    """One sentence of the protocol that can be checked."""

    id: str
    """Stable; its parts, from the left, are the groups that it belongs to."""
    title: str
    level: Level
    source: str
    """Document and section."""
    note: str
    """Where the source is ambiguous or silent, and what was taken."""
    check: Callable[[Target], None]


CLAUSES: Final[dict[str, Clause]] = {}
"""All clauses by their id; the modules with checks fill it when they are imported."""


def clause(
    clause_id: str, title: str, level: Level, source: str, note: str = ""
) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    """Register a function as the check of a clause."""

    def register(check: Callable[[Target], None]) -> Callable[[Target], None]:
        assert clause_id not in CLAUSES
        assert source.split(":")[0] in SOURCES
        CLAUSES[clause_id] = Clause(clause_id, title, level, source, note, check)
        return check

    return register


def show(value: object) -> str:
    """A value for a report: on one line, printable, and cut."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    text = "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"
