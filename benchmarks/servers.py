"""Start a server, ours or a rival's; check its answers against ONNX Runtime; measure it under load; end it."""

from __future__ import annotations

import ctypes
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bodies import decode, encode, write_requests
from clients import Load, run_h2load, run_wrk
from machine import Family, busy_seconds
from models import Case
from rivals.catalogue import GRPC_PATH, PADDING, RIVALS
from rivals.environment import EntrantError, make_environment

HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 90.0
ASK_TIMEOUT_S = 30.0
_POLL_S = 0.01
# Of a connection, by which the rate over gRPC is seen for the first time.
PROBE_REQUESTS = 20
# A server rests when it uses less than this; Ray's idle processes use a tenth of a core.
REST_CORES, REST_STEP_S, MAX_REST_S = 0.25, 0.2, 5.0
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_PRCTL = ctypes.CDLL(None).prctl


@dataclass(frozen=True)
class Plan:
    """How to start one server and what to ask it.

    Attributes:
        command: the program.
        variables: of its environment.
        port: of what is asked: HTTP, or gRPC where the kind is `grpc`.
        path: of its URL.
        kind: of its bodies.
        model: its name in the bodies of gRPC.
        min_cosine: between an answer and ONNX Runtime's; None where each number must be within the case's tolerance.
    """

    command: Sequence[str]
    variables: Mapping[str, str]
    port: int
    path: str
    kind: str
    model: str
    min_cosine: float | None = None


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def plan_rival(name: str, case_name: str, case: Case, folder: Path) -> Plan:
    """A rival at its best setting for a case; its environment is made if it is not there yet.

    Raises:
        EntrantError: it does not install here, or cannot serve this model.
    """
    rival = RIVALS[name]
    if case_name not in rival.settings:
        raise EntrantError(f"has no setting for {case_name}")
    python, setting = make_environment(rival), rival.settings[case_name]
    http_port, grpc_port, metrics_port, spare_1, spare_2 = free_ports(5)
    variables = {
        "MODEL": str(case.file),
        "KIND": rival.kind,
        "FOLDER": str(folder),
        # What a server leaves in its user's home goes with the folder.
        "HOME": str(folder),
        "PORT": str(http_port),
        "GRPC_PORT": str(grpc_port),
        "METRICS_PORT": str(metrics_port),
        "SPARE_PORT_1": str(spare_1),
        "SPARE_PORT_2": str(spare_2),
        "WORKERS": str(setting.workers),
        "THREADS": str(setting.threads),
        "OMP_NUM_THREADS": str(setting.threads),
        "MAX_BATCH": str(setting.max_batch),
        "WAIT_MS": str(setting.wait_ms),
        "PAD": str(int(case_name == "lengths" and name in PADDING)),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(python), str(HERE / "rivals" / rival.program)]
    port = grpc_port if rival.kind == "grpc" else http_port
    return Plan(command, {**variables, **rival.variables, **setting.more}, port, rival.path, rival.kind, "m")


def plan_argosy(
    case: Case,
    folder: Path,
    *,
    kind: str = "v2",
    num_fronts: int = 1,
    deploy: Sequence[str] = (),
    min_cosine: float | None = None,
    tree: Path | None = None,
) -> Plan:
    """`argosy serve` with one deployment.

    Args:
        case: its model; the ARGOSY_HOME in which it is published is copied.
        folder: for the home.
        kind: of the bodies: `v2`, `binary` or `grpc`.
        num_fronts: processes that accept requests.
        deploy: flags of `argosy deploy`.
        min_cosine: see Plan.
        tree: a checkout whose Argosy it is, which then publishes the file itself: an older one cannot read a newer
            manifest. Default: the installed one.
    """
    variables = {} if tree is None else {"PYTHONPATH": str(tree / "src")}
    home = folder / "home"
    program = [sys.executable, "-m", "argosy"]
    steps = [["deploy", case.model, *deploy]]
    if tree is None:
        shutil.copytree(case.home, home)
    else:
        steps.insert(0, ["import", str(case.file), "--name", case.model])
    for step in steps:
        command = [*program, *step, "--home", str(home)]
        environment = {**os.environ, **variables}
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, env=environment)
        if done.returncode:
            raise EntrantError(f"argosy {' '.join(step)}: {done.stderr.strip()[-300:]}")
    http_port, grpc_port, metrics_port, admin_port = free_ports(4)
    ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port, "admin": admin_port}
    flags = [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
    command = [*program, "serve", "--home", str(home), "--num-fronts", str(num_fronts), *flags]
    is_grpc = kind == "grpc"
    path = GRPC_PATH if is_grpc else f"/v2/models/{case.model}/infer"
    return Plan(command, variables, grpc_port if is_grpc else http_port, path, kind, case.model, min_cosine)


def _become_root() -> None:
    # What the server leaves behind stays below it, and it ends if this process does.
    _PRCTL(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _PRCTL(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Server:
    """A server that answers rightly.

    Attributes:
        start_s: from the start of its program to its first right answer.
        family: its processes.
        client: what loads it over HTTP; gRPC has one client alone.
    """

    client: Callable[[Load], dict[str, float]]

    def __init__(self, plan: Plan, case: Case, family: Family, folder: Path) -> None:
        self.plan, self.case, self.family = plan, case, family
        self.start_s, self.client = 0.0, run_wrk
        self._reply_bytes = 0
        # Answers per second by connections, as the last load over gRPC had them.
        self._rates: dict[int, float] = {}
        if plan.kind == "grpc":
            body, self._headers = encode("grpc", plan.model, case.rows[0])
            self._requests = folder / "request.bin"
            self._requests.write_bytes(body)
        else:
            self._requests = folder / "requests.bin"
            self._headers = write_requests(case, plan.kind, plan.model, self._requests)

    def ask(self, index: int) -> np.ndarray:
        """The answer to one of the case's rows, flat.

        Raises:
            EntrantError: there is none.
        """
        body, headers = encode(self.plan.kind, self.plan.model, self.case.rows[index])
        if self.plan.kind == "grpc":
            return self._ask_grpc(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.plan.port, timeout=ASK_TIMEOUT_S)
        try:
            connection.request("POST", self.plan.path, body, dict(headers))
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise EntrantError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if reply.status != http.HTTPStatus.OK:
            raise EntrantError(f"status {reply.status}: {content[:200]!r}")
        return decode(self.plan.kind, reply.headers, content)

    def _ask_grpc(self, body: bytes) -> np.ndarray:
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{self.plan.port}") as channel:
            try:
                reply = channel.unary_unary(f"/{self.plan.path.lstrip('/')}")(body[5:], timeout=ASK_TIMEOUT_S)
            except grpc.RpcError as error:
                raise EntrantError(f"{error.code().name}: {error.details()}") from error
        self._reply_bytes = len(reply) + 5
        return decode("grpc", {}, b"\0" * 5 + reply)

    def check(self) -> None:
        """Ask all rows, one after the other and at once: a fast server that answers wrongly is no rival.

        Raises:
            EntrantError: an answer differs from ONNX Runtime's for that row alone.
        """
        indexes = range(len(self.case.rows))
        with ThreadPoolExecutor(len(indexes)) as pool:
            answers = [self.ask(index) for index in indexes] + list(pool.map(self.ask, indexes))
        for answer, index in zip(answers, [*indexes, *indexes], strict=True):
            want = self.case.answers[index].ravel()
            if answer.shape != want.shape or not self._is_close(answer, want):
                raise EntrantError(f"answers row {index} with {answer[:4]}, ONNX Runtime with {want[:4]}")

    def _is_close(self, answer: np.ndarray, want: np.ndarray) -> bool:
        if self.plan.min_cosine is None:
            return bool(np.allclose(answer, want, rtol=0, atol=self.case.tolerance))
        return float(answer @ want / np.linalg.norm(answer) / np.linalg.norm(want)) >= self.plan.min_cosine

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        """Load it for a while: requests/s, CPU of the server in us a request, latency, and who else used the machine."""
        if self.plan.kind == "grpc" and connections not in self._rates:
            self.load(connections, seconds)
        server, busy, client, start = self.family.cpu_seconds(), busy_seconds(), _own_cpu_seconds(), time.perf_counter()
        result = self.load(connections, seconds)
        elapsed = time.perf_counter() - start
        client, busy = _own_cpu_seconds() - client, busy_seconds() - busy
        server = self.family.cpu_seconds() - server
        self._await_rest()
        return {
            **result,
            "cpu_us": server / max(1, result["requests"]) * 1e6,
            "client_cores": client / elapsed,
            "other_cores": max(0.0, busy - server - client) / elapsed,
        }

    def _await_rest(self) -> None:
        """Requests that the client gave up when its time was over may still be computed: not in the next one's window."""
        deadline = time.perf_counter() + MAX_REST_S
        before = self.family.cpu_seconds()
        while time.perf_counter() < deadline:
            time.sleep(REST_STEP_S)
            after = self.family.cpu_seconds()
            if after - before < REST_CORES * REST_STEP_S:
                return
            before = after

    def load(self, connections: int, seconds: float) -> dict[str, float]:
        """Send requests over this many connections, each waiting for its answer."""
        load = Load(f"http://127.0.0.1:{self.plan.port}{self.plan.path}", self._requests, self._headers, connections, seconds)
        if self.plan.kind != "grpc":
            return self.client(load)
        # The number of requests must be given: as many as fill the time at the rate seen before.
        count = round(self._rates.get(connections, 0.0) * seconds) or connections * PROBE_REQUESTS
        result = run_h2load(load, max(connections, count), self._reply_bytes)
        self._rates[connections] = result["rps"]
        return result


def _own_cpu_seconds() -> float:
    """CPU of this process and the clients that it has started: only they are waited for in a window."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@contextmanager
def run_server(plan: Plan, case: Case, folder: Path) -> Iterator[Server]:
    """Start a server and wait for its first right answer.

    Raises:
        EntrantError: it ends, does not answer in time, or answers wrongly; with the end of its log.
    """
    # A caller's tuning of NumPy's libraries is not part of the comparison.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    log = folder / "server.log"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            plan.command,
            env={**inherited, **plan.variables},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_become_root,
        )
    family = Family(process.pid)
    try:
        server = Server(plan, case, family, folder)
        _await_answer(server, process, log, start)
        server.start_s = time.perf_counter() - start
        server.check()
        yield server
    finally:
        family.stop()
        process.wait()


def _await_answer(server: Server, process: subprocess.Popen, log: Path, start: float) -> None:
    problem = "no answer"
    while time.perf_counter() - start < START_TIMEOUT_S and process.poll() is None:
        try:
            server.ask(0)
            return
        except EntrantError as error:
            problem = str(error)
        time.sleep(_POLL_S)
    state = f"ended with code {process.returncode}" if process.returncode is not None else f"gave none in {START_TIMEOUT_S:.0f} s"
    raise EntrantError(f"{state}; {problem}; log: {log.read_text(errors='replace')[-600:].strip()}")
