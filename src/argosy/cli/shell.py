"""What every command shares: --home and --json, where output goes, how a failure ends.

Data goes to stdout, everything else to stderr. Exit codes: 0 it worked, 1 it failed, 2 it was called wrongly.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, cast

import click

if TYPE_CHECKING:
    from argosy.client import AdminClient
    from argosy.deploy.ledger import Ledger
    from argosy.errors import ArgosyError
    from argosy.store.local import Store

__all__ = ["EXIT_FAILED", "Shell", "Table", "command", "format_bytes", "format_measurement", "format_seconds", "overwrite_option"]

EXIT_FAILED: Final = 1

P = ParamSpec("P")


class Table(NamedTuple):
    """Rows to show; every cell is text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Shell:
    """A command's way to its home and to its reader.

    Args:
        given_home: the option --home; None where ARGOSY_HOME or the default counts.
        is_json: stdout carries one JSON value, and nothing else.
    """

    def __init__(self, given_home: Path | None, is_json: bool) -> None:
        self.given_home = given_home
        self.is_json = is_json

    @property
    def home(self) -> Path:
        """The folder that holds all state.

        Raises:
            InputError: `home_is_file`.
        """
        from argosy.home import find_home

        home = find_home(self.given_home)
        for path in (home, *home.parents):
            if path.is_file():
                from argosy.errors import InputError

                raise InputError("home_is_file", home=home, path=path)
        return home

    def open_store(self) -> Store:
        """The home's store."""
        from argosy.store.local import Store

        return Store(self.home)

    def open_ledger(self) -> Ledger:
        """The home's deployments; the ledger's `store` is the home's store."""
        from argosy.deploy.ledger import Ledger

        return Ledger(self.open_store())

    def find_admin(self) -> AdminClient | None:
        """A client of the server that runs for the home; None when none does.

        Raises:
            UnavailableError: `server_hidden`.
        """
        from argosy.client import AdminClient
        from argosy.errors import UnavailableError

        try:
            return AdminClient(self.home)
        except UnavailableError as error:
            if error.key != "no_server":
                raise
            return None

    def show(self, data: object, *parts: str | Table) -> None:
        """Write the result to stdout: with --json the data, else the parts."""
        if self.is_json:
            import msgspec

            try:
                encoded = msgspec.json.encode(data)
            except UnicodeEncodeError:
                encoded = msgspec.json.encode(_make_unicode(msgspec.to_builtins(data)))
            click.echo(msgspec.json.format(encoded, indent=2))
            return
        for part in parts:
            if isinstance(part, str):
                click.echo(_make_unicode(part))
            else:
                _print_table(_make_unicode(part))

    @contextlib.contextmanager
    def hold_stdout(self) -> Generator[None]:
        """Have what libraries print within the block, in Python or below it, go to stderr: stdout is the result's."""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                target, instead = (stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream is not None)
            except (OSError, ValueError):  # Closed, or not given to this process.
                yield
                return
            kept = os.dup(target)
            os.dup2(instead, target)
            try:
                yield
            finally:
                import ctypes

                # What C has not written yet would follow later.
                ctypes.CDLL(None).fflush(None)
                os.dup2(kept, target)
                os.close(kept)

    def say(self, text: str) -> None:
        """Tell the reader something that is not the result."""
        click.echo(text, err=True)

    def fail(self, error: ArgosyError) -> None:
        """Report an error, and end the command."""
        if self.is_json:
            self.show({"error": error.message, "key": error.key, "hint": error.hint})
        else:
            self.say(f"error: {error.message}")
            if error.hint:
                self.say(f"hint: {error.hint}")
        click.get_current_context().exit(EXIT_FAILED)


overwrite_option: Final = click.option("--overwrite", is_flag=True, help="Replace a file of that name that is there.")
"""Of commands that write files where their user says."""


def command(name: str) -> Callable[[Callable[Concatenate[Shell, P], None]], click.Command]:
    """Make a function a command with the options --home and --json; it gets a `Shell` first."""

    def decorate(function: Callable[Concatenate[Shell, P], None]) -> click.Command:
        @functools.wraps(function)
        def run(*, given_home: Path | None, is_json: bool, **arguments: Any) -> None:
            from argosy.errors import ArgosyError

            shell = Shell(given_home, is_json)
            try:
                function(shell, **arguments)  # pyright: ignore[reportCallIssue] - click calls with names
            except ArgosyError as error:
                shell.fail(error)

        made = click.command(name)(run)
        made.params += [
            click.Option(
                ["--home", "given_home"],
                type=click.Path(file_okay=False, path_type=Path),
                help="Folder that holds all state.  [default: ARGOSY_HOME, or ~/.argosy]",
            ),
            click.Option(["--json", "is_json"], is_flag=True, help="Write the result to stdout as JSON."),
        ]
        return made

    return decorate


def _make_unicode(data: Any) -> Any:
    """Write out what is no Unicode in texts, such as a file's name of other bytes: neither JSON nor a terminal takes it."""
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {_make_unicode(name): _make_unicode(value) for name, value in cast("dict[Any, Any]", data).items()}
    if isinstance(data, Table):
        return Table(_make_unicode(data.columns), _make_unicode(data.rows))
    if isinstance(data, list | tuple):
        return [_make_unicode(item) for item in cast("Sequence[Any]", data)]
    return data


def _print_table(table: Table) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        # No lines between the columns: eight of them must fit into a terminal of 80.
        shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in table.columns:
            shown.add_column(column, overflow="fold")
        for row in table.rows:
            # As Text: what a user named a thing is never markup.
            shown.add_row(*(Text(cell) for cell in row))
        Console().print(shown)
        return
    lines = [[column.upper() for column in table.columns], *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    for line in lines:
        click.echo("  ".join(_pad(line, widths)).rstrip())


def _pad(cells: Sequence[str], widths: Iterable[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]


def format_bytes(count: float) -> str:
    """A number of bytes for a reader: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_measurement(name: str, value: float) -> str:
    """A measurement for a reader, by the unit that its name ends in."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    is_time = name.endswith("_s") and not name.endswith("_per_s")
    return format_seconds(value) if is_time else f"{value:.4g}"


def format_seconds(seconds: float | None) -> str:
    """A duration for a reader: `1.25 ms`. None stands for one beyond what is measured."""
    if seconds is None:
        return "> 20 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
