"""What the confined process of an import gave back: as hostile as the file that it opened, and looked at as such."""

from __future__ import annotations

import importlib
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from argosy.confine.confine import Completed
from argosy.errors import ArgosyError, InputError, ModelError, list_choices
from argosy.frameworks.agreement import FAR_TOLERANCE
from argosy.importers.convert import EXAMPLES_FILE, ONNX_FILE, TOLERANCE, ConvertAnswer, Refusal, answer_alone, measure_difference
from argosy.importers.formats.base import FORMATS
from argosy.importers.formats.copy import list_files
from argosy.runtimes.base import load_runtime_class
from argosy.store.golden import Golden, decode_golden

__all__ = ["Made", "check_onnx", "clean", "explain", "look_at", "read_answer"]

_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_EXAMPLES_BYTES: Final = 2 << 30
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")

_ERRORS: Final[dict[str, type[ArgosyError]]] = {
    **dict.fromkeys(("bad_model_file", "bad_sample", "needs_sample", "bad_code", "missing_extra"), InputError),
    **dict.fromkeys(("bad_option", "not_convertible", "unsupported_type"), InputError),
    **dict.fromkeys(("export_failed", "export_differs", "save_failed"), ModelError),
}
"""What the confined process may say by key; anything else is a detail of `bad_model_file`."""


class Made(NamedTuple):
    """What the confined process made."""

    answer: ConvertAnswer
    folder: Path
    """Of the artifact."""
    files: list[str]
    """In the folder."""
    examples: Golden


def read_answer(file: Path) -> ConvertAnswer | Refusal | None:
    """Read what the process answered; None if it is no answer, or if there is none."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > _MAX_ANSWER_BYTES:
        return None
    data = file.read_bytes()
    for kind in (ConvertAnswer, Refusal):
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, ArgosyError):
            continue
    return None


def clean(text: str) -> str:
    """Give a hostile process's text without what colours a terminal or moves its cursor."""
    plain = _COLOURS.sub("", text)
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in plain)


def explain(path: Path, name: str, answer: ConvertAnswer | Refusal | None, done: Completed) -> ArgosyError:
    """Make the error of a process that made no artifact, or one that the format cannot have."""
    detail = "the process that opened it gave an answer that cannot be"
    if answer is None:
        detail = _explain_death(done)
    elif isinstance(answer, Refusal):
        fields: dict[str, Any] = {key: clean(value) if isinstance(value, str) else value for key, value in answer.fields.items()}
        fields["path"] = path.name
        try:
            return _ERRORS[answer.key](answer.key, **fields)
        except (LookupError, ValueError, TypeError):
            # What a library raised; or fields that do not fit their text, which only a hostile process says.
            detail = clean(answer.detail)
    return InputError("bad_model_file", path=path.name, title=FORMATS[name].title, detail=clean(detail))


def _explain_death(done: Completed) -> str:
    how = f"exit code {done.returncode} and no answer"
    if done.returncode < 0:
        how = f"signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    last = done.stderr.strip().splitlines()[-1:]
    return f"the process that opened it ended by {how}" + (f"; it said last: {last[0][:300]}" if last else "")


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


def check_onnx(made: Made) -> float:
    """Let an ONNX file answer here, and give the largest difference from what the framework answered there.

    Raises:
        InputError: `bad_onnx`, it does not load, run, or stay within its folder.
        ModelError: `export_differs`.
    """
    has_rows, examples = made.answer.signature.is_batched, made.examples
    runtime = load_runtime_class(made.answer.runtime)()
    try:
        model = importlib.import_module("onnx").load(str(made.folder / ONNX_FILE), load_external_data=False)
        if strange := {place for place in _list_places(model) if place not in made.files}:
            raise ValueError(f"its weights lie at {list_choices(strange)[:200]}")
        runtime.load(made.folder, ONNX_FILE, {})
        inputs = examples.inputs if has_rows else examples.example(0, is_batched=False).inputs
        got = answer_alone(runtime.infer, inputs, has_rows=has_rows)
    except Exception as error:  # The edge of a runtime, and of a file that may be anything.
        raise InputError("bad_onnx", path=ONNX_FILE, detail=clean(str(error))) from error
    difference = measure_difference(examples.outputs, got.outputs)
    # What rounding does to the model was measured there, and is believed as far as no row may differ by more.
    allowed = max(TOLERANCE, min(made.answer.rounding, FAR_TOLERANCE))
    if not difference <= allowed:
        raise ModelError("export_differs", rows="sample", got=difference, allowed=allowed)
    return max(difference, made.answer.difference)


def _list_places(message: Any) -> Iterator[str]:
    """Give every place outside of an ONNX file that it refers to, wherever in it that stands."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from (entry.value for entry in value if entry.key == "location")
        elif field.type == field.TYPE_MESSAGE:
            parts: list[Any] = [*value] if isinstance(value, Sequence) else [value]
            for part in parts:
                yield from _list_places(part)
