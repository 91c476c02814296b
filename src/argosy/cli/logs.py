"""`argosy logs`: what the processes of a server wrote.

Read from the files, not from the admin API: logs are wanted most when the server is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from argosy.cli.shell import Shell, command

__all__ = ["logs"]

_MAX_BYTES: Final = 4 << 20
"""Of a log's end that is looked at."""


@command("logs")
@click.argument("process", required=False)
@click.option("--lines", type=click.IntRange(1), default=100, show_default=True, help="How many of the last lines.")
def logs(shell: Shell, process: str | None, lines: int) -> None:
    """Show the end of a process's log; without a name, the names."""
    found = {path.stem: path for path in sorted((shell.home / "run" / "logs").glob("*.log"))}
    if process is None:
        if not found:
            shell.say("there are no logs: no server has run for this ARGOSY_HOME")
        shell.show({"names": list(found)}, *found)
        return
    if process not in found:
        from argosy.errors import NotFoundError, list_choices

        raise NotFoundError("unknown_choice", kind="log", got=process, known=list_choices(found))
    tail = _read_tail(found[process], lines)
    shell.show({"name": process, "lines": tail}, *tail)


def _read_tail(path: Path, num_lines: int) -> list[str]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _MAX_BYTES))
        return file.read().decode(errors="replace").splitlines()[-num_lines:]
