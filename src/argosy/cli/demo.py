"""`argosy demo`: the whole way on real data, with a report page."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path

import click

from argosy.cli.shell import EXIT_FAILED, Shell, Table, command, overwrite_option

__all__ = ["demo"]


@command("demo")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="HTML file.  [default: argosy-demo.html, -2, -3 ...]"
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="SVG file for what the clients saw over time.")
@overwrite_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training.")
def demo(shell: Shell, report: Path | None, picture: Path | None, overwrite: bool, seed: int) -> None:
    """Train, compress, deploy, update and roll back, the last two while 32 clients send requests; write a report page.

    Works in a folder of its own that is removed afterwards; with --home, in that one.
    """
    _check_packages()
    from argosy.demo.acts import tell_result
    from argosy.demo.run import run_demo
    from argosy.demo.show import draw_result, tabulate_acts, tabulate_phases, tabulate_versions, write_demo_report
    from argosy.output_file import OutputFile

    report_file = OutputFile(report or _find_free(Path("argosy-demo.html")), overwrite=overwrite)
    picture_file = None if picture is None else OutputFile(picture, overwrite=overwrite)
    started = time.monotonic()
    with ExitStack() as stack:
        home = shell.given_home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="argosy-demo-")))
        result = run_demo(home, seed=seed, say=shell.say)
    write_demo_report(result, report_file)
    if picture_file is not None:
        picture_file.write(draw_result(result))
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
            "report": str(report_file.path),
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
        f"report: {report_file.path}; {time.monotonic() - started:.0f} s in all",
    )
    if not result.is_good:
        click.get_current_context().exit(EXIT_FAILED)


def _find_free(path: Path) -> Path:
    """Number a name until no file has it: whoever runs the demo again keeps what it came to before."""
    names = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists())


def _check_packages() -> None:
    from argosy.errors import InputError

    for package in ("torch", "sklearn", "matplotlib", "tritonclient"):
        if importlib.util.find_spec(package) is None:
            raise InputError("missing_extra", feature="The demo", package=package, extra="demo")
