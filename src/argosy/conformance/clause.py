"""What a clause of the protocol is, and the four ways in which its check ends.

A check returns (pass), or raises `Failure`, `NotOffered` or `Skip` (`evidence.py`); the clause that stands above it says
what it checks. Nothing in this package uses the code of the server: a suite that shares a mistake with what it tests does
not find it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from argosy.conformance.target import Target

__all__ = ["CLAUSES", "SOURCES", "Clause", "Level", "Outcome", "clause"]

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
