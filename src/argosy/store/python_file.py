"""Publish a Python model: one file with a class `Model`. Nothing of it is run here, only parsed."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from argosy.errors import InputError
from argosy.signature import Signature, check_name
from argosy.store.golden import Golden
from argosy.store.local import Store, Version

__all__ = ["publish_python"]

_METHODS: Final = {"load": "folder", "infer": "inputs"}
_MAX_BYTES: Final = 4 << 20
"""Of the source. More is data, which belongs into a file beside it, and would take the parser gigabytes."""


def publish_python(
    store: Store,
    path: Path,
    name: str,
    *,
    signature: Signature,
    golden: Golden | None = None,
    repeatable: bool = False,
    lineage: Mapping[str, object] = {},
    measurements: Mapping[str, float] = {},
    options: Mapping[str, object] = {},
) -> Version:
    """Publish a `.py` file as a new version for the `python` runtime, without executing it.

    The file defines a class `Model` with `load(self, folder: Path)`, which gets the artifact's folder, and
    `infer(self, inputs: dict[str, ndarray]) -> dict[str, ndarray]`, whose first axis is rows.

    Args:
        store: where to.
        path: the file.
        name: the model's.
        signature: the tensors in and out; code does not tell them.
        golden: examples with the outputs that the publisher vouches for, since the code is not run here.
        repeatable: the code may be run twice for one request; nobody but its author knows.
        lineage: as in `Store.publish`.
        measurements: as in `Store.publish`.
        options: as in `Store.publish`.

    Raises:
        InputError: `missing_file`; `bad_python_model`, it does not parse or has no such class; `bad_golden`.
        StoreError: as `Store.publish`.
    """
    check_name(name)
    with store.stage() as staged:
        staged.add(path.name, path)
        _check_source(staged.folder / path.name)
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
            options=options,
        )


def _check_source(path: Path) -> None:
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
    methods = {node.name: node for node in classes[-1].body if isinstance(node, ast.FunctionDef)}
    for method, argument in _METHODS.items():
        found = methods.get(method)
        if found is None or len(found.args.posonlyargs + found.args.args) != 2:
            detail = f"its class `Model` has no method `{method}(self, {argument})`"
            raise InputError("bad_python_model", what=path.name, detail=detail)
