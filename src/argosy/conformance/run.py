"""Run the clauses against a server, one after the other."""

from __future__ import annotations

import http.client
import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import msgspec

from argosy.conformance.clause import CLAUSES, Clause, Outcome
from argosy.conformance.evidence import Failure, NotOffered, Skip, show
from argosy.conformance.target import Target
from argosy.errors import InputError, list_choices

__all__ = ["Finding", "Result", "load_clauses", "run_clauses"]

_MODULES: Final = (
    "http_basics",
    "http_health",
    "http_infer",
    "http_refusals",
    "http_binary",
    "http_extensions",
    "grpc_basics",
    "grpc_infer",
    "grpc_refusals",
    "grpc_extensions",
    "equality",
)


class Finding(msgspec.Struct, frozen=True):
    """How the check of one clause ended."""

    id: str
    title: str
    level: str
    source: str
    note: str
    outcome: str
    """pass, fail, not offered or skipped."""
    reason: str = ""
    """Of an outcome that is neither pass nor fail."""
    sent: str = ""
    expected: str = ""
    got: str = ""


class Result(msgspec.Struct, frozen=True):
    """What a run found."""

    url: str
    server: str
    """Name and version, as the server tells them."""
    models: tuple[str, ...]
    """Those that were tested with."""
    findings: tuple[Finding, ...]

    @property
    def is_conforming(self) -> bool:
        """True when no clause of level MUST fails."""
        return not any(finding.outcome == Outcome.FAIL and finding.level == "MUST" for finding in self.findings)

    def count(self, outcome: str, group: str = "") -> int:
        """How many clauses of a group (empty for all) ended so."""
        return sum(finding.outcome == outcome and is_in(finding.id, group) for finding in self.findings)


def is_in(clause_id: str, group: str) -> bool:
    """True if a clause belongs to a group: the clause's own id, or parts of it from the left; all belong to the empty one."""
    return not group or clause_id == group or clause_id.startswith(f"{group}.")


@cache
def load_clauses() -> dict[str, Clause]:
    """All clauses by their id, in the order in which they run."""
    for name in _MODULES:
        importlib.import_module(f"argosy.conformance.{name}")
    return CLAUSES


def run_clauses(target: Target, groups: Sequence[str] = (), on_finding: Callable[[Finding], None] = lambda _: None) -> Result:
    """Check a server.

    Args:
        target: the server.
        groups: only these: `http`, `http.infer`, `grpc.stream` ...; empty for all.
        on_finding: called with each finding as it is made.

    Raises:
        InputError: `unknown_choice`, no clause belongs to a group.
    """
    clauses = load_clauses()
    for group in groups:
        if not any(is_in(clause_id, group) for clause_id in clauses):
            known = list_choices({clause_id.rsplit(".", 1)[0] for clause_id in clauses})
            raise InputError("unknown_choice", kind="group of clauses", got=group, known=known)
    findings: list[Finding] = []
    for clause in clauses.values():
        if not groups or any(is_in(clause.id, group) for group in groups):
            findings.append(_check(clause, target))
            on_finding(findings[-1])
    return Result(target.url, target.server, tuple(target.models), tuple(findings))


def _check(clause: Clause, target: Target) -> Finding:
    outcome, reason, failure = Outcome.PASS, "", Failure("", "", "")
    try:
        clause.check(target)
    except Failure as error:
        outcome, failure = Outcome.FAIL, error
    except NotOffered as error:
        outcome, reason = Outcome.NOT_OFFERED, str(error)
    except Skip as error:
        outcome, reason = Outcome.SKIPPED, str(error)
    except (OSError, http.client.HTTPException) as error:
        outcome, failure = Outcome.FAIL, Failure("", "an answer", show(f"{type(error).__name__}: {error}"))
    except Exception as error:  # what a server may answer has no end: it must not end the run
        outcome, failure = Outcome.FAIL, Failure("", "an answer in the protocol's form", show(f"{type(error).__name__}: {error}"))
    return Finding(
        clause.id,
        clause.title,
        clause.level,
        clause.source,
        clause.note,
        outcome,
        show(reason),
        failure.sent,
        show(failure.expected),
        failure.got,
    )
