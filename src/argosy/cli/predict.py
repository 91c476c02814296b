"""`argosy predict`: ask a deployment, with inputs from a file or with a golden example."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from argosy.cli.shell import Shell, command

if TYPE_CHECKING:
    from argosy.client import Prediction
    from argosy.client.wire import Inputs
    from argosy.signature import Arrays

__all__ = ["predict", "read_inputs"]

_DEFAULT_URL: Final = "http://127.0.0.1:8000"
_SUFFIXES: Final = (".json", ".npy", ".npz")


class _Question(NamedTuple):
    """What to ask, and what version should answer what, if that is known."""

    inputs: Inputs
    version: str = ""
    expected: Arrays | None = None


@command("predict")
@click.argument("name")
@click.option("--input", "path", type=click.Path(path_type=Path), help="File with the inputs: .npz, .npy or .json.")
@click.option("--golden", "index", type=click.IntRange(0), help="Send this golden example, counted from 0, and compare.")
@click.option("--url", help="Server to ask.  [default: the one of this ARGOSY_HOME, else http://127.0.0.1:8000]")
@click.option("--version", "version", help="Of the model.  [default: as the traffic is split]")
def predict(shell: Shell, name: str, path: Path | None, index: int | None, url: str | None, version: str | None) -> None:
    """Ask a deployment for its outputs.

    A file .npz holds arrays by input name, .npy the array of a model with one input, .json an object of nested
    lists by input name, or the list of a model with one input.
    """
    from argosy.client import Client
    from argosy.errors import InputError

    if "@" in name:
        expected = "the name of a deployment; --version N asks one of its versions"
        raise InputError("bad_option", option="name", got=name, expected=expected)
    if path is not None and index is None:
        question = _Question(read_inputs(path))
    elif path is None and index is not None:
        question = _pick_golden(shell, name, version, index)
    else:
        raise click.UsageError("Give either --input FILE or --golden N.")
    with Client(url or _find_url(shell)) as client:
        prediction = client.predict(name, question.inputs, version=version)
    difference = None
    if question.expected is not None and question.version == prediction.version:
        difference = _measure_difference(prediction, question.expected)
    _show(shell, prediction, difference)


def _find_url(shell: Shell) -> str:
    admin = shell.find_admin()
    if admin is None:
        return _DEFAULT_URL
    with admin:
        return admin.url


def read_inputs(path: Path) -> Inputs:
    """Read inputs from a file.

    Raises:
        InputError: `missing_file`; `bad_inputs`, it holds something else; `unknown_choice`, its suffix.
    """
    import numpy as np

    from argosy.errors import InputError, list_choices

    if path.suffix not in _SUFFIXES:
        raise InputError("unknown_choice", kind="input file", got=path.suffix or path.name, known=list_choices(_SUFFIXES))
    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        # Never with pickle: a file of inputs may come from anybody.
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            return dict(loaded) if hasattr(loaded, "files") else loaded
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror or error) from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, RecursionError) as error:
        raise InputError("bad_inputs", path=path, detail=error) from error


def _pick_golden(shell: Shell, name: str, version: str | None, index: int) -> _Question:
    """Load a golden example of what a deployment serves, or of the model of that name.

    Raises:
        NotFoundError: no such model or version, or it has no golden examples.
        InputError: `bad_option`, it has fewer.
    """
    from argosy.errors import InputError

    ledger = shell.open_ledger()
    specs = {deployment.spec.name: deployment.spec for deployment in ledger.list_deployments()}
    reference = name
    if name in specs:
        reference = f"{specs[name].model}@{version or specs[name].version}"
    elif version:
        reference = f"{name}@{version}"
    found = ledger.store.get_version(reference)
    golden = ledger.store.load_golden(found)
    if index >= golden.num_examples:
        raise InputError("bad_option", option="golden", got=index, expected=f"0 to {golden.num_examples - 1}")
    example = golden.example(index, is_batched=found.manifest.signature.is_batched)
    return _Question(example.inputs, str(found.number), example.outputs)


def _measure_difference(prediction: Prediction, expected: Arrays) -> float:
    """The largest difference of a number from the recorded one; infinite where anything else differs."""
    import numpy as np

    from argosy.datatypes import is_float

    largest = 0.0
    for name, want in expected.items():
        got = prediction[name]
        if got.shape != want.shape:
            return math.inf
        if not is_float(want.dtype):
            largest = largest if np.array_equal(got, want) else math.inf
        else:
            apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
            # Equal infinities and NaN in both are no difference.
            is_same = (got == want) | (np.isnan(got) & np.isnan(want))
            largest = max(largest, float(np.max(np.where(is_same, 0.0, np.nan_to_num(apart, nan=math.inf)), initial=0.0)))
    return largest


def _show(shell: Shell, prediction: Prediction, difference: float | None) -> None:
    import numpy as np

    from argosy.signature import datatype_of

    head = f"{prediction.model} version {prediction.version}"
    parts = [f"{name} {datatype_of(array.dtype)} {array.shape}\n{np.array2string(array)}" for name, array in prediction.items()]
    if difference is not None:
        parts.append(f"largest difference from the recorded outputs: {difference:.3g}")
    if not shell.is_json:
        shell.show(None, head, *parts)
        return
    outputs = {
        name: {"datatype": datatype_of(array.dtype), "shape": array.shape, "data": _to_lists(prediction, name)}
        for name, array in prediction.items()
    }
    shell.show({"model": prediction.model, "version": prediction.version, "outputs": outputs, "golden_difference": difference})


def _to_lists(prediction: Prediction, name: str) -> Any:
    """Give an output as nested lists that JSON can hold.

    Raises:
        ModelError: `not_finite_output`.
        InputError: `needs_raw`, bytes that are no text.
    """
    import numpy as np

    from argosy.datatypes import is_float, widen
    from argosy.errors import InputError, ModelError

    array = widen(prediction[name])
    if is_float(array.dtype) and not np.isfinite(array).all():
        raise ModelError("not_finite_output", tensor=name, model=prediction.model, version=prediction.version)
    if array.dtype.kind != "O":
        return array.tolist()
    try:
        return np.array([item.decode() for item in array.ravel().tolist()] or None, object).reshape(array.shape).tolist()
    except UnicodeDecodeError:
        raise InputError("needs_raw", tensor=name, datatype="BYTES") from None
