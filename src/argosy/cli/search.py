"""`argosy search`: find the parameters with which a program trains the best model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import Shell, Table, command, format_seconds, overwrite_option
from argosy.cli.version import describe_version, format_head

if TYPE_CHECKING:
    from argosy.search.result import SearchResult

__all__ = ["search"]


@command("search")
@click.argument("program", metavar="FILE.py:FUNCTION")
@click.option(
    "--space",
    "spaces",
    multiple=True,
    required=True,
    metavar="NAME=VALUES|FILE.toml",
    help="A parameter: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP, or options with commas between. May be given again.",
)
@click.option("--trials", type=int, help="That the search has when it ends.  [default: 20; of pbt ten for each member]")
@click.option("--method", default="tpe", show_default=True, help="random, grid, tpe, genetic, hyperband, pbt.")
@click.option("--metric", default="accuracy", show_default=True, help="Of the validation rows, after each epoch; or loss.")
@click.option("--objective", "objectives", help="More than the metric: size, latency, throughput, memory; with commas between.")
@click.option("--guard", "guards", multiple=True, metavar="NAME=BOUND", help="What an objective must reach. May be given again.")
@click.option("--epochs", type=int, help="Of each trial.  [default: the program's]")
@click.option("--population", type=int, help="Members of pbt: so many trials are a generation.  [default: 8]")
@click.option("--interval", type=int, help="Epochs of a trial of pbt.  [default: 1]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the method.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Trials at a time.")
@click.option("--max-seconds", type=float, help="After which no new trial is begun.")
@click.option("--max-trial-seconds", type=float, help="After which a trial has failed.")
@click.option("--name", help="Model to make a version of, and name of the search.  [default: the function's]")
@click.option("--restart", is_flag=True, help="Begin anew, and forget what was searched under this name.")
@click.option("--no-publish", is_flag=True, help="Search only.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="HTML file for the front, plots and all trials.")
@overwrite_option
def search(
    shell: Shell,
    program: str,
    spaces: tuple[str, ...],
    objectives: str | None,
    guards: tuple[str, ...],
    max_seconds: float | None,
    max_trial_seconds: float | None,
    no_publish: bool,
    report: Path | None,
    overwrite: bool,
    metric: str,
    **options: Any,
) -> None:
    """Train a program with parameters of a space, trial by trial, and publish the best model within the guard.

    FUNCTION takes the parameters by name and gives what argosy train takes. A metric of the program's own is given with its
    direction: --metric auc:maximize. A search that was ended goes on when it is called again.
    """
    from argosy.output_file import OutputFile
    from argosy.search.run import search as run
    from argosy.search.space import read_space

    report_file = None if report is None else OutputFile(report, overwrite=overwrite)
    name, _, direction = metric.partition(":")
    wanted = _read_objectives(objectives, name, direction)
    with shell.hold_stdout():
        result = run(
            program,
            read_space(spaces),
            metric=name,
            objectives=wanted,
            guard=_read_guards(guards),
            max_s=max_seconds,
            max_trial_s=max_trial_seconds,
            publish=not no_publish,
            report=report_file,
            store=shell.open_store(),
            say=shell.say,
            **options,
        )
    if report is not None:
        shell.say(f"report: {report}")
    _show(shell, result)


def _read_objectives(text: str | None, metric: str, direction: str) -> dict[str, str]:
    """Give objectives with the directions that were given, "" for none; the metric among them."""
    found = {metric: direction}
    for part in (text or "").split(","):
        name, _, given = part.strip().partition(":")
        if name:
            found[name] = given or found.get(name, "")
    return found


def _read_guards(texts: tuple[str, ...]) -> dict[str, float]:
    from argosy.errors import InputError

    found: dict[str, float] = {}
    for text in texts:
        name, _, bound = text.partition("=")
        try:
            number = float(bound)
        except ValueError:
            raise InputError("bad_option", option="guard", got=text, expected="NAME=BOUND, such as accuracy=0.95") from None
        if name in found:
            raise InputError("bad_option", option="guard", got=text, expected=f"one bound for {name}")
        found[name] = number
    return found


def _show(shell: Shell, result: SearchResult) -> None:
    from argosy.search.report import format_objective, format_schedule, tabulate_trials

    made = {} if result.version is None else describe_version(result.version)
    header, *rows = tabulate_trials(result)
    counts = f"{result.count('done')} done, {result.count('stopped')} stopped early, {result.count('failed')} failed"
    parts: list[str | Table] = [] if result.version is None else [format_head(result.version)]
    if result.best is not None:
        values = ", ".join(f"{name} {format_objective(name, value)}" for name, value in result.best.values.items())
        point = ", ".join(f"{name} = {value}" for name, value in result.best.parameters.items())
        parts.append(f"best: trial {result.best.number} ({point}): {values}")
    else:
        parts.append("best: none, no trial holds the guard")
    if len(result.schedule) > 1:
        parts.append(f"its schedule: {format_schedule(result)}")
    parts.append(Table(header, rows))
    if result.importance:
        decided = ", ".join(f"{name} {part:.0%}" for name, part in result.importance.items())
        parts.append(f"what decides {result.metric}: {decided}")
    parts.append(f"{len(result.trials)} trials ({counts}) in {format_seconds(result.seconds)}; kept in {result.folder}")
    shell.show(made | result.describe(), *parts)
