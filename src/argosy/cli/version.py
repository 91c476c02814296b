"""How the commands that make a version show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from argosy.cli.shell import Shell, Table, format_bytes, format_measurement

if TYPE_CHECKING:
    from argosy.store.manifest import Version

__all__ = ["describe_version", "format_head", "show_version"]


def show_version(shell: Shell, version: Version) -> None:
    """Write a version that was just made, and what is known of it."""
    if (failure := version.manifest.lineage.get("example_error")) is not None:
        shell.say(f"warning: {version.name}@{version.number} cannot be deployed: it ran none of the examples that were tried")
        shell.say(f"  {failure}\n  import it again with --sample and a few real rows")
    rows = [(name, format_measurement(name, value)) for name, value in version.measurements.items()]
    shell.show(describe_version(version), format_head(version), *([Table(("measurement", "value"), rows)] if rows else []))


def describe_version(version: Version) -> dict[str, Any]:
    """Give a version that was just made as JSON data."""
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "runtime": version.manifest.runtime,
        "num_golden": version.manifest.num_golden,
        "golden_is_synthetic": version.manifest.golden_is_synthetic,
        "measurements": version.measurements,
    }


def format_head(version: Version) -> str:
    """Give a version in a line: its reference, its runtime, its size."""
    return f"{version.name}@{version.number}  {version.manifest.runtime}, {format_bytes(version.size_bytes)}"
