"""Recorded preprocessing: what a stream's columns become on the way to a model, by the code of the workers."""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from argosy.data.block import BadRow, Chunk
from argosy.data.choice import Rows
from argosy.data.pictures import decode_picture, make_image_step
from argosy.errors import InputError, list_choices
from argosy.runtimes.base import BadInput
from argosy.runtimes.preprocess import BadStep
from argosy.runtimes.preprocess_row import RowStep

__all__ = ["Encoder", "check_files", "check_names", "learn_row"]

_BATCH_ROWS: Final = 4096
_DEFAULT: Final = "input"
"""The tensor that columns go to, if none is named."""
_NUM_COUNTED: Final = 1_000_000
"""Values of a category that are told apart, at most."""

Arrays = dict[str, NDArray[Any]]


class Readable(Protocol):
    """What can be learned from: a stream."""

    def select(self, names: Sequence[str]) -> Self:
        """Give the same rows with these columns as inputs, by their names."""
        ...

    def iterate(self, batch_size: int) -> Iterator[Rows]:
        """Give the rows."""
        ...


class Encoder:
    """Steps of preprocessing on columns.

    Args:
        tables: each has `kind` (`row`, `text` or `image`) and the options of the step, as a version keeps them. Of text and
            pictures also `column`, whose strings or bytes are taken, and `inputs`, the names of their tensors; of pictures
            `datatype`, too.

    Attributes:
        names: of the columns that they take.
        tensors: that they make, by name; INT64 where all are places of categories or tokens, of pictures as they say, else
            FP32.
        steps: for `argosy.publish(preprocess=...)`.
        recorded: the same for a lineage: a file by its name and what it holds.

    Raises:
        InputError: `bad_preprocess`, `bad_option`, `unknown_choice`.
    """

    def __init__(self, tables: Sequence[Mapping[str, Any]]) -> None:
        if not tables:
            raise InputError("bad_option", option="prepare", got=[], expected="at least one step")
        self._parts = [_make_part(table) for table in tables]
        self.names = list(dict.fromkeys(name for part in self._parts for name in part.names))
        self.tensors = {name: kind for part in self._parts for name, kind in part.tensors.items()}
        self.steps = [part.step for part in self._parts]
        if len(tables) > 1:
            self._tell_apart()
        self.recorded = [
            {**step, "file": Path(step["file"]).name, "sha256": digest_file(step["file"])} if "file" in step else step
            for step in self.steps
        ]

    def _tell_apart(self) -> None:
        """Say of each of several steps which tensors are its own: a single one makes all."""
        if sum(len(part.tensors) for part in self._parts) != len(self.tensors):
            expected = "tensors that one step makes each: name them by `input` of columns, and `inputs` of text"
            raise InputError("bad_option", option="prepare", got=[list(part.tensors) for part in self._parts], expected=expected)
        self.steps = [{**step, "inputs": [*part.tensors]} for step, part in zip(self.steps, self._parts, strict=True)]
        called = [str(step.get("name", step["kind"])) for step in self.steps]
        if len({*called, *self.tensors}) != len(called) + len(self.tensors):
            expected = "another `name` for each step, by which a client sends what it takes, and that no tensor has"
            raise InputError("bad_option", option="prepare", got=called, expected=expected)

    def encode(self, chunk: Chunk) -> Chunk:
        """Give the rows with their tensors beside their columns; those that have none become bad rows."""
        try:
            return _add(chunk, self._encode(chunk.columns))
        except BadInput:
            pass
        good = np.ones(len(chunk.rows), bool)
        bad: list[BadRow] = []
        for place, row in enumerate(chunk.rows.tolist()):
            try:
                self._encode({name: chunk.columns[name][place : place + 1] for name in self.names})
            except BadInput as error:
                good[place] = False
                bad.append(BadRow(row, str(error)))
        kept = Chunk({name: a[good] for name, a in chunk.columns.items()}, chunk.rows[good], sorted([*chunk.bad, *bad]))
        return _add(kept, self._encode(kept.columns)) if good.any() else kept

    def _encode(self, columns: Mapping[str, NDArray[Any]]) -> Arrays:
        made: Arrays = {}
        for part in self._parts:
            made |= part.encode(columns)
        return made


class _Part(NamedTuple):
    """One step of several."""

    names: list[str]
    tensors: dict[str, str]
    encode: Callable[[Mapping[str, NDArray[Any]]], Arrays]
    step: dict[str, Any]
    """As a version keeps it."""


def _make_part(table: Mapping[str, Any]) -> _Part:
    options = {key: value for key, value in table.items() if key not in ("kind", "name", "inputs", "column")}
    step = {key: value for key, value in table.items() if key != "column"}
    kind: Any = table.get("kind")
    try:
        if kind == "row":
            row, tensors = _make_row(options)
            return _Part(row.names, tensors, row.encode, step)
        if kind == "text":
            tensors = _list_text_tensors(table)
            name = str(table.get("column", "text"))
            return _Part([name], tensors, partial(_encode_text, _make_text(tensors, options), name), step)
    except BadStep as error:
        raise InputError("bad_preprocess", detail=error) from error
    if kind == "image":
        return _make_picture_part(table, options, step)
    raise InputError("unknown_choice", kind="preprocessing of columns", got=kind, known="image, row, text")


def _make_picture_part(table: Mapping[str, Any], options: Mapping[str, Any], step: Mapping[str, Any]) -> _Part:
    given: Any = table.get("inputs", [_DEFAULT])
    names = cast("Sequence[object]", given) if isinstance(given, list | tuple) else ()
    tensor, name = names[0] if len(names) == 1 else None, str(table.get("column", "image"))
    if not isinstance(tensor, str):
        raise InputError(
            "bad_option",
            option="inputs",
            got=cast("object", given),
            expected="the name of the one tensor of a picture, in a list",
        )
    picture, kept = make_image_step(tensor, options)
    named = {key: step[key] for key in ("name", "inputs") if key in step}
    tensors = {tensor: str(options.get("datatype", "FP32"))}
    return _Part([name], tensors, partial(_encode_pictures, picture, tensor, name), {**kept, **named})


def _encode_pictures(step: Any, tensor: str, name: str, columns: Mapping[str, NDArray[Any]]) -> Arrays:
    pictures = columns[name]
    if pictures.dtype.kind != "O" or not isinstance(pictures[0], bytes):
        got = f"{name} ({'text' if pictures.dtype.kind == 'O' else pictures.dtype})"
        raise InputError("bad_option", option="column", got=got, expected="a column of bytes, pictures as their files hold them")
    return {tensor: np.stack([decode_picture(step, name, picture) for picture in pictures.tolist()])}


def _encode_text(step: Any, name: str, columns: Mapping[str, NDArray[Any]]) -> Arrays:
    texts = columns[name]
    if texts.dtype.kind != "O":
        expected = f"a column of text; schema={{{name!r}: 'string'}} has text read as it stands"
        raise InputError("bad_option", option="column", got=f"{name} ({texts.dtype})", expected=expected)
    made: dict[str, list[NDArray[Any]]] = {}
    for part in _cut_texts([text if isinstance(text, bytes) else text.encode() for text in texts.tolist()]):
        for tensor, rows in step.convert(name, part).tensors.items():
            made.setdefault(tensor, []).extend(rows)
    return {tensor: np.stack(rows) for tensor, rows in made.items()}


def _cut_texts(texts: list[bytes]) -> Iterator[list[bytes]]:
    """Cut texts into batches that a worker would take: a chunk of a data set may have more."""
    from argosy.runtimes.preprocess_text import MAX_BATCH_BYTES

    part, size = list[bytes](), 0
    for text in texts:
        if part and size + len(text) > MAX_BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    yield part


def digest_file(path: str | Path) -> str:
    """Name what a file of a step holds.

    Raises:
        InputError: `data_changed`, it cannot be read any more.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError("data_changed", path=repr(str(path)), detail=error.strerror) from error


def check_files(steps: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> None:
    """See that the files of steps hold what they held when rows were prepared by them.

    Raises:
        InputError: `data_changed`.
    """
    for step, known in zip(steps, recorded, strict=True):
        if "sha256" in known and digest_file(step["file"]) != known["sha256"]:
            detail = "it holds something else than when the rows were prepared by it"
            raise InputError("data_changed", path=repr(str(step["file"])), detail=detail)


def _add(chunk: Chunk, made: Arrays) -> Chunk:
    return Chunk({**chunk.columns, **made}, chunk.rows, chunk.bad)


def _make_row(options: Mapping[str, Any]) -> tuple[RowStep, dict[str, str]]:
    given: Any = options.get("columns")
    tables = [cast("Mapping[str, Any]", item) for item in given or () if isinstance(item, Mapping)]
    tensors: dict[str, str] = {}
    for table in tables:
        is_place = table.get("kind") == "category" and not table.get("one_hot")
        name = str(table.get("input", _DEFAULT))
        tensors[name] = "INT64" if is_place and tensors.get(name) != "FP32" else "FP32"
    specs = {name: {"datatype": kind, "shape": [-1, -1], "pad": None} for name, kind in tensors.items()}
    return RowStep(specs, options, Path()), tensors


def _list_text_tensors(table: Mapping[str, Any]) -> dict[str, str]:
    return dict.fromkeys(cast("Sequence[str]", table.get("inputs", ["input_ids"])), "INT64")


def _make_text(tensors: Mapping[str, str], options: Mapping[str, Any]) -> Any:
    # Few streams have text: whoever opens another needs no tokenizer.
    from argosy.runtimes.preprocess_text import TextStep

    length, file = options.get("max_length"), options.get("file")
    if type(length) is not int or length < 1 or not isinstance(file, str | Path):
        raise BadStep(f"max_length is {length!r} and file {file!r}, expected the tokens of each row, and a path")
    specs = {name: {"datatype": kind, "shape": [-1, length], "pad": None} for name, kind in tensors.items()}
    return TextStep(specs, {**options, "file": Path(file).name}, Path(file).parent)


def learn_row(
    stream: Readable,
    *,
    numbers: Sequence[str] = (),
    categories: Sequence[str] = (),
    one_hot: bool = True,
    max_values: int = 1000,
) -> dict[str, Any]:
    """Learn how columns become a model's input, in one pass over a stream.

    Numbers are brought to mean 0 and spread 1. Categories are numbered, the most frequent first; a value that is not among
    them has the place 0.

    Args:
        stream: the part to train on: what others hold is not learned from.
        numbers: columns of numbers.
        categories: columns of strings or whole numbers.
        one_hot: a category becomes as many numbers as it has places; else the number of its place, for an embedding, which is
            then an input of its own by the column's name.
        max_values: of a category, the most frequent; the others are as unknown ones.

    Returns:
        A step, for `Stream.prepare` and `argosy.publish(preprocess=[...])`: its columns are a row's fields, in this order.

    Raises:
        InputError: `bad_option`, `bad_data`.
    """
    names = [*numbers, *categories]
    if not names or len(set(names)) != len(names):
        raise InputError("bad_option", option="numbers", got=names, expected="columns, each once")
    moments = {name: _Moments() for name in numbers}
    counts: dict[str, collections.Counter[Any]] = {name: collections.Counter() for name in categories}
    whole: dict[str, bool] = {}
    for rows in stream.select(names).iterate(_BATCH_ROWS):
        for name, moment in moments.items():
            moment.add(name, rows.inputs[name])
        for name, count in counts.items():
            values: NDArray[Any] = rows.inputs[name]
            if values.ndim > 1 or values.dtype.kind not in "iuO" or isinstance(values[0], bytes):
                expected = "strings or whole numbers; schema={...} says how text is read"
                raise InputError("bad_option", option="categories", got=f"{name} ({values.dtype})", expected=expected)
            whole[name] = values.dtype.kind != "O"
            count.update(values.tolist())
            if len(count) > _NUM_COUNTED:
                raise InputError("bad_data", detail=f"column {name!r} has more than {_NUM_COUNTED} values, which is no category")
    if any(not moment.count for moment in moments.values()) or any(not count for count in counts.values()):
        raise InputError("bad_data", detail="the stream has no row to learn from")
    columns: list[dict[str, Any]] = [{"name": name, "kind": "number", **moments[name].describe()} for name in numbers]
    for name in categories:
        found = sorted(counts[name].items(), key=lambda item: (-item[1], item[0]))[:max_values]
        table: dict[str, Any] = {"name": name, "kind": "category", "values": [value for value, _ in found]}
        table |= {"whole": True} if whole[name] else {}
        columns.append(table | ({"one_hot": True} if one_hot else {"input": name} if len(names) > 1 else {}))
    if not one_hot and categories and numbers:
        columns = [table if "input" in table else {**table, "input": "numbers"} for table in columns]
    return {"kind": "row", "columns": columns}


class _Moments:
    """Count, mean and sum of squared differences from it, of numbers that come in parts.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque 1979, "Updating formulae ... for computing sample
        variances".
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, name: str, values: NDArray[Any]) -> None:
        if values.dtype.kind not in "iufb" or values.ndim > 1:
            raise InputError("bad_option", option="numbers", got=name, expected="a column of one number a row")
        part = values.astype(np.float64)
        mean, count = float(part.mean()), self.count + len(part)
        self.squares += float(np.square(part - mean).sum()) + (mean - self.mean) ** 2 * self.count * len(part) / count
        self.mean += (mean - self.mean) * len(part) / count
        self.count = count

    def describe(self) -> dict[str, float]:
        spread = math.sqrt(self.squares / self.count)
        # A column that is always the same tells nothing: it becomes 0.
        return {"mean": self.mean, "std": spread if spread > 0 else 1.0}


def check_names(names: Sequence[str], schema: Mapping[str, str]) -> None:
    """Refuse columns that the files have not.

    Raises:
        InputError: `bad_option`.
    """
    if unknown := [name for name in names if name not in schema]:
        raise InputError("bad_option", option="preprocess", got=unknown[0], expected=f"columns: {list_choices(schema)}")
