"""Publish a Python model: one file with a class `Model`. Nothing of it is run here, only parsed."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from argosy.errors import InputError
from argosy.signature import Signature, check_name
from argosy.store.golden import Golden
from argosy.store.local import Store, Version
from argosy.store.preprocess import Steps, add_steps

__all__ = ["publish_python"]

_METHODS: Final = {"load": "folder", "infer": "inputs", "raw": "request"}
_NO_TENSORS: Final = Signature((), ())
_MAX_BYTES: Final = 4 << 20
"""Of the source. More is data, which belongs into a file beside it, and would take the parser gigabytes."""


def publish_python(
    store: Store,
    path: Path | str,
    name: str,
    *,
    signature: Signature | None = None,
    golden: Golden | None = None,
    preprocess: Steps = (),
    repeatable: bool = False,
    lineage: Mapping[str, object] = {},
    measurements: Mapping[str, float] = {},
    options: Mapping[str, object] = {},
    has_rows: bool | None = None,
) -> Version:
    """Publish a `.py` file as a new version for the `python` runtime, without executing it.

    The file defines a class `Model` with `load(self, folder: Path)`, which gets the artifact's folder, and one or both of
    `infer(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]`, whose first axis is rows, and
    `raw(self, request)`, which answers as `argosy.raw` describes.

    Args:
        store: where to.
        path: the file.
        name: the model's.
        signature: the tensors in and out of `infer`; code does not tell them. None where there is no `infer`.
        golden: examples with the outputs that the publisher vouches for, since the code is not run here.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        repeatable: the code may be run twice for one request; nobody but its author knows.
        lineage: as in `Store.publish`.
        measurements: as in `Store.publish`.
        options: as in `Store.publish`.
        has_rows: first axes of any length count rows; None stands for what the signature says.

    Raises:
        InputError: `missing_file`; `bad_python_model`, it does not parse or has no such class; `bad_golden`;
            `bad_preprocess`.
        StoreError: as `Store.publish`.
    """
    check_name(name)
    path = Path(path)
    with store.stage() as staged:
        staged.add(path.name, path)
        methods = _check_source(staged.folder / path.name)
        if ("infer" in methods) != (signature is not None):
            got = "no signature is given" if signature is None else "its class `Model` has no method `infer(self, inputs)`"
            detail = f"{got}; a signature describes what goes in and out of `infer`"
            raise InputError("bad_python_model", what=path.name, detail=detail)
        signature = signature or _NO_TENSORS
        if has_rows is not None:
            signature = msgspec.structs.replace(signature, has_rows=has_rows)
        signature, files = add_steps(signature, preprocess)
        for file_name, source in files.items():
            staged.add(file_name, source)
        return store.publish(
            name,
            staged,
            signature=signature,
            runtime="python",
            entry=path.name,
            repeatable=repeatable,
            golden=golden,
            lineage={"source_file": path.name} | dict(lineage),
            measurements=measurements,
            options={**options, "raw": True} if "raw" in methods else options,
        )


def _check_source(path: Path) -> set[str]:
    """Return which of `load`, `infer` and `raw` the class has.

    Raises:
        InputError: `bad_python_model`, it does not parse, or lacks what it needs.
    """
    if path.suffix != ".py":
        raise InputError("bad_python_model", what=path.name, detail="its name does not end in .py")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError("bad_python_model", what=path.name, detail=f"it has more than {_MAX_BYTES} bytes")
    try:
        tree = ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError("bad_python_model", what=path.name, detail=f"it does not parse: {error}") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Model"]
    if not classes:
        raise InputError("bad_python_model", what=path.name, detail="it defines no class `Model` at its top level")
    nodes = [node for node in classes[-1].body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    methods = {node.name: node for node in nodes if node.name in _METHODS}
    wanted = ["load", *(["infer"] if "raw" not in methods else [])]
    for method in dict.fromkeys([*wanted, *methods]):
        found = methods.get(method)
        is_callable = found is not None and len(found.args.posonlyargs + found.args.args) == 2
        # Only an answer to a raw request is waited for.
        if not is_callable or (isinstance(found, ast.AsyncFunctionDef) and method != "raw"):
            detail = f"its class `Model` has no method `{method}(self, {_METHODS[method]})`"
            raise InputError("bad_python_model", what=path.name, detail=detail)
    return set(methods)
