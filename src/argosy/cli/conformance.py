"""`argosy conformance`: whether a server speaks the V2 protocol as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import EXIT_FAILED, Shell, Table, command, overwrite_option

if TYPE_CHECKING:
    from argosy.conformance import Finding, Result

__all__ = ["conformance"]


@command("conformance")
@click.argument("url", required=False)
@click.option("--grpc", "grpc_address", metavar="HOST:PORT", default="", help="Test gRPC as well; needs the extra conformance.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Test with this model too; the first one is used most.")
@click.option("--admin-token", default="", envvar="ARGOSY_ADMIN_TOKEN", help="For loading and unloading conformance-reload.")
@click.option("--extension", "extensions", multiple=True, metavar="NAME", help="Test this one though it is not announced.")
@click.option("--only", "groups", multiple=True, metavar="GROUP", help="Only these clauses, such as http.infer or grpc.")
@click.option("--report", type=click.Path(path_type=Path), help="Write all findings to this file, .md or .html.")
@overwrite_option
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds, for an answer."
)
@click.option("--write-models", "folder", type=click.Path(path_type=Path), help="Write the suite's models here, and end.")
def conformance(
    shell: Shell,
    url: str | None,
    groups: tuple[str, ...],
    report: Path | None,
    overwrite: bool,
    folder: Path | None,
    **options: Any,
) -> None:
    """Check any server at URL against the V2 inference protocol, clause by clause.

    It is tested with the models of --write-models that it has, and those of --model. The exit code is 0 when no clause of
    level MUST fails.
    """
    from argosy.conformance import Target, run_clauses, write_models
    from argosy.conformance.report import check_report_path, render_report
    from argosy.output_file import OutputFile

    if (url is None) == (folder is None):
        raise click.UsageError("Give either URL or --write-models FOLDER.")
    if folder is not None:
        names = write_models(folder)
        shell.show({"models": names}, f"wrote {len(names)} models to {folder}; its README.md says how servers are given them")
        return
    report_file = None
    if report is not None:
        check_report_path(report)
        report_file = OutputFile(report, overwrite=overwrite)
    target = Target(url or "", **options)
    try:
        result = run_clauses(target, groups, on_finding=lambda finding: _say(shell, finding))
    finally:
        target.close()
    if report_file is not None:
        report_file.write(render_report(result, report_file.path))
    _show(shell, result)
    click.get_current_context().exit(0 if result.is_conforming else EXIT_FAILED)


def _say(shell: Shell, finding: Finding) -> None:
    """Progress: failures as they are found."""
    if finding.outcome == "fail":
        shell.say(f"{finding.level} {finding.id}: {finding.title}")
        for word, text in (("sent", finding.sent), ("expected", finding.expected), ("got", finding.got)):
            if text:
                shell.say(f"    {word}: {text}")


def _show(shell: Shell, result: Result) -> None:
    from argosy.conformance.report import GROUP_COLUMNS, count_groups, describe_finding

    others = [
        [finding.id, finding.level, finding.outcome, describe_finding(finding)]
        for finding in result.findings
        if finding.outcome not in ("pass", "fail")
    ]
    fails = [[finding.id, finding.level, finding.title] for finding in result.findings if finding.outcome == "fail"]
    verdict = "no clause of level MUST fails" if result.is_conforming else "clauses of level MUST fail"
    shell.show(
        {"conforming": result.is_conforming, "result": result},
        Table(("clause", "level", "result", "why"), others),
        "",
        Table(("failed", "level", "what it says"), fails),
        "",
        Table(GROUP_COLUMNS, count_groups(result)),
        "",
        f"{result.server}: {verdict}",
    )
