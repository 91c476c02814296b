"""`open`: from paths to a stream, everything checked that can be before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np

from argosy.data.block import Reader
from argosy.data.choice import Choice
from argosy.data.csv import CsvReader
from argosy.data.files import File, Paths, find_files
from argosy.data.ipc import ArrowReader
from argosy.data.jsonl import JsonLinesReader
from argosy.data.numpy import NumpyReader
from argosy.data.parquet import ParquetReader
from argosy.data.pictures import PictureReader
from argosy.data.stream import Stream
from argosy.errors import InputError, list_choices

__all__ = ["FORMATS", "open_stream"]


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    reader: Callable[[Sequence[File], Mapping[str, Any]], Reader]
    options: tuple[str, ...] = ()


_PICTURE_OPTIONS: Final = ("size", "datatype", "layout", "channels", "resize", "shorter", "filter", "fill")
_PICTURE_SCALING: Final = ("scale", "mean", "std", "max_pixels")


def _read_npy(files: Sequence[File], options: Mapping[str, Any]) -> Reader:
    if len(files) > 1:
        expected = "one file, or a dict of files by the names of their columns"
        raise InputError("bad_option", option="path", got=f"{len(files)} files .npy", expected=expected)
    return NumpyReader({files[0].path.stem: files[0]})


FORMATS: Final[Mapping[str, _Format]] = {
    "parquet": _Format((".parquet", ".pq"), ParquetReader),
    "csv": _Format((".csv", ".tsv"), CsvReader, ("delimiter", "header")),
    "jsonl": _Format((".jsonl", ".ndjson"), JsonLinesReader),
    "arrow": _Format((".arrow", ".feather", ".ipc"), ArrowReader),
    "npy": _Format((".npy",), _read_npy),
    "pictures": _Format(
        (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"), PictureReader, (*_PICTURE_OPTIONS, *_PICTURE_SCALING)
    ),
}
"""The formats, by their names."""


def open_stream(
    path: Paths | Mapping[str, str | os.PathLike[str]],
    *,
    inputs: Any = None,
    targets: Any = None,
    weights: str | None = None,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    schema: Mapping[str, str] | None = None,
    classes: int | Sequence[str] | None = None,
    max_bad_rows: int = 0,
    buffer_rows: int | None = None,
    num_threads: int | None = None,
    **options: Any,
) -> Stream:
    """Open files of rows as a stream, which `argosy.train` takes as data.

    The schemas of all files are compared, and the first rows read; nothing else is, until it is iterated over.

    Args:
        path: a file, a folder (all files below it of one format), a pattern such as `data/**/*.parquet`, or a list of these;
            or a dict of files `.npy` by the names of their columns.
        inputs: which columns a model is given: a name; a list of names, whose numbers are joined to one matrix; a tuple or
            dict of these, for models of several inputs. Default: all that are neither targets nor weights, by their names if
            there are several. Of pictures: `image`.
        targets: which columns it is to learn, likewise. Default: none; of pictures in folders: `label`.
        weights: a column of numbers: how much each row counts.
        format: a name of `FORMATS`; by default what the files' names end in.
        columns: which there are for the default of `inputs`.
        schema: types of columns by name, such as `{"zip": "string", "price": "float32"}`: of text, as they are read; of
            other formats, numbers are brought to it. By default what the files say, or the first megabyte of each text.
        classes: of the targets: their number (labels 0 to classes - 1), or their names in the order of their numbers.
        max_bad_rows: so many rows may be left out, because they cannot be read, are null, NaN or infinite, have lists of
            another length, or a label that is none; one more is an error, which names the first. What was left out is in the
            lineage.
        buffer_rows: among so many rows a random order is drawn; by default as many as have 64 MiB.
        num_threads: that read ahead; by default as many as there are cores, at most 4.
        options: of the format. CSV: `delimiter`, `header` (names, where the files have no line of them). Pictures: `size`
            ([height, width], which must be given), `datatype`, `layout`, `channels` and the others of the step `image` of
            preprocessing.

    Raises:
        InputError: `bad_file`, `schema_differs`, `bad_rows`, `bad_option`, `unknown_choice`, `missing_extra`, `data_changed`.
    """
    _check_numbers(max_bad_rows=max_bad_rows, buffer_rows=buffer_rows, num_threads=num_threads)
    casts = _read_types(schema or {})
    name, reader = _open_reader(path, format, options, dict(schema or {}), max_bad_rows, classes)
    found = reader.read_schema()
    if unknown := [column for column in (*casts, *(columns or ())) if column not in found]:
        option = "schema" if unknown[0] in casts else "columns"
        raise InputError("bad_option", option=option, got=unknown[0], expected=f"columns: {list_choices(found)}")
    if name == "pictures":
        inputs, targets = inputs or "image", targets or ("label" if "label" in found else None)
        classes = None  # which the reader holds the folders against
    _check_classes(classes, targets)
    there = {column: found[column] for column in columns} if columns is not None and inputs is None else found
    named = [part for part in (targets, weights) if isinstance(part, str) and part in found]
    choice = Choice(inputs, targets, weights, there | {part: found[part] for part in named})
    return Stream(
        reader,
        format=name,
        choice=choice,
        schema=found,
        casts=casts,
        classes=classes,
        max_bad_rows=max_bad_rows,
        buffer_rows=buffer_rows,
        num_threads=num_threads or min(4, len(os.sched_getaffinity(0))),
    )


def _check_numbers(**numbers: int | None) -> None:
    for option, value in numbers.items():
        least = 0 if option == "max_bad_rows" else 1
        if value is not None and (type(value) is not int or value < least):
            raise InputError("bad_option", option=option, got=value, expected=f"a whole number, at least {least}")


def _check_classes(classes: Any, targets: Any) -> None:
    if classes is None:
        return
    if not isinstance(targets, str):
        raise InputError("bad_option", option="classes", got=classes, expected="None, where targets are not one column")
    is_number = type(classes) is int and classes > 0
    names = list(cast("Sequence[Any]", classes)) if isinstance(classes, list | tuple) else []
    is_list = bool(names) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    if not is_number and not is_list:
        raise InputError(
            "bad_option", option="classes", got=cast("object", classes), expected="how many there are, or their names, each once"
        )


def _read_types(schema: Mapping[str, str]) -> dict[str, np.dtype[Any]]:
    """Give the types of numbers; strings are taken as they are."""
    casts: dict[str, np.dtype[Any]] = {}
    for name, kind in schema.items():
        if kind == "string":
            continue
        try:
            casts[name] = np.dtype(kind)
        except TypeError:
            casts[name] = np.dtype("V")
        if casts[name].kind not in "fiub" or casts[name].itemsize > 8:
            raise InputError(
                "bad_option", option="schema", got=kind, expected="string, bool, or a type of numbers such as float32"
            )
    return casts


def _open_reader(
    path: Any, format: str | None, options: Mapping[str, Any], schema: dict[str, str], max_bad_rows: int, classes: Any
) -> tuple[str, Reader]:
    if format is not None and format not in FORMATS:
        raise InputError("unknown_choice", kind="format", got=format, known=list_choices(FORMATS))
    if isinstance(path, Mapping):
        given = cast("Mapping[str, str]", path)
        if format not in (None, "npy") or not given:
            raise InputError("bad_option", option="format", got=format, expected="npy for files by the names of their columns")
        _check_options("npy", options)
        return "npy", NumpyReader({name: find_files(file, (".npy",))[0] for name, file in given.items()})
    suffixes = FORMATS[format].suffixes if format else [suffix for known in FORMATS.values() for suffix in known.suffixes]
    files = find_files(path, suffixes)
    name = format or _find_format(files)
    _check_options(name, options)
    return name, FORMATS[name].reader(files, {**options, "schema": schema, "max_bad_rows": max_bad_rows, "classes": classes})


def _find_format(files: Sequence[File]) -> str:
    found: dict[str, Path] = {}
    for file in files:
        suffix = file.path.suffix.lower()
        name = next((name for name, known in FORMATS.items() if suffix in known.suffixes), None)
        if name is None:
            detail = f"its name does not say its format; known are {', '.join(FORMATS)}: give one as `format`"
            raise InputError("bad_file", path=repr(str(file.path)), detail=detail)
        found.setdefault(name, file.path)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        detail = f"it is {other}, and {str(first)!r} is {one}: give the one that is meant as `format`"
        raise InputError("bad_file", path=repr(str(second)), detail=detail)
    return next(iter(found))


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = FORMATS[name].options
    if unknown := [option for option in options if option not in known]:
        expected = f"not given with {name}, whose options are: {list_choices(known)}"
        raise InputError("bad_option", option=unknown[0], got=options[unknown[0]], expected=expected)
