"""`argosy compress`: make a version smaller or faster, or say that it cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from argosy.cli.shell import Shell, Table, command, format_bytes, format_seconds, overwrite_option
from argosy.cli.version import describe_version, format_head

if TYPE_CHECKING:
    from argosy.compress import CompressResult, Cost, Guard
    from argosy.store.local import Store
    from argosy.store.manifest import Version

__all__ = ["compress", "compress_version"]

_DATA: Final = "[default: rows of the version's recipe]"
_TARGETS: Final = "targets"
_PAIR: Final = {"x", "y"}


@command("compress")
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--objective", help="What to improve: latency, throughput, size, memory.  [default: latency; not with --method]")
@click.option("--search", help="How to look: gradient, random, genetic, tpe.  [default: gradient; not with --method]")
@click.option("--trials", type=int, help="Recipes that are tried at most.  [default: 60; not with --method]")
@click.option("--method", help="Steps to take, with + between them.  [default: the best that is found]")
@click.option("--metric", help="What is guarded, such as accuracy or cosine.  [default: what the version was trained for]")
@click.option("--max-loss", type=float, default=0.01, show_default=True, help="What it may lose of the metric.")
@click.option("--data", type=click.Path(path_type=Path), help=f"Rows like those to come, with targets or without. {_DATA}")
@click.option("--calibration", type=click.Path(path_type=Path), help="Rows to calibrate with, instead of a part of --data.")
@click.option("--eval", "evaluation", type=click.Path(path_type=Path), help="Rows to judge on, instead of the rest of --data.")
@click.option("--student", metavar="FILE.py:FUNCTION", help="Makes a model that is taught to answer as the original.")
@click.option("--target", default="cpu", show_default=True, help="What it will run on: cpu, gpu (ONNX Runtime's CUDA; untested).")
@click.option("--max-seconds", type=float, help="After which no new candidate is begun.  [default: 600; not with --method]")
@click.option(
    "--served/--no-served",
    default=None,
    help="Measure by requests to a server, too, and choose by that.  [default: without --method; with --report, --trace]",
)
@click.option(
    "--trace", type=click.Path(path_type=Path), help="Recorded requests, whose rows and lengths that server is asked for."
)
@click.option("--allow-code", is_flag=True, help="Allow a version that may run code of its maker (torch).")
@click.option("--without-gain", is_flag=True, help="Publish what --method makes also if it is larger, or no better.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="HTML file for all that was measured.")
@overwrite_option
@click.option(
    "--deploy",
    "deployment",
    is_flag=False,
    flag_value="",
    metavar="[DEPLOYMENT]",
    help="Roll the compressed version out.  [default name: the model's]",
)
def compress(
    shell: Shell,
    reference: str,
    objective: str | None,
    method: str | None,
    metric: str | None,
    max_loss: float,
    search: str | None,
    trials: int | None,
    max_seconds: float | None,
    report: Path | None,
    served: bool | None,
    trace: Path | None,
    overwrite: bool,
    deployment: str | None,
    allow_code: bool,
    **options: Any,
) -> None:
    """Compress a version within a guard: find the way that improves the objective most, publish it and report.

    A version trained for classes is judged by accuracy, one trained for values by R2, one of which nothing is known by how
    far its answers are from the original's. A search that was ended goes on when it is called again. Files are .npz, .npy or
    .json, as for argosy predict, with `targets` (or targets by output name) beside the inputs, or `x` and `y`; for versions that
    take text, .txt with a text a line. Without targets, the original's answers stand for them. With a student of a framework that
    lives in an environment of its own, all of it is run there.
    """
    from argosy.compress import Budget, Guard
    from argosy.environment import run_where_it_lives
    from argosy.output_file import OutputFile
    from argosy.tune.trace import read_trace

    report_file = None if report is None else OutputFile(report, overwrite=overwrite)
    store = shell.open_store()
    version = store.get_version(reference)
    budget: dict[str, Any] = {"max_s": max_seconds, "trials": trials}
    budget = {name: value for name, value in budget.items() if value is not None}
    arrivals = () if trace is None else read_trace(trace)
    given: dict[str, Any] = options | {
        "objective": objective,
        "search": search,
        "budget": None if not budget else Budget(**budget),
        "report": report_file,
        "served": True if served is None and report is not None else served,
        "trace": arrivals,
        "allow_code": allow_code,
        "say": shell.say,
    }
    try:
        with shell.hold_stdout():
            result = compress_version(store, version, method, Guard(metric, max_loss), **given)
    except ModuleNotFoundError as error:
        # Of a student's program, which is the first thing that is looked at.
        run_where_it_lives(error, ["-m", "argosy", *sys.argv[1:]])
    if report is not None:
        shell.say(f"report: {report}")
    if deployment is not None:
        from argosy.cli.deploy import roll_out

        assert result.version is not None
        if not shell.is_json:
            _show(shell, result)
        # By the runtime that it was made for, whatever ran the version before.
        runtime = result.version.manifest.runtime
        reference = f"{result.version.name}@{result.version.number}"
        roll_out(shell, reference, deployment or None, made=_describe(result), runtime=runtime, allow_code=allow_code or None)
        return
    _show(shell, result)


def _describe(result: CompressResult) -> dict[str, Any]:
    assert result.version is not None
    tried = [one.describe() for one in result.tried]
    return describe_version(result.version) | {"parent": result.parent.number, **result.describe(), "tried": tried}


def _show(shell: Shell, result: CompressResult) -> None:
    assert result.version is not None
    score, before, after, gain = result.score, result.before, result.after, result.gain
    interval = "" if score.interval is None else f" (95 %: {score.interval[0]:.4f} to {score.interval[1]:.4f})"
    rows: list[tuple[str, ...]] = [
        (f"{score.metric} ({score.num_rows} {score.basis} rows)", f"{score.before:.4f}", f"{score.after:.4f}"),
        ("files", format_bytes(before.size_bytes), format_bytes(after.size_bytes)),
        (f"memory of a worker, {before.memory_kind}", format_bytes(before.worker_bytes), format_bytes(after.worker_bytes)),
        ("one row", format_seconds(before.latency_s), format_seconds(after.latency_s)),
        (f"a row in a batch of {before.batch_rows}", format_seconds(before.batch_row_s), format_seconds(after.batch_row_s)),
        *_list_served(before, after),
    ]
    shell.show(
        _describe(result),
        format_head(result.version),
        f"made by {result.title}",
        Table(("measure", f"version {result.parent.number}", f"version {result.version.number}"), rows),
        "\n".join(
            [
                f"judged by {score.metric}: {score.reason}",
                f"lost: {score.loss:.4f}{interval}{', which is within the noise' if score.is_noise else ''}",
                f"better: {'; '.join(gain.gains) or 'nothing'}",
            ]
        ),
        *([f"worse: {'; '.join(gain.losses)}"] if gain.losses else []),
    )


def _list_served(before: Cost, after: Cost) -> list[tuple[str, ...]]:
    """Rows of what clients saw."""
    if before.served is None or after.served is None:
        return []
    both = (before.served, after.served)
    load = f"{before.served.connections} clients"
    return [
        ("served, one client: p50", *(format_seconds(one.p50_s) for one in both)),
        ("served, one client: p99", *(format_seconds(one.p99_s) for one in both)),
        (f"served, {load}: p50", *(format_seconds(one.load_p50_s) for one in both)),
        (f"served, {load}: p99", *(format_seconds(one.load_p99_s) for one in both)),
        (f"served, {load}: rows/s", *(f"{one.rows_per_s:.0f}" for one in both)),
    ]


def compress_version(
    store: Store,
    version: Version,
    method: str | None,
    guard: Guard,
    *,
    data: Path | None = None,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    without_gain: bool = False,
    **options: Any,
) -> CompressResult:
    """Compress a version with what is given, and what its recipe knows of calibration and test rows.

    Args:
        store: holds the version.
        version: the original.
        method: a recipe, None to find one.
        guard: how much may be lost.
        data: file of rows for both.
        calibration: file of rows to calibrate with.
        evaluation: file of rows and targets to judge on.
        without_gain: publish what a given method makes also if it is no better.
        options: of `argosy.compress`.
    """
    from argosy.compress.run import compress
    from argosy.train.recipes import load_data_for

    given = None if data is None else _read_rows(data, version)
    rows = None if calibration is None else _read_rows(calibration, version)
    pair = None if evaluation is None else _read_rows(evaluation, version)
    is_complete = given is not None or (rows is not None and pair is not None)
    training, testing = (None if is_complete else load_data_for(version)) or (None, None)
    return compress(
        version,
        method=method,
        data=given,
        calibration=tuple(training) if rows is None and training else rows,
        guard=guard,
        evaluation=pair or testing,
        needs_gain=not without_gain,
        store=store,
        **options,
    )


def _read_rows(path: Path, version: Version) -> tuple[Any, Any]:
    """Read rows and targets: inputs by name, with `targets` or outputs by name; or `x` and `y`; or rows alone; or texts."""
    from argosy.cli.predict import read_inputs

    if path.suffix in (".txt", ".jsonl"):
        return _read_lines(path), None
    given: Any = read_inputs(path)
    if not isinstance(given, dict):
        return given, None
    arrays = cast("dict[str, Any]", given)
    signature = version.manifest.signature
    inputs = {spec.name for spec in (*signature.inputs, *signature.raw_inputs)}
    outputs = {spec.name for spec in signature.outputs}
    if arrays.keys() == _PAIR and len(signature.inputs) == 1 and not inputs | outputs >= _PAIR:
        return arrays["x"], arrays["y"]
    if _TARGETS in arrays and _TARGETS not in inputs | outputs:
        return arrays, arrays.pop(_TARGETS)
    targets = {name: arrays.pop(name) for name in outputs - inputs if name in arrays}
    return arrays, targets or None


def _read_lines(path: Path) -> list[Any]:
    """Read a file of texts, one a line; of .jsonl each line is JSON: a text, or a request by input name."""
    from argosy.errors import InputError

    try:
        # Lines as editors have them: `splitlines` would cut a text, and a line of JSON, at other signs, too.
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        return lines if path.suffix == ".txt" else [json.loads(line) for line in lines]
    except OSError as error:
        raise InputError("missing_file", path=path, detail=error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise InputError("bad_inputs", path=path, detail=error) from error
