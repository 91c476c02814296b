"""Every message text renders, and is used."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

import argosy
from argosy.errors import MESSAGES, ArgosyError, GrpcCode, InputError, OverloadedError, list_choices

SOURCE = "\n".join(path.read_text() for path in Path(argosy.__file__).parent.rglob("*.py") if path.name != "errors.py")


class _Anything:
    """Formats as whatever a template asks for."""

    def __format__(self, spec: str) -> str:
        return format(1.0, spec) if spec else "thing"

    def __repr__(self) -> str:
        return "'thing'"


@pytest.mark.parametrize("key", MESSAGES)
def test_message_renders_with_its_fields_alone(key: str) -> None:
    message = MESSAGES[key]
    names = {name for text in message for _, name, _, _ in string.Formatter().parse(text) if name}
    error = ArgosyError(key, **dict.fromkeys(names, _Anything()))
    assert error.message and "{" not in error.message.replace("{0,127}", "")
    assert str(error).startswith(error.message)
    assert ("hint: " in str(error)) == bool(message.hint)


@pytest.mark.parametrize("key", MESSAGES)
def test_message_is_raised_somewhere(key: str) -> None:
    assert re.search(rf'"{key}"', SOURCE), f"{key} stands in the table and nowhere else"


def test_every_class_has_a_status_and_a_grpc_code() -> None:
    def walk(kind: type[ArgosyError]) -> list[type[ArgosyError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in walk(child))]

    classes = walk(ArgosyError)
    assert len(classes) > 12
    for kind in classes:
        assert 400 <= kind.status < 600
        assert kind.grpc_code in GrpcCode


def test_error_carries_its_key_fields_and_retry_time() -> None:
    error = OverloadedError("queue_full", model="m", got=7, limit=4, retry_s=1.5, retry_after_s=1.5)
    assert (error.key, error.retry_after_s, error.fields["got"]) == ("queue_full", 1.5, 7)
    assert "7 rows wait, at most 4 may" in error.message
    assert "1.5 s" in error.hint


def test_unknown_key_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        InputError("no_such_key")


def test_choices_are_sorted_and_cut() -> None:
    assert list_choices([]) == "none"
    assert list_choices(["b", "a"]) == "a, b"
    assert list_choices(range(30)).endswith("and 10 more")
