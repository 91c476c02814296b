"""Objects whose fields are what they are declared to be, in memory and as JSON: what messages between processes are made of.

Standard library only: the supervisor and foreign interpreters import this module.
"""

from __future__ import annotations

import base64
import math
import re
import sys
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NamedTuple, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from argosy.errors import MessageError

__all__ = ["Between", "Checked", "Json", "fill", "read_float", "refuse", "show", "to_json"]

Json = dict[str, Any]
"""Any JSON object."""

_MAX_INTEGER: Final = 2**63 - 1


class Between(NamedTuple):
    """The bounds of an `Annotated` number, as an `Annotated` text has the pattern of all of it."""

    low: float
    high: float


class Checked:
    """Base of frozen dataclasses. One that exists is valid, whoever made it.

    Fields are `bool`, `str`, `int`, `float`, `bytes` (base64 in JSON), `Json`, another such class, tuples of these, or either
    that or None. Numbers are finite and not negative; a text is one that UTF-8 can hold.
    """

    def __post_init__(self) -> None:
        for name, kind in _kinds_of(type(self)).items():
            try:
                object.__setattr__(self, name, _take(kind, getattr(self, name)))
            except ValueError as error:
                refuse(f"{type(self).__name__}.{name} {error}")


def fill(kind: type[Any], fields: Json) -> Any:
    """Make an object of all of its fields and no others.

    Raises:
        MessageError: `bad_message`, one is missing, is not known or is not what it is declared to be.
    """
    kinds = _kinds_of(kind)
    for name in fields.keys() ^ kinds.keys():
        refuse(f"{kind.__name__} {'lacks' if name in kinds else 'has no'} {name[:40]}")
    return kind(**fields)


def to_json(value: object) -> object:
    """Tell `json.dumps` what these fields are as JSON."""
    if isinstance(value, Checked):
        return vars(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is no JSON")


def read_float(text: str) -> float:
    """Read a number of a JSON document, of which Python takes more than JSON has.

    Raises:
        ValueError: it is not finite.
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number")
    return number


def show(value: object) -> str:
    """What was got, for a message."""
    if isinstance(value, (list, tuple, dict)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def refuse(detail: str) -> NoReturn:
    """Raise what is raised for a message that is none."""
    raise MessageError("bad_message", detail=detail) from None


@cache
def _kinds_of(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _take(kind: Any, value: Any) -> Any:
    """Give a field's value, also if it still is as JSON has it.

    Raises:
        ValueError: it is something else; the text says what.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bound(_take(arguments[0], value), arguments[1])
    if origin in (Union, UnionType):
        return None if value is None else _take_one([kind for kind in arguments if kind is not NoneType], value)
    if origin is tuple:
        return _take_tuple(arguments, value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"is {show(value)}, expected an object")
        return cast(Json, value)
    return _take_one([kind], value) if issubclass(kind, Checked) else _take_plain(kind, value)


def _take_plain(kind: type[Any], value: Any) -> Any:
    if kind is float and type(value) is int and value <= _MAX_INTEGER:
        value = float(value)
    if kind is bytes and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if type(value) is not kind:
        raise ValueError(f"is {show(value)}, expected {kind.__name__}")
    if kind is str:
        # Half of a surrogate pair is a text to JSON, and to nobody else.
        cast(str, value).encode()
    if kind in (int, float) and not 0 <= value <= (_MAX_INTEGER if kind is int else sys.float_info.max):
        raise ValueError(f"is {show(value)}, expected 0 or more{', in 63 bits' if kind is int else ''}")
    return value


def _take_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"is {show(value)}, expected a list")
    items = cast("list[Any]", value)
    kinds = arguments[:1] * len(items) if arguments[-1] is ... else arguments
    if len(items) != len(kinds):
        raise ValueError(f"has {len(items)} elements, expected {len(kinds)}")
    return tuple(_take(kind, item) for kind, item in zip(kinds, items, strict=True))


def _take_one(kinds: list[Any], value: Any) -> Any:
    """A value of one kind; or of one of several classes, which their fields tell apart."""
    classes = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Checked)]
    if not classes:
        return _take(kinds[0], value)
    if isinstance(value, tuple(classes)):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"is {show(value)}, expected an object")
    fields = cast(Json, value)
    return fill(next((kind for kind in classes if _kinds_of(kind).keys() == fields.keys()), classes[0]), fields)


def _bound(value: Any, limit: re.Pattern[str] | Between) -> Any:
    if isinstance(limit, Between):
        if not limit.low <= value <= limit.high:
            raise ValueError(f"is {show(value)}, expected {limit.low:g} to {limit.high:g}")
    elif not limit.fullmatch(value):
        raise ValueError(f"is {show(value)}, expected {limit.pattern}")
    return value
