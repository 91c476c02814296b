"""A search as a table, and as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from argosy.output_file import OutputFile
from argosy.search.plots import draw_curves, draw_front, draw_history, draw_importance, draw_parallel
from argosy.search.record import Record
from argosy.search.result import SearchResult
from argosy.train.report import Section, write_page

__all__ = ["format_objective", "format_schedule", "tabulate_trials", "write_report"]

_SCALES: Final = {"size": ("KiB", 1 / 1024), "latency": ("us", 1e6), "throughput": ("rows/s", 1.0), "memory": ("MiB", 1 / 2**20)}
_MAX_REASON: Final = 80
_LARGEST: Final = 1e290
"""Value that is drawn as it is."""


def tabulate_trials(result: SearchResult) -> list[tuple[str, ...]]:
    """Give a row for each trial, the header first: its parameters, its values, and what became of it."""
    heads = [f"{name} ({_SCALES[name][0]})" if name in _SCALES else name for name in result.objectives]
    is_population = result.method == "pbt"
    rows: list[tuple[str, ...]] = [("trial", *(["from"] if is_population else []), *result.space, *heads, "epochs", "")]
    front = {record.number for record in result.front}
    for record in result.trials:
        parameters = [_format_value(record.parameters.get(name, "")) for name in result.space]
        values = [
            format_objective(name, record.values[name], with_unit=False) if record.values else "" for name in result.objectives
        ]
        origin = ["" if record.parent is None else str(record.parent)] if is_population else []
        epochs = str(len(record.steps) or "")
        rows.append((str(record.number), *origin, *parameters, *values, epochs, _tell(record, result, front)))
    return rows


def format_objective(name: str, value: float, *, with_unit: bool = True) -> str:
    """Give a value for a reader."""
    unit, scale = _SCALES.get(name, ("", 1.0))
    return f"{value * scale:.4g}{f' {unit}' if unit and with_unit else ''}"


def format_schedule(result: SearchResult) -> str:
    """Give the parameters of the best trial and of those that led to it, by epochs, in one line."""
    parts: list[tuple[int, int, str]] = []
    for record in result.schedule:
        text = ", ".join(f"{name} {_format_value(value)}" for name, value in record.parameters.items())
        first, last = min(record.steps, default=0), max(record.steps, default=0)
        if parts and parts[-1][2] == text:
            first = parts.pop()[0]
        parts.append((first, last, text))
    words = [f"epoch {first}" if first == last else f"epochs {first} to {last}" for first, last, _ in parts]
    return "; ".join(f"{when}: {text}" for when, (_, _, text) in zip(words, parts, strict=True))


def write_report(file: OutputFile | Path | str, result: SearchResult) -> None:
    """Write a search as a self-contained HTML page: its front, its history, what decides, and every trial.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed; `file_exists`, `unwritable`.
    """
    lead = (
        f"{len(result.trials)} trials by {result.method}: {result.count('done')} done, {result.count('stopped')} stopped early, "
    )
    lead += f"{result.count('failed')} failed."
    if result.best is not None:
        values = ", ".join(f"{name} {format_objective(name, value)}" for name, value in result.best.values.items())
        lead += f" The best is trial {result.best.number}: {values}."
    if result.guard:
        words = {"minimize": "at most", "maximize": "at least"}
        bounds = [
            f"{name} {words[result.objectives[name]]} {format_objective(name, bound)}" for name, bound in result.guard.items()
        ]
        lead += f" Guard: {', '.join(bounds)}."
    drawn = _limit(result)
    figures = [
        (
            "Front",
            "Each point is a trial. On the front stand those that no other is as good as in everything.",
            draw_front(drawn),
        ),
        ("History", "", draw_history(drawn)),
        ("Curves", "What each trial measured on its validation rows after each epoch.", draw_curves(drawn)),
        ("Parameters", "Each line is a trial; the stronger, the better its metric.", draw_parallel(drawn)),
        (
            "What decides",
            "How much of reaching the best quarter of trials each parameter decides (PED-ANOVA).",
            draw_importance(result),
        ),
    ]
    if len(result.schedule) > 1:
        lead += f" Its schedule: {format_schedule(result)}."
    sections = [Section(title=title, text=text, drawing=drawing) for title, text, drawing in figures if drawing]
    table = tabulate_trials(result)
    sections.append(Section(title="Trials", table=table, num_text_columns=len(table[0]) - len(result.objectives) - 2))
    write_page(file, title=f"Search of {result.name}", lead=lead, sections=sections)


def _limit(result: SearchResult) -> SearchResult:
    """Give a search with values that an axis can hold, whose ends are computed with."""

    def limit(record: Record) -> Record:
        values, steps = (
            {name: min(_LARGEST, max(-_LARGEST, value)) for name, value in told.items()} for told in (record.values, record.steps)
        )
        return replace(record, values=values, steps=steps)

    trials = {record.number: limit(record) for record in result.trials}
    front = tuple(trials[record.number] for record in result.front)
    best = None if result.best is None else trials[result.best.number]
    return replace(result, trials=tuple(trials.values()), front=front, best=best)


def _format_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tell(record: Record, result: SearchResult, front: set[int]) -> str:
    parts: list[str] = []
    if record.state != "done":
        parts.append(f"{record.state}: {record.reason}" if record.reason else record.state)
    elif not record.is_valid:
        parts.append("breaks the guard")
    elif result.best is not None and record.number == result.best.number:
        parts.append("the best")
    elif record.number in front:
        parts.append("on the front")
    if record.same_as is not None:
        parts.append(f"as trial {record.same_as}")
    if record.attempts > 1:
        parts.append(f"begun {record.attempts} times")
    return ", ".join(parts)[:_MAX_REASON]
