"""`argosy status` and `argosy stats`: what a server runs, and how it does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from argosy.cli.shell import Shell, Table, command, format_bytes, format_seconds

if TYPE_CHECKING:
    from argosy.client import AdminClient

__all__ = ["stats", "status"]


@command("status")
def status(shell: Shell) -> None:
    """Show the server's deployments, their versions, workers and problems.

    A line for each version that runs, or waits to:

    \b
    NAME      of the deployment, as it stands in URLs
    MODEL     of the store; VERSION is its version, "(drains)" while it answers what it had been given
    READY     whether a replica answers
    TRAFFIC   share of the requests that name no version
    REPLICAS  those that answer, of those that should
    MEMORY    of all replicas, as measured when they had loaded
    RUNTIME   what runs the version, and the precision where one was chosen
    GOLDEN    examples with known answers that it is held against when it loads; "synthetic" ones have random inputs
    """  # noqa: D301 - click's own mark
    from argosy.client import AdminClient

    with AdminClient(shell.home) as admin:
        found = admin.status()
    rows = [row for deployment in found["deployments"] for row in _build_status_rows(deployment)]
    notes = [note for deployment in found["deployments"] for note in _list_notes(deployment)]
    columns = ("name", "model", "version", "ready", "traffic", "replicas", "memory", "runtime", "golden")
    addresses = ", ".join(f"{name} {address}" for name, address in admin.addresses.items())
    shell.show(
        {"pid": admin.pid, "started_s": admin.started_s, "restarts": admin.num_restarts, "addresses": admin.addresses, **found},
        f"server: process {admin.pid}, {_describe_start(admin)}, {addresses}",
        f"ready: {'yes' if found['is_ready'] else 'no'}",
        f"memory: {format_bytes(found['memory_free_bytes'])} free of {format_bytes(found['memory_limit_bytes'])}",
        Table(columns, rows) if rows else "nothing is deployed; argosy deploy NAME deploys a model",
        *notes,
    )


def _describe_start(admin: AdminClient) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(admin.started_s))
    return f"restarted ({admin.num_restarts}) at {moment}" if admin.num_restarts else f"started at {moment}"


def _build_status_rows(deployment: dict[str, Any]) -> list[tuple[str, ...]]:
    spec = deployment["spec"]
    if not deployment["lanes"]:
        return [(spec["name"], spec["model"], str(spec["version"]), "no", "", f"0/{spec['replicas'] or '?'}", "", "", "")]
    return [
        (
            spec["name"],
            spec["model"],
            f"{lane['version']} (drains)" if lane["is_draining"] else str(lane["version"]),
            "yes" if lane["ready_replicas"] else "no",
            f"{lane['weight']:.0%}",
            f"{lane['ready_replicas']}/{lane['replicas'] or '?'}",
            format_bytes(sum(worker["memory_bytes"] for worker in lane["workers"])),
            " ".join(filter(None, (lane["runtime"], lane["precision"]))),
            f"{lane['num_golden']}{' synthetic' if lane['golden_is_synthetic'] else ''}",
        )
        for lane in deployment["lanes"]
    ]


def _list_notes(deployment: dict[str, Any]) -> list[str]:
    """What a table has no column for: problems, deaths, why rows are not joined, rollouts under way or failed."""
    name = deployment["spec"]["name"]
    notes = [f"{name} is not ready: {deployment['reason']}"] if not deployment["is_ready"] else []
    if deployment["problem"] and deployment["problem"] != deployment["reason"]:
        notes.append(f"{name}: {deployment['problem']}")
    for lane in deployment["lanes"]:
        if lane["join_refusal"]:
            notes.append(f"{name} version {lane['version']}: rows are not joined: {lane['join_refusal']}")
        elif lane["pad_refusal"]:
            notes.append(f"{name} version {lane['version']}: rows of different lengths are not joined: {lane['pad_refusal']}")
        for worker in lane["workers"]:
            if worker["deaths"]:
                notes.append(f"{name}: worker {worker['name']} died {worker['deaths']} times, last: {worker['last_death']}")
    latest = deployment["rollouts"][:1]
    notes += [
        f"{name}: rollout {rollout['id']} to version {rollout['spec']['version']} is {rollout['state']}"
        for rollout in latest
        if rollout["state"] != "done"
    ]
    return notes


@command("stats")
def stats(shell: Shell) -> None:
    """Show counters since the server's start: answers, refusals, batches and why they were closed, latency.

    A line for each version:

    \b
    OK          requests that were answered
    BAD         refused for the request: its body, shapes, values (4xx)
    FAULT       failed in the model or the server, or too late (5xx but 503)
    REFUSED     not taken now: the queue is full, no replica answers (429, 503)
    QUEUED      rows that wait now
    BATCHES     runs of the model; ROWS/BATCH is how many rows each had, on average
    PADDING     share of what ran that only filled up shorter rows
    SERVICE     what a run took, on average, in its worker
    IN QUEUE    what a request waited before its run, on average
    P50, P99    within which half, and 99 %, of the requests were answered
    """  # noqa: D301 - click's own mark
    from argosy.client import AdminClient

    with AdminClient(shell.home) as admin:
        found = admin.stats()
    columns = (
        *("name", "version", "ok", "bad", "fault", "refused", "queued"),
        *("batches", "rows/batch", "padding", "service", "in queue", "p50", "p99"),
    )
    shell.show(found, Table(columns, [_build_stats_row(series) for series in found["series"]]), *_explain_batches(found))


def _build_stats_row(series: dict[str, Any]) -> tuple[str, ...]:
    counts = ("ok", "bad_request", "fault", "refused", "queued_rows", "batches")
    return (
        series["name"],
        series["version"],
        *(str(series[name]) for name in counts),
        f"{series['mean_batch_rows']:.1f}",
        f"{series['padding_share']:.0%}" if series["padding_share"] else "",
        *(format_seconds(series[name]) for name in ("mean_service_s", "mean_queue_s", "p50_s", "p99_s")),
    )


_CLOSED: Final = {
    "idle": "a replica was idle and took all that waited",
    "full": "the most rows allowed (max_batch_rows)",
    "bytes": "the most bytes that are joined",
    "shape": "what else waits has another shape, or is too different in length",
    "deadline": "with more rows it would come too late",
    "pays": "more rows would not raise rows/s, as measured",
    "shared": "the rest went to another idle replica",
    "single": "rows are not joined",
    "alone": "sent again after a failure",
}


_JOINING: Final = (
    ("join_refusal", "rows are not joined"),
    ("joining", "rows are joined"),
    ("pad_refusal", "rows of different lengths are not joined"),
)


def _explain_batches(found: dict[str, Any]) -> list[str]:
    """Why batches have the size that they have, for each version that ran any."""
    notes: list[str] = []
    for series in found["series"]:
        if not series["batches"]:
            continue
        name = f"{series['name']} version {series['version']}"
        reasons = sorted(((count, reason) for reason, count in series["closed"].items() if count), reverse=True)
        sizes = ", ".join(_describe_size(size) for size in series["sizes"])
        notes.append(f"{name}: batches by rows: {sizes}; closed because:")
        notes += [f"  {count / series['batches']:4.0%}  {_CLOSED[reason]}" for count, reason in reasons]
    refused = {
        f"{lane['name']} version {lane['version']}: {what}: {lane[key]}"
        for lanes in found["fronts"].values()
        for lane in lanes
        for key, what in _JOINING
        if lane[key] and not (key != "join_refusal" and lane["join_refusal"])
    }
    return notes + sorted(refused)


def _describe_size(size: dict[str, Any]) -> str:
    return f"more {size['batches']}" if size["max_rows"] is None else f"<= {size['max_rows']} {size['batches']}"
