"""Have a confined process look into ONNX files, and believe no more of its answer than it may say.

The process reads the folder that will be published, and writes an answer and golden examples. These are as hostile as the file:
the answer is held against its type, its signature is rebuilt from names, datatypes and shapes, its arrays are held against that
signature, and neither is read if it is too large.
"""

from __future__ import annotations

import importlib.util
import os
import site
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from numpy.typing import NDArray

from argosy.confine.confine import Completed, hostile_folder, run_confined
from argosy.errors import ArgosyError, InputError, StoreError, TooLargeError
from argosy.importers.ahead import ENVIRONMENT, take_examiner
from argosy.importers.answer import Refusal, clean, explain_death, find_refusal, lacked_memory, read_answer
from argosy.importers.examination import (
    ANSWER_FILE,
    GOLDEN_FILE,
    TRIAL_FILE,
    Examined,
    ExamineRequest,
    ListRequest,
    Locations,
)
from argosy.importers.golden_run import MAX_GOLDEN_BYTES, arrange_examples, pack_texts
from argosy.signature import Arrays, JoinVerdict, Signature, TensorSpec
from argosy.store.golden import Golden, check_golden, decode_golden, encode_golden

__all__ = ["Limits", "Looked", "Question", "list_locations", "look_into"]

_MEMORY_BYTES: Final = 4 << 30
"""Address space of the process beside that for the files. Before a file is opened it has reserved about 1 GiB."""
_MEMORY_TIMES: Final = 4
"""The files' size so many times: weights as they are read or mapped, packed for this processor, folded, and copied by each."""
_PACKAGES: Final = ("numpy", "msgspec", "onnx", "onnxruntime", "ml_dtypes", "google")
_OF_EXAMPLES: Final = "the golden examples"


class Limits(NamedTuple):
    """What a process may take."""

    timeout_s: float = 600.0
    memory_bytes: int | None = None
    """Of its address space. None: 4 GiB, and 4 times the size of the files."""


class Question(NamedTuple):
    """What is asked of an ONNX file."""

    model: str
    """Its name, for messages."""
    examples: Mapping[str, NDArray[Any]] | None = None
    """Inputs of golden examples; None draws random ones."""
    has_rows: bool | None = None
    """First axes of any length count rows. None tells it by the graph."""
    is_open: bool = True
    """Its outputs may have other rows than its inputs."""
    trial: Golden | None = None
    """More inputs, to be answered each row alone, and answers as large as those that are expected."""
    trial_has_rows: bool = True
    """False: the trial is one request."""


class Looked(NamedTuple):
    """What an ONNX file is."""

    signature: Signature
    joining: JoinVerdict
    facts: dict[str, object]
    """For the lineage."""
    golden: Golden | None
    trial: Arrays
    """The answers to the trial."""


def list_locations(
    paths: Sequence[Path], folder: Path, limits: Limits, *, judged: Path | None = None, signature: Signature | None = None
) -> tuple[list[tuple[str, ...]], JoinVerdict]:
    """Give the files that ONNX files' weights lie in, for each as it names them; and whether the rows of one may be joined.

    Args:
        paths: of the ONNX files.
        folder: that they lie in, in any depth.
        limits: of the process.
        judged: the one of them whose rows are judged; None for none.
        signature: of that one.

    Raises:
        InputError: `bad_onnx`, `bad_external_data`.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
    """
    with hostile_folder("argosy-import-") as work:
        answer = _ask(
            ListRequest(
                tuple(str(path.relative_to(folder)) for path in paths),
                str(_make_out(work)),
                "" if judged is None else str(judged.relative_to(folder)),
                signature,
            ),
            folder,
            paths[0],
            limits,
            Locations,
        )
    if len(answer.locations) != len(paths):
        raise _impossible(paths[0])
    return list(answer.locations), _clean_verdict(answer.joining)


def look_into(path: Path, names: Collection[str], question: Question, limits: Limits) -> Looked | list[str]:
    """Look into an ONNX file.

    Args:
        path: of the file, in the folder that is published.
        names: of the files of that folder.
        question: what is asked.
        limits: of the process.

    Returns:
        What it is; or the names of files that its weights lie in, if not all of these are in the folder.

    Raises:
        InputError: `bad_onnx`, `bad_external_data`, `unsupported_type`, `duplicate_tensor`, `missing_locale`, `bad_golden`.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
    """
    examples = None if question.examples is None else pack_texts(question.examples, question.model)
    with hostile_folder("argosy-import-") as work:
        request = ExamineRequest(
            path=path.name,
            folder=str(_make_out(work)),
            names=tuple(names),
            model=question.model,
            has_rows=question.has_rows,
            is_open=question.is_open,
            examples=_write_inputs(work / "examples.npz", examples),
            trial=_write_inputs(work / "trial.npz", None if question.trial is None else question.trial.inputs),
            trial_has_rows=question.trial_has_rows,
        )
        answer = _ask(request, path.parent, path, limits, Examined, Locations)
        if isinstance(answer, Locations):
            locations = [location for found in answer.locations for location in found]
            if set(locations) <= set(names):
                raise _impossible(path)
            return locations
        return _check(answer, work / "out", path, question, examples)


def _clean_verdict(verdict: JoinVerdict) -> JoinVerdict:
    return msgspec.structs.replace(verdict, reason=clean(verdict.reason))


def _make_out(work: Path) -> Path:
    out = work / "out"
    out.mkdir()
    return out


def _write_inputs(file: Path, inputs: Arrays | None) -> str:
    if inputs is None:
        return ""
    file.write_bytes(encode_golden(Golden(inputs, {})))
    return str(file)


def _ask(request: ExamineRequest | ListRequest, folder: Path, path: Path, limits: Limits, *kinds: type[Any]) -> Any:
    """Have a confined process answer; `kinds` are what it may answer.

    Raises:
        ArgosyError: what it says; `bad_onnx` if it died; `confined_timeout`, `confined_memory`.
    """
    out = Path(request.folder)
    file = out.parent / "request.json"
    file.write_bytes(msgspec.json.encode(request))
    size_bytes = sum(entry.stat().st_size for entry in folder.rglob("*"))
    memory_bytes = limits.memory_bytes or _MEMORY_BYTES + _MEMORY_TIMES * size_bytes
    title = f"The process that opens {path.name}"
    done = run_confined(
        ["argosy.importers.examine", str(file)],
        read=[folder, out.parent],
        write=[out],
        timeout_s=limits.timeout_s,
        memory_bytes=memory_bytes,
        env=ENVIRONMENT,
        module_folders=_list_other_folders(),
        # A graph is data: a machine that cannot confine takes what the limits leave.
        is_required=False,
        title=title,
        folder=folder,
        waiting=take_examiner(),
    )
    answer = read_answer(out / ANSWER_FILE, kinds)
    if isinstance(answer, kinds):
        return answer
    if lacked_memory(answer, done):
        raise TooLargeError("confined_memory", what=title, limit_gib=memory_bytes / 2**30)
    raise _explain(path, answer, done)


def _list_other_folders() -> list[Path]:
    """Give the folders of what the process imports that PYTHONPATH, which it does not get, leads to."""
    own = {os.path.realpath(folder) for folder in site.getsitepackages()}
    specs = [spec for package in _PACKAGES if (spec := importlib.util.find_spec(package)) is not None]
    folders = {os.path.realpath(Path(place).parent) for spec in specs for place in spec.submodule_search_locations or ()}
    return [Path(folder) for folder in sorted(folders - own)]


def _explain(path: Path, answer: Refusal | None, done: Completed) -> ArgosyError:
    if answer is None:
        return InputError("bad_onnx", path=path.name, detail=clean(explain_death(done)))
    return find_refusal(answer) or InputError("bad_onnx", path=path.name, detail=clean(answer.detail))


def _impossible(path: Path) -> InputError:
    return InputError("bad_onnx", path=path.name, detail="the process that opened it gave an answer that cannot be")


def _check(answer: Examined, out: Path, path: Path, question: Question, given: Arrays | None) -> Looked:
    """Make what is published of an answer and the files beside it."""
    # Nothing else that a signature can hold is a graph's to say.
    inputs, outputs = (
        tuple(TensorSpec(spec.name, spec.datatype, spec.shape) for spec in side)
        for side in (answer.signature.inputs, answer.signature.outputs)
    )
    signature = Signature(inputs, outputs, has_rows=answer.signature.has_rows)
    golden = None
    try:
        if answer.has_golden:
            golden = _read_arrays(out / GOLDEN_FILE, MAX_GOLDEN_BYTES)
            if given is not None:
                # The user's own, and not what the process makes of them.
                examples = arrange_examples(given, signature, question.model)
                golden.inputs = {name: array[list(answer.kept)] for name, array in examples.items()}
            check_golden(golden, signature, question.model)
        trial = {} if question.trial is None else _read_trial(out / TRIAL_FILE, question.trial, signature)
    except (InputError, StoreError, OSError, IndexError, TypeError, ValueError) as error:
        raise _impossible(path) from error
    if given is not None and golden is None:
        raise _impossible(path)
    facts: dict[str, object] = {"source_file": path.name, **_tell(answer)}
    return Looked(signature, _clean_verdict(answer.joining), facts, golden, trial)


def _tell(answer: Examined) -> dict[str, object]:
    facts = answer.facts
    told: dict[str, object] = {
        "producer": clean(facts.producer),
        "opsets": {clean(name): version for name, version in facts.opsets.items()},
        "num_weights": facts.num_weights,
        "precision": clean(facts.precision),
        "golden_error": clean(answer.golden_error),
        "example_error": clean(answer.example_error),
    }
    return {key: value for key, value in told.items() if value or key not in ("precision", "golden_error", "example_error")}


def _read_trial(file: Path, trial: Golden, signature: Signature) -> Arrays:
    # The same numbers in another type have at most 8 bytes for each byte.
    answers = _read_arrays(file, 8 * len(encode_golden(Golden({}, trial.outputs)))).outputs
    if {name: array.dtype for name, array in answers.items()} != {spec.name: spec.dtype for spec in signature.outputs}:
        raise ValueError("the answers are not of the signature")
    return answers


def _read_arrays(file: Path, max_bytes: int) -> Golden:
    if file.is_symlink() or not file.is_file() or file.stat().st_size > max_bytes + (1 << 20):
        raise ValueError("there is no such file")
    return decode_golden(file.read_bytes(), _OF_EXAMPLES)
