"""What a scenario found, as Markdown and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ratios import Limit, Ratio, Window, compare, find_best, is_dirty, judge, median_of
from scenarios import Scenario

FIGURES = ("rps", "cpu_us", "p50_ms", "p99_ms")
NAMES = {"rps": "requests/s", "cpu_us": "CPU a request", "p50_ms": "p50", "p99_ms": "p99"}


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass
class Outcome:
    """What a scenario found.

    Attributes:
        windows: by entrant and connections, one a round.
        starts_s: each from the start of a server's program to its first right answer.
        pss_bytes: memory of all of a server's processes after the load, once for each time that it was started.
        settings: what an entrant has chosen itself.
        refused: entrants that did not take part, with the reason.
    """

    scenario: Scenario
    windows: dict[tuple[str, int], list[Window]] = field(default_factory=dict)
    starts_s: dict[str, list[float]] = field(default_factory=dict)
    pss_bytes: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str, reason: str) -> None:
        """Note that an entrant does not take part, or no further: what it did so far would have no pairs."""
        self.refused[name] = reason
        self.windows = {key: windows for key, windows in self.windows.items() if key[0] != name}

    def format(self) -> str:
        """All windows' medians, the ratios to each other entrant, the limits, and who did not take part."""
        parts = [f"## {self.scenario.title}", self._format_medians()]
        parts += [table for connections in self.scenario.connections if (table := self._format_ratios(connections))]
        limits = [row for limit in self.scenario.limits if (row := self._judge(limit))]
        if limits:
            parts.append(format_table(["limit", "ratio (interval)", "pairs", "coverage", "verdict"], limits))
        parts += [f"{name} did not take part: `{' '.join(reason.split())}`" for name, reason in self.refused.items()]
        return "\n\n".join(parts)

    def _format_medians(self) -> str:
        unit = self.scenario.unit
        head = ["server", "connections", f"{unit}/s", "CPU us each", "p50 ms", "p99 ms", "errors", "PSS MB", "start s", "dirty"]
        rows = []
        for entrant in self.scenario.entrants:
            setting = self.settings.get(entrant.name, entrant.setting)
            label = f"{entrant.name}, {setting}" if setting else entrant.name
            for connections in self.scenario.connections:
                windows = self.windows.get((entrant.name, connections))
                if windows:
                    rows.append([label, str(connections * entrant.factor), *self._format_windows(entrant.name, windows)])
        return format_table(head, rows)

    def _format_windows(self, name: str, windows: Sequence[Window]) -> list[str]:
        rps, cpu_us, p50_ms, p99_ms = (median_of(windows, figure) for figure in FIGURES)
        errors, dirty = sum(window["errors"] for window in windows), sum(map(is_dirty, windows))
        pss = f"{statistics.median(self.pss_bytes[name]) / 2**20:.0f}" if name in self.pss_bytes else ""
        start = f"{statistics.median(self.starts_s[name]):.2f}" if name in self.starts_s else ""
        shown = [f"{rps:,.0f}", f"{cpu_us:,.1f}", f"{p50_ms:.3f}", f"{p99_ms:.3f}", f"{errors:.0f}", pss, start]
        return [*shown, f"{dirty} of {len(windows)}"]

    def _format_ratios(self, connections: int) -> str:
        first = self.scenario.entrants[0].name
        others = [each.name for each in self.scenario.entrants[1:] if (each.name, connections) in self.windows]
        if (first, connections) not in self.windows or not others:
            return ""
        rows = [[name, *(str(self._compare(first, name, connections, figure)) for figure in FIGURES)] for name in others]
        return format_table([f"{first} / ..., connections: {connections}", *(NAMES[figure] for figure in FIGURES)], rows)

    def _compare(self, subject: str, other: str, connections: int, figure: str) -> Ratio:
        return compare(self.windows[subject, connections], self.windows[other, connections], figure)

    def _judge(self, limit: Limit) -> list[str] | None:
        best = find_best(self.windows, limit.against, limit.connections, limit.figure)
        if best is None or (limit.subject, limit.connections) not in self.windows:
            return None
        ratio = self._compare(limit.subject, best, limit.connections, limit.figure)
        word, bound = ("at least", limit.at_least) if math.isinf(limit.at_most) else ("at most", limit.at_most)
        text = f"{limit.subject} / {best}: {NAMES[limit.figure]} at {limit.connections}: {word} {bound:g}"
        return [text, str(ratio), ratio.pairs, f"{ratio.coverage:.1%}", judge(limit.at_least, limit.at_most, ratio)]

    def to_json(self) -> dict[str, Any]:
        """Every window, and what else was found."""
        windows = [{"server": name, "connections": count, "rounds": found} for (name, count), found in self.windows.items()]
        rest = {"starts_s": self.starts_s, "pss_bytes": self.pss_bytes, "settings": self.settings, "refused": self.refused}
        return {"title": self.scenario.title, "windows": windows, **rest}
