"""`argosy compress`: make a version smaller and faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_seconds
from argosy.cli.version import describe_version, format_head

if TYPE_CHECKING:
    from argosy.compress.base import CompressResult
    from argosy.store.local import Store
    from argosy.store.manifest import Version

__all__ = ["compress", "compress_version"]

_CALIBRATION: Final = "[default: the training rows of the version's recipe]"


@command("compress")
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--method", default="int8", show_default=True, help="How the version is made smaller.")
@click.option("--max-loss", type=float, default=0.01, show_default=True, help="Accuracy that it may lose.")
@click.option("--calibration", type=click.Path(path_type=Path), help=f"File with representative inputs. {_CALIBRATION}")
def compress(shell: Shell, reference: str, method: str, max_loss: float, calibration: Path | None) -> None:
    """Make a version smaller and faster within an accuracy guard, and publish it.

    The guard is measured on the test rows of the recipe that the version was trained by; of another version, on how
    often it agrees with the original on its golden examples.
    """
    store = shell.open_store()
    version = store.get_version(reference)
    result = compress_version(store, version, method, max_loss, calibration)
    assert result.version is not None
    score, before, after = result.score, result.before, result.after
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
    )


def compress_version(
    store: Store, version: Version, method: str, max_loss: float, calibration: Path | None = None
) -> CompressResult:
    """Compress a version with what its recipe knows of calibration and test rows."""
    from argosy.cli.predict import read_inputs
    from argosy.compress.base import Guard, compress
    from argosy.train.recipes import load_data_for

    given = None if calibration is None else read_inputs(calibration)
    training, testing = load_data_for(version) or (None, None)
    return compress(
        version,
        method=method,
        calibration=training.x if given is None and training else given,
        guard=Guard(metric="accuracy", max_loss=max_loss),
        evaluation=testing,
        store=store,
    )
