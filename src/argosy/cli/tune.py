"""`argosy tune`: find the settings that serve a model best on this machine, and deploy with them."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from argosy.cli.shell import Shell, Table, command, overwrite_option

if TYPE_CHECKING:
    from argosy.deploy.spec import DeploymentSpec
    from argosy.store.manifest import Version
    from argosy.tune.candidate import Candidate
    from argosy.tune.traffic import Traffic

__all__ = ["tune"]


@command("tune")
@click.argument("reference", metavar="NAME[@VERSION|@ALIAS]")
@click.option("--as", "name", metavar="DEPLOYMENT", help="Deployment to write the settings to.  [default: the model's name]")
@click.option("--p99-ms", type=float, help="99 of 100 answers must come within.  [default: any time]")
@click.option(
    "--min-cosine", type=float, default=0.9999, help="Of answers to those of the version's own runtime.  [default: 0.9999]"
)
@click.option("--rows", type=int, default=1, help="Of each request.  [default: 1]")
@click.option("--lengths", metavar="LEAST:LARGEST", help="Of the free axes, such as 8:128.  [default: as the examples are]")
@click.option("--connections", type=int, default=64, help="Clients that each wait for their answer.  [default: 64]")
@click.option("--rate", "rate_per_s", type=float, default=0.0, help="Requests that arrive by the second, answered or not.")
@click.option("--trace", type=click.Path(path_type=Path), help="Recorded requests: JSON lines with at_s, rows, length.")
@click.option("--budget-s", type=float, default=120.0, help="How long to look.  [default: 120]")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Picture of requests/s against p99: .svg, .png.")
@overwrite_option
@click.option("--dry-run", is_flag=True, help="Show the choice, and write nothing.")
@click.option("--share", is_flag=True, help="Measure although a server of this home runs.")
@click.option("--restart", is_flag=True, help="Measure anew what an interrupted run has measured.")
@click.option("--allow-code", is_flag=True, help="Allow a version that may run code of its maker (python, tensorflow, torch).")
def tune(
    shell: Shell,
    reference: str,
    name: str | None,
    p99_ms: float | None,
    min_cosine: float,
    budget_s: float,
    plot_path: Path | None,
    overwrite: bool,
    dry_run: bool,
    share: bool,
    restart: bool,
    allow_code: bool,
    **options: Any,
) -> None:
    """Find the runtime, precision, threads, replicas, largest batch and number of fronts that serve a model best here.

    Real servers are measured, with requests made of the version's golden examples. What was chosen is shown, and written to the
    deployment and to config.toml.
    """
    from argosy.output_file import OutputFile
    from argosy.tune import report
    from argosy.tune.run import tune as run
    from argosy.tune.search import Goal

    # Servers are stopped and files removed also when somebody ends this otherwise than by the keyboard.
    signal.signal(signal.SIGTERM, _end)
    traffic = _read_traffic(**options)
    goal = Goal(math.inf if p99_ms is None else p99_ms / 1e3, min_cosine, budget_s)
    figure = None if plot_path is None else report.open_figure(plot_path)
    plot_file = None if plot_path is None else OutputFile(plot_path, overwrite=overwrite)
    ledger = shell.open_ledger()
    version = ledger.store.get_version(reference)
    outcome = run(ledger.store, version, traffic, goal, allow_code=allow_code, share=share, restart=restart, say=shell.say)
    spec, notes = None, ["nothing was written (--dry-run)"]
    if not dry_run:
        spec, notes = _write(shell, version, name, outcome.choice.candidate, allow_code)
    explanation = report.explain(outcome, goal)
    shell.show(
        {"choice": outcome.choice, "explanation": explanation, "notes": notes, "outcome": outcome, "deployment": spec},
        Table(report.ENGINE_COLUMNS, report.list_engines(outcome)),
        "",
        Table(report.TRIAL_COLUMNS, report.list_trials(outcome)),
        "",
        *explanation,
        *notes,
    )
    if plot_file is not None:
        report.plot(figure, outcome, goal, plot_file, f"{version.name}@{version.number}")


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _read_traffic(*, rows: int, lengths: str | None, connections: int, rate_per_s: float, trace: Path | None) -> Traffic:
    from argosy.tune.trace import read_trace
    from argosy.tune.traffic import Traffic

    if trace is not None and (rate_per_s or lengths or rows != 1):
        raise click.UsageError(
            "--trace says when which requests arrive: --rate, --lengths and --rows are for requests without one."
        )
    bounds = None
    if lengths is not None:
        low, colon, high = lengths.partition(":")
        if not low.isdecimal() or not (high.isdecimal() or not colon):
            raise click.UsageError(f"--lengths is {lengths!r}, expected LEAST:LARGEST, such as 8:128.")
        bounds = (int(low), int(high or low))
    return Traffic(rows, bounds, connections, rate_per_s, read_trace(trace) if trace is not None else ())


def _write(
    shell: Shell, version: Version, name: str | None, candidate: Candidate, allow_code: bool
) -> tuple[DeploymentSpec, list[str]]:
    """Write a choice to the deployment, through the server if one runs, and to config.toml."""
    from argosy.tune.apply import plan_choice, write_num_fronts

    ledger = shell.open_ledger()
    spec = plan_choice(ledger, f"{version.name}@{version.number}", name, candidate, allow_code=allow_code)
    admin = shell.find_admin()
    if admin is None:
        ledger.request_rollout(spec)
        notes = [f"recorded: the next argosy serve will deploy {spec.model}@{spec.version} as {spec.name} so"]
    else:
        with admin:
            admin.wait(admin.deploy(spec).id)
        notes = [f"{spec.name} runs so now"]
    fronts = write_num_fronts(shell.home, candidate.num_fronts)
    return spec, [*notes, *([fronts] if fronts else [])]
