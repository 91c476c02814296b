"""What may be chosen: parameters by name, each with the values that it may take."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeGuard, cast

from argosy.errors import InputError

__all__ = ["Choice", "Float", "Int", "Parameter", "Space", "Value", "is_finite", "is_text", "read_space"]

Value = bool | int | float | str
"""Of a parameter."""

_MAX_INT: Final = 1 << 53
"""Beyond it not every integer is a float64, in which samplers compute."""
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS: Final[Mapping[str, Value]] = {"true": True, "false": False}
_MAX_DIGITS: Final = 300
_MAX_STEPS: Final = 1_000_000
"""Of a range of floats, and points of a grid."""
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_TOLD: Final = 60


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Small values are as likely as large ones: for what is chosen by its order of magnitude."""
    step: float | None = None
    """Only `low`, `low + step`, ... up to `high`; None: any."""

    @property
    def values(self) -> Sequence[float] | None:
        """All that it may take, None where they cannot be listed."""
        if self.step is None:
            return None
        low, high, step = Decimal(str(self.low)), Decimal(str(self.high)), Decimal(str(self.step))
        return [float(low + place * step) for place in range(int((high - low) // step) + 1)]

    def find_fault(self) -> str:
        """Say what is wrong with it, "" if nothing."""
        numbers = [self.low, self.high, *([] if self.step is None else [self.step])]
        if not all(is_finite(number) for number in numbers):
            return "its ends and its step are finite numbers"
        if not math.isfinite(float(self.high) - float(self.low)):
            return f"from {self.low:g} to {self.high:g} is farther than a float64 goes"
        fault = _find_range_fault(self)
        if not fault and self.step is not None and (self.high - self.low) / self.step > _MAX_STEPS:
            return f"it has more than {_MAX_STEPS} steps"
        return fault

    def contains(self, value: object) -> bool:
        """Say whether it may take a value."""
        if not _is_number(value) or not self.low <= cast("float", value) <= self.high:
            return False
        return self.values is None or any(math.isclose(cast("float", value), known) for known in self.values)

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {"kind": "float", "low": float(self.low), "high": float(self.high), "log": self.log, "step": self.step}


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both of them included."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @property
    def values(self) -> Sequence[int]:
        """All that it may take."""
        return range(self.low, self.high + 1, self.step)

    def find_fault(self) -> str:
        """Say what is wrong with it, "" if nothing."""
        for number in (self.low, self.high, self.step):
            if type(number) is not int or abs(number) > _MAX_INT:
                return f"its ends and its step are whole numbers, at most {_MAX_INT}"
        if self.log and self.step != 1:
            return "a logarithmic range has no step"
        return _find_range_fault(self)

    def contains(self, value: object) -> bool:
        """Say whether it may take a value."""
        return type(value) is int and value in self.values

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {"kind": "int", "low": self.low, "high": self.high, "log": self.log, "step": self.step}


@dataclass(frozen=True)
class Choice:
    """One of some numbers, strings and booleans, in no order."""

    options: tuple[Value, ...]

    @property
    def values(self) -> Sequence[Value]:
        """All that it may take."""
        return self.options

    def find_fault(self) -> str:
        """Say what is wrong with it, "" if nothing."""
        if not isinstance(cast("object", self.options), list | tuple):
            return f"{_shorten(self.options)} is no list of options"
        if not self.options:
            return "there is nothing to choose from"
        for option in self.options:
            if not isinstance(option, bool) and not is_text(option) and not is_finite(option):
                return f"{_shorten(option)} is no finite number, text of Unicode or boolean"
        # By equality, as samplers tell options apart: 1, 1.0 and True are one.
        doubles = [option for place, option in enumerate(self.options) if option in self.options[:place]]
        return f"{_shorten(doubles[0])} equals an earlier option" if doubles else ""

    def contains(self, value: object) -> bool:
        """Say whether it may take a value."""
        return any(type(value) is type(option) and value == option for option in self.options)

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data."""
        return {"kind": "choice", "options": list(self.options)}


Parameter = Float | Int | Choice


class Space(Mapping[str, Parameter]):
    """Parameters by name.

    Args:
        parameters: each a `Float`, `Int` or `Choice`; or what stands for one: a list of options, a table such as
            `{"low": 1e-4, "high": 0.1, "log": True}`, or a text: `1e-4:0.1:log`, `16:256`, `0:1:0.25`, `relu,gelu`.

    Raises:
        InputError: `bad_space`: no parameters, an empty range, a logarithm from 0, an option twice.
    """

    def __init__(self, parameters: Mapping[str, object]) -> None:
        given = cast("object", parameters)
        if not isinstance(given, Mapping):
            raise InputError("bad_space", parameter="", detail=f"it is {_shorten(given)}, expected parameters by name")
        if not parameters:
            raise InputError("bad_space", parameter="", detail="the space has no parameters")
        self._parameters: dict[str, Parameter] = {}
        for name, given in parameters.items():
            if not is_text(name) or not name.strip():
                raise _fail(name, "a name is a text of Unicode")
            parameter = _read_parameter(name, given)
            fault = parameter.find_fault()
            if fault:
                raise _fail(name, fault)
            self._parameters[name] = parameter

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def size(self) -> int | None:
        """How many points it has, None where they cannot be counted."""
        counts = [None if parameter.values is None else len(parameter.values) for parameter in self.values()]
        known = [count for count in counts if count is not None]
        return math.prod(known) if len(known) == len(counts) else None

    def list_points(self) -> Iterator[dict[str, Value]]:
        """Give every point, the last parameter changing fastest.

        Raises:
            InputError: `bad_space`, a parameter's values cannot be listed.
        """
        columns: list[Sequence[Value]] = []
        for name, parameter in self.items():
            if parameter.values is None:
                raise _fail(name, "a grid over it needs a step")
            columns.append(parameter.values)
        if math.prod(map(len, columns)) > _MAX_STEPS:
            raise InputError("bad_space", parameter="", detail=f"a grid has at most {_MAX_STEPS} points")
        return (dict(zip(self, point, strict=True)) for point in itertools.product(*columns))

    def check(self, point: Mapping[str, object]) -> None:
        """See that a point is one of this space.

        Raises:
            InputError: `bad_space`.
        """
        for name in sorted({*self, *point}):
            if name not in self:
                raise _fail(name, "the space has no such parameter")
            if name not in point:
                raise _fail(name, "the point has no value for it")
            if not self[name].contains(point[name]):
                raise _fail(name, f"{_shorten(point[name])} is not in it")

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data, which makes an equal space again."""
        return {name: parameter.describe() for name, parameter in self.items()}


def read_space(texts: Sequence[str]) -> Space:
    """Read a space from a command line.

    Args:
        texts: each `NAME=VALUES` as `Space` takes it, or a TOML file: a table or list for each parameter, at its top.

    Raises:
        InputError: `bad_space`, `missing_file`.
    """
    parameters: dict[str, object] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        # A folder's name may have an equals sign, too.
        is_file = text.endswith(".toml") and (not equals or Path(text).exists())
        if equals and not is_file:
            found: dict[str, object] = {name.strip(): values}
        elif is_file:
            found = _read_file(Path(text))
        else:
            raise _fail(text, "expected NAME=VALUES, or a TOML file")
        for known in found.keys() & parameters.keys():
            raise _fail(known, "it is given twice")
        parameters |= found
    return Space(parameters)


def _read_file(path: Path) -> dict[str, object]:
    try:
        if path.exists() and not path.is_file():
            raise _fail(path.name, "it is no file")  # Of a pipe or a device nobody knows where it ends.
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise _fail(path.name, f"it has more than {_MAX_FILE_BYTES} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise _fail(path.name, f"it is no TOML file: {error}") from error


def _read_parameter(name: str, given: object) -> Parameter:
    if isinstance(given, Float | Int | Choice):
        return given
    if isinstance(given, str):
        return _read_text(name, given)
    if isinstance(given, list | tuple):
        return Choice(tuple(cast("Sequence[Value]", given)))
    if isinstance(given, Mapping):
        return _read_table(name, cast("Mapping[str, Any]", given))
    raise _fail(name, f"{_shorten(given)} is no range and no list of options")


def _read_table(name: str, given: Mapping[str, Any]) -> Parameter:
    table = dict(given)
    kind = table.pop("kind", None)
    if kind not in (None, "float", "int", "choice"):
        raise _fail(name, f"{_shorten(kind)} is no kind of parameter: float, int, choice")
    if table.keys() == {"options"} and isinstance(table["options"], list | tuple):
        return Choice(tuple(cast("Sequence[Value]", table["options"])))
    unknown = table.keys() - {"low", "high", "log", "step"}
    if unknown or not {"low", "high"} <= table.keys():
        raise _fail(
            name, f"a table has `low` and `high`, may have `log` and `step`, or has `options`; got {_shorten(list(given))}"
        )
    log, step = table.get("log", False), table.get("step")
    if not isinstance(log, bool):
        raise _fail(name, "`log` is true or false")
    numbers = [table["low"], table["high"], *([] if step is None else [step])]
    if kind == "int" and not all(type(number) is int for number in numbers):
        raise _fail(name, "of the kind int, its ends and its step are whole numbers")
    if kind != "float" and all(type(number) is int for number in numbers):
        return Int(table["low"], table["high"], log, 1 if step is None else step)
    return Float(table["low"], table["high"], log, step)


def _read_text(name: str, text: str) -> Parameter:
    parts = text.split(":")
    if len(parts) == 1 or not _NUMBER.fullmatch(parts[0].strip()):
        options = [option.strip() for option in text.split(",")] if text.strip() else []
        for option in options:
            # A range that was mistyped would be searched as the text that it is.
            if ":" in option and not _is_quoted(option):
                raise _fail(name, f"{_shorten(option)} is no range; a text with a colon stands in quotes")
            if not option:
                raise _fail(name, "there is nothing between two commas, or beside one; '' stands for the empty text")
        return Choice(tuple(map(_read_option, options)))
    log = len(parts) == 3 and parts[2].strip() == "log"
    numbers = [_read_option(part.strip()) for part in (parts[:2] if log else parts)]
    if len(parts) > 3 or not all(_is_number(number) for number in numbers):
        raise _fail(name, f"{_shorten(text)} is no range; expected LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP")
    return _read_table(
        name, {"low": numbers[0], "high": numbers[1], "log": log, "step": numbers[2] if len(numbers) > 2 else None}
    )


def _read_option(text: str) -> Value:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) < _MAX_DIGITS and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text[1:-1] if _is_quoted(text) else text


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


def _find_range_fault(parameter: Float | Int) -> str:
    low, high, step = parameter.low, parameter.high, parameter.step
    if not low < high:
        return f"the range from {low:g} to {high:g} is empty"
    if parameter.log and low <= 0:
        return f"a logarithmic range begins above 0, not at {low:g}"
    if isinstance(parameter, Float) and parameter.log and step is not None:
        return "a logarithmic range has no step"
    if step is not None and not 0 < step <= high - low:
        return f"a step is above 0 and at most {high - low:g}, not {step:g}"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Say whether this is a number, and neither NaN nor beyond what a float holds."""
    try:
        return _is_number(value) and math.isfinite(cast("float", value))
    except OverflowError:  # a whole number that no float holds
        return False


def is_text(value: object) -> TypeGuard[str]:
    """Say whether this is a text that UTF-8 can write: a command line's bytes, or half of a pair, need not be one."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shorten(value: object) -> str:
    return repr(value)[:_MAX_TOLD]


def _fail(name: object, detail: str) -> InputError:
    shown = str(name)[:_MAX_TOLD].encode(errors="backslashreplace").decode()
    return InputError("bad_space", parameter=f" `{shown}`", detail=detail)
