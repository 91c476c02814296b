"""Draw the figures of docs/optimizers.md, on white, in colours that colour-blind readers tell apart."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Taken as `Any`, since its stubs are partial.
mpl: Any = importlib.import_module("matplotlib")
Figure: Any = importlib.import_module("matplotlib.figure").Figure

# Okabe and Ito's palette; every line is labelled as well, and the forms differ in their dashes.
COLOURS = {
    "sgd": "#0072B2",
    "momentum": "#D55E00",
    "rmsprop": "#007A57",
    "adam": "#A64D85",
    "genetic": "#D55E00",
    "random_search": "#0072B2",
}
TITLES = {
    "sgd": "SGD",
    "momentum": "Momentum",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "genetic": "Genetic",
    "random_search": "Random search",
}
OFFSETS = {"genetic": 18, "random_search": -12, "adam": -10}
"""Points between the end of a line and its label."""
GREY, TEXT = "#C4C9D1", "#1C2430"
WINDOW = 40
"""Steps over which a loss is averaged before it is drawn."""
STRIDE = 4
"""Of so many steps one is drawn; the eye sees no difference, and the file is a quarter."""
STYLE = {
    "svg.fonttype": "none",  # Text stays text: sharp, and found by a search.
    "svg.hashsalt": "argosy",  # Else every run names its clip paths anew.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E7EC",
    "axes.edgecolor": "#9AA5B4",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
}


class Trace(NamedTuple):
    """One rule in one form, over its seeds."""

    name: str
    form: str
    losses: np.ndarray[Any, Any]
    """Of every step, shape (seeds, steps)."""
    accuracies: list[float]
    """At the end, by seed."""

    @property
    def smooth(self) -> np.ndarray[Any, Any]:
        return np.stack([np.convolve(run, np.full(WINDOW, 1.0 / WINDOW), "valid") for run in self.losses])


class Curve(NamedTuple):
    """Loss by forward passes, of one run."""

    passes: list[int]
    losses: list[float]
    num_weights: int


def draw_race(traces: Sequence[Trace], path: Path) -> None:
    """Draw a panel of training loss for each rule, its forms over those of all others in grey, and the test accuracies below."""
    names = list(dict.fromkeys(trace.name for trace in traces))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 6.6), layout="constrained")
        grid = figure.add_gridspec(2, len(names), height_ratios=[1.25, 1.0])
        first: Any = None
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[0, column], sharey=first)
            first = first or axes
            _draw_losses(axes, traces, name)
            axes.tick_params(labelleft=axes is first)
        first.set_ylabel("Training loss")
        _draw_accuracies(figure.add_subplot(grid[1, :]), traces)
        _save(figure, path)


def _draw_losses(axes: Any, traces: Sequence[Trace], name: str) -> None:
    kept = slice(None, None, STRIDE)
    steps = [*range(WINDOW, traces[0].losses.shape[1] + 1)][kept]
    for trace in traces:
        if trace.name != name:
            axes.plot(steps, np.median(trace.smooth, axis=0)[kept], color=GREY, linewidth=1.0)
    shown = [trace for trace in traces if trace.name == name]
    for trace in shown:
        smooth = trace.smooth[:, kept]
        axes.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=COLOURS[name], alpha=0.13, linewidth=0)
        # Dark dashes on a broad coloured line: both are seen where they coincide.
        look = {"color": TEXT, "linewidth": 1.3, "linestyle": (0, (4, 2))} if trace.form == "text" else {"color": COLOURS[name]}
        axes.plot(steps, np.median(smooth, axis=0), **{"linewidth": 3.5} | look)
        if len(shown) > 1:
            height = 0.93 if trace.form == "common" else 0.84
            axes.plot([0.52, 0.66], [height] * 2, transform=axes.transAxes, **{"linewidth": 3.5} | look)
            axes.annotate(trace.form, (0.7, height), xycoords="axes fraction", va="center", fontsize=9)
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.2, 0.5, 1.0, 2.0], ["0.1", "0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    title = TITLES[name] if len(shown) > 1 else f"{TITLES[name]}, {shown[0].form}"
    axes.set_title(title, color=COLOURS[name], weight="bold", loc="left")
    axes.set_xlabel("Step")


def _draw_accuracies(axes: Any, traces: Sequence[Trace]) -> None:
    for row, trace in enumerate(traces):
        percent = [100.0 * accuracy for accuracy in trace.accuracies]
        middle = float(np.median(percent))
        axes.plot(percent, [row] * len(percent), "o", color=COLOURS[trace.name], markersize=6, alpha=0.45, markeredgewidth=0)
        axes.plot([middle], [row], "|", color=COLOURS[trace.name], markersize=16, markeredgewidth=2.5)
        axes.annotate(
            f"{middle:.1f}", (1.0, row), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(traces)), [f"{TITLES[trace.name]}, {trace.form}" for trace in traces])
    axes.set_ylim(len(traces) - 0.4, -0.6)
    axes.set_xlabel("Test accuracy after the last step, % (a dot a seed, the bar and the number are the median)")
    axes.grid(visible=False, axis="y")


def draw_search(curves: Sequence[tuple[str, Sequence[Curve]]], path: Path) -> None:
    """Draw the loss that each rule reaches by forward passes, a panel for each size of network."""
    sizes = list(dict.fromkeys(runs[0].num_weights for _, runs in curves))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.4), layout="constrained")
        first: Any = None
        for column, size in enumerate(sizes):
            axes = figure.add_subplot(1, len(sizes), column + 1, sharey=first)
            first = first or axes
            shown = [(name, runs) for name, runs in curves if runs[0].num_weights == size]
            _draw_search(axes, shown, is_first=axes is first)
            axes.set_title(f"{size:,} weights", weight="bold", loc="left")
        first.set_ylabel("Training loss")
        _save(figure, path)


def _draw_search(axes: Any, curves: Sequence[tuple[str, Sequence[Curve]]], *, is_first: bool) -> None:
    axes.axhline(math.log(10), color="#6B7684", linewidth=1.0, linestyle=":")
    if is_first:
        axes.annotate(
            "guessing", (1.0, math.log(10)), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
    for name, runs in curves:
        middle = np.median([run.losses for run in runs], axis=0)
        axes.plot(runs[0].passes, middle, color=COLOURS[name], linewidth=2.0)
        look = {"ha": "right", "va": "center", "color": COLOURS[name], "weight": "bold"}
        axes.annotate(TITLES[name], (runs[0].passes[-1], middle[-1]), (0, OFFSETS[name]), textcoords="offset points", **look)
    axes.set_ylim(-0.3, 3.0)
    axes.set_xlabel("Forward passes")
    axes.tick_params(labelleft=is_first)


def _save(figure: Any, path: Path) -> None:
    out = io.StringIO()
    figure.savefig(out, format="svg", facecolor="white", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = out.getvalue()
    path.write_text("\n".join(line.rstrip() for line in drawing[drawing.index("<svg") :].splitlines()) + "\n")
