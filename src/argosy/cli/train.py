"""`argosy train` and `argosy compress`: make versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_measurement

if TYPE_CHECKING:
    from argosy.store.manifest import Version

__all__ = ["compress", "train"]


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
def compress(shell: Shell, reference: str, method: str, max_loss: float) -> None:
    """Make a version smaller and faster within an accuracy guard, and publish it."""
    from argosy.compress.base import Guard
    from argosy.compress.base import compress as compress_version

    result = compress_version(
        reference, method=method, guard=Guard(metric="accuracy", max_loss=max_loss), store=shell.open_store()
    )
    assert result.version is not None
    show_version(shell, result.version)


def show_version(shell: Shell, version: Version) -> None:
    """Write a version that was just made, and what is known of it."""
    data = {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "runtime": version.manifest.runtime,
        "num_golden": version.manifest.num_golden,
        "golden_is_synthetic": version.manifest.golden_is_synthetic,
        "measurements": version.measurements,
    }
    rows = [(name, format_measurement(name, value)) for name, value in version.measurements.items()]
    head = f"{version.name}@{version.number}  {version.manifest.runtime}, {format_bytes(version.size_bytes)}"
    shell.show(data, head, *([Table(("measurement", "value"), rows)] if rows else []))
