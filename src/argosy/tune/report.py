"""What a search found, for a reader: a table of what was tried, the choice in words, a plot."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Final

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import import_extra
from argosy.output_file import OutputFile
from argosy.tune.candidate import BATCHES
from argosy.tune.search import GAIN, Goal, Outcome, Trial

__all__ = ["ENGINE_COLUMNS", "TRIAL_COLUMNS", "explain", "list_engines", "list_trials", "open_figure", "plot"]

_BUSY_CORES: Final = 0.25

ENGINE_COLUMNS: Final = ("engine", "row alone", "most rows/s", "cosine", "note")
TRIAL_COLUMNS: Final = (
    *("runtime", "threads", "replicas", "fronts", "batch", "requests/s"),
    *("clients", "p50", "p99", "CPU", "runs", "note"),
)


def list_engines(outcome: Outcome) -> list[tuple[str, ...]]:
    """Rows of a table of what engines have shown alone; most rows/s is of one replica."""
    return [
        (
            str(run.engine),
            _format_s(run.result.mix_s) if run.result.mix_s else "",
            f"{run.result.rows_per_s(1, max(BATCHES)):.0f}",
            f"{run.result.cosine:.6f}" if run.result.mix_s else "",
            run.result.problem,
        )
        for run in outcome.engines
    ]


def list_trials(outcome: Outcome) -> list[tuple[str, ...]]:
    """Rows of a table of what was tried as a server, the best first; what could not win comes last."""
    trials = sorted(outcome.trials, key=lambda trial: (bool(trial.runs), trial.order), reverse=True)
    return [_list_trial(trial, outcome) for trial in trials]


def _list_trial(trial: Trial, outcome: Outcome) -> tuple[str, ...]:
    candidate, engine = trial.candidate, trial.candidate.engine
    note = "chosen" if trial == outcome.choice else trial.skipped
    settings = (
        _name_kind(trial),
        *map(str, (engine.threads, candidate.replicas, candidate.num_fronts, candidate.max_batch_rows)),
    )
    if not trial.runs or trial.runs[-1].problem:
        return (*settings, *[""] * 5, str(len(trial.runs)), note or trial.runs[-1].problem)
    if not trial.good_per_s:
        note = note or "too late"
    figures = (
        f"{trial.median('requests_per_s'):.0f}",
        f"{trial.median('connections'):.0f}",
        _format_s(trial.runs[-1].p50_s),
        _format_s(trial.p99_s),
        f"{trial.median('server_cpu_s') * 1e6:.0f} us",
    )
    return (*settings, *figures, str(len(trial.runs)), note)


def _format_s(seconds: float | None) -> str:
    return "> run" if seconds is None or math.isinf(seconds) else f"{seconds * 1e3:.2f} ms"


def explain(outcome: Outcome, goal: Goal) -> list[str]:
    """Say in words what was chosen, and why."""
    choice = outcome.choice
    limit = "" if math.isinf(goal.p99_s) else f" within {_format_s(goal.p99_s)}"
    parts = [f"chosen: {choice.candidate}"]
    if choice.good_per_s:
        rate = f"{choice.good_per_s:.0f} requests/s{limit}, p99 {_format_s(choice.p99_s)}"
        parts.append(f"it answered {rate}, in the middle of {len(choice.runs)} runs")
    else:
        quickest = f"no candidate answered{limit} at p99: this is the quickest, {_format_s(choice.p99_s)}"
        parts.append(f"{quickest}; allow more time, or use a faster model")
    parts += _compare_with_default(outcome)
    if skipped := sum(bool(trial.skipped) for trial in outcome.trials):
        parts.append(f"{skipped} candidates were not measured as servers; the table says why")
    runs = [run for trial in outcome.trials for run in trial.runs if run.connections]
    load = max((run.load_cpu for run in runs), default=0.0)
    other = max((run.other_cpu for run in runs), default=0.0)
    parts.append(f"the client took up to {load:.2f} cores, processes that have nothing to do with it up to {other:.2f}")
    if other > _BUSY_CORES:
        parts.append("so the machine was busy with other things: what was chosen may not be the best when it is idle")
    return [*parts, *outcome.notes]


def _compare_with_default(outcome: Outcome) -> list[str]:
    choice, baseline = outcome.choice, outcome.baseline
    if choice.candidate == baseline.candidate:
        return ["that is how a deployment without settings runs: nothing that was tried is better beyond noise"]
    if not (baseline.good_per_s and choice.good_per_s):
        return []
    # In the rounds that both had: what was measured at another time was measured on a machine that others had used otherwise.
    rounds = min(len(choice.runs), len(baseline.runs))
    own, default = (Trial(trial.candidate, trial.runs[:rounds]).good_per_s for trial in (choice, baseline))
    if not default:
        return []
    told = f"a deployment without settings answered {default:.0f} requests/s when this answered {own:.0f} ({baseline.candidate})"
    return [f"{told}: {own / default:.2f} times as many" if own > GAIN * default else f"{told}: alike but for noise"]


def open_figure(path: Path) -> Any:
    """Make the figure of a plot, before anything is measured for it.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed; `bad_option`, it writes no files of this suffix.
    """
    figure = import_extra("matplotlib.figure", feature="A plot", extra="report").Figure(figsize=(8, 5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise InputError("bad_option", option="plot", got=str(path), expected=f"a file of a kind among {list_choices(known)}")
    return figure


def plot(figure: Any, outcome: Outcome, goal: Goal, file: OutputFile, title: str) -> None:
    """Draw requests/s against p99, the choice marked.

    Args:
        figure: of `open_figure`.
        outcome: what was found.
        goal: its limit is drawn, too.
        file: to write, of a kind that `open_figure` has found right.
        title: of the plot.

    Raises:
        InputError: `file_exists`, `unwritable`.
    """
    axes = figure.subplots()
    kinds: dict[str, list[Trial]] = {}
    for trial in outcome.trials:
        if trial.runs and not math.isinf(trial.p99_s):
            kinds.setdefault(_name_kind(trial), []).append(trial)
    for kind, trials in kinds.items():
        axes.scatter([t.p99_s * 1e3 for t in trials], [t.median("requests_per_s") for t in trials], label=kind)
    choice = outcome.choice
    if not math.isinf(choice.p99_s):
        place = (choice.p99_s * 1e3, choice.median("requests_per_s"))
        axes.scatter([place[0]], [place[1]], s=160, facecolors="none", edgecolors="black", label="chosen")
    if not math.isinf(goal.p99_s):
        axes.axvline(goal.p99_s * 1e3, linestyle="--", color="grey", label="limit")
    axes.set(xlabel="p99 (ms)", ylabel="requests/s", title=f"{title}, chosen: {choice.candidate}")
    axes.set_ylim(0, 1.2 * max([trial.median("requests_per_s") for trial in outcome.trials] + [1.0]))
    axes.margins(x=0.15)
    axes.legend(loc="lower right")
    drawing = io.BytesIO()
    figure.savefig(drawing, format=file.path.suffix.removeprefix("."))
    file.write(drawing.getvalue())


def _name_kind(trial: Trial) -> str:
    engine = trial.candidate.engine
    return " ".join(filter(None, (engine.runtime, engine.precision)))
