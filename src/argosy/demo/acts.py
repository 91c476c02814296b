"""The acts of the demo: what each did, the figures that show it, and the command that does the same."""

from __future__ import annotations

from typing import NamedTuple

from argosy.demo.run import NAME, NUM_CLIENTS, OBJECTIVE, DemoResult
from argosy.demo.timeline import Phase

__all__ = ["Act", "list_acts", "tell_result"]


class Act(NamedTuple):
    """One of them."""

    name: str
    figure: str
    command: str


def list_acts(result: DemoResult) -> list[Act]:
    """The acts in their order."""
    prepared = result.prepared
    compression = prepared.compression
    history, score = prepared.run.result.history, compression.score
    part = compression.after.size_bytes / compression.before.size_bytes
    seconds = sum(epoch.duration_s for epoch in history)
    trained = f"{score.before:.1%} of {len(prepared.images)} unseen digits right after {seconds:.1f} s"
    steps = " + ".join(step.name for step in compression.recipe)
    compressed = f"{part:.1%} of the size by {steps}; {score.after:.1%} right"
    deployed = f"answers after {result.deploy_s:.2f} s; equal to PyTorch's within {result.torch_difference:.0e}"
    changes = {phase.name: _tell_change(result, phase) for phase in result.phases if phase.is_change}
    return [
        Act("train", trained, f"argosy train recipe:{NAME}"),
        Act("compress", compressed, f"argosy compress {NAME}@1 --objective {OBJECTIVE}"),
        Act("deploy", deployed, f"argosy serve --deploy {NAME}@1"),
        Act("update", changes["update"], f"argosy deploy {NAME}@2"),
        Act("roll back", changes["roll back"], f"argosy rollback {NAME}"),
    ]


def tell_result(result: DemoResult) -> str:
    """The result in a line."""
    seen = result.seen
    num_changes = sum(phase.is_change for phase in result.phases)
    asked = f"{len(seen.rows):,} requests of {NUM_CLIENTS} clients while the version changed {num_changes} times"
    return f"{asked}: {seen.num_failed:,} failed, {seen.num_wrong:,} wrong."


def _tell_change(result: DemoResult, change: Phase) -> str:
    seen = result.seen.between(change.start_s, change.end_s)
    took = f"{change.end_s - change.start_s:.2f} s under {NUM_CLIENTS} clients"
    return f"{took}: {seen.num_failed} failed, {seen.num_wrong} wrong, p99 {seen.quantile_ms(0.99):.0f} ms"
