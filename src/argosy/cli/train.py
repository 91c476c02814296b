"""`argosy train` and `argosy compress`: make versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_measurement, format_seconds

if TYPE_CHECKING:
    from argosy.store.manifest import Version

__all__ = ["compress", "train"]

_CALIBRATION: Final = "[default: the training rows of the version's recipe]"


@command("train")
@click.argument("recipe", metavar="recipe:NAME")
@click.option("--framework", default="torch", show_default=True, help="What builds and fits the network.")
@click.option("--optimizer", default="adam", show_default=True, help="How its weights follow the gradients.")
@click.option("--epochs", type=int, help="Passes over the data.  [default: the recipe's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first weights and the order of the rows.")
@click.option("--name", help="Model to make a version of.  [default: the recipe's name]")
def train(shell: Shell, recipe: str, framework: str, optimizer: str, epochs: int | None, seed: int, name: str | None) -> None:
    """Train a recipe and publish the result as a version."""
    from argosy.train.recipes import get_recipe, run_recipe

    run = run_recipe(
        recipe,
        framework=framework,
        optimizer=optimizer,
        epochs=epochs,
        seed=seed,
        publish_as=name or get_recipe(recipe).name,
        store=shell.open_store(),
    )
    assert run.version is not None
    show_version(shell, run.version)


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
    from argosy.cli.predict import read_inputs
    from argosy.compress.base import Guard
    from argosy.compress.base import compress as compress_version
    from argosy.train.recipes import load_data_for

    store = shell.open_store()
    version = store.get_version(reference)
    given = None if calibration is None else read_inputs(calibration)
    training, testing = load_data_for(version) or (None, None)
    result = compress_version(
        version,
        method=method,
        calibration=training.x if given is None and training else given,
        guard=Guard(metric="accuracy", max_loss=max_loss),
        evaluation=testing,
        store=store,
    )
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
        _format_head(result.version),
        Table(("measure", f"version {version.number}", f"version {result.version.number}"), rows),
    )


def show_version(shell: Shell, version: Version) -> None:
    """Write a version that was just made, and what is known of it."""
    rows = [(name, format_measurement(name, value)) for name, value in version.measurements.items()]
    shell.show(describe_version(version), _format_head(version), *([Table(("measurement", "value"), rows)] if rows else []))


def describe_version(version: Version) -> dict[str, Any]:
    """Give a version that was just made as JSON data."""
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "runtime": version.manifest.runtime,
        "num_golden": version.manifest.num_golden,
        "golden_is_synthetic": version.manifest.golden_is_synthetic,
        "measurements": version.measurements,
    }


def _format_head(version: Version) -> str:
    return f"{version.name}@{version.number}  {version.manifest.runtime}, {format_bytes(version.size_bytes)}"
