"""`argosy deploy`, `argosy undeploy`, `argosy rollback`: change what is served."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import Shell, command

if TYPE_CHECKING:
    from argosy.client import AdminClient
    from argosy.deploy.spec import Rollout, RolloutEvent

__all__ = ["deploy", "roll_out", "rollback", "undeploy"]

_allow_signature_change = click.option(
    "--allow-signature-change",
    is_flag=True,
    help="Let the version take and give other tensors than the live one does; holds for this rollout alone.",
)


@command("deploy")
@click.argument("reference", metavar="NAME[@VERSION|@ALIAS]")
@click.option("--as", "name", metavar="DEPLOYMENT", help="Name in URLs.  [default: the model's]")
@click.option("--replicas", type=int, help="Loaded copies, each in a worker of its own; 0 finds how many pay.  [default: 1]")
@click.option("--max-batch-rows", type=int, help="Rows that are joined at most.  [default: 64]")
@click.option("--timeout-s", type=float, help="Deadline of a request that names none.  [default: 30]")
@click.option("--max-queue-rows", type=int, help="Rows that may wait.  [default: 4096]")
@click.option("--max-queue-bytes", type=int, help="Bytes that may wait in one front.  [default: 256 MiB]")
@click.option("--threads", type=int, help="Threads of one operator; 0 finds how many pay.  [default: 0]")
@click.option(
    "--share-weights/--no-share-weights",
    default=None,
    help="Replicas share the pages of their weights.  [default: where these are in files beside the graph]",
)
@click.option(
    "--allow-code/--no-allow-code",
    default=None,
    help="Allow a version that may run code of its maker (python, tensorflow, torch).",
)
@click.option("--max-streams", type=int, help="Raw requests that a replica answers at once.  [default: 16]")
@click.option("--runtime", help="What runs the version, such as openvino for an ONNX file.  [default: the version's own]")
@click.option("--precision", help="What openvino computes in: float32 or bfloat16.  [default: float32]")
@_allow_signature_change
@click.option(
    "--exact/--no-exact",
    default=None,
    help="Answers are equal to the bit to those of a request alone: rows of several are not joined.  [default: no]",
)
@click.option("--wait/--no-wait", "is_waiting", default=True, help="Wait until the version takes requests.  [default: wait]")
def deploy(
    shell: Shell, reference: str, name: str | None, is_waiting: bool, allow_signature_change: bool, **settings: Any
) -> None:
    """Deploy a version, or roll a deployment out to another one.

    Settings that are not given stay as the deployment has them. Without a running server this records what the
    next argosy serve will do.
    """
    roll_out(shell, reference, name, is_waiting, allow_signature_change=allow_signature_change, **settings)


def roll_out(
    shell: Shell,
    reference: str,
    name: str | None = None,
    is_waiting: bool = True,
    *,
    made: dict[str, Any] | None = None,
    allow_signature_change: bool = False,
    **settings: Any,
) -> None:
    """Deploy a version and show how that goes, and how to call it; `made` is a version to show with it in JSON."""
    from argosy.cli.snippet import build_snippet

    known = {"version": made} if made else {}
    ledger = shell.open_ledger()
    spec = ledger.plan(reference, name=name, **settings)
    admin = shell.find_admin()
    if admin is None:
        _show_recorded(shell, ledger.request_rollout(spec, allow_signature_change=allow_signature_change), known)
        _warn_of_package(shell, spec.runtime)
        return
    with admin:
        rollout = admin.deploy(spec, allow_signature_change=allow_signature_change)
        if not is_waiting:
            _show_begun(shell, rollout, known)
            return
        rollout, events = _follow(shell, admin, rollout)
    snippet = build_snippet(admin.url, spec.name, ledger.store, ledger.store.get_version(f"{spec.model}@{spec.version}"))
    shell.show(
        known | {"rollout": rollout, "events": events, "curl": snippet.curl, "python": snippet.python},
        f"{spec.name} answers with {spec.model}@{spec.version} at {admin.url}/v2/models/{spec.name}",
        f"\n{snippet.curl}\n\n{snippet.python}",
    )


@command("undeploy")
@click.argument("name")
def undeploy(shell: Shell, name: str) -> None:
    """Forget a deployment and stop its workers; its versions stay in the store."""
    admin = shell.find_admin()
    if admin is None:
        shell.open_ledger().remove_deployment(name)
    else:
        with admin:
            admin.undeploy(name)
    shell.show({"removed": name}, f"{name} is not deployed any more")


@command("rollback")
@click.argument("name")
@_allow_signature_change
@click.option("--wait/--no-wait", "is_waiting", default=True, help="Wait until the version takes requests.  [default: wait]")
def rollback(shell: Shell, name: str, is_waiting: bool, allow_signature_change: bool) -> None:
    """Roll a deployment back to the version that held all of its traffic before the live one.

    Again, it goes back to the one before that. A rollout that has not ended is taken back instead: the live version stays.
    """
    admin = shell.find_admin()
    if admin is None:
        _show_recorded(shell, shell.open_ledger().request_rollback(name, allow_signature_change=allow_signature_change))
        return
    with admin:
        rollout = admin.rollback(name, allow_signature_change=allow_signature_change)
        if not is_waiting:
            _show_begun(shell, rollout)
            return
        rollout, events = _follow(shell, admin, rollout)
    shell.show({"rollout": rollout, "events": events}, f"{name} answers with {rollout.spec.model}@{rollout.spec.version}")


def _show_recorded(shell: Shell, rollout: Rollout, known: Mapping[str, Any] = {}) -> None:
    spec = rollout.spec
    text = f"no server runs: recorded, the next `argosy serve` will deploy {spec.model}@{spec.version} as {spec.name}"
    shell.show({**known, "rollout": rollout, "events": []}, text)


def _warn_of_package(shell: Shell, runtime: str | None) -> None:
    """Tell of a runtime that was asked for and is not here; the server will say so, too, but maybe nobody looks then."""
    from argosy.environment import is_importable, lives_apart
    from argosy.runtimes.base import PACKAGES

    package = PACKAGES.get(runtime or "")
    if package is not None and not is_importable(package) and not lives_apart(package):
        shell.say(f"runtime {runtime} needs the package {package}, which is not installed here: pip install 'argosy[{runtime}]'")


def _show_begun(shell: Shell, rollout: Rollout, known: Mapping[str, Any] = {}) -> None:
    shell.show({**known, "rollout": rollout, "events": []}, f"rollout {rollout.id} has begun; argosy status tells how it goes")


def _follow(shell: Shell, admin: AdminClient, rollout: Rollout) -> tuple[Rollout, list[RolloutEvent]]:
    """Tell the reader a rollout's steps as they happen, until it is done.

    Raises:
        FaultError: it failed.
    """
    events: list[RolloutEvent] = []
    with _open_progress(shell, f"rolling out {rollout.spec.model}@{rollout.spec.version} as {rollout.spec.name}") as say:

        def tell(event: RolloutEvent) -> None:
            events.append(event)
            # A failure is told once, as the command's error.
            if event.step != "failed":
                say(f"{event.at[11:23]}  {event.step:<8}  {event.detail}")

        return admin.wait(rollout.id, tell), events


@contextlib.contextmanager
def _open_progress(shell: Shell, title: str) -> Generator[Callable[[str], None], None, None]:
    """Give what to tell steps to; on a terminal something turns below them meanwhile."""
    if not sys.stderr.isatty():
        yield shell.say
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status(Text(title)):
        yield lambda text: console.print(Text(text))
