"""A result for readers: Markdown and HTML."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Final

from argosy.conformance.clause import SOURCES, Outcome
from argosy.conformance.run import Finding, Result
from argosy.errors import InputError

__all__ = ["GROUP_COLUMNS", "check_report_path", "count_groups", "describe_finding", "render_markdown", "render_report"]

GROUP_COLUMNS: Final = ("group", *Outcome)
_MARKS: Final = {"pass": "#2a7d2a", "fail": "#b00020", "not offered": "#555", "skipped": "#8a6d00"}


def check_report_path(path: Path) -> None:
    """Refuse a file that no report can be written to, before the work is done.

    Raises:
        InputError: `bad_option`, the suffix is neither .md nor .html, or there is no such folder.
    """
    if path.suffix not in (".md", ".html") or not path.parent.is_dir():
        raise InputError("bad_option", option="--report", got=path, expected="a file .md or .html in a folder that exists")


def render_report(result: Result, path: Path) -> str:
    """The whole result for a file of this name: HTML, or Markdown where it ends in .md."""
    return render_markdown(result) if path.suffix == ".md" else _render_html(result)


def count_groups(result: Result) -> list[list[str]]:
    """For each group its name, and how many of its clauses ended in each way; the last row counts all."""
    groups = dict.fromkeys(finding.id.rsplit(".", 1)[0] for finding in result.findings)
    return [[group or "all", *(str(result.count(outcome, group)) for outcome in Outcome)] for group in [*groups, ""]]


def describe_finding(finding: Finding) -> str:
    """What a failure shows, or why a clause was not checked; on one line."""
    if finding.outcome == Outcome.FAIL:
        return "; ".join(
            f"{word} {text}"
            for word, text in (("sent", finding.sent), ("expected", finding.expected), ("got", finding.got))
            if text
        )
    return finding.reason


def render_markdown(result: Result, level: int = 1) -> str:
    """The whole result in Markdown.

    Args:
        result: of a run.
        level: of its heading.
    """
    head = "#" * level
    lines = [
        f"{head} {_cell(result.server)}",
        "",
        f"Models: {', '.join(f'`{_cell(name)}`' for name in result.models)}.",
        "",
        *_table(GROUP_COLUMNS, count_groups(result)),
        "",
        *_table(
            ("clause", "level", "what it says", "result", "detail"),
            [
                [f"`{finding.id}`", finding.level, finding.title, _mark(finding), _code(describe_finding(finding))]
                for finding in result.findings
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _mark(finding: Finding) -> str:
    return f"**{finding.outcome}**" if finding.outcome == Outcome.FAIL else finding.outcome


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in ([*columns], ["---"] * len(columns), *rows)]


def _cell(text: str) -> str:
    """Text of a server in a cell: it is neither markup nor a new column."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#~" else char for char in text)


def _code(text: str) -> str:
    return f"`` {text.replace('`', chr(39)).replace('|', chr(0x2502))} ``" if text else ""


def _render_html(result: Result) -> str:
    rows = "".join(
        "<tr>"
        f"<td><code>{_escape(finding.id)}</code></td><td>{finding.level}</td>"
        f"<td>{_escape(finding.title)}{_small(finding.note)}</td>"
        f"<td>{_link(finding.source)}</td>"
        f'<td style="color:{_MARKS[finding.outcome]}">{finding.outcome}</td>'
        f"<td>{_escape(describe_finding(finding))}</td></tr>\n"
        for finding in result.findings
    )
    counts = "".join(f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>\n" for row in count_groups(result))
    title = f"V2 conformance of {_escape(result.server)}"
    verdict = "No clause of level MUST fails." if result.is_conforming else "Clauses of level MUST fail."
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        "<style>body{font-family:sans-serif;margin:2em}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;"
        "vertical-align:top;overflow-wrap:anywhere}table{border-collapse:collapse;margin:1em 0}</style>\n"
        f"<h1>{title}</h1>\n<p>{_escape(result.url)}. {verdict}</p>\n"
        f"<table><tr>{''.join(f'<th>{column}</th>' for column in GROUP_COLUMNS)}</tr>\n{counts}</table>\n"
        "<table><tr><th>clause</th><th>level</th><th>what it says</th><th>source</th><th>result</th><th>detail</th></tr>\n"
        f"{rows}</table></html>\n"
    )


def _escape(text: str) -> str:
    return html.escape(text)


def _small(note: str) -> str:
    return f"<br><small>{_escape(note)}</small>" if note else ""


def _link(source: str) -> str:
    return f'<a href="{SOURCES[source.split(":")[0]]}">{_escape(source)}</a>'
