"""`argosy push` and `argosy pull`: versions to and from OCI registries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import Shell, command, format_bytes
from argosy.cli.version import describe_version, format_head

if TYPE_CHECKING:
    from argosy.registry.transfer import Step

__all__ = ["pull", "push"]


def _connection_options(function: Callable[..., None]) -> Callable[..., None]:
    plain = click.option(
        "--plain-http", is_flag=True, help="Speak to the registry without TLS, as to this machine's own address."
    )
    authority = click.option(
        "--ca-file", type=click.Path(path_type=Path), help="Certificates (PEM) of authorities to trust beside the usual ones."
    )
    return plain(authority(function))


@command("push")
@click.argument("reference", metavar="NAME[@VERSION]")
@click.argument("target", metavar="REGISTRY/REPOSITORY[:TAG]")
@click.option("--verify", is_flag=True, help="Read what is there already, and send again what is damaged.")
@_connection_options
def push(shell: Shell, reference: str, target: str, **options: Any) -> None:
    """Send a version to an OCI registry. Files that are there already do not move.

    Credentials come from docker's and podman's files and helpers, or from ARGOSY_REGISTRY_USERNAME and
    ARGOSY_REGISTRY_PASSWORD.
    """
    from argosy.registry.transfer import push as send

    with _show_progress(shell) as tell:
        pushed = send(reference, target, store=shell.open_store(), **options, tell=tell)
    version = pushed.version
    shell.show(
        describe_version(version)
        | {"location": str(pushed.location), "tag": pushed.location.tag, "moved_bytes": pushed.moved_bytes}
        | {"replaced": pushed.replaced},
        f"{version.name}@{version.number}  {pushed.location}",
        f"{format_bytes(pushed.moved_bytes)} of {format_bytes(version.size_bytes)} moved",
        *([f"the tag meant {pushed.replaced} before, which is there still by its digest"] if pushed.replaced else []),
    )


@command("pull")
@click.argument("source", metavar="REGISTRY/REPOSITORY[:TAG|@DIGEST]")
@click.option("--name", help="Model to make a version of.  [default: the last part of REPOSITORY]")
@click.option(
    "--files", type=click.Path(path_type=Path), help="Fetch the files alone into this new folder, of other tools' artifacts too."
)
@_connection_options
def pull(shell: Shell, source: str, name: str | None, files: Path | None, **connection: Any) -> None:
    """Make a version of what was pushed to an OCI registry. Files that the store has already do not move.

    The version keeps its digest, signature, golden examples and lineage. Credentials: see argosy push.
    """
    from argosy.registry.transfer import pull as fetch
    from argosy.registry.transfer import pull_files

    if files is not None:
        if name is not None:
            raise click.UsageError("--name is for versions, --files makes none.")
        with _show_progress(shell) as tell:
            names = pull_files(source, files, **connection, tell=tell)
        shell.show({"folder": str(files), "files": names}, *(str(files / file) for file in names))
        return
    with _show_progress(shell) as tell:
        pulled = fetch(source, name, store=shell.open_store(), **connection, tell=tell)
    version = pulled.version
    moved = f"{format_bytes(pulled.moved_bytes)} of {format_bytes(version.size_bytes)} moved"
    shell.show(
        describe_version(version)
        | {"is_new": pulled.is_new, "pulled_from": version.pulled_from, "moved_bytes": pulled.moved_bytes},
        format_head(version),
        moved if pulled.is_new else f"this version has digest {version.digest} already; no other was made",
    )


@contextmanager
def _show_progress(shell: Shell) -> Generator[Callable[[Step], None]]:
    """Show how blobs move: bars on a terminal, a line for each elsewhere."""
    if not sys.stderr.isatty():
        told: set[str] = set()

        def say_end(step: Step) -> None:
            if step.done_bytes == step.size_bytes and step.name not in told:
                told.add(step.name)
                shell.say(f"{step.action:<8}{format_bytes(step.size_bytes):>11}  {step.name}")

        yield say_end
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.text import Text

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def tell(step: Step) -> None:
            # As Text would be escaped: a file's name is never markup.
            name = Text(f"{step.name} {step.action}").markup
            if step.name not in tasks:
                tasks[step.name] = progress.add_task(name, total=step.size_bytes)
            progress.update(tasks[step.name], completed=step.done_bytes, description=name)

        yield tell
