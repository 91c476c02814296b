"""A report as one HTML file: training curve, confusion matrix, and whatever sections a caller adds.

The page asks for nothing from elsewhere, so that it can be mailed and opened offline. The figures are inline
SVG in the page's own colours, so that they follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.frameworks.base import import_extra
from argosy.output_file import OutputFile
from argosy.train.result import Epoch

__all__ = [
    "FIRST",
    "GRID",
    "SECOND",
    "TEXT",
    "Section",
    "check_report",
    "new_figure",
    "open_style",
    "save_svg",
    "shorten_name",
    "write_page",
    "write_report",
]

_FIGURES: Final = {b"\x89PNG\r\n\x1a\n": "png", b"<svg ": "svg+xml"}
"""How a figure's content begins, and the type that a page calls it."""
_FONT_SIZE: Final = 13
"""Points; figures are drawn at the page's own scale, so that this is what is read."""

_MAX_CLASS: Final = 24
"""Letters of a class' name in a figure."""
_MAX_LEVEL: Final = 4
"""Letters of names that stand side by side."""
_LETTER_IN: Final = 0.1
"""Width of one, in inches."""
_LONG: Final = 60
"""Characters of a cell of text that is set in several lines."""
_MANY: Final = 8
"""Columns beyond which a table is set smaller."""

# Stand-ins that are replaced in the SVG by the page's variables, which matplotlib has no way to write.
TEXT, FIRST, SECOND, GRID = "#010101", "#020202", "#030303", "#040404"
"""Colours of figures: of text, of the two series that are told apart, of lines in the ground."""
_VARIABLES: Final = {TEXT: "var(--text)", FIRST: "var(--first)", SECOND: "var(--second)", GRID: "var(--grid)"}

_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # Text stays text: sharp, small, and found by the browser's search.
    "svg.hashsalt": "argosy",  # Else every run names its clip paths anew, and equal reports differ.
    "font.family": "sans-serif",
    "font.size": _FONT_SIZE,
    "text.parse_math": False,  # Names are no formulas.
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}

_AXES: Final = {
    "loss": "Loss (mean of the rows)",
    "accuracy": "Accuracy (fraction of the rows)",
    "mae": "Mean absolute error (the target's unit)",
    "mse": "Mean squared error (the target's unit, squared)",
}

_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1c2430; --soft: #5b6675; --grid: #d5dae1; --first: #1f6fd1; --second: #c2570c;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #14181f; --text: #e6e9ee; --soft: #9aa5b4; --grid: #38404c; --first: #6aa9f5; --second: #f0935a; }
}
body {
  background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  max-width: 870px; margin: 2.5rem auto; padding: 0 1.25rem;
}
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
p { margin: .5rem 0; color: var(--soft); }
figure { margin: 1rem 0; overflow-x: auto; }
svg, img { display: block; max-width: 100%; height: auto; }
svg text { font-family: inherit !important; }
img { background: #ffffff; border-radius: 10px; }
.lead { font-size: 1.15rem; color: var(--text); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
td.long { white-space: normal; min-width: 18rem; }
th { font-weight: 600; }
.many { font-size: .85rem; }
.many th, .many td { padding: .35rem .4rem; }
.many th, .many td.text { white-space: normal; }
.many td.long { min-width: 10rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report."""

    title: str
    text: str = ""
    figure: bytes | None = None
    """A PNG file's content, drawn on white; or an SVG file's, with a ground of its own."""
    drawing: str = ""
    """An SVG of `save_svg`, in the page's own colours."""
    table: Sequence[Sequence[object]] | None = None
    """Rows of cells, the header first."""
    num_text_columns: int = 1
    """So many of the table's first columns are text; the others are set as numbers."""


def write_report(
    file: OutputFile | Path | str,
    *,
    title: str = "Training report",
    lead: str = "",
    opening: Sequence[Section] = (),
    history: Sequence[Epoch],
    confusion: NDArray[Any] | None = None,
    labels: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
) -> None:
    """Write a report as a self-contained HTML page.

    Args:
        file: to write; its name stands for a file that is not there.
        title: of the page.
        lead: the page's first line, which says what came of it.
        opening: sections that stand before the curve.
        history: of a training run, at least one epoch.
        confusion: counts of shape (classes, classes): true class first, predicted class second.
        labels: names of the classes; default: their numbers.
        sections: follow the curve and the matrix, in this order.

    Raises:
        InputError: `bad_option`, no epochs, a matrix that is not square, labels that do not fit it, a figure
            that is no PNG or SVG; `missing_extra`, matplotlib is not installed; `file_exists`, `unwritable`.
    """
    file = file if isinstance(file, OutputFile) else OutputFile(file)
    if not history:
        raise InputError("bad_option", option="history", got="no epochs", expected="at least one epoch")
    parts = [_render_section(section) for section in opening]
    parts.append(_render_curve(history))
    if confusion is not None:
        parts.append(_render_confusion(confusion, labels))
    parts += [_render_section(section) for section in sections]
    _write(file, title, lead, parts)


def write_page(file: OutputFile | Path | str, *, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write sections as a self-contained HTML page.

    Args:
        file: to write; its name stands for a file that is not there.
        title: of the page.
        lead: its first line.
        sections: in this order.

    Raises:
        InputError: `bad_option`, a figure that is no PNG or SVG; `file_exists`, `unwritable`.
    """
    file = file if isinstance(file, OutputFile) else OutputFile(file)
    _write(file, title, lead, [_render_section(section) for section in sections])


def _write(file: OutputFile, title: str, lead: str, parts: Sequence[str]) -> None:
    first = [f'<p class="lead">{html.escape(lead)}</p>'] if lead else []
    file.write(_PAGE.substitute(title=html.escape(title), body="\n".join([*first, *parts])))


def _render_curve(history: Sequence[Epoch]) -> str:
    """Draw loss, and beside it the first metric, over the epochs."""
    # What a step of one's own logs may be missing in some epochs.
    names = ["loss", *[name for name in history[-1].metrics if all(name in e.metrics for e in history)][:1]]
    training = {"loss": [e.loss for e in history]} | {name: [e.metrics[name] for e in history] for name in names[1:]}
    known = [name for name in names[1:] if all(name in e.validation_metrics for e in history)]
    validation = {name: [e.validation_metrics[name] for e in history] for name in known}
    losses = [e.validation_loss for e in history if e.validation_loss is not None]
    if len(losses) == len(history):
        validation["loss"] = losses
    with open_style():
        figure = new_figure(9.0, 3.6)
        figure.get_layout_engine().set(wspace=0.06)
        for index, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), index + 1)
            _draw_series(axes, name, [e.number for e in history], training[name], validation.get(name))
        drawing = save_svg(figure)
    text = f"{len(history)} epochs in {sum(e.duration_s for e in history):.1f} s. Training values are means over an epoch, "
    text += "taken while the weights change, with dropout where there is any"
    text += "; validation values are those of the model after the epoch." if validation else "."
    return _wrap("Training curve", f"<p>{html.escape(text)}</p><figure>{drawing}</figure>")


def _draw_series(axes: Any, name: str, numbers: list[int], training: list[float], validation: list[float] | None) -> None:
    marker = "o" if len(numbers) < 3 else None  # A line of one point is not seen.
    axes.plot(numbers, training, color=FIRST, marker=marker, label="training")
    if validation:
        axes.plot(numbers, validation, color=SECOND, marker=marker, linestyle="--", label="validation")
    axes.set_xlabel("Epoch")
    axes.set_ylabel(_AXES.get(name, name))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()


def _render_confusion(confusion: NDArray[Any], labels: Sequence[str] | None) -> str:
    """Draw the counts, each cell as strong as its part of its true class."""
    num_classes = len(confusion)
    names = [str(number) for number in range(num_classes)] if labels is None else list(labels)
    if confusion.shape != (num_classes, num_classes) or not num_classes:
        raise InputError("bad_option", option="confusion", got=confusion.shape, expected="a square matrix")
    if len(names) != num_classes:
        raise InputError("bad_option", option="labels", got=names, expected=f"{num_classes} names")
    with open_style():
        names = [shorten_name(name, _MAX_CLASS) for name in names]
        longest = max(map(len, names))
        size = 1.5 + 0.48 * num_classes + _LETTER_IN * max(0, longest - _MAX_LEVEL)
        figure = new_figure(size, size - 0.2)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        _draw_cells(axes, confusion)
        for axis, name in ((axes.xaxis, "Predicted class"), (axes.yaxis, "True class")):
            axis.set_ticks(range(num_classes), names)
            axis.set_tick_params(length=0)
            axis.set_label_text(name)
        if longest > _MAX_LEVEL:
            axes.xaxis.set_tick_params(rotation=90)
        drawing = save_svg(figure)
    total, right = int(confusion.sum()), int(np.trace(confusion))
    text = f"{right} of {total} rows are right ({right / max(total, 1):.2%}). "
    text += "Numbers count rows; shades are parts of the true class."
    return _wrap("Confusion matrix", f"<p>{html.escape(text)}</p><figure>{drawing}</figure>")


def _draw_cells(axes: Any, confusion: NDArray[Any]) -> None:
    patches = import_extra("matplotlib.patches", feature="A report", extra="report")
    parts = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(*confusion.shape):
        count = int(confusion[row, column])
        # At most 0.45 of the colour, so that the page's own text colour can be read on it, light or dark.
        opacity = 0.15 + 0.3 * float(parts[row, column]) if count else 0.0
        color = FIRST if row == column else SECOND
        cell = patches.Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=color, alpha=opacity, linewidth=0)
        axes.add_patch(cell)
        weight = "bold" if count and row != column else "normal"
        axes.text(column, row, str(count), ha="center", va="center", weight=weight, alpha=1.0 if count else 0.35)
    axes.set_xlim(-0.5, len(confusion) - 0.5)
    axes.set_ylim(len(confusion) - 0.5, -0.5)
    axes.set_aspect("equal")


def _render_section(section: Section) -> str:
    parts = [f"<p>{html.escape(section.text)}</p>"] if section.text else []
    if section.figure is not None:
        kind = next((kind for head, kind in _FIGURES.items() if section.figure.startswith(head)), None)
        if kind is None:
            expected = "the content of a PNG file, or of an SVG file"
            raise InputError("bad_option", option="figure", got=section.figure[:8], expected=expected)
        data = base64.b64encode(section.figure).decode()
        parts.append(f'<figure><img alt="{html.escape(section.title)}" src="data:image/{kind};base64,{data}"></figure>')
    if section.drawing:
        parts.append(f"<figure>{section.drawing}</figure>")
    if section.table:
        lines: list[str] = []
        for row in section.table:
            kind = "td" if lines else "th"
            # A column without a head holds words: what became of the row.
            is_text = [index < section.num_text_columns or not head for index, head in enumerate(section.table[0])]
            names = ["text" if each else "" for each in is_text]
            names = [f"{name} long" if name and len(str(cell)) > _LONG else name for name, cell in zip(names, row, strict=True)]
            heads = [f'<{kind} class="{name}">' if name else f"<{kind}>" for name in names]
            cells = [f"{head}{html.escape(str(cell))}</{kind}>" for head, cell in zip(heads, row, strict=True)]
            lines.append("<tr>" + "".join(cells) + "</tr>")
        opening = '<table class="many">' if len(section.table[0]) > _MANY else "<table>"
        parts.append(f'<div class="wide">{opening}{"".join(lines)}</table></div>')
    return _wrap(section.title, "\n".join(parts))


def _wrap(title: str, body: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>"


def check_report() -> None:
    """See that figures can be drawn, before the work that they are to show.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed.
    """
    import_extra("matplotlib", feature="A report", extra="report")


@contextlib.contextmanager
def open_style() -> Generator[None]:
    """Give a context in which figures are drawn as the page has them.

    Raises:
        InputError: `missing_extra`, matplotlib is not installed.
    """
    style = import_extra("matplotlib", feature="A report", extra="report").rc_context(_STYLE)
    with style, warnings.catch_warnings():
        # The browser writes the text, and may have letters that no font here has.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def shorten_name(name: str, most: int) -> str:
    """Cut a name from elsewhere to so many letters on one line; its end, which tells more, stays."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"...{name[3 - most :]}"


def new_figure(width: float, height: float) -> Any:
    """Make a figure in inches; without pyplot, which would keep it and ask for a display."""
    figures = import_extra("matplotlib.figure", feature="A report", extra="report")
    return figures.Figure(figsize=(width, height), layout="constrained")


def save_svg(figure: Any) -> str:
    """Give a figure as an SVG in the page's own colours, light or dark; within `open_style`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = out.getvalue()
    for stand_in, variable in _VARIABLES.items():
        drawing = drawing.replace(stand_in, variable)
    return drawing[drawing.index("<svg") :]
