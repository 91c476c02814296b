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
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    NoReturn,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from argosy.errors import MessageError

__all__ = ["Between", "Checked", "Json", "field", "fill", "read_float", "refuse", "show", "to_json"]

Json = dict[str, Any]
"""Any JSON object."""

_MAX_INTEGER: Final = 2**63 - 1


class Between(NamedTuple):
    """The bounds of an `Annotated` number, as an `Annotated` text has the pattern of all of it."""

    low: float
    high: float


class _Default(NamedTuple):
    """Stands in a class for the default of a field that has to be named."""

    value: Any


def field(*, default: Any, kw_only: Literal[True]) -> Any:
    """Declare a field that has to be named, and its default; as that of dataclasses."""
    return _Default(default)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Checked:
    """Base of classes that are written as frozen dataclasses are. An object that exists is valid, whoever made it.

    Fields are `bool`, `str`, `int`, `float`, `bytes` (base64 in JSON), `Json`, another such class, tuples of these, or either
    that or None. Numbers are finite and not negative; a text is one that UTF-8 can hold.
    """

    # Not dataclasses: these write code for each class, which every process of a server would compile at its start.
    __match_args__ = ()
    _names = frozenset[str]()
    _defaults = dict[str, Any]()

    def __init_subclass__(cls) -> None:
        own: dict[str, Any] = vars(cls).get("__annotations__", {})
        defaults = {name: cls.__dict__[name] for name in own if name in cls.__dict__}
        named = [name for name, value in defaults.items() if isinstance(value, _Default)]
        cls.__match_args__ = (*cls.__match_args__, *(name for name in own if name not in named))
        cls._names = cls._names | own.keys()
        cls._defaults = {**cls._defaults, **defaults, **{name: defaults[name].value for name in named}}

    def __init__(self, *values: Any, **named: Any) -> None:
        given = dict(zip(self.__match_args__, values, strict=False))
        fields = {**self._defaults, **given, **named}
        if fields.keys() != self._names or len(given) != len(values) or not given.keys().isdisjoint(named):
            raise TypeError(f"{type(self).__name__} takes {sorted(self._names)}, got {[*given, *named]}")
        vars(self).update(fields)
        self._check()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is not to be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def _check(self) -> None:
        """Hold every field against what it is declared to be; whoever asks more of them does so in the same place.

        Raises:
            MessageError: `bad_message`.
        """
        for name, kind in _kinds_of(type(self)).items():
            try:
                vars(self)[name] = _take(kind, vars(self)[name])
            except ValueError as error:
                refuse(f"{type(self).__name__}.{name} {error}")


def fill(kind: type[Any], fields: Json) -> Any:
    """Make an object of all of its fields and no others.

    Raises:
        MessageError: `bad_message`, one is missing, is not known or is not what it is declared to be.
    """
    kinds = _kinds_of(kind)
    for name in fields.keys() ^ kinds.keys():
        refuse(f"{kind.__name__} {'lacks' if name in kinds else 'has no'} {show(name)}")
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
