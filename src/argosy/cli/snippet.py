"""What a reader can paste to ask a deployment: a curl line and three lines of Python, with a request that fits it."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from argosy.datatypes import is_bfloat16, is_float, widen
from argosy.errors import ArgosyError
from argosy.signature import Arrays, TensorSpec
from argosy.store.golden import Golden
from argosy.store.local import Store
from argosy.store.manifest import Version

__all__ = ["Snippet", "build_snippet", "choose_example"]

MAX_SHOWN_VALUES: Final = 128
"""Beyond this a request is made of zeros by a short expression: a terminal full of numbers hides what they are for."""

_ZEROS: Final = {"f": "0.0", "i": "0", "u": "0", "b": "False", "O": '""', "V": "0.0"}


class Snippet(NamedTuple):
    """Text to paste into a shell, and text to paste into Python."""

    curl: str
    python: str


def build_snippet(url: str, name: str, store: Store, version: Version) -> Snippet:
    """Write requests that a deployment answers.

    Args:
        url: of the server's V2 API.
        name: of the deployment.
        store: where the version's golden examples are.
        version: what the deployment serves.
    """
    specs = version.manifest.signature.inputs
    if not version.manifest.signature.outputs:
        return _build_raw(url, name)
    inputs = choose_example(store, version)
    target = f"{url}/v2/models/{name}/infer"
    if sum(array.size for array in inputs.values()) > MAX_SHOWN_VALUES:
        return _build_from_zeros(url, name, target, specs, inputs)
    tensors = [
        {
            "name": spec.name,
            "shape": inputs[spec.name].shape,
            "datatype": spec.datatype,
            "data": orjson.Fragment(_to_json(inputs[spec.name])),
        }
        for spec in specs
    ]
    body = orjson.dumps({"inputs": tensors}).decode()
    values = {spec.name: _to_lists(inputs[spec.name]) for spec in specs}
    curl = f"curl -sS {shlex.quote(target)} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    python = (
        "from argosy import Client",
        f"client = Client({url!r})",
        f"print(client.predict({name!r}, {values!r}))",
    )
    return Snippet(curl, "\n".join(python))


def _build_raw(url: str, name: str) -> Snippet:
    """A request whose form only the model's own code knows."""
    curl = f"curl -sSN {shlex.quote(f'{url}/v2/models/{name}/raw')} -d {shlex.quote('{}')}"
    python = ("from argosy import Client", f"client = Client({url!r})", f"print(client.raw({name!r}, body=b'{{}}').content)")
    return Snippet(curl, "\n".join(python))


def choose_example(store: Store, version: Version) -> Arrays:
    """Give inputs that a version takes: its first golden example that JSON can hold, else zeros."""
    signature = version.manifest.signature
    if version.manifest.num_golden:
        try:
            golden = store.load_golden(version)
        except ArgosyError:
            # A damaged file of examples must not spoil a deployment that works.
            golden = Golden({}, {})
        for index in range(golden.num_examples):
            inputs = golden.example(index, is_batched=signature.is_batched).inputs
            if all(_fits_json(array) for array in inputs.values()):
                return inputs
    return {spec.name: _make_zeros(spec) for spec in signature.inputs}


def _make_zeros(spec: TensorSpec) -> NDArray[Any]:
    shape = tuple(1 if dim < 0 else dim for dim in spec.shape)
    return np.full(shape, b"", object) if spec.dtype.kind == "O" else np.zeros(shape, spec.dtype)


def _fits_json(array: NDArray[Any]) -> bool:
    if is_float(array.dtype):
        return bool(np.isfinite(widen(array)).all())
    try:
        return array.dtype.kind != "O" or all(item.decode() is not None for item in array.ravel().tolist())
    except UnicodeDecodeError:
        return False


def _to_json(array: NDArray[Any]) -> bytes:
    """Write the values flat; floats with as few digits as their own precision needs, 0.1 and not 0.10000000149."""
    if array.dtype.kind == "O":
        return orjson.dumps([item.decode() for item in array.ravel().tolist()])
    return orjson.dumps(np.ascontiguousarray(widen(array)).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)


def _to_lists(array: NDArray[Any]) -> Any:
    """Give the values as nested lists, which Python writes with the same few digits."""
    return np.array(orjson.loads(_to_json(array)), object).reshape(array.shape).tolist()


def _build_from_zeros(url: str, name: str, target: str, specs: tuple[TensorSpec, ...], inputs: Arrays) -> Snippet:
    tensors = ", ".join(
        f'{{"name": {json.dumps(spec.name)}, "shape": {list(inputs[spec.name].shape)}, "datatype": "{spec.datatype}", '
        f'"data": [{_ZEROS[spec.dtype.kind]}] * {inputs[spec.name].size}}}'
        for spec in specs
    )
    program = f'import json; print(json.dumps({{"inputs": [{tensors}]}}))'
    curl = f"python3 -c {shlex.quote(program)} | curl -sS {shlex.quote(target)} -H 'Content-Type: application/json' -d @-"
    arrays = ", ".join(f"{spec.name!r}: {_write_zeros(spec, inputs[spec.name].shape)}" for spec in specs)
    python = (
        "import argosy, numpy",
        f"client = argosy.Client({url!r})",
        f"print(client.predict({name!r}, {{{arrays}}}))",
    )
    return Snippet(curl, "\n".join(python))


def _write_zeros(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    return f'numpy.full({shape}, b"", object)' if spec.dtype.kind == "O" else f'numpy.zeros({shape}, "{_name_dtype(spec)}")'


def _name_dtype(spec: TensorSpec) -> str:
    # The client rounds float32 to bfloat16, and who pastes this may not have that type.
    return "float32" if is_bfloat16(spec.dtype) else spec.dtype.name
