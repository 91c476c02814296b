"""What compression came to, in words and numbers and as a page, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from argosy.compress.judge import Guard, Score
from argosy.compress.measure import OBJECTIVES, Cost
from argosy.compress.plot import draw_sensitivity, draw_tradeoff, list_points
from argosy.compress.result import CompressResult, Tried
from argosy.output_file import OutputFile
from argosy.store.manifest import Version
from argosy.train.report import Section, write_page

__all__ = ["BATCH_TOLERANCE", "describe_result", "list_findings", "tabulate_result", "write_nothing_found", "write_report"]

BATCH_TOLERANCE: Final = 1e-5
"""Below it, a row is said to be answered alike alone and in a batch: rounding of float32."""

_SERVED: Final = ("one client", "rows/s")
_HEADER: Final = ("", "before", "after", "change")


def tabulate_result(result: CompressResult) -> list[tuple[str, ...]]:
    """Give a table of before and after, its header first; sizes in kB, times in microseconds."""
    before, after, score = result.before, result.after, result.score
    return [
        _HEADER,
        (score.metric, f"{score.before:.4f}", f"{score.after:.4f}", f"{score.after - score.before:+.4f}"),
        _compare("file (kB)", before.size_bytes / 1e3, after.size_bytes / 1e3),
        _compare("one row alone (us)", before.latency_s * 1e6, after.latency_s * 1e6),
        _compare(f"a row in a batch of {before.batch_rows} (us)", before.batch_row_s * 1e6, after.batch_row_s * 1e6),
        *_compare_served(before, after),
    ]


def describe_result(result: CompressResult) -> str:
    """Give the whole report as plain text: the table, what it was measured on, and what became of the result."""
    rows = tabulate_result(result)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        f"{row[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join([f"{result.title} of {result.parent.name}@{result.parent.number}", *lines, *_explain(result)])


def _compare_served(before: Cost, after: Cost) -> list[tuple[str, ...]]:
    old, new = before.served, after.served
    if old is None or new is None:
        return []
    return [
        _compare("served, one client, p50 (us)", old.p50_s * 1e6, new.p50_s * 1e6),
        _compare("served, one client, p99 (us)", old.p99_s * 1e6, new.p99_s * 1e6),
        _compare(f"served, {old.connections} clients, p99 (us)", old.load_p99_s * 1e6, new.load_p99_s * 1e6),
        _compare(f"served, {old.connections} clients, rows/s", old.rows_per_s, new.rows_per_s),
    ]


def _compare(what: str, before: float, after: float) -> tuple[str, ...]:
    return what, f"{before:.1f}", f"{after:.1f}", f"x {after / before:.2f}"


def _explain(result: CompressResult) -> list[str]:
    score = result.score
    basis = f"{score.num_rows} evaluation rows"
    if score.basis == "golden":
        made_up = " (made up)" if result.parent.manifest.golden_is_synthetic else ""
        basis = (
            f"{score.metric} with the parent on its {score.num_rows} golden examples{made_up}, as no evaluation data was given"
        )
    mates = "does not depend" if result.after.batch_difference <= BATCH_TOLERANCE else "DEPENDS"
    outcome = f"published as {result.version.name}@{result.version.number}" if result.version else "not published"
    return [
        *(f"better: {text}" for text in result.gain.gains),
        *(f"worse: {text}" for text in result.gain.losses),
        f"judged by {score.metric}: {score.reason}",
        f"guard: {score.metric} may lose {result.guard.max_loss:g}, lost {score.loss:.4f}; measured on {basis}",
        f"a row's answer {mates} on its batch mates: largest relative difference {result.after.batch_difference:.1e}",
        outcome,
    ]


def write_report(file: OutputFile | Path | str, result: CompressResult) -> None:
    """Write all that was measured as a self-contained HTML page: before and after, what was tried, which answers moved.

    Args:
        file: to write; its name stands for a file that is not there.
        result: of `compress`.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed; `file_exists`, `unwritable`.
    """
    name = f"{result.parent.name}@{result.parent.number}"
    sensitivity = [_show_sensitivity(result)] if result.sensitivity else []
    sections = [_show_costs(result), *list_findings(result), *sensitivity, _show_examples(result)]
    write_page(file, title=f"Compression of {name}", lead=_lead(result), sections=sections)


def write_nothing_found(
    file: OutputFile | Path | str, parent: Version, tried: Sequence[Tried], guard: Guard, objective: str, left: str = ""
) -> None:
    """Write the page of a search that has found nothing: how near each recipe came.

    Args:
        file: to write; its name stands for a file that is not there.
        parent: what was to be compressed.
        tried: all recipes.
        guard: what might have been lost.
        objective: what was looked for.
        left: why not all was tried, and how much was.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed; `file_exists`, `unwritable`.
    """
    lead = f"None of {len(tried)} recipes improves its {objective} within a loss of {guard.max_loss:g}: nothing was published."
    lead += f" Not all was tried, as {left}." if left else ""
    scores = [one.score for one in tried if one.score is not None]
    metric = scores[0].metric if scores else guard.metric or ""
    sections = [_tabulate_tried(tried, None)]
    if list_points(tried, OBJECTIVES[objective]):
        sections.insert(0, _draw(tried, None, objective, metric, guard.max_loss))
    write_page(file, title=f"Compression of {parent.name}@{parent.number}", lead=lead, sections=sections)


def list_findings(result: CompressResult) -> list[Section]:
    """Give the sections of a page that show what was tried: the plot and the table."""
    return [_show_tradeoff(result), _show_tried(result)]


def _lead(result: CompressResult) -> str:
    found = "; ".join(result.gain.gains) or "nothing is better"
    made = f" It is {result.version.name}@{result.version.number}." if result.version else " It was not published."
    chosen = f", the best of {len(result.tried)} for {result.objective}" if result.objective else ""
    return f"{result.title}{chosen}: {found}.{made}"


def _show_costs(result: CompressResult) -> Section:
    before, after, score = result.before, result.after, result.score
    rows: list[tuple[str, ...]] = [
        ("", "before", "after", "after / before"),
        _ratio("files", before.size_bytes, after.size_bytes, 1e3, "kB"),
        _ratio("memory of a worker", before.worker_bytes, after.worker_bytes, 1e6, "MB"),
        *_list_served(before, after),
        _ratio("loading", before.load_s, after.load_s, 1e-3, "ms"),
        _ratio("model alone, one row, p50", before.latency_s, after.latency_s, 1e-6, "us"),
        _ratio("model alone, one row, p99", before.p99_s, after.p99_s, 1e-6, "us"),
    ]
    batch_rows = max(before.batch_rows, after.batch_rows)
    if batch_rows > 1:
        what = f"model alone, a row in a batch of {batch_rows}"
        rows.append(_ratio(what, before.batch_row_s, after.batch_row_s, 1e-6, "us"))
    rows.append((f"{score.metric} ({score.num_rows} {score.basis} rows)", *_list_values(score), ""))
    text = f"Judged by {score.metric}: {score.reason}. {_tell_loss(score)}, allowed {result.guard.max_loss:g}. "
    text += _tell_how(result)
    if result.gain.losses:
        text += f" Worse: {'; '.join(result.gain.losses)}."
    return Section(title="Before and after", text=text, table=rows)


def _list_served(before: Cost, after: Cost) -> list[tuple[str, ...]]:
    old, new = before.served, after.served
    if old is None or new is None:
        return []
    load = f"served, {old.connections} clients"
    return [
        _ratio("served, one client, p50", old.p50_s, new.p50_s, 1e-3, "ms", digits=3),
        _ratio("served, one client, p99", old.p99_s, new.p99_s, 1e-3, "ms", digits=3),
        _ratio(f"{load}, p50", old.load_p50_s, new.load_p50_s, 1e-3, "ms", digits=3),
        _ratio(f"{load}, p99", old.load_p99_s, new.load_p99_s, 1e-3, "ms", digits=3),
        _ratio(f"{load}, rows a second", old.rows_per_s, new.rows_per_s, 1, ""),
    ]


def _list_values(score: Score) -> tuple[str, str]:
    """Give the metric before and after, this with its interval: the loss has one, and what was before is what it was."""
    if score.interval is None:
        return f"{score.before:.4f}", f"{score.after:.4f}"
    sign = math.copysign(1.0, score.before - score.after) * math.copysign(1.0, score.loss) if score.loss else 1.0
    bounds = sorted(score.before - sign * bound for bound in score.interval)
    return f"{score.before:.4f}", f"{score.after:.4f} ({bounds[0]:.4f} to {bounds[1]:.4f})"


def _tell_how(result: CompressResult) -> str:
    """Say how costs were measured."""
    alone = "by the runtimes that serve them, each in a process of its own, in turn."
    served = result.after.served
    if served is None:
        why = f" It was not measured as served: {result.unserved}." if result.unserved else ""
        return f"Both were timed {alone}{why}"
    return (
        f"Served: both behind one server, with one worker each and the settings of argosy deploy, asked in turn by clients of "
        f"another process; medians of {served.rounds} rounds, which differ by {served.noise:.0%}. Model alone: {alone}"
    )


def _ratio(what: str, before: float, after: float, unit: float, name: str, digits: int = 1) -> tuple[str, ...]:
    cells = (f"{value / unit:,.{digits}f} {name}" if name else f"{value / unit:,.0f}" for value in (before, after))
    return what, *cells, f"{after / before:.2f}" if before else ""


def _tell_loss(score: Score) -> str:
    interval = "" if score.interval is None else f" (with 95 % confidence {score.interval[0]:.4g} to {score.interval[1]:.4g})"
    return f"Lost {score.loss:.4g}{interval}{', which is within the noise' if score.is_noise else ''}"


def _show_tradeoff(result: CompressResult) -> Section:
    return _draw(result.tried, _find_chosen(result), result.objective or "latency", result.score.metric, result.guard.max_loss)


def _draw(tried: Sequence[Tried], chosen: int | None, objective: str, metric: str, max_loss: float) -> Section:
    points, is_served = list_points(tried, OBJECTIVES[objective]), _is_served(tried)
    drawing = draw_tradeoff(points, chosen, objective=objective, metric=metric, max_loss=max_loss, is_served=is_served)
    ringed = "" if chosen is None else ", ringed what was chosen"
    text = f"Each point is a recipe, by its number in the table below; filled is what the guard takes{ringed}. "
    text += "Lines through points are 95 % intervals. The loss is even up to twice the guard, and by powers of ten beyond."
    if is_served and objective != "size":
        text += " What came to the last round was measured as served; of the others it is what is to be expected: their own, and "
        text += "what serving adds to the original's."
    return Section(title="What is lost for what is won", text=text, drawing=drawing)


def _is_served(tried: Sequence[Tried]) -> bool:
    return any(one.after is not None and one.after.served is not None for one in tried)


def _find_chosen(result: CompressResult) -> int:
    """Give the number of the chosen one among those that were tried, from 1."""
    return next(number for number, one in enumerate(result.tried, 1) if one.recipe == result.recipe and one.score == result.score)


def _show_tried(result: CompressResult) -> Section:
    return _tabulate_tried(result.tried, _find_chosen(result))


def _tabulate_tried(tried: Sequence[Tried], chosen: int | None) -> Section:
    is_served = _is_served(tried)
    columns = _SERVED if is_served else ()
    header = ("", "recipe", "guard", "loss", "files", "memory", "one row", "batch", *columns, "took")
    rows: list[tuple[str, ...]] = []
    for number, one in enumerate(tried, 1):
        verdict = one.problem or ("held, chosen" if number == chosen else "held")
        parts = _list_parts(one)[: len(header) - 4]
        rows.append((str(number), one.title, verdict, *parts, f"{one.seconds:.1f} s"))
    text = "Files; memory, one row, and a row in a batch, of the model alone"
    text += "; and what clients saw of those that came to the last round: p50 of one, rows a second of many" if is_served else ""
    text += ". All are parts of the original's, measured in turn."
    return Section(title="What was tried", text=text, table=[header, *rows], num_text_columns=3)


def _list_parts(one: Tried) -> list[str]:
    """Give the loss, and the costs as parts of the original's; "" for what was not measured."""
    before, after = one.before, one.after
    if one.score is None or before is None or after is None:
        return [""] * (5 + len(_SERVED))
    pairs: list[tuple[float, float]] = [
        (before.size_bytes, after.size_bytes),
        (before.memory_bytes, after.memory_bytes),
        (before.latency_s, after.latency_s),
        (before.batch_row_s, after.batch_row_s),
    ]
    if before.served is not None and after.served is not None:
        pairs.append((before.served.p50_s, after.served.p50_s))
        pairs.append((before.served.rows_per_s, after.served.rows_per_s))
    parts = [f"{one.score.loss:.4g}", *(f"{new / old:.2f}" if old else "" for old, new in pairs)]
    return parts + [""] * (5 + len(_SERVED) - len(parts))


def _show_sensitivity(result: CompressResult) -> Section:
    rows = [("layers", "distance"), *((_name_layers(one.layers), f"{one.distance:.3g}") for one in result.sensitivity)]
    text = (
        "Each group of layers compressed alone: the mean squared difference of all answers, relative to their variance. What is "
    )
    text += "at the top is left out first, where a recipe loses too much."
    drawing = draw_sensitivity([(_name_layers(one.layers), one.distance) for one in result.sensitivity])
    return Section(title="Sensitivity by layer", text=text, drawing=drawing, table=None if drawing else rows)


def _name_layers(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"


def _show_examples(result: CompressResult) -> Section:
    output = f" of output {result.score.output!r}" if result.score.output else ""
    if not result.examples:
        return Section(title="Answers that moved most", text=f"No answer{output} to any of the rows is another one.")
    rows: list[tuple[str, ...]] = [("row", "before", "after", "moved by")]
    for one in result.examples:
        kind = "another class" if one.changes_class else f"{one.moved:.3g}"
        rows.append((str(one.row), one.before, one.after, kind))
    text = f"Rows by their place in what was given, from 0, with both answers{output}. They move by the root mean square of the "
    text += "difference, relative to the spread of all answers."
    return Section(title="Answers that moved most", text=text, table=rows, num_text_columns=3)
