"""`argosy train`: fit a model, from a recipe or a program of the user's, and publish it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import Shell, command, overwrite_option
from argosy.cli.version import describe_version, show_version

if TYPE_CHECKING:
    from argosy.store.manifest import Version
    from argosy.train.result import TrainResult

__all__ = ["train"]


def read_workers(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """Take a number of workers, or `auto`."""
    number: Any = click.IntRange(min=1)
    return value if value in (None, "auto") else number.convert(value, option, context)


@command("train")
@click.argument("target", metavar="recipe:NAME|FILE.py:FUNCTION")
@click.option("--from", "start", metavar="NAME@V", help="Version of the store whose weights the model begins with, by name.")
@click.option("--framework", help="What builds a recipe's network: torch, keras, tensorflow, mxnet, jax.  [default: torch]")
@click.option("--optimizer", help="How its weights follow the gradients: sgd, momentum, rmsprop, adam ...  [default: adam]")
@click.option("--form", type=click.Choice(["common", "text"]), help="Of the optimizer; see its card.  [default: common]")
@click.option("--learning-rate", type=float, help="Of the optimizer.  [default: the recipe's, or the optimizer's]")
@click.option("--batch-size", type=int, help="Rows of a step, for a program.")
@click.option("--epochs", type=int, help="Passes over the data.  [default: the recipe's or the program's]")
@click.option("--patience", type=int, help="End after so many epochs without a better validation loss, with the best weights.")
@click.option("--tolerance", type=float, help="End when the training loss has settled to this part of itself.")
@click.option("--micro-batch-size", type=int, help="Rows of one forward and backward pass; needs less memory.")
@click.option("--workers", callback=read_workers, metavar="N|auto", help="Processes that share each batch.  [default: 1]")
@click.option("--num-threads", type=int, help="Of the framework in each, for a program.")
@click.option("--seed", type=int, help="Of the first weights and the order of the rows.  [default: 0]")
@click.option("--precision", type=click.Choice(["bfloat16"]), help="Mixed precision, where the framework has it.")
@click.option("--name", help="Model to make a version of.  [default: the recipe's name, or the function's]")
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Folder.  [default: ARGOSY_HOME/runs/NAME]")
@click.option("--resume", is_flag=True, help="Go on with the run whose checkpoints are there.")
@click.option("--restart", is_flag=True, help="Begin anew, and remove the checkpoints that are there.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard's event files.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="HTML file for the run's curves.")
@overwrite_option
@click.option("--compress", "method", metavar="METHOD", help="Compress the version as well, within the guard of one percent.")
@click.option("--deploy", "is_deployed", is_flag=True, help="Roll the version out (the compressed one, if there is one).")
def train(
    shell: Shell,
    target: str,
    framework: str | None,
    name: str | None,
    start: str | None,
    checkpoints: Path | None,
    resume: bool,
    restart: bool,
    report: Path | None,
    overwrite: bool,
    method: str | None,
    is_deployed: bool,
    **options: Any,
) -> None:
    """Train a recipe, or what a FUNCTION of yours says, and publish the result as a version.

    FUNCTION takes nothing and gives a dict: `model`, `data`, and any other argument of argosy.train. Options given here
    win over it. A framework that lives in an environment of its own is run there.
    """
    from argosy.environment import lives_apart, run_in, run_where_it_lives
    from argosy.output_file import OutputFile
    from argosy.train.checkpoint import remove_checkpoints
    from argosy.train.program import is_program

    if resume and restart:
        raise click.UsageError("--resume and --restart exclude each other.")
    if framework is not None and lives_apart(framework):
        run_in(framework, ["-m", "argosy", *sys.argv[1:]])
    report_file = None if report is None else OutputFile(report, overwrite=overwrite)
    if report_file is not None:
        from argosy.train.report import check_report

        check_report()
    if method is not None:
        from argosy.compress.recipe import get_recipe

        get_recipe(method)
    default = re.sub(r"[^A-Za-z0-9._-]", "-", target.rpartition(":")[2]) or "model"
    name = name or default
    folder = checkpoints or shell.home / "runs" / name
    options |= {"checkpoints": folder, "resume": "restart" if restart else resume}
    given = {option: value for option, value in options.items() if value is not None}
    if start is not None:
        from argosy.train.start import Start

        given["start"] = Start(start, store=shell.open_store())
    confusion, labels = None, None
    with shell.hold_stdout():
        if is_program(target):
            try:
                result, version = _train_program(shell, target, name, given)
            except ModuleNotFoundError as error:
                run_where_it_lives(error, ["-m", "argosy", *sys.argv[1:]])
        else:
            result, version, confusion, labels = _train_recipe(shell, target, framework or "torch", name, given)
    if checkpoints is None:
        remove_checkpoints(folder)  # the version holds what the run came to
    if report_file is not None:
        from argosy.train.report import write_report

        title = f"{version.name}@{version.number}"
        write_report(report_file, title=title, history=result.history, confusion=confusion, labels=labels)
        shell.say(f"report: {report}")
    if method is not None:
        with shell.hold_stdout():
            version = _compress(shell, version, method)
    if not is_deployed:
        show_version(shell, version)
        return
    from argosy.cli.deploy import roll_out

    if not shell.is_json:
        show_version(shell, version)
    roll_out(shell, f"{version.name}@{version.number}", made=describe_version(version))


def _train_recipe(shell: Shell, target: str, framework: str, name: str, given: dict[str, Any]) -> tuple[Any, Version, Any, Any]:
    from argosy.train.recipes import run_recipe

    for option in ("batch_size", "num_threads"):
        if option in given:
            raise click.UsageError(f"--{option.replace('_', '-')} is for programs: a recipe has its own.")
    run = run_recipe(target, framework=framework, publish_as=name, store=shell.open_store(), **given)
    assert run.version is not None
    return run.result, run.version, run.confusion, run.recipe.labels


def _train_program(shell: Shell, target: str, name: str, given: dict[str, Any]) -> tuple[TrainResult, Version]:
    from argosy.optim import get_optimizer
    from argosy.train.program import load_program
    from argosy.train.run import train as fit

    parts = {part: given.pop(part) for part in ("form", "learning_rate") if part in given}
    store = shell.open_store()
    store.check_writable()
    program = load_program(target)
    arguments = {**program, **given}
    if "start" in given:  # Which parts of the model begin so, the program says.
        arguments["start"] = replace(given["start"], parts=getattr(program.get("start"), "parts", ()))
    if parts:
        rule = arguments.get("optimizer") or "adam"
        arguments["optimizer"] = get_optimizer(rule, **parts)
    result = fit(arguments.pop("model"), arguments.pop("data"), **arguments)
    return result, result.publish(name, store)


def _compress(shell: Shell, version: Version, method: str) -> Version:
    from argosy.cli.compress import compress_version
    from argosy.compress import Guard

    # Its code is that of the program, which this very command was told to run.
    made = compress_version(shell.open_store(), version, method, Guard(), allow_code=True).version
    assert made is not None
    return made
