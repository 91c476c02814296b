"""Start a server: in place of this process (`argosy serve`), or beside it (notebooks, tests)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from argosy.config import ServeConfig, load_serve_config
from argosy.errors import ConflictError, FaultError
from argosy.home import find_holder, find_server
from argosy.serve.wire.counters import MEMORY_BYTES

if TYPE_CHECKING:
    from argosy.client import AdminClient, AsyncClient, Client

__all__ = ["Server", "exec_server", "serve"]

_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.01


def _build_command(config: ServeConfig, *, stop_with_stdin: bool) -> list[str]:
    job = {"config": msgspec.to_builtins(config), "counters_bytes": MEMORY_BYTES, "stop_with_stdin": stop_with_stdin}
    return [sys.executable, "-P", "-m", "argosy.serve.node.supervisor", json.dumps(job)]


def _refuse_second(config: ServeConfig) -> None:
    pid = find_holder(Path(config.home))
    if pid is not None:
        raise ConflictError("server_running", pid=pid, home=config.home)


def exec_server(config: ServeConfig) -> NoReturn:
    """Become the server; this process is the supervisor from now on.

    Raises:
        ConflictError: a server runs for this ARGOSY_HOME already.
    """
    _refuse_second(config)
    command = _build_command(config, stop_with_stdin=False)
    os.execv(command[0], command)  # noqa: S606 - the command is ours


class Server:
    """A server that runs beside this process.

    Attributes:
        home: its ARGOSY_HOME.
        pid: of its supervisor.
        url: of the V2 API over HTTP.
        grpc_address: host and port of the V2 API over gRPC.
        metrics_url: of the Prometheus page.
        admin_url: of the admin API, which needs the token.
    """

    def __init__(self, home: Path, state: dict[str, Any]) -> None:
        self.home = home
        self.pid: int = state["pid"]
        # A listener on every address is reached by the loopback one; an IPv6 address needs its brackets.
        given: str = state["host"]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given, given)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        self.url = f"http://{host}:{state['http_port']}"
        self.grpc_address = f"{host}:{state['grpc_port']}"
        self.metrics_url = f"http://{host}:{state['metrics_port']}/metrics"
        self.admin_url = f"http://127.0.0.1:{state['admin_port']}"

    def client(self) -> Client:
        """A client of this server."""
        from argosy.client import Client

        return Client(self.url)

    def async_client(self) -> AsyncClient:
        """An asynchronous client of this server."""
        from argosy.client import AsyncClient

        return AsyncClient(self.url)

    def admin(self) -> AdminClient:
        """A client of the admin API: deploy, roll back, status."""
        from argosy.client import AdminClient

        return AdminClient(self.home)

    def deploy(self, reference: str, *, name: str | None = None, allow_signature_change: bool = False, **settings: Any) -> None:
        """Deploy or roll out a version, and wait until it holds all of the traffic.

        Args:
            reference: NAME, NAME@VERSION or NAME@ALIAS.
            name: of the deployment; default: the model's.
            allow_signature_change: the version may take and give other tensors than the live one does.
            settings: fields of `argosy.DeploymentSpec`; those not given keep an existing deployment's values.

        Raises:
            NotFoundError: no such version.
            NotAllowedError: `signature_changes`, with what differs.
            FaultError: the rollout failed; the version that was live still is.
        """
        from argosy.deploy.ledger import Ledger
        from argosy.store.local import Store

        ledger = Ledger(Store(self.home))
        spec = ledger.plan(reference, name=name, **settings)
        with self.admin() as admin:
            admin.wait(admin.deploy(spec, allow_signature_change=allow_signature_change).id)


@contextmanager
def serve(*references: str, home: Path | str | None = None, **settings: Any) -> Generator[Server, None, None]:
    """Run a server on free ports for the length of a `with` block.

    Args:
        references: versions to deploy at the start: NAME, NAME@VERSION or NAME@ALIAS.
        home: folder that holds all state; default ARGOSY_HOME.
        settings: fields of `argosy.config.ServeConfig`.

    Raises:
        ConflictError: a server runs for this home already.
        FaultError: the server did not start, or a version could not be deployed.
    """
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port", "admin_port"), 0)
    config, _ = load_serve_config({**ports, **settings}, home=home)
    _refuse_second(config)
    folder = Path(config.home)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / "serve.log"
    with log.open("ab") as output:
        # The server stops when this process is gone, however it ends: its standard input closes then.
        command = _build_command(config, stop_with_stdin=True)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        server = _await_start(process, folder, log)
        for reference in references:
            server.deploy(reference)
        yield server
    finally:
        _stop(process)


def _await_start(process: subprocess.Popen[bytes], home: Path, log: Path) -> Server:
    import httpx

    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        state = find_server(home)
        if state is not None and state["pid"] == process.pid:
            server = Server(home, state)
            try:
                # Not through a proxy that the environment may name.
                with httpx.Client(trust_env=False, timeout=_START_TIMEOUT_S) as client:
                    if client.get(f"{server.url}/v2/health/live").status_code == 200:
                        return server
            except httpx.TransportError:
                pass
        time.sleep(_POLL_S)
    raise FaultError("server_failed", detail=log.read_text(errors="replace")[-1000:].strip() or "no output")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()
