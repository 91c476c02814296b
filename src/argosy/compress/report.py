"""What compression came to, in words and numbers, for people."""

from __future__ import annotations

from typing import Final

from argosy.compress.result import CompressResult

__all__ = ["BATCH_TOLERANCE", "describe_result", "tabulate_result"]

BATCH_TOLERANCE: Final = 1e-5
"""Below it, a row is said to be answered alike alone and in a batch: rounding of float32."""

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
