"""`argosy import` and `argosy models`: what is in the store, and how files come into it."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_measurement
from argosy.cli.version import show_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from argosy.signature import Ragged, Signature
    from argosy.store.manifest import Version

__all__ = ["import_model", "models"]

_EXAMPLE: Final = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [...]}; -1 is any length.'
_RAGGED_PATTERN: Final = re.compile(r"(?P<name>.+)=(?P<axis>[0-9]{1,2})(:(?P<pad>-?[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?))?")
_COMPRESSED: Final = (
    *("version", "of", "by", "metric", "size", "memory"),
    *("client p50", "p99", "load p50", "p99", "rows/s"),
)
_AS_SERVED: Final = ("memory_bytes", "p50_s", "p99_s", "load_p50_s", "load_p99_s", "rows_per_s")
"""Measurements of what was compressed, which have columns of their own."""
_MAX_CELL: Final = 64
"""Characters of what is listed in one cell; --json has all of it."""
_CREATED_LENGTH: Final = len("2025-01-31T12:00")


@command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Model to make a version of.")
@click.option("--format", "format_name", help="Format of the file, such as xgboost.  [default: by its content and suffix]")
@click.option("--sample", type=click.Path(path_type=Path), help="File with a few real rows: .npz, .npy or .json.")
@click.option("--code", metavar="FILE.py:FUNCTION", help="Function that builds the model, for a file that holds weights alone.")
@click.option("--allow-pickle", is_flag=True, help="Open a file that runs its maker's code, in a process that reaches nothing.")
@click.option("--labels", type=click.Path(path_type=Path), help="File with the names of the output's last axis, one a line.")
@click.option(
    "--preprocess", type=click.Path(path_type=Path), help="File of steps, .toml or .json: pictures or text may be sent instead."
)
@click.option(
    "--ragged",
    "ragged_inputs",
    metavar="INPUT=AXIS[:PAD]",
    multiple=True,
    help="An input whose axis is as long as a request has it, and what fills shorter rows of a batch.  [PAD: 0]",
)
@click.option(
    "--ragged-output", "ragged_outputs", metavar="OUTPUT=AXIS", multiple=True, help="An output that is as long along an axis."
)
@click.option(
    "--dynamic",
    metavar="INPUT=AXIS",
    multiple=True,
    help="An axis of any length, of a model whose file tells no shapes; repeatable.",
)
@click.option(
    "--rows/--no-rows",
    "has_rows",
    default=None,
    help="First axes of any length count rows, or do not: then each request runs by itself.  [default: as an ONNX graph shows]",
)
@click.option("--signature", type=click.Path(path_type=Path), help=f"JSON file with the tensors of a Python model: {_EXAMPLE}")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long the process that opens the file may take.  [default: 600]",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="How much memory the process that opens the file may reserve.  [default: by the file's size]",
)
@click.option("--repeatable", is_flag=True, help="A Python model may run twice for one request, after a crash.")
def import_model(
    shell: Shell,
    path: Path,
    name: str,
    signature: Path | None,
    repeatable: bool,
    sample: Path | None,
    labels: Path | None,
    preprocess: Path | None,
    ragged_inputs: Sequence[str],
    ragged_outputs: Sequence[str],
    has_rows: bool | None,
    timeout: float | None,
    memory: float | None,
    **foreign: Any,
) -> None:
    """Publish a model that was trained elsewhere as the next version of a model.

    PATH is an .onnx file, a .py file with a class Model, or a file of another framework: TorchScript, torch.export,
    .keras, a SavedModel folder, an MXNet symbol, OpenVINO's .xml, jax.export, XGBoost, LightGBM, skops, a pickle of
    scikit-learn, or weights (safetensors, Flax, torch.save) with --code.
    """
    is_named = foreign["format_name"] is not None
    foreign["dynamic"] = _parse_dynamic(foreign["dynamic"])
    is_onnx = path.suffix == ".onnx" and not is_named
    with _start_ahead() if is_onnx and path.is_file() else contextlib.nullcontext():
        told: dict[str, Any] = {"labels": _read_labels(labels), "ragged": _parse_ragged(ragged_inputs, ragged_outputs)}
        told["preprocess"] = () if preprocess is None else _read_preprocess(preprocess)
        limits = {"timeout_s": timeout, "memory_bytes": None if memory is None else int(memory * 2**30)}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        if path.suffix == ".py" and not is_named:
            steps = told.pop("preprocess")
            other = _list_given(sample=sample, timeout=timeout, memory=memory, **told, **foreign)
            version = _import_python(
                shell, path, name, signature, other, repeatable=repeatable, has_rows=has_rows, preprocess=steps
            )
        elif signature is not None or repeatable:
            raise click.UsageError("--signature and --repeatable are for .py files: other files tell their tensors.")
        elif is_onnx:
            version = _import_onnx(shell, path, name, sample, _list_given(**foreign), has_rows=has_rows, **told, **given)
        else:
            version = _import_foreign(shell, path, name, sample, has_rows=has_rows, **told, **foreign, **given)
    show_version(shell, version)


def _start_ahead() -> AbstractContextManager[None]:
    # First of all, for its libraries take as long to load as all else here together.
    from argosy.importers.ahead import examiner_ahead

    return examiner_ahead()


def _read_preprocess(path: Path) -> Any:
    from argosy.store.preprocess import read_steps

    return read_steps(path)


def _list_given(**options: object) -> list[str]:
    return [f"--{name.replace('_', '-').removesuffix('-name')}" for name, value in options.items() if value]


def _parse_dynamic(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    axes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        words = _RAGGED_PATTERN.fullmatch(text)
        if words is None or words["pad"] is not None:
            raise click.UsageError(f"--dynamic is {text!r}, expected INPUT=AXIS, such as ids=1.")
        axes[words["name"]] = (*axes.get(words["name"], ()), int(words["axis"]))
    return axes


def _parse_ragged(inputs: Sequence[str], outputs: Sequence[str]) -> Ragged | None:
    from argosy.signature import Ragged, RaggedInput

    if not inputs and not outputs:
        return None
    if not inputs:
        raise click.UsageError("--ragged-output needs --ragged: an output is as long as an input has it.")
    found: dict[str, RaggedInput] = {}
    for text in inputs:
        words = _RAGGED_PATTERN.fullmatch(text)
        if words is None or not math.isfinite(float(words["pad"] or 0)):
            raise click.UsageError(f"--ragged is {text!r}, expected INPUT=AXIS or INPUT=AXIS:PAD, such as ids=1:0.")
        found[words["name"]] = RaggedInput(int(words["axis"]), float(words["pad"] or 0))
    cut: dict[str, int] = {}
    for text in outputs:
        words = _RAGGED_PATTERN.fullmatch(text)
        if words is None or words["pad"] is not None:
            raise click.UsageError(f"--ragged-output is {text!r}, expected OUTPUT=AXIS, such as tokens=1.")
        cut[words["name"]] = int(words["axis"])
    return Ragged(found, cut)


def _read_labels(path: Path | None) -> list[str] | None:
    from argosy.errors import InputError

    if path is None:
        return None
    try:
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror) from error
    except UnicodeDecodeError as error:
        raise InputError("bad_config", component="labels", source=path, detail=str(error)) from error


def _import_python(shell: Shell, path: Path, name: str, signature: Path | None, other: list[str], **given: Any) -> Version:
    from argosy.importers.python import publish_python

    if other:
        raise click.UsageError(f"{', '.join(other)}: not for .py files, which are published as they are.")
    tensors = None if signature is None else _read_signature(signature)
    return publish_python(shell.open_store(), path, name, signature=tensors, **given)


def _import_onnx(shell: Shell, path: Path, name: str, sample: Path | None, other: list[str], **given: Any) -> Version:
    from argosy.errors import InputError
    from argosy.importers.golden_run import to_array
    from argosy.importers.onnx import import_onnx

    if other:
        raise click.UsageError(f"{', '.join(other)}: not for .onnx files, which are published as they are.")
    rows = None
    if sample is not None:
        found = _read_sample(sample)
        if not isinstance(found, dict):
            raise InputError("bad_sample", detail="an ONNX file names its inputs: give .npz, or .json with lists by input name")
        rows = {key: to_array(value) for key, value in cast("dict[str, Any]", found).items()}
    return import_onnx(shell.open_store(), path, name, golden_inputs=rows, **given)


def _import_foreign(
    shell: Shell, path: Path, name: str, sample: Path | None, *, format_name: str | None, **given: Any
) -> Version:
    from argosy.importers.foreign import import_foreign

    return import_foreign(
        shell.open_store(),
        path,
        name,
        format=format_name,
        sample=None if sample is None else _read_sample(sample),
        **given,
    )


def _read_sample(path: Path) -> Any:
    from argosy.cli.predict import read_inputs

    return read_inputs(path)


def _read_signature(path: Path) -> Signature:
    import msgspec

    from argosy.errors import InputError
    from argosy.signature import Signature

    try:
        return msgspec.json.decode(path.read_bytes(), type=Signature)
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("bad_config", component="signature", source=path, detail=str(error)) from error


@command("models")
@click.argument("name", required=False)
@click.option("--alias", "alias", metavar="ALIAS=VERSION", help="Point an alias of NAME to a version, such as champion=3.")
def models(shell: Shell, name: str | None, alias: str | None) -> None:
    """List the models; or one model's versions, with what is known of them."""
    if alias is not None:
        if name is None:
            raise click.UsageError("--alias needs the NAME of a model.")
        word, number = _parse_alias(alias)
        store = shell.open_store()
        before = next((model.aliases.get(word) for model in store.list_models() if model.name == name), None)
        store.set_alias(name, word, number)
        if before not in (None, number):
            shell.say(f"alias {word} of {name} pointed to version {before} before")
    if name is None:
        found = shell.open_store().list_models()
        rows = [(model.name, str(len(model.versions)), _list_aliases(model.aliases)) for model in found]
        shell.show(found, Table(("name", "versions", "aliases"), rows))
        return
    versions = shell.open_store().list_versions(name)
    columns = ("version", "aliases", "size", "runtime", "created", "measurements", "lineage")
    parts: list[Any] = [Table(columns, [_build_row(version) for version in versions])]
    if compressed := [_build_compressed(version) for version in versions if _read_compression(version)]:
        parts += ["", "compressed, as parts of the version that each was made of:", Table(_COMPRESSED, compressed)]
    shell.show([_describe(version) for version in versions], *parts, *_explain_joining(versions))


def _explain_joining(versions: Sequence[Version]) -> list[str]:
    """Of which versions it is not believed any more that their rows are independent of one another, and why."""
    from argosy.deploy.worker_spec import judge_version

    found = [(version.number, judge_version(version)) for version in versions if version.manifest.joining.kind == "independent"]
    numbers: dict[str, list[str]] = {}
    for number, what in found:
        if what["kind"] != "independent":
            numbers.setdefault(f"{what['kind']}: {what['reason']}", []).append(str(number))
    lines = [f"version{'s' if len(own) > 1 else ''} {', '.join(own)}: {reason}" for reason, own in numbers.items()]
    return ["", "rows that are not known to be independent of one another:", *lines] if lines else []


def _read_compression(version: Version) -> dict[str, Any]:
    """Give what the lineage says of before and after; empty where the version was not compressed."""
    found = version.manifest.lineage.get("compression", {})
    return found if {"score", "before", "after", "recipe"} <= found.keys() else {}


def _build_compressed(version: Version) -> tuple[str, ...]:
    found = _read_compression(version)
    score, before, after = found["score"], found["before"], found["after"]
    interval = f"; 95 %: {score['interval'][0]:.4f} to {score['interval'][1]:.4f}" if score.get("interval") else ""
    old: dict[str, float] = before.get("served") or {}
    new: dict[str, float] = after.get("served") or {}
    return (
        str(version.number),
        str(version.manifest.lineage["parent"]["number"]),
        " + ".join(step["name"] for step in found["recipe"]),
        f"{score['metric']} {score['after']:.4f} (lost {score['loss']:.4f}{interval})",
        _divide(before, after, "size_bytes"),
        *(_divide(old, new, name) for name in _AS_SERVED),
    )


def _divide(before: dict[str, float], after: dict[str, float], name: str) -> str:
    return f"{after[name] / before[name]:.2f}" if after.get(name) and before.get(name) else ""


def _parse_alias(text: str) -> tuple[str, int]:
    alias, _, number = text.partition("=")
    if not alias or not number.isdecimal():
        raise click.UsageError(f"--alias is {text!r}, expected ALIAS=VERSION, such as champion=3.")
    return alias, int(number)


def _list_aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{alias}={number}" for alias, number in aliases.items())


def _describe(version: Version) -> dict[str, Any]:
    from argosy.deploy.worker_spec import judge_version

    manifest = version.manifest
    return {
        "name": version.name,
        "version": version.number,
        "aliases": version.aliases,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "runtime": manifest.runtime,
        "created": version.created,
        "signature": manifest.signature,
        "num_golden": manifest.num_golden,
        "golden_is_synthetic": manifest.golden_is_synthetic,
        "joining": judge_version(version),
        "measurements": version.measurements,
        "lineage": manifest.lineage,
        "pulled_from": version.pulled_from,
    }


def _build_row(version: Version) -> tuple[str, ...]:
    # One for each batch size would drown the others; --json has them all.
    hidden = ("size_bytes", *(_AS_SERVED if _read_compression(version) else ()))
    shown = {name: value for name, value in version.measurements.items() if "service_s_batch_" not in name and name not in hidden}
    if (row_s := version.measurements.get("service_s_batch_1")) is not None:
        shown["row_s"] = row_s
    return (
        str(version.number),
        ", ".join(version.aliases),
        format_bytes(version.size_bytes),
        version.manifest.runtime,
        version.created[:_CREATED_LENGTH].replace("T", " "),
        _list_some([f"{name} {format_measurement(name, value)}" for name, value in shown.items()]),
        summarise_lineage(({"pulled from": version.pulled_from} if version.pulled_from else {}) | version.manifest.lineage),
    )


def summarise_lineage(lineage: dict[str, Any]) -> str:
    """Give where a version comes from in a line: plain values, and the names of what is described at length."""
    parts: list[str] = []
    for key, value in lineage.items():
        if isinstance(value, dict):
            described = cast("dict[str, Any]", value)
            # A parent is a version, anything else has a name alone.
            name = "@".join(str(described[word]) for word in ("name", "number") if word in described)
            parts += [f"{key} {name}"] if name else []
        elif value and not isinstance(value, list):
            parts.append(f"{key} {value}")
    return _list_some(parts)


def _list_some(parts: Sequence[str]) -> str:
    """Give as many as a cell holds, the first at least, and how many more there are."""
    count = max([1, *(end for end in range(len(parts) + 1) if len(", ".join(parts[:end])) <= _MAX_CELL)])
    more = [f"and {len(parts) - count} more"] if len(parts) > count else []
    return ", ".join([*parts[:count], *more])
