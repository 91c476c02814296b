"""The demo's picture: requests/s and p99 over time, the versions that answered as coloured bands. One SVG file.

It has a ground of its own and follows the reader's light or dark setting, so that it can be read on any page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Final

from argosy.demo.timeline import WINDOW_S, Timeline, Window

__all__ = ["draw_picture"]

_WIDTH, _HEIGHT = 860, 424
_LEFT, _RIGHT = 76, 838
_BAND_TOP, _BAND_BOTTOM = 96, 370
_RATE_TOP, _RATE_BOTTOM = 128, 252
_P99_TOP, _P99_BOTTOM = 284, 366
_LIGHT: Final = {"page": "#ffffff", "text": "#1c2430", "soft": "#5b6675", "grid": "#d5dae1", "good": "#0f7a4d", "bad": "#b3261e"}
_DARK: Final = {"page": "#14181f", "text": "#e6e9ee", "soft": "#9aa5b4", "grid": "#38404c", "good": "#5fce9b", "bad": "#ff8a80"}
# For light and for dark; the fourth version looks like the first.
_VERSIONS: Final = (("#1f6fd1", "#6aa9f5"), ("#c2570c", "#f0935a"), ("#0f8a6d", "#4fc3a1"))


def draw_picture(timeline: Timeline, *, title: str, note: str, names: Mapping[int, str]) -> str:
    """Draw what the clients saw.

    Args:
        timeline: of the run.
        title: the picture's first line; the second counts requests, failures and wrong answers.
        note: its last line: where and when.
        names: of the versions, for the heads of the bands.

    Returns:
        An SVG file's text.
    """
    result = f"{timeline.num_requests:,} requests, {timeline.num_failed:,} failed, {timeline.num_wrong:,} wrong"
    colors = {version: index % len(_VERSIONS) for index, version in enumerate(dict.fromkeys(b.version for b in timeline.bands))}
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{html.escape(f'{title}: {result}')}</title>",
        f"<style>\n{_write_style()}\n</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="10"/>',
        _text(22, 34, title, "head"),
        _text(22, 58, result, "bad" if timeline.num_failed or timeline.num_wrong else "good"),
        *_draw_bands(timeline, names, colors),
        *_draw_rates(timeline, colors),
        *_draw_p99(timeline),
        *_draw_seconds(timeline),
        _text(22, _HEIGHT - 14, note, "soft"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _write_style() -> str:
    """Rules for light, and those that differ for dark. Plain ones, without variables, which some viewers do not know."""

    def colors(theme: Mapping[str, str], which: int) -> list[str]:
        rules = [
            f".page {{ fill: {theme['page']}; stroke: {theme['grid']} }}",
            f"text {{ fill: {theme['text']} }} .soft {{ fill: {theme['soft']} }}",
            f".grid {{ stroke: {theme['grid']} }} .change {{ stroke: {theme['text']} }}",
            f".p99 {{ stroke: {theme['text']} }} .dot {{ fill: {theme['text']} }}",
            f".good {{ fill: {theme['good']} }} .bad {{ fill: {theme['bad']} }}",
        ]
        return rules + [f".v{index} {{ fill: {pair[which]} }}" for index, pair in enumerate(_VERSIONS)]

    return "\n".join(
        [
            'text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }',
            ".head { font-size: 17px; font-weight: 600 } .good, .bad { font-size: 15px; font-weight: 600 }",
            ".name { font-weight: 600 } .band { fill-opacity: 0.12 } .bar { fill-opacity: 0.85 }",
            ".change { stroke-dasharray: 4 3; stroke-width: 1.2 } .p99 { fill: none; stroke-width: 2; stroke-linejoin: round }",
            *colors(_LIGHT, 0),
            "@media (prefers-color-scheme: dark) {",
            *colors(_DARK, 1),
            "}",
        ]
    )


def _draw_bands(timeline: Timeline, names: Mapping[int, str], colors: Mapping[int, int]) -> list[str]:
    """A ground for each stretch of a version, and a line at the start of each change."""
    parts: list[str] = []
    for band in timeline.bands:
        left, right = _x(timeline, band.start_s), _x(timeline, band.end_s)
        parts.append(_rect(left, _BAND_TOP, right - left, _BAND_BOTTOM - _BAND_TOP, f"band v{colors[band.version]}"))
        parts.append(_text((left + right) / 2, _BAND_TOP + 20, names[band.version], f"name v{colors[band.version]}", "middle"))
    for change in timeline.changes:
        x = _x(timeline, change.start_s)
        parts.append(_line(x, _BAND_TOP - 6, x, _BAND_BOTTOM, "change"))
        parts.append(_text(x, _BAND_TOP - 12, f"{change.name}, {change.end_s - change.start_s:.2f} s", "soft", "middle"))
    return parts


def _draw_rates(timeline: Timeline, colors: Mapping[int, int]) -> list[str]:
    """A bar for each window, divided among the versions that answered in it."""
    top = max([sum(window.rates.values()) for window in timeline.windows], default=0.0)
    parts, scale = _draw_axis("requests/s", top, _RATE_TOP, _RATE_BOTTOM)
    for window, right_s in _pair_ends(timeline):
        left, right = _x(timeline, window.start_s) + 1, _x(timeline, right_s) - 1
        y = float(_RATE_BOTTOM)
        for version, rate in sorted(window.rates.items()):
            height = rate * scale
            y -= height
            parts.append(_rect(left, y, right - left, height, f"bar v{colors.get(version, 0)}"))
    return parts


def _draw_p99(timeline: Timeline) -> list[str]:
    """A line through the windows' p99."""
    known = [(window, end) for window, end in _pair_ends(timeline) if not math.isnan(window.p99_ms)]
    parts, scale = _draw_axis("p99, ms", max([window.p99_ms for window, _ in known], default=0.0), _P99_TOP, _P99_BOTTOM)
    points = [(_x(timeline, (window.start_s + end) / 2), _P99_BOTTOM - window.p99_ms * scale) for window, end in known]
    parts.append('<polyline class="p99" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
    return parts


def _draw_axis(label: str, largest: float, top: int, bottom: int) -> tuple[list[str], float]:
    """Lines across the panel with their numbers; and pixels for a unit."""
    step = _pick_step(largest, 3)
    most = max(step, math.ceil(largest / step) * step)
    scale = (bottom - top) / most
    middle = (top + bottom) / 2
    parts = [f'<text class="soft" text-anchor="middle" transform="translate(24 {middle:.1f}) rotate(-90)">{label}</text>']
    for index in range(round(most / step) + 1):
        y = bottom - index * step * scale
        parts.append(_line(_LEFT, y, _RIGHT, y, "grid"))
        parts.append(_text(_LEFT - 8, y + 4.5, f"{index * step:,.0f}", "soft", "end"))
    return parts, scale


def _draw_seconds(timeline: Timeline) -> list[str]:
    step = _pick_step(timeline.span_s, 8)
    ticks = [index * step for index in range(int(timeline.span_s / step) + 1)]
    return [
        _text(_x(timeline, tick), _BAND_BOTTOM + 18, f"{tick:g} s" if index == 0 else f"{tick:g}", "soft", "middle")
        for index, tick in enumerate(ticks)
    ]


def _pick_step(largest: float, num_steps: int) -> float:
    """1, 2 or 5 times a power of ten, of which about `num_steps` reach `largest`."""
    least = max(largest, 1e-9) / num_steps
    power = 10.0 ** math.floor(math.log10(least))
    return max(1.0, next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least))


def _pair_ends(timeline: Timeline) -> list[tuple[Window, float]]:
    ends = [window.start_s for window in timeline.windows[1:]]
    return list(zip(timeline.windows, [*ends, min(timeline.span_s, WINDOW_S * len(timeline.windows))], strict=True))


def _x(timeline: Timeline, seconds: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * seconds / timeline.span_s


def _text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(content)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
