"""`argosy environment`: environments of frameworks that cannot live beside the user's other packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from argosy.cli.shell import Shell, Table, command

__all__ = ["environment"]


@click.group("environment")
def environment() -> None:
    """Environments of frameworks that cannot live in this one, such as MXNet."""


@command("list")
def list_all(shell: Shell) -> None:
    """Show the environments that there are, and which of them are built."""
    from argosy.environment import is_importable, list_environments

    data: list[dict[str, Any]] = [
        {
            "name": one.name,
            "python_version": one.python_version,
            "folder": str(one.folder),
            "is_built": one.is_built,
            "is_importable": is_importable(one.name),
        }
        for one in list_environments()
    ]
    rows = [(one["name"], one["python_version"], _describe_state(one), one["folder"]) for one in data]
    shell.show(data, Table(("name", "python", "state", "folder"), rows))


def _describe_state(one: dict[str, Any]) -> str:
    if one["is_importable"]:
        return "not needed here"
    return "built" if one["is_built"] else "built when needed"


@command("build")
@click.argument("name")
def build(shell: Shell, name: str) -> None:
    """Build an environment now, rather than when it is first needed, and show its Python."""
    from argosy.environment import find_interpreter

    python = str(find_interpreter(name))
    shell.show({"name": name, "python": python}, python)


@command("run")
@click.argument("name")
@click.argument("file", metavar="FILE.py", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1)
def run(shell: Shell, name: str, file: Path, arguments: tuple[str, ...]) -> None:
    """Run a program of your own in an environment, which is built first if it is not there yet.

    What stands after FILE.py is the program's. Packages of this environment are not seen there, nor what PYTHONPATH names.
    """
    from argosy.environment import run_in

    # The program finds the same models as the command did.
    os.environ["ARGOSY_HOME"] = str(shell.home)
    # Absolute: a name that begins with a dash would be an option of the interpreter.
    run_in(name, [str(file.absolute()), *arguments])


# What looks like an option after NAME belongs to the program.
run.allow_interspersed_args = False

environment.add_command(list_all)
environment.add_command(build)
environment.add_command(run)
