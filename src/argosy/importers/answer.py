"""What the confined process of an import answers: how it is written there, and how it is read here, hostile as the file."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from argosy.errors import ArgosyError, InputError, ModelError
from argosy.runtimes.base import lacks_memory

if TYPE_CHECKING:
    from argosy.confine.confine import Completed

__all__ = [
    "MAX_ANSWER_BYTES",
    "Refusal",
    "clean",
    "explain_death",
    "find_refusal",
    "lacked_memory",
    "read_answer",
    "refuse_error",
]

_Answer = TypeVar("_Answer", bound=msgspec.Struct)

MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_DETAIL: Final = 1000
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")

_ERRORS: Final[dict[str, type[ArgosyError]]] = {
    **dict.fromkeys(("bad_model_file", "bad_sample", "needs_sample", "bad_code", "missing_extra"), InputError),
    **dict.fromkeys(("bad_option", "not_convertible", "unsupported_type"), InputError),
    **dict.fromkeys(("bad_onnx", "bad_external_data", "bad_golden", "missing_locale", "duplicate_tensor"), InputError),
    **dict.fromkeys(("export_failed", "export_differs", "save_failed"), ModelError),
}
"""What a confined process may say by key; anything else is no more than a detail."""


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a process made nothing: an error's key and fields, or what a library raised."""

    detail: str
    key: str = ""
    fields: dict[str, str | int | float] = {}
    is_out_of_memory: bool = False
    """It asked for more memory than it may have."""


def refuse_error(error: ArgosyError) -> Refusal:
    """Give an error as a refusal. In the process."""
    fields = {name: value if isinstance(value, int | float) else str(value)[:_MAX_DETAIL] for name, value in error.fields.items()}
    return Refusal(error.message[:_MAX_DETAIL], error.key, fields, lacks_memory(error))


def read_answer(file: Path, kinds: Sequence[type[_Answer]]) -> _Answer | Refusal | None:
    """Read what a process answered; None if it is no answer, or if there is none."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_ANSWER_BYTES:
        return None
    data = file.read_bytes()
    for kind in (*kinds, Refusal):
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, ArgosyError):
            continue
    return None


def lacked_memory(answer: object, done: Completed) -> bool:
    """Say whether a process that made nothing says that it lacked memory, or died of it."""
    if isinstance(answer, Refusal):
        return answer.is_out_of_memory
    return answer is None and lacks_memory(done.stderr)


def clean(text: str) -> str:
    """Give a hostile process's text without what colours a terminal or moves its cursor."""
    plain = _COLOURS.sub("", text)
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in plain)


def find_refusal(refusal: Refusal, errors: Mapping[str, type[ArgosyError]] = _ERRORS, /, **known: str) -> ArgosyError | None:
    """Give the error that a refusal names; None if it names none that a confined process may.

    Args:
        refusal: of the process.
        errors: that it may name, by key.
        known: fields of the text that are known here, such as `path`.
    """
    fields: dict[str, Any] = {key: clean(value) if isinstance(value, str) else value for key, value in refusal.fields.items()}
    try:
        return errors[refusal.key](refusal.key, **(fields | dict[str, Any](known)))
    except (LookupError, ValueError, TypeError):
        # What a library raised; or fields that do not fit their text, which only a hostile process says.
        return None


def explain_death(done: Completed) -> str:
    """Say how a process ended that did not answer."""
    how = f"exit code {done.returncode} and no answer"
    if done.returncode < 0:
        how = f"signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    last = done.stderr.strip().splitlines()[-1:]
    return f"the process that opened it ended by {how}" + (f"; it said last: {last[0][:300]}" if last else "")
