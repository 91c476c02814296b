"""Start a server: in place of this process (`argosy serve`), or beside it (notebooks, tests); and have one succeeded."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from argosy.config import ServeConfig, load_serve_config
from argosy.errors import ArgosyError, ConflictError, FaultError, UnavailableError
from argosy.home import SUCCESSOR_FILE, find_holder, find_server
from argosy.serve.node.children import MODULES
from argosy.serve.wire.counters import MEMORY_BYTES

if TYPE_CHECKING:
    from argosy.client import AdminClient, AsyncClient, Client

__all__ = ["Server", "exec_server", "restart_server", "serve", "stop_server"]

_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.01
_LOOK_S: Final = 0.5
"""A trial is asked for so long before it is looked at again whether its processes live."""
_RESTART_TIMEOUT_S: Final = 60.0
"""Beyond `drain_s`: for requests that are under way, and for the successor to answer."""
_MAX_DETAIL: Final = 1000
_TRIAL_TIMEOUT_S: Final = 75.0
"""For a trial, in which a server starts and stops."""
_PORTS: Final = ("http_port", "grpc_port", "metrics_port", "admin_port")
_KEPT: Final = ("host", *_PORTS, "num_fronts")
"""What a successor has as its predecessor had it."""


def _build_job(config: ServeConfig, given: Mapping[str, object], *, stop_with_stdin: bool) -> str:
    """What the supervisor is told."""
    job = {
        "config": msgspec.to_builtins(config),
        "counters_bytes": MEMORY_BYTES,
        "stop_with_stdin": stop_with_stdin,
        "given": {name: value for name, value in given.items() if value is not None},
    }
    return json.dumps(job)


def _build_command(job: str) -> list[str]:
    return [sys.executable, "-P", "-m", "argosy.serve.node.supervisor", job]


def _refuse_second(config: ServeConfig) -> None:
    pid = find_holder(Path(config.home))
    if pid is not None:
        raise ConflictError("server_running", pid=pid, home=config.home)


def exec_server(config: ServeConfig, given: Mapping[str, object]) -> NoReturn:
    """Become the server; this process is the supervisor from now on.

    Args:
        config: its settings.
        given: those of them that stand neither in the environment nor in a file, for its successors.

    Raises:
        ConflictError: a server runs for this ARGOSY_HOME already.
    """
    _refuse_second(config)
    command = _build_command(_build_job(config, given, stop_with_stdin=False))
    os.execv(command[0], command)  # noqa: S606 - the command is ours


def stop_server(home: Path, timeout_s: float = 60.0) -> int:
    """End the server of a home as by SIGTERM, and wait until it has gone.

    Args:
        home: whose server.
        timeout_s: how long to wait for its end: `drain_s`, and requests that are under way.

    Returns:
        The process that has ended.

    Raises:
        UnavailableError: `no_server`, none runs.
        FaultError: `stop_failed`, it is another user's, or has not ended in time; it ends still.
    """
    pid = _find_pid(home)
    if pid is None:
        raise UnavailableError("no_server", home=home)
    try:
        with _open_pidfd(pid) as pidfd:
            # Its number may be another process' by now.
            if _find_pid(home) == pid:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            waiter = select.poll()
            waiter.register(pidfd, select.POLLIN)
            if not waiter.poll(timeout_s * 1e3):
                raise FaultError("stop_failed", pid=pid, detail=f"has not ended within {timeout_s:g} s")
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError as error:
        raise FaultError("stop_failed", pid=pid, detail=f"cannot be told to end: {error.strerror}") from error
    return pid


def _find_pid(home: Path) -> int | None:
    state = find_server(home)
    return find_holder(home) if state is None else state["pid"]


def restart_server(home: Path) -> dict[str, Any]:
    """Have the server of a home succeeded by itself, with the code and the settings that are on disk now.

    Its process, its ports and its environment stay. Who connects meanwhile waits for the successor. Returns the state of that,
    once it answers; and where the server was ready before, once it is again.

    Raises:
        UnavailableError: none runs; `server_hidden`, one does, but the file that says where is damaged.
        InputError: the settings on disk cannot be used.
        ConflictError: they are of another server: address, ports or number of fronts differ.
        FaultError: `restart_refused`, a successor could not be started, and the server goes on as it was; `unwritable`, as well;
            `restart_failed`, the successor did not come up.
    """
    try:
        return _restart(home)
    except ProcessLookupError as error:  # It was on its way out.
        raise UnavailableError("no_server", home=home) from error


def _restart(home: Path) -> dict[str, Any]:
    old = find_server(home)
    if old is None:
        if (holder := find_holder(home)) is not None:
            raise UnavailableError("server_hidden", pid=holder, home=home, path=home / "run" / "serve.json")
        raise UnavailableError("no_server", home=home)
    pid: int = old["pid"]
    with _open_pidfd(pid) as pidfd:
        config, _ = load_serve_config(old["given"], home=home, environment=_read_environment(pid))
        for name in _KEPT:
            want = getattr(config, name)
            # A port of 0 stands for whichever it has.
            if want != old[name] and not (want == 0 and name.endswith("_port")):
                raise ConflictError("restart_other", setting=name, got=want, expected=old[name])
        was_ready = _asks(Server(home, old), "/v2/health/ready")
        job = _build_job(config, old["given"], stop_with_stdin=old["stop_with_stdin"])
        _try_program(pid, job)
        _write_private(home / "run" / SUCCESSOR_FILE, job)
        signal.pidfd_send_signal(pidfd, signal.SIGUSR2)
        deadline = time.monotonic() + config.drain_s + _RESTART_TIMEOUT_S
        while time.monotonic() < deadline and not select.select([pidfd], [], [], _POLL_S)[0]:
            # While it becomes another program, it is none that can be found.
            state = find_server(home)
            if state is None:
                continue
            # One of an earlier Argosy does not tell.
            refused = state.get("refused_restarts", [])
            if state["token"] == old["token"] and len(refused) > len(old.get("refused_restarts", [])):
                raise FaultError("restart_refused", pid=pid, detail=refused[-1])
            if state["token"] != old["token"] and _asks(server := Server(home, state), "/v2/health/live"):
                # Its models take as long as they take.
                while was_ready and not select.select([pidfd], [], [], _POLL_S)[0] and not _asks(server, "/v2/health/ready"):
                    pass
                return state
    raise FaultError("restart_failed", pid=pid)


def _try_program(pid: int, job: str) -> None:
    """See that a successor can be started, by the server's own interpreter and in its environment, before the server gives way.

    Raises:
        FaultError: `restart_refused`.
    """
    python = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0])
    command = [python, "-P", "-m", "argosy.server", job]
    try:
        done = subprocess.run(
            command,
            env=_read_environment(pid),
            cwd=f"/proc/{pid}/cwd",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FaultError("restart_refused", pid=pid, detail=f"{python} cannot be run: {error}") from error
    if done.returncode:
        detail = done.stderr.decode(errors="replace").strip()[-_MAX_DETAIL:] or f"exit code {done.returncode}"
        raise FaultError("restart_refused", pid=pid, detail=f"a trial of its successor failed: {detail}")


def _rehearse(job: dict[str, Any]) -> None:
    """Start a server as a successor would be, beside the one that runs: with its settings, but with a home and ports of its own.

    Raises:
        ArgosyError: the home's store cannot be opened, or the server does not start.
    """
    from argosy.deploy.ledger import Ledger
    from argosy.store.local import Store

    config: dict[str, Any] = job["config"]
    home = Path(config.pop("home"))
    for module in MODULES:
        importlib.import_module(module)
    # What its control process begins with: fronts answer nothing before that.
    Ledger(Store(home)).list_deployments()
    own = {**config, "host": "127.0.0.1", **dict.fromkeys(_PORTS, 0), "drain_s": 0.0}
    with _explain_write(home / "run"):
        scratch = tempfile.TemporaryDirectory(prefix="trial-", dir=home / "run")
    with scratch as folder, _run(load_serve_config(own, home=folder)[0], own, is_trial=True):
        pass


@contextmanager
def _open_pidfd(pid: int) -> Generator[int, None, None]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _read_environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with.

    Raises:
        ProcessLookupError: it has ended.
    """
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    return dict(os.fsdecode(pair).split("=", 1) for pair in pairs if b"=" in pair)


def _write_private(path: Path, text: str) -> None:
    """Write a file that no other user may read, at once.

    Raises:
        FaultError: `unwritable`.
    """
    temporary = path.with_suffix(".new")
    with _explain_write(path):
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        temporary.replace(path)


@contextmanager
def _explain_write(path: Path) -> Generator[None, None, None]:
    """Turn what the disk refuses into FaultError."""
    try:
        yield
    except OSError as error:
        raise FaultError("unwritable", path=path, detail=error.strerror or error) from error


def _asks(server: Server, path: str, timeout_s: float = _START_TIMEOUT_S) -> bool:
    """Say whether the server answers 200 there; a front that has not begun to accept is waited for."""
    import httpx

    try:
        # Not through a proxy that the environment may name.
        with httpx.Client(trust_env=False, timeout=timeout_s) as client:
            return client.get(f"{server.url}{path}").status_code == 200
    except httpx.TransportError:
        return False


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
    # Who else knows of these ports? At the end of the block nobody need be given time to find another server.
    own = {**dict.fromkeys(_PORTS, 0), "drain_s": 0.0, **settings}
    config, _ = load_serve_config(own, home=home)
    with _run(config, own) as server:
        for reference in references:
            server.deploy(reference)
        yield server


@contextmanager
def _run(config: ServeConfig, given: Mapping[str, object], *, is_trial: bool = False) -> Generator[Server, None, None]:
    """Run a server in a process of its own; of a trial, no process of it may die while it starts."""
    _refuse_second(config)
    folder = Path(config.home)
    log = folder / "serve.log"
    with _explain_write(log):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = log.open("ab")
    with output:
        # The server stops when this process is gone, however it ends: its standard input closes then.
        command = _build_command(_build_job(config, given, stop_with_stdin=True))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        yield _await_start(process, folder, log, is_trial=is_trial)
    finally:
        _stop(process, config.drain_s)


def _await_start(process: subprocess.Popen[bytes], home: Path, log: Path, *, is_trial: bool) -> Server:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None or (is_trial and b" died: " in log.read_bytes()):
            break
        state = find_server(home)
        if state is not None and state["pid"] == process.pid:
            server = Server(home, state)
            if _asks(server, "/v2/health/live", _LOOK_S if is_trial else _START_TIMEOUT_S):
                return server
        time.sleep(_POLL_S)
    # Of a trial nothing can be looked up later.
    logs = [log, *(sorted((home / "run" / "logs").glob("*.log")) if is_trial else ())]
    detail = "\n".join(text[-_MAX_DETAIL:] for path in logs if (text := path.read_text(errors="replace").strip()))
    raise FaultError("server_failed", detail=detail or "no output")


def _stop(process: subprocess.Popen[bytes], drain_s: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(drain_s + _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _main() -> None:
    """Run as `python -m argosy.server JOB`: end with code 0 if a successor with this job can be started, else say why not."""
    try:
        _rehearse(json.loads(sys.argv[1]))
    except ArgosyError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
