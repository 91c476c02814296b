"""Tell the format of a file by its content and its suffix, which have to agree. Nothing of it is opened by a library."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

from argosy.errors import InputError, list_choices
from argosy.importers.formats.archive import is_archive, list_entries
from argosy.importers.formats.base import FORMATS, find_format, refuse

__all__ = ["detect_format"]

_HEAD_BYTES: Final = 1 << 16
"""What is looked at of a file: JSON of both kinds names its first keys within."""

_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_TORCH_PICKLE: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began before it wrote archives."""
_SAFETENSORS: Final = re.compile(rb'.{8}\{\s*"', re.DOTALL)
_XGBOOST: Final = re.compile(rb'\{\s*"(learner|version)"|\{L.{8}(learner|version)\{?', re.DOTALL)
_MXNET: Final = re.compile(rb'\{\s*"nodes"\s*:\s*\[')
_OPENVINO: Final = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<net\s")
_LIGHTGBM: Final = re.compile(rb"tree\r?\nversion=")
_ONNX_SUFFIX: Final = ".onnx"

_KERAS: Final = {"metadata.json", "config.json"}
_KERAS_WEIGHTS: Final = ("model.weights.h5", "model.weights.json")
_SKOPS: Final = "schema.json"
_SAVED_MODEL: Final = "saved_model.pb"


def detect_format(path: Path, name: str, given: str | None) -> str:
    """Tell the format of a file.

    Args:
        path: of its copy: a file, or a folder.
        name: the user's name of it.
        given: the format that the user names; None leaves it to content and suffix.

    Returns:
        A key of `FORMATS`.

    Raises:
        InputError: `unknown_choice`, no such format; `unknown_format`, neither content nor suffix is of any;
            `format_mismatch`, content and suffix, or the named format, are of different ones; `bad_archive`.
        TooLargeError: `model_file_too_large`.
    """
    found = _look(path, name)
    if given is not None:
        wanted, why = ([given] if find_format(given) else []), f"as format {given} says"
    else:
        suffix = PurePosixPath(name).suffix.lower()
        wanted = [key for key, known in FORMATS.items() if suffix in known.suffixes]
        why = f"by its suffix {suffix}"
    if found is None:
        # Not every format can be told by its content; what can be is not of it.
        possible = [key for key in wanted if not FORMATS[key].is_recognisable]
        if len(possible) == 1:
            return possible[0]
        if not wanted:
            raise InputError("unknown_format", path=name, known=list_choices(FORMATS))
    if found is None or (wanted and found not in wanted):
        expected = " or ".join(FORMATS[key].title for key in wanted)
        got = "no format that is known" if found is None else FORMATS[found].title
        raise InputError("format_mismatch", path=name, expected=f"{expected} {why}", got=got)
    return found


def _look(path: Path, name: str) -> str | None:
    """Tell the format by the content alone; None if it is of none that can be told."""
    if path.is_dir():
        return "savedmodel" if (path / _SAVED_MODEL).is_file() else None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if is_archive(head):
        return _look_inside(list_entries(path, name))
    if head.startswith(_TORCH_PICKLE):
        return "torch"
    patterns = {"pickle": _PICKLE, "lightgbm": _LIGHTGBM, "mxnet": _MXNET, "openvino": _OPENVINO, "xgboost": _XGBOOST}
    for key, pattern in patterns.items():
        if pattern.match(head):
            return key
    return "safetensors" if _SAFETENSORS.match(head) and int.from_bytes(head[:8], "little") < path.stat().st_size else None


def _look_inside(entries: dict[str, bytes]) -> str | None:
    names = set(entries)
    if names >= _KERAS and names & {*_KERAS_WEIGHTS}:
        return _refuse_pickles("keras", entries)
    if _SKOPS in names:
        return _refuse_pickles("skops", entries)
    if "serialized_exported_program.json" in names:
        return "pt2"
    # torch puts everything into a folder that is called as the file was.
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner:
        return "pt2"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    return "torch" if "data.pkl" in inner else None


def _refuse_pickles(key: str, entries: dict[str, bytes]) -> str:
    """Refuse an archive of a format that has no pickles, if there is one in it."""
    for name, head in entries.items():
        if _PICKLE.match(head):
            raise refuse(FORMATS[key].title, f"its entry {name!r} is a pickle")
    return key
