"""The demo's tables and its plot of latency over time."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.demo.crowd import Seen
from argosy.demo.run import DemoResult
from argosy.train.report import Section, write_report

__all__ = ["draw_latency", "tabulate_phases", "tabulate_versions", "write_demo_report"]

Table = tuple[list[str], list[list[str]]]

_WINDOW_S: Final = 0.1


def tabulate_versions(result: DemoResult) -> Table:
    """Accuracy and size of both versions."""
    prepared = result.prepared
    score = prepared.compression.score
    original, compressed = prepared.compression.before.size_bytes, prepared.compression.after.size_bytes
    rows = [
        [f"{prepared.original.number} (float32)", f"{score.before:.2%}", f"{original:,}", "100 %"],
        [f"{prepared.compressed.number} (int8)", f"{score.after:.2%}", f"{compressed:,}", f"{compressed / original:.1%}"],
    ]
    return ["version", "test accuracy", "artifact bytes", "of version 1"], rows


def tabulate_phases(result: DemoResult) -> Table:
    """Requests, failures and latency of each phase, and of all together."""
    rows: list[list[str]] = []
    for phase in result.phases:
        seen = result.seen.between(phase.start_s, phase.end_s)
        rows.append(_row(phase.name, f"{phase.end_s - phase.start_s:.2f}", seen))
    first, last = result.phases[0].start_s, result.phases[-1].end_s
    rows.append(_row("all", f"{last - first:.2f}", result.seen))
    return ["phase", "seconds", "requests", "failed", "wrong", "p50 ms", "p99 ms"], rows


def _row(name: str, seconds: str, seen: Seen) -> list[str]:
    quantiles = [f"{seen.quantile_ms(share):.2f}" for share in (0.5, 0.99)]
    return [name, seconds, f"{len(seen.rows):,}", str(seen.num_failed), str(seen.num_wrong), *quantiles]


def write_demo_report(result: DemoResult, path: Path) -> None:
    """Write the report page: training curve, confusion matrix, latency over time, tables."""
    versions, phases = tabulate_versions(result), tabulate_phases(result)
    run = result.prepared.run
    write_report(
        path,
        title="Argosy demo: handwritten digits",
        history=run.result.history,
        confusion=run.confusion,
        labels=run.recipe.labels,
        sections=[
            Section(title="Versions", table=[versions[0], *versions[1]]),
            Section(
                title="Changing versions under load",
                text="32 clients, half HTTP and half gRPC, send single images without pause. Every answer is compared with bare "
                "ONNX Runtime on the artifact of the version that the reply names.",
                figure=draw_latency(result),
                table=[phases[0], *phases[1]],
            ),
        ],
    )


def draw_latency(result: DemoResult) -> bytes:
    """A PNG: p50 and p99 in windows of 0.1 s, which version answered, and when rollouts ran."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    start = result.phases[0].start_s
    end = result.phases[-1].end_s
    done = result.seen.column("sent_s") + result.seen.column("latency_s")
    latency = result.seen.column("latency_s") * 1e3
    version = result.seen.column("version")
    edges = np.arange(start, end, _WINDOW_S)
    middle: list[float] = []
    p50: list[float] = []
    p99: list[float] = []
    for left in edges:
        inside = latency[(done >= left) & (done < left + _WINDOW_S)]
        if len(inside):
            middle.append(left - start + _WINDOW_S / 2)
            p50.append(float(np.quantile(inside, 0.5)))
            p99.append(float(np.quantile(inside, 0.99)))
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(9, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    upper.plot(middle, p99, label="p99", color="#c2410c", linewidth=1.6)
    upper.plot(middle, p50, label="p50", color="#1d4ed8", linewidth=1.6)
    upper.set_ylabel("latency (ms)", fontsize=12)
    upper.set_ylim(bottom=0)
    for number, color in ((1, "#64748b"), (2, "#15803d")):
        counts, _ = np.histogram(done[version == number], np.append(edges, end))
        lower.step(edges - start, counts / _WINDOW_S, where="post", label=f"version {number}", color=color, linewidth=1.6)
    lower.set_ylabel("answers per second", fontsize=12)
    lower.set_xlabel("seconds since the first measurement", fontsize=12)
    for index, phase in enumerate(phase for phase in result.phases if phase.name.endswith("during")):
        for axes in (upper, lower):
            axes.axvspan(
                phase.start_s - start,
                phase.end_s - start,
                color="#fbbf24",
                alpha=0.35,
                label="rollout" if index == 0 and axes is upper else None,
            )
    for axes in (upper, lower):
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=11)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    return data.getvalue()
