"""What the confined process of a conversion gave back: as hostile as the file that it opened, and looked at as such."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from argosy.confine.confine import Completed
from argosy.errors import ArgosyError, InputError, ModelError, TooLargeError
from argosy.frameworks.agreement import FAR_TOLERANCE, measure_difference
from argosy.importers.answer import Refusal, clean, explain_death, find_refusal, lacked_memory
from argosy.importers.convert import EXAMPLES_FILE, TOLERANCE, ConvertAnswer
from argosy.importers.formats.base import FORMATS
from argosy.importers.formats.copy import list_files
from argosy.signature import Arrays
from argosy.store.golden import Golden, decode_golden

__all__ = ["Made", "explain", "hold_answers", "look_at"]

_MAX_EXAMPLES_BYTES: Final = 2 << 30


class Made(NamedTuple):
    """What the confined process made."""

    answer: ConvertAnswer
    folder: Path
    """Of the artifact."""
    files: list[str]
    """In the folder."""
    examples: Golden


def explain(
    path: Path, name: str, answer: ConvertAnswer | Refusal | None, done: Completed, *, title: str, memory_bytes: int
) -> ArgosyError:
    """Make the error of a process that made no artifact, or one that the format cannot have.

    Args:
        path: of the file that it opened.
        name: of the format.
        answer: its own.
        done: how it ended.
        title: what messages call it.
        memory_bytes: that it was allowed.
    """
    if lacked_memory(answer, done):
        return TooLargeError("confined_memory", what=title, limit_gib=memory_bytes / 2**30)
    detail = "the process that opened it gave an answer that cannot be"
    if answer is None:
        detail = explain_death(done)
    elif isinstance(answer, Refusal):
        if (error := find_refusal(answer, path=path.name)) is not None:
            return error
        detail = answer.detail
    return InputError("bad_model_file", path=path.name, title=FORMATS[name].title, detail=clean(detail))


def look_at(out: Path, answer: ConvertAnswer) -> Made:
    """Look at what the process wrote; it cannot make links there, and this says so where it is relied on.

    Raises:
        InputError: `missing_file`, `bad_file_name`.
        TooLargeError: `model_file_too_large`.
        StoreError: `bad_manifest`, the examples cannot be read.
    """
    folder, file = out / answer.runtime, out / EXAMPLES_FILE
    files = list(list_files(folder))
    if links := [path.name for path in (file, *(folder / name for name in files)) if path.is_symlink()]:
        raise InputError("bad_file_name", got=links[0], detail="it is a link")
    if not file.is_file() or file.stat().st_size > _MAX_EXAMPLES_BYTES:
        raise InputError("missing_file", path=EXAMPLES_FILE, detail="the process that opened the model did not write it")
    return Made(answer, folder, files, decode_golden(file.read_bytes(), "the examples"))


def hold_answers(made: Made, answers: Arrays) -> float:
    """Hold the answers of an ONNX file against the framework's, and give the largest difference from them.

    Args:
        made: of the process that wrote the file.
        answers: to the examples, of another process that had nothing but the file.

    Raises:
        ModelError: `export_differs`.
    """
    difference = measure_difference(made.examples.outputs, answers)
    # What rounding does to the model was measured there, and is believed as far as no row may differ by more.
    allowed = max(TOLERANCE, min(made.answer.rounding, FAR_TOLERANCE))
    if not difference <= allowed:
        raise ModelError("export_differs", rows="sample", got=difference, allowed=allowed)
    return max(difference, made.answer.difference)
