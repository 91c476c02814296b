"""`argosy demo`: the whole way on real data, with a report page."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from argosy.cli.shell import EXIT_FAILED, Shell, Table, command

__all__ = ["demo"]


@command("demo")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), default="argosy-demo.html", show_default=True)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="SVG file for what the clients saw over time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training.")
def demo(shell: Shell, report: Path, picture: Path | None, seed: int) -> None:
    """Train, compress, deploy, update and roll back, the last two while 32 clients send requests; write a report page.

    Works in a folder of its own that is removed afterwards; with --home, in that one.
    """
    _check_packages()
    from argosy.demo.acts import tell_result
    from argosy.demo.run import run_demo
    from argosy.demo.show import draw_result, tabulate_acts, tabulate_phases, tabulate_versions, write_demo_report

    started = time.monotonic()
    with ExitStack() as stack:
        home = shell.given_home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="argosy-demo-")))
        result = run_demo(home, seed=seed, say=shell.say)
    write_demo_report(result, report)
    if picture is not None:
        picture.write_text(draw_result(result), encoding="utf-8")
    acts, versions, phases = tabulate_acts(result), tabulate_versions(result), tabulate_phases(result)
    shell.show(
        {
            "is_good": result.is_good,
            "seconds": time.monotonic() - started,
            "acts": [dict(zip(acts[0], row, strict=True)) for row in acts[1]],
            "versions": [dict(zip(versions[0], row, strict=True)) for row in versions[1]],
            "phases": [dict(zip(phases[0], row, strict=True)) for row in phases[1]],
            "torch_difference": result.torch_difference,
            "problems": result.seen.problems,
            "report": str(report),
        },
        tell_result(result),
        "",
        Table(*acts),
        "",
        Table(*versions),
        "",
        Table(*phases),
        "",
        *(f"problem: {problem}" for problem in result.seen.problems),
        f"largest difference between version 1 and PyTorch: {result.torch_difference:.1e}",
        f"report: {report}; {time.monotonic() - started:.0f} s in all",
    )
    if not result.is_good:
        click.get_current_context().exit(EXIT_FAILED)


def _check_packages() -> None:
    from argosy.errors import InputError

    for package in ("torch", "sklearn", "matplotlib", "tritonclient"):
        if importlib.util.find_spec(package) is None:
            raise InputError("missing_extra", feature="The demo", package=package, extra="demo")
