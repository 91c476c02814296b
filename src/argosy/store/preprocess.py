"""What a publisher says of preprocessing: read, held against the signature, and tried before a version exists.

A step is a table with `kind`, `name`, `inputs` and the options of `runtimes/preprocess_image.py`,
`runtimes/preprocess_text.py` or `runtimes/preprocess_row.py`. The file that it names becomes a file of the artifact.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from argosy.errors import InputError
from argosy.signature import Preprocess, Signature
from argosy.store.manifest import check_data

__all__ = ["Steps", "add_steps", "list_step_files", "read_steps", "try_steps"]

Steps = Sequence[Preprocess | Mapping[str, object]]

# A white pixel, and a word.
_SAMPLES: Final = {
    "image": bytes.fromhex(
        "89504e470d0a1a0a0000000d494844520000000100000001080000000"
        "03a7e9b550000000a4944415478da63f80f00010101001cb08c990000"
        "000049454e44ae426082"
    ),
    "text": b"a",
}


def read_steps(path: Path) -> list[dict[str, object]]:
    """Read the steps of a file, TOML (tables `[[preprocess]]`) or JSON (a list, or an object with `preprocess`).

    Files that it names are looked for beside it.

    Raises:
        InputError: `missing_file`; `bad_config`, it holds no steps.
    """
    try:
        text = path.read_bytes().decode()
        found: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError("bad_config", component="preprocessing", source=path, detail=str(error)) from error
    steps: Any = cast("dict[str, Any]", found).get("preprocess") if isinstance(found, dict) else found
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in cast("list[Any]", steps)):
        detail = "it has no steps; expected tables [[preprocess]], each with a kind"
        raise InputError("bad_config", component="preprocessing", source=path, detail=detail)
    tables = cast("list[dict[str, object]]", steps)
    return [{**step, "file": str(path.parent / str(step["file"]))} if "file" in step else step for step in tables]


def add_steps(signature: Signature, steps: Steps) -> tuple[Signature, dict[str, Path]]:
    """Give the signature with its steps, and the files that they bring into the artifact.

    Args:
        signature: of the tensors.
        steps: `Preprocess`, or tables with `kind`, and where the usual ones do not fit `name` and `inputs`; everything else
            is an option. `file` is a path.

    Raises:
        InputError: `bad_option`, `unknown_choice`, `bad_preprocess`.
    """
    files: dict[str, Path] = {}
    complete: list[Preprocess] = []
    for step in steps:
        chosen = step if isinstance(step, Preprocess) else _read_step(signature, step)
        options = dict(chosen.options)
        if "file" in options:
            path = Path(str(options["file"]))
            if files.setdefault(path.name, path) != path:
                raise InputError("bad_preprocess", detail=f"two steps bring a file {path.name} each")
            options["file"] = path.name
        complete.append(msgspec.structs.replace(chosen, options=check_data("preprocess", options)))
    return msgspec.structs.replace(signature, preprocess=(*signature.preprocess, *complete)), files


def _read_step(signature: Signature, step: Mapping[str, object]) -> Preprocess:
    own = {"kind", "name", "inputs"}
    kind, names = str(step.get("kind", "")), [spec.name for spec in signature.inputs]
    inputs: Any = step.get("inputs", names)
    if not isinstance(inputs, list | tuple):
        raise InputError("bad_option", option="preprocess.inputs", got=inputs, expected="a list of names of inputs")
    options = {key: value for key, value in step.items() if key not in own}
    made = tuple(str(name) for name in cast("list[Any]", inputs))
    return Preprocess(kind, str(step.get("name", kind)), made, options)


def list_step_files(signature: Signature) -> list[str]:
    """List the artifact's files that the steps of a signature need."""
    return list(dict.fromkeys(str(step.options["file"]) for step in signature.preprocess if "file" in step.options))


def try_steps(signature: Signature, folder: Path) -> None:
    """Load every step as a worker does, and run it once.

    Args:
        signature: with steps or without.
        folder: holds the artifact's files.

    Raises:
        InputError: `bad_preprocess`: a step does not fit its tensors, its file is missing or cannot be used, or its package
            is not installed.
    """
    if not signature.preprocess:
        return
    # Few versions preprocess: whoever publishes another loads none of it.
    from argosy.runtimes.base import BadInput
    from argosy.runtimes.preprocess import BadStep, Preprocessor

    try:
        preprocessor = Preprocessor(msgspec.to_builtins(signature), folder)
        preprocessor.convert(preprocessor.make_samples(_SAMPLES))
    except (BadStep, BadInput) as error:
        raise InputError("bad_preprocess", detail=error) from error
