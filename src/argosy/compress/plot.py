"""The plot of all that was tried: what each recipe loses, against what it makes of the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from argosy.compress.measure import Cost
from argosy.compress.result import Tried
from argosy.train.report import FIRST, GRID, SECOND, TEXT, new_figure, open_style, save_svg, shorten_name

__all__ = ["Point", "draw_sensitivity", "draw_tradeoff", "find_front", "list_points"]

_SIZE: Final = 60.0
_LETTER, _LINE = 9.0, 16.0
"""Width of a digit and height of a line of a label, in points."""
_MARKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_PLACES: Final = ((9.0, 5.0), (9.0, -17.0), (-22.0, 5.0), (-22.0, -17.0), (9.0, 21.0), (9.0, -33.0))
"""Where a label may stand beside its point, the best first."""
_AXES: Final = {
    "latency": "Time of one row alone",
    "throughput": "Time of a row in a batch",
    "size": "Size of the files",
    "memory": "Memory of a worker",
}
_SERVED_AXES: Final = {"latency": "Time of an answer to one client", "throughput": "Time by row of many clients"}
_BAR_IN: Final = 0.26
"""Height of a bar and its gap, in inches."""
_MAX_NAME: Final = 48


class Point(NamedTuple):
    """A recipe that was judged."""

    number: int
    """Its place among those that were tried, from 1."""
    ratio: float
    """Of the objective to that of the original."""
    loss: float
    interval: tuple[float, float] | None
    is_within: bool
    """The guard takes it."""


def list_points(tried: Sequence[Tried], value: Callable[[Cost], float]) -> list[Point]:
    """Give those that were judged and whose loss is a number."""
    found: list[Point] = []
    for number, one in enumerate(tried, 1):
        if one.score is None or one.before is None or one.after is None or not math.isfinite(one.score.loss):
            continue
        ratio = value(one.after) / value(one.before)
        found.append(Point(number, ratio, one.score.loss, one.score.interval, not one.problem))
    return found


def find_front(points: Sequence[Point]) -> list[Point]:
    """Give those within the guard, and better than the original, than which none is better in one and as good in the other."""
    front: list[Point] = []
    for point in sorted(
        (point for point in points if point.is_within and point.ratio < 1), key=lambda point: (point.ratio, point.loss)
    ):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def draw_tradeoff(
    points: Sequence[Point], chosen: int | None, *, objective: str, metric: str, max_loss: float, is_served: bool = False
) -> str:
    """Draw the points as an SVG: the guard as a line, those that it takes filled, the chosen one ringed.

    Args:
        points: at least one.
        chosen: the number of the chosen one; None: nothing was.
        objective: names the axis to the right.
        metric: names the axis upwards.
        max_loss: where the guard is.
        is_served: times are what clients saw, or would see.
    """
    with open_style():
        figure = new_figure(9.0, 4.6)
        axes = figure.add_subplot()
        front = find_front(points)
        if len(front) > 1:
            ratios, losses = [point.ratio for point in front], [point.loss for point in front]
            axes.plot(ratios, losses, color=FIRST, drawstyle="steps-post", linewidth=1.2, alpha=0.6, zorder=1)
        axes.axhline(max_loss, color=SECOND, linestyle="--", linewidth=1.5, zorder=1)
        axes.axvline(1.0, color=GRID, linewidth=1.5, zorder=0)
        for point in points:
            _draw_point(axes, point, is_chosen=point.number == chosen)
        _scale(axes, points, max_loss)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(f"guard: {max_loss:g}", (1.0, max_loss), (-4, 3), color=SECOND, **place)
        _label(axes, points, chosen)
        names = _AXES | _SERVED_AXES if is_served else _AXES
        axes.set_xlabel(f"{names[objective]}, part of the original's (less is better)")
        axes.set_ylabel(f"Loss of {metric}")
        return save_svg(figure)


def draw_sensitivity(layers: Sequence[tuple[str, float]]) -> str:
    """Draw bars by layer as an SVG, the longest first, by powers of ten; what is infinite reaches the edge. "" if there are none.

    Args:
        layers: names, and how far the answers move.
    """
    finite = [distance for _, distance in layers if 0.0 < distance < math.inf]
    if not finite:
        return ""
    low, high = min(finite) / 2, max(finite) * 2
    with open_style():
        figure = new_figure(9.0, 0.9 + _BAR_IN * len(layers))
        axes = figure.add_subplot()
        for place, (_, distance) in enumerate(layers):
            length = min(max(distance, low), high)
            axes.barh(place, length - low, left=low, height=0.7, color=FIRST if distance < math.inf else SECOND)
        axes.set_yticks(range(len(layers)), [shorten_name(name, _MAX_NAME) for name, _ in layers])
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.grid(visible=False, axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("How far the answers move")
        return save_svg(figure)


def _draw_point(axes: Any, point: Point, *, is_chosen: bool) -> None:
    color = FIRST if point.is_within else SECOND
    if point.interval is not None:
        axes.vlines(point.ratio, *point.interval, color=color, linewidth=1.0, alpha=0.45, zorder=1)
    face = color if point.is_within else "none"
    axes.scatter([point.ratio], [point.loss], s=_SIZE, facecolor=face, edgecolor=color, linewidth=1.6, zorder=3)
    if is_chosen:
        axes.scatter([point.ratio], [point.loss], s=4 * _SIZE, facecolor="none", edgecolor=TEXT, linewidth=1.6, zorder=4)


def _scale(axes: Any, points: Sequence[Point], max_loss: float) -> None:
    """Losses are from rounding to ruin: even up to twice the guard, by powers of ten beyond."""
    even = 2.0 * max_loss or 1e-3
    axes.set_yscale("symlog", linthresh=even, linscale=2.0)
    bounds = [bound for point in points for bound in (point.loss, *(point.interval or ()))]
    top, bottom = max([even, *bounds]), min([0.0, *bounds])
    axes.set_ylim(bottom * 1.3 - 0.05 * even, top * 1.3 if top > even else even)
    ticks = [
        tick for tick in (-even, -max_loss, 0.0, max_loss, even, *_list_powers(even, top)) if bottom * 1.3 <= tick <= top * 1.3
    ]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    ratios = [1.0, *(point.ratio for point in points)]
    axes.set_xscale("log")
    axes.set_xlim(min(ratios) / 1.15, max(ratios) * 1.3)
    marks = [mark for mark in _MARKS if min(ratios) / 1.15 <= mark <= max(ratios) * 1.3]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


def _list_powers(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) if high > low else ()
    return [10.0**power for power in powers if 2 * low < 10.0**power <= high * 1.3]


def _label(axes: Any, points: Sequence[Point], chosen: int | None) -> None:
    """Write each point's number beside it where no other one stands; those of points that meet in one."""
    axes.figure.canvas.draw()
    points_of_pixel = 72.0 / axes.figure.dpi
    groups: list[tuple[float, float, list[Point]]] = []
    for point in points:
        x, y = axes.transData.transform((point.ratio, point.loss)) * points_of_pixel
        near = next((members for left, low, members in groups if math.hypot(left - x, low - y) < _LETTER), None)
        if near is None:
            groups.append((x, y, [point]))
        else:
            near.append(point)
    taken: list[tuple[float, float, float]] = []
    for x, y, members in groups:
        text = ", ".join(str(point.number) for point in members)
        width = _LETTER * len(text)
        free = [place for place in _PLACES if not _meets(x + place[0], y + place[1], width, taken)]
        shift = (free or _PLACES)[0]
        taken.append((x + shift[0], y + shift[1], width))
        weight = "bold" if any(point.number == chosen for point in members) else "normal"
        place = (members[0].ratio, members[0].loss)
        axes.annotate(text, place, shift, textcoords="offset points", weight=weight)


def _meets(x: float, y: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return any(x < left + wide and left < x + width and abs(y - low) < _LINE for left, low, wide in taken)
