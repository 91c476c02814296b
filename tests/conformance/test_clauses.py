"""Every clause passes on a server that does everything right, and finds the fault that it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from argosy.conformance import Finding, Target, run_clauses
from argosy.conformance.clause import SOURCES
from argosy.conformance.run import load_clauses
from tests.conformance.faults import FAULTS, http, lenient, put, speechless
from tests.conformance.reference import TOKEN, Reference, Reply

CLAUSES = list(load_clauses())
WAITING = ("http.basics.expect-continue", "repository.load", "repository.unload", "stats.counts", "grpc.stats.counts")
"""Clauses that give a server time before they fail it."""


@pytest.fixture(scope="module")
def running() -> Iterator[Reference]:
    with Reference() as server:
        yield server


@pytest.fixture
def server(running: Reference) -> Reference:
    running.reset()
    return running


def check(server: Reference, *groups: str, **options: Any) -> list[Finding]:
    settings = {"grpc_address": server.grpc_address, "admin_token": TOKEN, "timeout_s": 20.0, **options}
    target = Target(server.url, **settings)
    try:
        return list(run_clauses(target, groups).findings)
    finally:
        target.close()


def test_server_that_does_everything_right_passes_every_clause(server: Reference) -> None:
    findings = check(server)
    assert [finding for finding in findings if finding.outcome != "pass"] == []
    assert [finding.id for finding in findings] == CLAUSES


def test_every_clause_has_a_fault_and_a_source() -> None:
    assert sorted(FAULTS) == sorted(CLAUSES)
    for clause in load_clauses().values():
        assert clause.source.split(":")[0] in SOURCES
        assert clause.title


@pytest.fixture(scope="module")
def targets(running: Reference) -> Iterator[dict[bool, Target]]:
    """One that waits long for answers, and one that does not."""
    running.reset()
    made = {
        is_hasty: Target(running.url, grpc_address=running.grpc_address, admin_token=TOKEN, timeout_s=0.5 if is_hasty else 20.0)
        for is_hasty in (True, False)
    }
    yield made
    for target in made.values():
        target.close()


@pytest.mark.parametrize("clause_id", CLAUSES)
def test_clause_finds_its_fault(server: Reference, targets: dict[bool, Target], clause_id: str) -> None:
    FAULTS[clause_id](server)
    (finding,) = run_clauses(targets[clause_id in WAITING], [clause_id]).findings
    assert finding.outcome == "fail", finding
    assert finding.expected and finding.got
    assert "Error" not in finding.got


def test_refusal_without_an_error_object_is_found(server: Reference) -> None:
    http(speechless)(server)
    findings = check(server, "http.refuse", "binary.refuse")
    assert {finding.outcome for finding in findings} == {"fail"}
    assert {finding.expected for finding in findings} == {'a status of 400 or above, and a body {"error": "..."}'}


def test_typed_answers_over_grpc_are_read_too(server: Reference) -> None:
    server.is_typed = True
    findings = check(server, "grpc.infer", "equal.raw-typed")
    others = {finding.id: finding.outcome for finding in findings if finding.outcome != "pass"}
    assert others == {"grpc.infer.contents-absent": "not offered"}


def test_extension_that_is_not_announced_is_not_offered(server: Reference) -> None:
    server.extensions = []
    findings = check(server, "binary", "config", "stats", "repository", "schedule")
    assert {finding.outcome for finding in findings} == {"not offered"}
    assert findings[0].reason == "the extension binary_tensor_data is not announced"


def test_server_without_versions_is_not_asked_for_them(server: Reference) -> None:
    server.has_versions = False
    findings = {finding.id: finding.outcome for finding in check(server, "http.metadata", "http.refuse.unknown-version")}
    assert findings["http.metadata.version-path"] == findings["http.refuse.unknown-version"] == "not offered"
    assert findings["http.metadata.model"] == "pass"


def test_grpc_is_skipped_without_an_address(server: Reference) -> None:
    findings = check(server, "grpc", grpc_address="")
    assert {(finding.outcome, finding.reason) for finding in findings} == {("skipped", "it needs --grpc HOST:PORT")}


def test_loading_is_skipped_without_a_token(server: Reference) -> None:
    findings = check(server, "repository.load", "grpc.repository.load-unknown", admin_token="")
    assert {(finding.outcome, finding.reason) for finding in findings} == {("skipped", "it needs --admin-token")}


def test_clause_that_needs_a_model_is_skipped_without_it(server: Reference) -> None:
    server.loaded = {"conformance-int8"}
    findings = {finding.id: finding for finding in check(server)}
    assert findings["http.infer.plain"].outcome == findings["http.datatype.int8"].outcome == "pass"
    assert findings["http.infer.outputs-subset"].outcome == "skipped"
    assert findings["http.datatype.fp32"].reason == "it needs a model whose first input is FP32"


@pytest.mark.parametrize("models", [["mine"], []], ids=["named", "from-the-index"])
def test_any_model_will_do(server: Reference, models: list[str]) -> None:
    server.names = ["mine"]
    server.loaded = {"mine"}
    findings = check(server, "http", "binary", "grpc.infer", models=models)
    assert {finding.outcome for finding in findings} == {"pass", "skipped"}
    assert sum(finding.outcome == "pass" for finding in findings) > 110


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"outputs": 1}', b'{"outputs": [{"shape": [-1]}]}', b'{"extensions": {}}'],
    ids=["empty", "array", "null", "no-text", "deep", "number", "shape", "object"],
)
def test_server_that_answers_nonsense_fails_and_ends_nothing(server: Reference, body: bytes) -> None:
    target = Target(server.url, timeout_s=2.0)
    http(lambda _, reply: Reply(200, body, reply.headers))(server)
    result = run_clauses(target, ["http.health", "http.metadata", "http.infer", "config", "stats"])
    assert result.count("fail") > 30
    assert result.count("pass") < 10
    assert not result.is_conforming


def test_clauses_may_fail_without_a_verdict_where_the_level_is_not_must(server: Reference) -> None:
    FAULTS["http.metadata.platform"](server)
    target = Target(server.url)
    result = run_clauses(target, ["http.metadata"])
    assert result.count("fail") == 1
    assert result.is_conforming


def test_lenient_server_fails_each_refusal(server: Reference) -> None:
    http(lenient)(server)
    assert {finding.outcome for finding in check(server, "http.refuse", "binary.refuse")} == {"fail"}


def test_nothing_that_a_server_says_reaches_the_terminal_as_it_is(server: Reference) -> None:
    put("/v2$", "name", "\x1b[31mred\u202e\n")(server)
    put_model = put("/infer$", "model_name", "\x1b]0;title\x07")
    target = Target(server.url)
    assert target.server == "\\x1b[31mred\\u202e\\n 1.0"
    put_model(server)
    (finding,) = run_clauses(target, ["http.infer.model-name"]).findings
    assert finding.outcome == "fail"
    assert (finding.sent + finding.expected + finding.got).isprintable()


def test_server_that_dies_fails_what_is_left() -> None:
    with Reference() as server:
        target = Target(server.url)
    result = run_clauses(target, ["http.health", "http.infer.plain"])
    assert {finding.outcome for finding in result.findings} == {"fail"}
    assert result.findings[0].got.startswith("ConnectionRefusedError")
