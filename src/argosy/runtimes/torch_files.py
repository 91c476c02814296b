"""What may be in a file of torch's before torch opens it.

torch.export's reader unpickles, imports and evaluates what the file says, and runs shared libraries that lie in it. A
program of tensors needs none of this, so a file that has it is refused. The formats are zip archives:

    program    ROOT/models/model.json and ROOT/data/...    of torch.export.save
    script     ROOT/code/... and ROOT/data.pkl             of torch.jit.save; its pickle is data that C++ reads, and runs nothing
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

__all__ = ["check_file"]

torch: Any = importlib.import_module("torch")

_MODEL: Final = "models/model.json"
_SAMPLES: Final = "data/sample_inputs/model.pt"

_PROGRAM_ENTRY: Final = re.compile(
    r"models/model\.json|data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json)"
    r"|sample_inputs/model\.pt)|archive_format|archive_version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|version|extra/[^/]+"
)
"""What torch.export.save writes of a program of tensors; other entries are machine code, pickles or objects."""

_OPERATOR: Final = re.compile(
    r"torch\.ops\.(?!load)[a-z]\w*\.(?!__)(?!from_file\b|triton)\w+(\.\w+)?|torch\._?sym_\w+"
    r"|torch\.ops\.aten\.__(and|or|xor|lshift|rshift)__\.(Tensor|Scalar)|math\.[a-z]\w*"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|not_|or_|pos|pow|sub|truediv|xor)"
)
"""Operators on tensors, and arithmetic on their sizes. `from_file` reads and writes files; the rest of torch runs anything."""

_SIZE_NAME: Final = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatPow|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan|Gt"
    r"|Identity|IntTrueDiv|Integer|L|LShift|Le|LessThan|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Piecewise|Pow|PowByNatural"
    r"|PythonMod|RShift|Rational|RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt|Unequality"
    r"|Where|false|floor|max|min|true|[a-z]{1,2}\d+"
)
"""In arithmetic on sizes: what sympy and torch call its operators, and the names of sizes that may be any."""
_SIZE_ATTRIBUTES: Final = frozenset({"dim", "ndim", "shape", "size", "storage_offset", "stride"})
_SIZE_NODES: Final = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.Subscript, ast.Compare, ast.cmpop,
    ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.BoolOp, ast.boolop, ast.Tuple,
)  # fmt: skip

_MAX_UNFOLDED_BYTES: Final = 64 << 20
"""Of all compressed entries. Weights are stored as they are; torch compresses the code of a script, which is text."""

_SCRIPT_CALLS_OUT: Final = re.compile(rb"\b(from_file|save|load_library)\s*\(")
"""In the code of a script: operators that read and write files."""


def check_file(path: Path) -> Literal["program", "script"]:
    """Say which of the two a file is, if nothing in it reaches out of it.

    Raises:
        ValueError: it is neither, or holds what no program of tensors needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # torch's own reader may take the other one of two with one name.
            if len({*names}) < len(names):
                raise ValueError("it has two entries of one name")
            packed = [member.file_size for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
            if sum(packed) > _MAX_UNFOLDED_BYTES:
                raise ValueError(f"its compressed entries would unfold to {sum(packed)} bytes, allowed {_MAX_UNFOLDED_BYTES}")
            entries = {name.partition("/")[2]: name for name in names}
            if len(entries) < len(names):
                raise ValueError("it has more than one root")
            if _MODEL in entries:
                _check_program(archive, entries)
                return "program"
            if "data.pkl" in entries and any(name.startswith("code/") for name in entries):
                _check_script(archive, entries)
                return "script"
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no archive of torch's: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is not loaded: {error}") from error
    raise ValueError(f"{path.name} is neither a program of torch.export nor a TorchScript")


def _check_program(archive: zipfile.ZipFile, entries: dict[str, str]) -> None:
    for entry in entries:
        if not _PROGRAM_ENTRY.fullmatch(entry):
            raise ValueError(f"its entry {entry[:100]!r} is not of a program of tensors")
    for entry in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        for key, payload in _walk(json.loads(archive.read(entries[entry])) if entry in entries else {}):
            if key == "use_pickle" and payload is not False:
                raise ValueError("it keeps a tensor as a pickle")
    samples = archive.read(entries[_SAMPLES]) if _SAMPLES in entries else b""
    if samples:
        # torch tries this first, and if it fails opens the pickle as such.
        try:
            torch.load(io.BytesIO(samples), weights_only=True)
        except Exception as error:  # It raises what a damaged pickle makes it raise.
            raise ValueError("its sample inputs are more than tensors") from error
    text = archive.read(entries[_MODEL])
    if b"default_factory" in text or b"__enum__" in text:
        raise ValueError("its inputs or outputs are nested in objects that are imported")
    for key, value in _walk(json.loads(text)):
        if key in ("target", "as_operator"):
            if not isinstance(value, str) or not _OPERATOR.fullmatch(value):
                raise ValueError(f"it calls {str(value)[:100]!r}, which is no operator on tensors")
        elif key == "expr_str":
            _check_size(value)
        elif key == "guards_code":
            for guard in value:
                _check_size(guard)


def _check_script(archive: zipfile.ZipFile, entries: dict[str, str]) -> None:
    for entry, name in entries.items():
        if entry.startswith("code/") and entry.endswith(".py") and (found := _SCRIPT_CALLS_OUT.search(archive.read(name))):
            raise ValueError(f"its code calls {found[1].decode()}, which reads or writes files")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Give every key with its value, of nested JSON data."""
    items: list[Any] = [value]
    while items:
        item = items.pop()
        if isinstance(item, dict):
            yield from item.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            items.extend(item.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        elif isinstance(item, list):
            items.extend(item)  # pyright: ignore[reportUnknownArgumentType]


def _check_size(text: Any) -> None:
    """See that an expression, which torch evaluates, is arithmetic on sizes."""
    shown = f"it evaluates {str(text)[:100]!r}, which is no arithmetic on sizes"
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(shown) from error
    for node in ast.walk(tree):
        is_allowed = isinstance(node, _SIZE_NODES)
        if isinstance(node, ast.Name):
            is_allowed = _SIZE_NAME.fullmatch(node.id) is not None
        elif isinstance(node, ast.Attribute):
            is_allowed = node.attr in _SIZE_ATTRIBUTES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_allowed = node.value.isidentifier() and not node.value.startswith("__")
        if not is_allowed:
            raise ValueError(shown)
