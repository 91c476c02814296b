"""Clauses on HTTP itself: what any client may rely on, below the protocol."""

from __future__ import annotations

import http.client
import json
from typing import Final, cast

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Evidence, Failure, NotOffered, show
from argosy.conformance.http_wire import model_path, parse_json, read_reply
from argosy.conformance.model import make_request
from argosy.conformance.target import Target

_MAX_HEAD_BYTES: Final = 65536


@clause("http.basics.keep-alive", "A connection serves more than one request", Level.SHOULD, "RFC 9112: 9.3")
def check_keep_alive(target: Target) -> None:
    connection = target.http.connect()
    try:
        for _ in range(2):
            answer = target.http.send("GET", "/v2/health/live", connection=connection)
            answer.expect(connection.sock is not None, "the connection left open", "the server closed it")
    finally:
        connection.close()


@clause(
    "http.basics.after-error",
    "A connection goes on after a request that was refused",
    Level.SHOULD,
    "RFC 9112: 9.3",
)
def check_after_error(target: Target) -> None:
    connection = target.http.connect()
    try:
        refused = target.http.send("POST", model_path(target.main.name, "", "infer"), b"{}", connection=connection)
        refused.expect(connection.sock is not None, "the connection left open", "the server closed it")
        target.http.send("GET", "/v2/health/live", connection=connection).expect(True, "an answer")
    except (OSError, http.client.HTTPException) as error:
        raise Failure("two requests on one connection, the first one wrong", "two answers", show(error)) from None
    finally:
        connection.close()


@clause(
    "http.basics.pipelined",
    "Requests that are sent ahead are answered in their order",
    Level.MUST,
    "RFC 9112: 9.3.2",
    "A server may close the connection after the first answer.",
)
def check_pipelined(target: Target) -> None:
    ids = ["first", "second", "third"]
    requests = b"".join(_encode_infer(target, json.dumps(make_request(target.main, id=each)).encode()) for each in ids)
    got: list[object] = []
    with target.http.send_raw(requests) as stream:
        for _ in ids:
            reply = read_reply(stream)
            if reply is None:
                break
            got.append(_read_id(reply[1]))
    evidence = Evidence(f"three inference requests at once, ids {ids}", f"answers with ids {got}")
    evidence.expect(bool(got) and got == ids[: len(got)], "answers in the order of the requests")


def _encode_infer(target: Target, body: bytes, framing: str | None = None) -> bytes:
    path = target.http.prefix + model_path(target.main.name, "", "infer")
    framing = f"Content-Length: {len(body)}\r\n" if framing is None else framing
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {target.http.host}:{target.http.port}\r\nContent-Type: application/json\r\n{framing}\r\n"
    )
    return head.encode() + body


def _read_id(body: bytes) -> object:
    try:
        value = parse_json(body)
    except ValueError:
        return None
    return cast(dict[str, object], value).get("id") if isinstance(value, dict) else None


@clause(
    "http.basics.chunked-request",
    "A body in chunks is taken, or refused with 411",
    Level.MUST,
    "RFC 9112: 6.3 and 7.1",
)
def check_chunked(target: Target) -> None:
    body = json.dumps(make_request(target.main, id="chunked")).encode()
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    with target.http.send_raw(_encode_infer(target, chunks, "Transfer-Encoding: chunked\r\n")) as stream:
        status, got = read_reply(stream) or (0, b"no answer")
    is_right = status == 411 or (status == 200 and _read_id(got) == "chunked")
    answer = Evidence("an inference request in two chunks", f"{status} {show(got)}")
    answer.expect(is_right, "the answer to the request, or status 411")


@clause(
    "http.basics.expect-continue",
    "A client that waits for 100 Continue is not left waiting",
    Level.MUST,
    "RFC 9110: 10.1.1",
)
def check_expect(target: Target) -> None:
    body = json.dumps(make_request(target.main)).encode()
    head = _encode_infer(target, body, f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n")[: -len(body)]
    with target.http.send_raw(head) as stream:
        try:
            line = stream.readline(_MAX_HEAD_BYTES)
        except TimeoutError:
            line = b""
    Evidence("the head of a request with Expect: 100-continue", show(line) or "nothing").expect(
        line.startswith(b"HTTP/1.1 "), f"100 Continue or a final status within {target.http.timeout_s:g} s"
    )


@clause("http.basics.missing-host", "A request without Host is refused with 400", Level.MUST, "RFC 9112: 3.2")
def check_missing_host(target: Target) -> None:
    with target.http.send_raw(f"GET {target.http.prefix}/v2 HTTP/1.1\r\n\r\n".encode()) as stream:
        line = stream.readline(_MAX_HEAD_BYTES)
    Evidence("GET /v2 without the header Host", show(line) or "nothing").expect(b" 400 " in line, "status 400")


@clause(
    "http.basics.head",
    "HEAD is answered as GET, without the body",
    Level.SHOULD,
    "RFC 9110: 9.1",
    "RFC 9110 demands it of general-purpose servers; V2 names GET alone.",
)
def check_head(target: Target) -> None:
    head = f"HEAD {target.http.prefix}/v2/health/live HTTP/1.1\r\nHost: {target.http.host}\r\nConnection: close\r\n\r\n"
    with target.http.send_raw(head.encode()) as stream:
        got = stream.read(_MAX_HEAD_BYTES)
    is_right = got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\n")
    Evidence("HEAD /v2/health/live", show(got)).expect(is_right, "status 200 and no body")


@clause("http.basics.unknown-path", "A path that does not exist is 404", Level.SHOULD, "RFC 9110: 15.5.5")
def check_unknown_path(target: Target) -> None:
    answer = target.get("/v2/conformance-no-such-path")
    answer.expect(answer.status == 404, "status 404")


@clause("http.basics.wrong-method", "GET on an inference path is 405", Level.SHOULD, "RFC 9110: 15.5.6")
def check_wrong_method(target: Target) -> None:
    answer = target.get(model_path(target.main.name, "", "infer"))
    answer.expect(answer.status == 405, "status 405")


@clause("http.basics.allow", "A 405 names the methods that are allowed", Level.MUST, "RFC 9110: 15.5.6")
def check_allow(target: Target) -> None:
    answer = target.get(model_path(target.main.name, "", "infer"))
    if answer.status != 405:
        raise NotOffered("a wrong method is not answered with 405")
    allow = answer.headers.get("allow", "")
    answer.expect("POST" in allow, "a header Allow with POST", f"Allow: {allow}")


@clause(
    "http.basics.content-type",
    "JSON answers are application/json",
    Level.SHOULD,
    "inference_rest.md: Inference Request Examples",
)
def check_content_type(target: Target) -> None:
    for answer in (target.get("/v2"), target.infer(target.main)):
        found = answer.headers.get("content-type", "none")
        answer.expect(
            found.split(";")[0].strip() == "application/json", "Content-Type: application/json", f"Content-Type: {found}"
        )


@clause(
    "http.basics.any-content-type",
    "A JSON request is read whatever its Content-Type",
    Level.SHOULD,
    "inference_rest.md: Inference",
    "The text defines no request header; `curl -d` sends application/x-www-form-urlencoded.",
)
def check_any_content_type(target: Target) -> None:
    answer = target.infer(target.main, headers={"Content-Type": "application/x-www-form-urlencoded"})
    answer.expect(answer.status == 200, "status 200")
