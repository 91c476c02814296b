"""`argosy compress`: make a version smaller and faster, or say that it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_seconds
from argosy.cli.version import describe_version, format_head

if TYPE_CHECKING:
    from argosy.compress.base import CompressResult
    from argosy.compress.judge import Guard
    from argosy.store.local import Store
    from argosy.store.manifest import Version

__all__ = ["compress", "compress_version"]

_CALIBRATION: Final = "[default: the training rows of the version's recipe]"
_EVALUATION: Final = "[default: the test rows of the version's recipe, else its golden examples]"
_TARGETS: Final = "targets"
_PAIR: Final = {"x", "y"}


@command("compress")
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--method", default="int8", show_default=True, help="How the version is made smaller.")
@click.option("--metric", help="What is guarded: accuracy, r2, mae, mse, fidelity.  [default: what the version was trained for]")
@click.option("--max-loss", type=float, default=0.01, show_default=True, help="What it may lose of the metric.")
@click.option("--calibration", type=click.Path(path_type=Path), help=f"File with representative inputs. {_CALIBRATION}")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help=f"File with rows and targets. {_EVALUATION}")
@click.option("--without-gain", is_flag=True, help="Publish it also if it is larger, or no better.")
def compress(shell: Shell, reference: str, method: str, metric: str | None, max_loss: float, **options: Any) -> None:
    """Quantise a version within an accuracy guard; publish what is smaller or faster, and neither larger nor slower.

    A version trained for classes is judged by accuracy, one trained for values by R2, one of which nothing is known by how
    far its answers are from the original's. Files are .npz, .npy or .json, as for argosy predict; that of --eval holds
    `targets` (or targets by output name) beside the inputs, or `x` and `y`. Without targets, the original's answers stand
    for them.
    """
    from argosy.compress.judge import Guard

    store = shell.open_store()
    version = store.get_version(reference)
    with shell.hold_stdout():
        result = compress_version(store, version, method, Guard(metric, max_loss), **options)
    assert result.version is not None
    score, before, after, gain = result.score, result.before, result.after, result.gain
    rows = [
        (f"{score.metric} ({score.num_rows} {score.basis} rows)", f"{score.before:.4f}", f"{score.after:.4f}"),
        ("file", format_bytes(before.size_bytes), format_bytes(after.size_bytes)),
        ("one row", format_seconds(before.latency_s), format_seconds(after.latency_s)),
        (f"a row in a batch of {before.batch_rows}", format_seconds(before.batch_row_s), format_seconds(after.batch_row_s)),
    ]
    shell.show(
        describe_version(result.version) | {"parent": version.number, **result.describe()},
        format_head(result.version),
        Table(("measure", f"version {version.number}", f"version {result.version.number}"), rows),
        "\n".join([f"judged by {score.metric}: {score.reason}", f"better: {'; '.join(gain.gains) or 'nothing'}"]),
        *([f"worse: {'; '.join(gain.losses)}"] if gain.losses else []),
    )


def compress_version(
    store: Store,
    version: Version,
    method: str,
    guard: Guard,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    without_gain: bool = False,
) -> CompressResult:
    """Compress a version with what is given, and what its recipe knows of calibration and test rows."""
    from argosy.cli.predict import read_inputs
    from argosy.compress.base import compress
    from argosy.train.recipes import load_data_for

    rows = None if calibration is None else read_inputs(calibration)
    pair = None if evaluation is None else _read_evaluation(evaluation, version)
    training, testing = (load_data_for(version) if rows is None or pair is None else None) or (None, None)
    return compress(
        version,
        method=method,
        calibration=training.x if rows is None and training else rows,
        guard=guard,
        evaluation=pair or testing,
        needs_gain=not without_gain,
        store=store,
    )


def _read_evaluation(path: Path, version: Version) -> tuple[Any, Any]:
    """Read rows and targets: inputs by name, with `targets` or outputs by name; or `x` and `y`; or rows alone."""
    from argosy.cli.predict import read_inputs

    given: Any = read_inputs(path)
    if not isinstance(given, dict):
        return given, None
    arrays = cast("dict[str, Any]", given)
    signature = version.manifest.signature
    inputs = {spec.name for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    if arrays.keys() == _PAIR and len(inputs) == 1 and not inputs | outputs >= _PAIR:
        return arrays["x"], arrays["y"]
    if _TARGETS in arrays and _TARGETS not in inputs | outputs:
        return arrays, arrays.pop(_TARGETS)
    targets = {name: arrays.pop(name) for name in outputs - inputs if name in arrays}
    return arrays, targets or None
