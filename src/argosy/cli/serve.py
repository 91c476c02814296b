"""`argosy serve`, `argosy stop`, `argosy restart` and `argosy config show`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from argosy.cli.shell import Shell, Table, command

if TYPE_CHECKING:
    from argosy.deploy.ledger import Ledger

__all__ = ["config", "restart", "serve", "stop"]


@command("serve")
@click.option("--host", help="Address of the HTTP, gRPC and metrics listeners.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="V2 over HTTP; 0 takes a free port.  [default: 8000]")
@click.option("--grpc-port", type=int, help="V2 over gRPC; 0 takes a free port.  [default: 8001]")
@click.option("--metrics-port", type=int, help="Prometheus; 0 takes a free port.  [default: 8002]")
@click.option("--admin-port", type=int, help="Admin API, on 127.0.0.1 alone; 0 takes a free port.  [default: 8003]")
@click.option("--num-fronts", type=int, help="Processes that accept requests.  [default: 1]")
@click.option("--max-body-bytes", type=int, help="Largest request body.  [default: 64 MiB]")
@click.option("--max-intake-bytes", type=int, help="Of all bodies that are not complete yet, in one front.  [default: 1 GiB]")
@click.option("--max-connections", type=int, help="Of one front, for each protocol.  [default: 4096, or what descriptors allow]")
@click.option("--memory-limit-bytes", type=int, help="What all workers may use together.  [default: 90 % of the machine's]")
@click.option("--drain-s", type=float, help="How long new connections are served after SIGTERM.  [default: 5]")
@click.option(
    "--hang-timeout-s",
    type=float,
    help="After this a worker hangs whose batches were never measured.  [default: 30]",
)
@click.option("--deploy", "references", multiple=True, metavar="NAME[@VERSION]", help="Deploy at the start; may be repeated.")
def serve(shell: Shell, references: tuple[str, ...], **settings: Any) -> None:
    """Serve the deployments of this ARGOSY_HOME until told to stop.

    Settings come from here, else from the environment (ARGOSY_HTTP_PORT ...), else from the table [serve] of
    config.toml in ARGOSY_HOME; argosy config show says which source won.
    """
    from argosy.config import load_serve_config
    from argosy.errors import ConflictError
    from argosy.home import find_holder
    from argosy.serve.wire.output import guard_output
    from argosy.server import exec_server

    running = find_holder(shell.home)
    chosen, _ = load_serve_config(settings, home=shell.given_home)
    if running is not None:
        raise ConflictError("server_running", pid=running, home=shell.home)
    rollouts = _request_all(shell, references)
    # A server serves, whether somebody reads what it says or not.
    guard_output()
    shell.show({"pid": os.getpid(), "settings": chosen, "rollouts": rollouts})
    # What Python holds back is lost when this process becomes another.
    sys.stdout.flush()
    exec_server(chosen, settings)


def _request_all(shell: Shell, references: tuple[str, ...]) -> list[object]:
    """Record what is to be deployed; a store that cannot be opened is refused before there is a server."""
    from argosy.store.database import Database

    database = Database(shell.home / "argosy.db")
    # The control process opens the whole store, with NumPy, which takes a tenth of a second: not twice if it need not be.
    if not references and database.path.exists() and database.check():
        return []
    ledger = shell.open_ledger()
    return [rollout for reference in references if (rollout := _request(ledger, reference))]


def _request(ledger: Ledger, reference: str) -> object:
    """Record that a version is to be deployed; None where it is live with these settings already."""
    spec = ledger.plan(reference)
    if any(deployment.is_live and deployment.spec == spec for deployment in ledger.list_deployments()):
        return None
    return ledger.request_rollout(spec)


@command("stop")
@click.option("--timeout-s", type=click.FloatRange(0), default=60.0, show_default=True, help="How long to wait for its end.")
def stop(shell: Shell, timeout_s: float) -> None:
    """End the server of this ARGOSY_HOME, and wait until it has gone.

    For --drain-s of argosy serve it serves new connections still, so that proxies have time to ask elsewhere; requests under way
    are answered. A second argosy stop meanwhile ends it at once.
    """
    import time

    from argosy.server import stop_server

    before_s = time.monotonic()
    pid = stop_server(shell.home, timeout_s)
    took_s = time.monotonic() - before_s
    shell.show({"pid": pid, "took_s": took_s}, f"the server (process {pid}) has ended, after {took_s:.1f} s")


@command("restart")
def restart(shell: Shell) -> None:
    """Run the server anew in the same process, with the code and the settings that are on disk now.

    Its ports stay open: requests under way are answered, for --drain-s new connections are served as before, and who connects
    after that waits for the new server. Settings come from where `argosy serve` had them.
    """
    from argosy.server import Server, restart_server

    state = restart_server(shell.home)
    server = Server(shell.home, state)
    shell.show(
        {"pid": server.pid, "url": server.url, "num_restarts": state["num_restarts"]},
        f"process {server.pid} runs anew: {server.url}",
    )


@click.group("config")
def config() -> None:
    """Settings of the server."""


@command("show")
def show(shell: Shell) -> None:
    """Show every setting of the server, and which source won."""
    import msgspec

    from argosy.config import load_serve_config

    _ = shell.home  # Refused where it is a file.
    chosen, sources = load_serve_config(home=shell.given_home)
    values = msgspec.to_builtins(chosen)
    data = {name: {"value": value, "source": sources[name]} for name, value in values.items()}
    rows = [(name, str(value), sources[name]) for name, value in values.items()]
    shell.show(data, Table(("setting", "value", "source"), rows))


config.add_command(show)
