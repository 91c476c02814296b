"""Look into an ONNX file: the confined child of its import.

    python -m argosy.importers.examine REQUEST.json

It parses the graph, says which files its weights lie in and whether its rows may be joined, opens it with ONNX Runtime and
records golden examples. The folder of the request gets `answer.json`, and what the answer tells of: `golden.npz` with the
examples, `trial.npz` with the answers to a trial.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from argosy.errors import ArgosyError, InputError
from argosy.importers import golden_run
from argosy.importers.answer import MAX_ANSWER_BYTES, Refusal, refuse_error
from argosy.importers.examination import (
    ANSWER_FILE,
    GOLDEN_FILE,
    TRIAL_FILE,
    Examined,
    ExamineRequest,
    ListRequest,
    Locations,
)
from argosy.importers.graph import derive_signature, describe, infer_axes, list_locations, read_graph
from argosy.rows.axis import settle_rows
from argosy.rows.proof import judge_rows
from argosy.runtimes.base import lacks_memory
from argosy.signature import Arrays, JoinVerdict, Signature
from argosy.store.golden import Golden, decode_golden, encode_golden

__all__ = ["main"]


def main() -> None:
    """Carry out the request in the first argument."""
    request = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ExamineRequest | ListRequest)
    try:
        answer = _list(request) if isinstance(request, ListRequest) else _examine(request)
    except ArgosyError as error:
        answer = refuse_error(error)
    except Exception as error:  # The edge of the process: libraries raise anything on a hostile file.
        answer = Refusal(f"{type(error).__name__}: {str(error)[:400]}", is_out_of_memory=lacks_memory(error))
    data = msgspec.json.encode(answer)
    if len(data) > MAX_ANSWER_BYTES:
        data = msgspec.json.encode(Refusal(f"what it tells of its tensors has more than {MAX_ANSWER_BYTES} bytes"))
    Path(request.folder, ANSWER_FILE).write_bytes(data)
    # Nothing is torn down that a hostile file may have left in whatever state.
    os._exit(0)


def _list(request: ListRequest) -> Locations:
    locations: list[tuple[str, ...]] = []
    verdict = JoinVerdict()
    for name in request.paths:
        model = read_graph(Path(name))
        locations.append(tuple(list_locations(model, Path(name))))
        if name == request.judged and request.signature is not None and request.signature.is_batched:
            verdict = judge_rows(model, request.signature)[0]
    return Locations(tuple(locations), verdict)


def _examine(request: ExamineRequest) -> Examined | Locations:
    path = Path(request.path)
    model = read_graph(path)
    locations = list_locations(model, path)
    if set(locations) - set(request.names):
        return Locations((tuple(locations),))
    session = golden_run.open_session(path)
    signature = derive_signature(model, path, {**golden_run.shapes_of_outputs(session), **infer_axes(model)})
    signature, verdict = _settle_rows(model, signature, request.has_rows)
    examples = decode_golden(Path(request.examples).read_bytes(), "the examples").inputs if request.examples else None
    other = None
    if request.is_open and request.has_rows is None and verdict.kind != "independent":
        other = _find_other_rows(session, examples, signature, request.model)
    if other is not None:
        signature, recorded = other
        verdict = JoinVerdict(verdict.kind, "its outputs have other rows than its inputs", verdict.edition)
        errors: dict[str, str] = {}
    else:
        recorded, errors = _record(session, examples, signature, request.model)
    if recorded is not None:
        golden = recorded.golden if examples is None else Golden({}, recorded.golden.outputs)
        Path(request.folder, GOLDEN_FILE).write_bytes(encode_golden(golden))
    if request.trial:
        _answer_trial(request, session, signature)
    kept = recorded.kept if recorded is not None else ()
    return Examined(signature, verdict, describe(model), recorded is not None, kept, **errors)


def _settle_rows(model: Any, signature: Signature, has_rows: bool | None) -> tuple[Signature, JoinVerdict]:
    if has_rows is None:
        return settle_rows(model, signature)
    signature = msgspec.structs.replace(signature, has_rows=has_rows)
    if signature.is_batched:
        return signature, judge_rows(model, signature)[0]
    return signature, JoinVerdict("unknown", "the signature has no axis of rows")


def _record(
    session: Any, examples: Mapping[str, NDArray[Any]] | None, signature: Signature, model: str
) -> tuple[golden_run.Recorded | None, dict[str, str]]:
    if examples is not None:
        return golden_run.record_golden(session, examples, signature, model), {}
    golden, errors = golden_run.record_synthetic(session, signature)
    return golden_run.Recorded(golden, ()) if golden is not None else None, errors


def _find_other_rows(
    session: Any, examples: Mapping[str, NDArray[Any]] | None, signature: Signature, model: str
) -> tuple[Signature, golden_run.Recorded] | None:
    """Give the signature and golden examples of a model whose outputs have other rows than its inputs; None of any other."""
    if not signature.is_batched:
        return None
    other = msgspec.structs.replace(signature, has_rows=False)
    try:
        recorded, _ = _record(session, examples, other, model)
    except InputError:
        return None
    # Each example of these is a request of several rows.
    if recorded is None or golden_run.counts_rows(session, recorded.golden.example(0, is_batched=False).inputs, signature):
        return None
    return other, recorded


def _answer_trial(request: ExamineRequest, session: Any, signature: Signature) -> None:
    run = golden_run.make_run(session, signature)
    inputs = decode_golden(Path(request.trial).read_bytes(), "the trial").inputs
    answers: Arrays = golden_run.answer_alone(run, inputs, has_rows=request.trial_has_rows).outputs
    Path(request.folder, TRIAL_FILE).write_bytes(encode_golden(Golden({}, answers)))


if __name__ == "__main__":
    main()
