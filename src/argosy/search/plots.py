"""The figures of a search's page, each an SVG in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from argosy.search.record import Record
from argosy.search.result import SearchResult
from argosy.search.space import Choice, Parameter, Value
from argosy.train.report import FIRST, SECOND, TEXT, new_figure, open_style, save_svg

__all__ = ["draw_curves", "draw_front", "draw_history", "draw_importance", "draw_parallel"]

_MAX_TICKS: Final = 8
_UNITS: Final[Mapping[str, tuple[str, float]]] = {
    "size": ("size (kB)", 1e-3),
    "latency": ("latency of one row (us)", 1e6),
    "throughput": ("throughput (rows/s)", 1.0),
    "memory": ("memory of a worker (MB)", 1e-6),
}


def draw_history(result: SearchResult) -> str:
    """Draw the metric of each trial, and the best within the guard so far."""
    label, scale = _name_axis(result.metric)
    done = [record for record in result.trials if record.state == "done"]
    with open_style():
        figure = new_figure(9.0, 3.4)
        axes = figure.add_subplot()
        _scatter(axes, done, lambda record: record.number, lambda record: record.values[result.metric] * scale, result)
        pick = min if result.objectives[result.metric] == "minimize" else max
        valid = [record for record in done if record.is_valid]
        best = [pick(one.values[result.metric] for one in valid[: place + 1]) * scale for place in range(len(valid))]
        axes.step([record.number for record in valid], best, where="post", color=SECOND, label=f"best {result.metric} so far")
        axes.set_xlabel("Trial")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside lower center", ncols=4)
        return save_svg(figure)


def draw_curves(result: SearchResult) -> str:
    """Draw what each trial reported step by step; "" where none reported twice."""
    label, scale = _name_axis(result.metric)
    curves = {record.number: record.steps for record in result.trials}
    # What goes on from another's weights begins where that was.
    curves |= {
        record.number: dict(list(curves[record.parent].items())[-1:]) | record.steps
        for record in result.trials
        if record.parent is not None and record.steps
    }
    records = [one for one in result.trials if len(curves[one.number]) > 1 or (one.steps and one.state == "stopped")]
    if not any(len(curves[record.number]) > 1 for record in records):
        return ""
    way = {record.number for record in result.schedule}
    with open_style():
        figure = new_figure(9.0, 3.4)
        axes = figure.add_subplot()
        for record in records:
            is_best = record.number in way
            color, alpha = (SECOND, 1.0) if is_best else (FIRST, 0.45)
            points = list(curves[record.number]), [value * scale for value in curves[record.number].values()]
            axes.plot(*points, color=color, alpha=alpha, linewidth=2.0 if is_best else 1.2, zorder=3 if is_best else 2)
            if record.state == "stopped":
                axes.plot(points[0][-1:], points[1][-1:], marker="x", color=color, alpha=0.8)
        axes.plot([], [], color=SECOND, label="the best")
        axes.plot([], [], color=FIRST, marker="x", alpha=0.6, label="others; x: stopped early")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        return save_svg(figure)


def draw_front(result: SearchResult) -> str:
    """Draw the metric against each other objective, with the front; "" where there is no other."""
    others = [name for name in result.objectives if name != result.metric]
    done = [record for record in result.trials if record.state == "done"]
    if not others or not done:
        return ""
    label, scale = _name_axis(result.metric)
    with open_style():
        figure = new_figure(4.5 * max(1.4, len(others)), 4.2)
        axes: Any = None
        for place, name in enumerate(others):
            other_label, other_scale = _name_axis(name)
            axes = figure.add_subplot(1, len(others), place + 1)

            def find_x(record: Record, name: str = name, scale: float = other_scale) -> float:
                return record.values[name] * scale

            _scatter(axes, done, find_x, lambda record: record.values[result.metric] * scale, result)
            front = sorted(result.front, key=find_x)
            axes.plot(
                [find_x(record) for record in front],
                [record.values[result.metric] * scale for record in front],
                marker="o",
                linestyle="none" if len(others) > 1 else ":",
                color=SECOND,
                label="front",
            )
            for bound, unit, draw in ((result.metric, scale, axes.axhline), (name, other_scale, axes.axvline)):
                if bound in result.guard:
                    draw(result.guard[bound] * unit, color=TEXT, linestyle="--", linewidth=1.0, label="guard")
            axes.set_xlabel(other_label)
            axes.set_ylabel(label)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return save_svg(figure)


def draw_parallel(result: SearchResult) -> str:
    """Draw each trial as a line through its parameters to its metric; the best are the strongest."""
    done = [record for record in result.trials if record.state == "done"]
    if not done:
        return ""
    values = np.array([record.values[result.metric] for record in done])
    if result.objectives[result.metric] == "minimize":
        values = -values
    order = np.argsort(np.argsort(values)) / max(1, len(done) - 1)
    names = [*result.space, result.metric]
    with open_style():
        figure = new_figure(max(6.0, min(14.0, 1.7 * len(names))), 3.8)
        axes = figure.add_subplot()
        metric = [record.values[result.metric] for record in done]
        low, high = min(metric), max(metric)
        for record, rank in zip(done, order, strict=True):
            heights = [_place(result.space[name], record.parameters[name]) for name in result.space]
            heights.append((record.values[result.metric] - low) / (high - low) if high > low else 0.5)
            is_best = result.best is not None and record.number == result.best.number
            axes.plot(
                range(len(names)),
                heights,
                color=SECOND if is_best else FIRST,
                alpha=1.0 if is_best else 0.12 + 0.7 * float(rank) ** 2,
                linewidth=2.5 if is_best else 1.2,
                zorder=4 if is_best else 2,
            )
        for place, name in enumerate(result.space):
            for height, text in _list_ticks(result.space[name]):
                axes.text(place + 0.03, height, text, va="center", fontsize=10, zorder=5)
        for height, value in ((0.0, low), (1.0, high)):
            axes.text(len(names) - 0.97, height, f"{value:.4g}", va="center", fontsize=10)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(names) - 0.6)
        axes.spines["left"].set_visible(False)
        return save_svg(figure)


def draw_importance(result: SearchResult) -> str:
    """Draw how much each parameter decides; "" where that is not known."""
    if not result.importance:
        return ""
    items = sorted(result.importance.items(), key=lambda item: item[1])
    with open_style():
        figure = new_figure(7.0, 0.9 + 0.38 * len(items))
        axes = figure.add_subplot()
        axes.barh([name for name, _ in items], [part for _, part in items], color=FIRST, alpha=0.75)
        for place, (_, part) in enumerate(items):
            axes.text(part, place, f" {part:.0%}", va="center")
        axes.set_xlim(0.0, 1.12 * max(part for _, part in items) or 1.0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"Part of what decides {result.metric}")
        return save_svg(figure)


def _scatter(
    axes: Any,
    records: Sequence[Record],
    find_x: Callable[[Record], float],
    find_y: Callable[[Record], float],
    result: SearchResult,
) -> None:
    for is_valid, marker, label in ((True, "o", "trials"), (False, "x", "trials that break the guard")):
        shown = [record for record in records if record.is_valid == is_valid]
        if shown:
            axes.plot(
                [find_x(record) for record in shown],
                [find_y(record) for record in shown],
                linestyle="none",
                marker=marker,
                color=FIRST,
                alpha=0.6,
                label=label,
            )
    if result.best is not None:
        axes.plot(
            [find_x(result.best)],
            [find_y(result.best)],
            linestyle="none",
            marker="D",
            color=SECOND,
            markersize=9,
            label="the best",
        )


def _name_axis(objective: str) -> tuple[str, float]:
    return _UNITS.get(objective, (f"validation {objective}", 1.0))


def _place(parameter: Parameter, value: Value) -> float:
    """Give where a value stands between the lowest and the highest, 0 to 1."""
    if isinstance(parameter, Choice):
        return parameter.options.index(value) / max(1, len(parameter.options) - 1)
    low, high, at = float(parameter.low), float(parameter.high), float(value)
    if parameter.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low)


def _list_ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if isinstance(parameter, Choice):
        options = parameter.options
        step = -(-len(options) // _MAX_TICKS)
        return [(_place(parameter, option), str(option)[:16]) for option in options[::step]]
    return [(0.0, f"{parameter.low:g}"), (1.0, f"{parameter.high:g}")]
