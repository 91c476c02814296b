"""Clauses on wrong inference requests over gRPC: each is refused with a status other than OK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from argosy.conformance.clause import Level, clause
from argosy.conformance.evidence import Skip
from argosy.conformance.grpc_basics import NO_VERSION, UNKNOWN
from argosy.conformance.grpc_infer import call_infer, make_infer
from argosy.conformance.http_infer import need_inputs
from argosy.conformance.model import Model
from argosy.conformance.target import Target

_INFER: Final = "inference_grpc.md: Inference"
_SILENT: Final = "The text does not say that such a request has to be refused; nothing else is right."
_SERVER_FAULTS: Final = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE")


class _Case(NamedTuple):
    """A request that has to be refused."""

    name: str
    title: str
    make: Callable[[Target], Any]
    level: Level = Level.MUST
    note: str = ""


def _main(target: Target) -> Model:
    return target.main


def _change(
    edit: Callable[[Any], object], is_typed: bool = False, pick: Callable[[Target], Model] = _main
) -> Callable[[Target], Any]:
    """A good request to the main model (or another that is picked), edited."""

    def make(target: Target) -> Any:
        request = make_infer(pick(target), is_typed=is_typed)
        edit(request)
        return request

    return make


def _pick_fp32(target: Target) -> Model:
    return target.need_input("FP32")


def _pick_int8(target: Target) -> Model:
    return target.need_input("INT8")


def _set_first(**fields: Any) -> Callable[[Any], object]:
    def edit(request: Any) -> None:
        for name, value in fields.items():
            setattr(request.inputs[0], name, value)

    return edit


def _set_shape(shape: list[int]) -> Callable[[Any], object]:
    def edit(request: Any) -> None:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(shape)

    return edit


def _cut_raw(request: Any) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def _grow_raw(request: Any) -> None:
    request.raw_input_contents[0] += b"\0\0\0\0"


def _mix(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.5])


def _lose_raw(request: Any) -> None:
    del request.raw_input_contents[-1]


def _cut_typed(request: Any) -> None:
    del request.inputs[0].contents.fp32_contents[-1]


def _misplace(request: Any) -> None:
    contents = request.inputs[0].contents
    count = len(contents.fp32_contents)
    contents.Clear()
    contents.int_contents.extend([1] * count)


def _overflow(request: Any) -> None:
    request.inputs[0].contents.int_contents[0] = 300


def _empty(request: Any) -> None:
    del request.inputs[:]
    del request.raw_input_contents[:]


def _double(request: Any) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _set(name: str, value: str) -> Callable[[Any], object]:
    return lambda request: setattr(request, name, value)


_CASES: Final = (
    _Case("mixed", "contents beside raw_input_contents", _change(_mix, pick=_pick_fp32)),
    _Case("raw-count", "Fewer raw contents than inputs", _change(_lose_raw, pick=need_inputs)),
    _Case("raw-short", "Fewer raw bytes than shape and datatype need", _change(_cut_raw)),
    _Case("raw-long", "More raw bytes than shape and datatype need", _change(_grow_raw)),
    _Case("typed-short", "Fewer typed values than the shape says", _change(_cut_typed, True, _pick_fp32)),
    _Case("typed-field", "Typed contents in another datatype's field", _change(_misplace, True, _pick_fp32)),
    _Case("typed-range", "300 for an INT8", _change(_overflow, True, _pick_int8), Level.SHOULD, _SILENT),
    _Case("inputs-empty", "A request without inputs", _change(_empty)),
    _Case("input-misnamed", "An input by another name than the model's", _change(_set_first(name="conformance-no-such-input"))),
    _Case("input-twice", "An input that stands twice", _change(_double), Level.SHOULD, _SILENT),
    _Case("datatype-unknown", "A datatype that does not exist", _change(_set_first(datatype="FP33"))),
    _Case("datatype-wrong", "INT32 for FP32", _change(_set_first(datatype="INT32"), pick=_pick_fp32), Level.SHOULD, _SILENT),
    _Case("shape-negative", "A shape with a negative length", _change(_set_shape([-1, -4]))),
    _Case("shape-huge", "A shape of far more elements than there are", _change(_set_shape([2**31, 2**31]))),
    _Case("output-unknown", "An unknown output", _change(lambda request: request.outputs.add(name="conformance-no-such-output"))),
    _Case("unknown-model", "A request to an unknown model", _change(_set("model_name", UNKNOWN))),
)


def _make_check(case: _Case) -> Callable[[Target], None]:
    def check(target: Target) -> None:
        _ = target.grpc
        call_infer(target, case.make(target)).expect_refusal()

    return check


for _case in _CASES:
    clause(f"grpc.refuse.{_case.name}", f"{_case.title}: refused", _case.level, _INFER, _case.note)(_make_check(_case))


@clause("grpc.refuse.unknown-version", "A request to an unknown version is refused", Level.MUST, _INFER)
def check_unknown_version(target: Target) -> None:
    _ = target.grpc
    target.need_version(target.main)
    call_infer(target, make_infer(target.main, model_version=NO_VERSION)).expect_refusal()


@clause(
    "grpc.status.client-fault",
    "A wrong request is told as the client's fault, such as INVALID_ARGUMENT",
    Level.SHOULD,
    "gRPC status codes: INVALID_ARGUMENT",
    "The V2 text leaves the code open; clients try again on UNAVAILABLE, and report INTERNAL and UNKNOWN as the server's.",
)
def check_client_fault(target: Target) -> None:
    _ = target.grpc
    for case in _CASES:
        try:
            request = case.make(target)
        except Skip:
            continue
        answer = call_infer(target, request)
        answer.expect(answer.code not in _SERVER_FAULTS, f"a code of the client's fault for: {case.title}")


@clause("grpc.status.survives", "After all wrong requests the server still answers", Level.MUST, "inference_grpc.md: Server Live")
def check_survives(target: Target) -> None:
    target.grpc.call("ServerLive").read()
    call_infer(target, make_infer(target.main)).read()
