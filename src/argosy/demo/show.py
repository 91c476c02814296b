"""What the demo shows: tables, the picture, the report page."""

from __future__ import annotations

import os
import platform
from datetime import date

from argosy.compress.report import list_findings
from argosy.demo.acts import list_acts, tell_result
from argosy.demo.crowd import Seen
from argosy.demo.picture import draw_picture
from argosy.demo.run import NUM_CLIENTS, DemoResult, Prepared
from argosy.demo.timeline import measure_timeline
from argosy.output_file import OutputFile
from argosy.train.report import Section, write_report

__all__ = ["draw_result", "tabulate_acts", "tabulate_phases", "tabulate_versions", "write_demo_report"]

Table = tuple[list[str], list[list[str]]]


def tabulate_acts(result: DemoResult) -> Table:
    """The acts, their figures and commands."""
    return ["act", "what was seen", "command"], [list(act) for act in list_acts(result)]


def tabulate_versions(result: DemoResult) -> Table:
    """Accuracy and size of both versions."""
    prepared = result.prepared
    score = prepared.compression.score
    original, compressed = prepared.compression.before.size_bytes, prepared.compression.after.size_bytes
    second = f"{prepared.compressed.number} ({_name_precision(prepared)})"
    rows = [
        [f"{prepared.original.number} (float32)", f"{score.before:.2%}", f"{original:,}", "100 %"],
        [second, f"{score.after:.2%}", f"{compressed:,}", f"{compressed / original:.1%}"],
    ]
    return ["version", "test accuracy", "artifact bytes", "of version 1"], rows


def _name_precision(prepared: Prepared) -> str:
    return str(prepared.compressed.manifest.lineage["precision"])


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


def draw_result(result: DemoResult) -> str:
    """The picture of requests/s and p99 over time, as an SVG file's text."""
    prepared = result.prepared
    cores = f"{len(os.sched_getaffinity(0))} {platform.machine()} cores for server and clients"
    return draw_picture(
        measure_timeline(result.seen, result.phases),
        title=f"A new version and back, while {NUM_CLIENTS} clients ask without pause",
        note=f"argosy demo, {date.today():%Y-%m-%d}, {cores}. Every answer is held against the bare runtime.",
        names={
            prepared.original.number: "version 1, float32",
            prepared.compressed.number: f"version 2, {_name_precision(prepared)}",
        },
    )


def write_demo_report(result: DemoResult, file: OutputFile) -> None:
    """Write the report page: the result, the acts, what clients saw over time; then training curve and confusion matrix."""
    acts, versions, phases = tabulate_acts(result), tabulate_versions(result), tabulate_phases(result)
    run = result.prepared.run
    write_report(
        file,
        title="Argosy demo: handwritten digits",
        lead=tell_result(result),
        history=run.result.history,
        confusion=run.confusion,
        labels=run.recipe.labels,
        opening=[
            Section(title="The acts", table=[acts[0], *acts[1]], num_text_columns=3),
            Section(
                title="What the clients saw",
                text="They are half HTTP and half gRPC, and send single images without pause. Every answer is compared with that "
                "of the bare runtime (ONNX Runtime or OpenVINO) on the artifact of the version that the reply names.",
                figure=draw_result(result).encode(),
                table=[phases[0], *phases[1]],
            ),
            Section(title="The versions", table=[versions[0], *versions[1]]),
            *list_findings(result.prepared.compression),
        ],
    )
