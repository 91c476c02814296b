"""The root of a server's processes: holds the listeners, starts the others, restarts the dead.

It imports the standard library only, runs no model and answers no request, so that it has nothing to
crash on. If it dies, the kernel kills the rest (`die_with_parent`).

    supervisor ── control            deployments, admin API; the only one that opens the store
               ├─ front-0, front-1   answer requests
               ├─ template-...       imported a runtime; forks workers at the supervisor's word
               └─ w-...              workers: children of the supervisor too, by PR_SET_CHILD_SUBREAPER

Each child has a channel to the supervisor. Fronts are linked with the control process and with every
worker by socket pairs that the supervisor makes anew whenever either side starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import secrets
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

from argosy.serve.node.children import Child, open_log, read_tail, spawn
from argosy.serve.node.listeners import LISTENERS, fail, open_listeners
from argosy.serve.wire.channel import Channel, make_channel_pair

__all__ = ["EXIT_REFUSED", "Supervisor", "main"]

EXIT_REFUSED: Final = 3
"""A worker's exit code when its model cannot be loaded: it is not started again."""

DRAIN_S: Final = 15.0
KILL_AFTER_S: Final = 5.0
# Pauses before a child that dies again and again is started again; a child that lived longer than the last starts anew.
BACKOFF_S: Final = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_S: Final = 10.0
_PR_SET_CHILD_SUBREAPER: Final = 36

Message = dict[str, Any]


class Supervisor:
    """See the module's docstring.

    Args:
        job: `config`, the server's settings as `argosy.config.ServeConfig` writes them; `counters_bytes`, the size of the
            counters' memory; `stop_with_stdin`, whether the end of standard input stops the server.
    """

    def __init__(self, job: Message) -> None:
        self.job = job
        config: Message = job["config"]
        self.config = config
        self.run = Path(config["home"]) / "run"
        self.children: dict[str, Child] = {}
        self.selector = selectors.DefaultSelector()
        self.is_stopping = False
        self.stop_s = 0.0
        self.listeners: dict[str, list[socket.socket]] = {}
        self.counters_fd = -1
        self._lock: TextIO | None = None

    # start and end

    def start(self) -> None:
        """Take the lock, open the listeners, start the control process and the fronts."""
        (self.run / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.run / "serve.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"A server runs already for this ARGOSY_HOME ({self.config['home']})")
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # The soft limit of 1,024 descriptors is for programs that use select(); fronts hold a socket a client.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.listeners = open_listeners(self.config)
        self.counters_fd = os.memfd_create("argosy-counters", os.MFD_CLOEXEC)
        os.ftruncate(self.counters_fd, self.job["counters_bytes"])
        self._write_state()
        self._watch_signals()
        self._start_child(Child("control", "control", {"module": "argosy.deploy.control"}))
        for index in range(self.config["num_fronts"]):
            self._start_child(Child(f"front-{index}", "front", {"module": "argosy.serve.front.front", "index": index}))
        addresses = ", ".join(f"{name} {self.config['host']}:{self._port(name)}" for name in LISTENERS)
        self._say(f"serving: {addresses}; admin 127.0.0.1:{self._port('admin')}")

    def _port(self, name: str) -> int:
        return self.listeners[name][0].getsockname()[1]

    def _write_state(self) -> None:
        """Tell other commands where this server is; only this user may read it."""
        state = {
            "pid": os.getpid(),
            "host": self.config["host"],
            "token": secrets.token_urlsafe(32),
            **{f"{name}_port": self._port(name) for name in self.listeners},
        }
        temporary = self.run / "serve.json.new"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(state, file)
        temporary.replace(self.run / "serve.json")

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._signal_pair = (reader, writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ignore)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(reader, selectors.EVENT_READ, self._take_signals)
        if self.job["stop_with_stdin"]:
            self.selector.register(0, selectors.EVENT_READ, self._take_stdin)

    def _take_stdin(self) -> None:
        if not os.read(0, 4096):
            self.selector.unregister(0)
            self._begin_stop()

    def _take_signals(self) -> None:
        self._signal_pair[0].recv(64)
        self._begin_stop()

    def _begin_stop(self) -> None:
        if self.is_stopping:
            # Asked a second time: do not wait for requests.
            self.stop_s = 0.0
            return
        self.is_stopping = True
        self.stop_s = time.monotonic() + DRAIN_S
        self._say("stopping")
        for child in self.children.values():
            child.restart_s = None
            if child.kind == "front" and child.pid:
                child.is_stopping = True
                os.kill(child.pid, signal.SIGTERM)

    def run_forever(self) -> int:
        """Serve until told to stop; returns the exit code."""
        while True:
            if self.is_stopping and (time.monotonic() > self.stop_s or not self._has_fronts()):
                break
            for key, _ in self.selector.select(self._wait_s()):
                key.data()
            self._do_due()
        self._stop_all()
        with contextlib.suppress(FileNotFoundError):
            (self.run / "serve.json").unlink()
        return 0

    def _has_fronts(self) -> bool:
        return any(child.kind == "front" and child.pid for child in self.children.values())

    def _wait_s(self) -> float | None:
        due = [t for child in self.children.values() for t in (child.restart_s, child.kill_s) if t is not None]
        if self.is_stopping:
            due.append(self.stop_s)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _do_due(self) -> None:
        now = time.monotonic()
        for child in list(self.children.values()):
            if child.restart_s is not None and child.restart_s <= now and not self.is_stopping:
                child.restart_s = None
                self._start_child(child)
            if child.kill_s is not None and child.kill_s <= now:
                child.kill_s = None
                self._kill(child)

    def _stop_all(self) -> None:
        for child in self.children.values():
            if child.pid:
                self._kill(child, signal.SIGTERM if child.kind == "control" else signal.SIGKILL)
        deadline = time.monotonic() + KILL_AFTER_S
        for child in self.children.values():
            if child.pid:
                with selectors.DefaultSelector() as waiter:
                    waiter.register(child.pidfd, selectors.EVENT_READ)
                    if not waiter.select(max(0.0, deadline - time.monotonic())):
                        self._kill(child)

    def _kill(self, child: Child, number: signal.Signals = signal.SIGKILL) -> None:
        if child.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, number)

    # children

    def _start_child(self, child: Child) -> None:
        self.children[child.name] = child
        child.started_s = time.monotonic()
        child.report = None
        ours, theirs = make_channel_pair()
        ours.sock.setblocking(False)
        child.channel = ours
        log = open_log(self._log_path(child.name))
        try:
            if child.kind == "worker":
                self._fork_worker(child, theirs, log)
            else:
                self._adopt(child, spawn(child, theirs, log))
        except OSError as error:
            # Its interpreter has gone, or the machine has no process left for it.
            child.channel = None
            ours.close()
            self._after_death(child, f"it cannot be started ({error})")
            return
        finally:
            os.close(log)
            theirs.close()
        self.selector.register(ours, selectors.EVENT_READ, lambda: self._take_message(child, ours))
        if child.pid:
            self._greet(child)

    def _adopt(self, child: Child, pid: int) -> None:
        child.pid = pid
        child.pidfd = os.pidfd_open(pid)
        self.selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._take_death(child))

    def _fork_worker(self, child: Child, theirs: Channel, log: int) -> None:
        template = self._template_of(child.spec)
        message = {"op": "fork", "name": child.name, "supervisor": os.getpid(), "spec": child.spec}
        self._send(template, message, (theirs.fileno(), log))

    def _template_of(self, spec: Message) -> Child:
        """The process that has imported a runtime in an interpreter, started when it is first needed."""
        name = f"template-{spec['runtime']}-{abs(hash(spec.get('python', sys.executable))) % 10**6}"
        template = self.children.get(name)
        if template is None or template.channel is None:
            template_spec = {"module": "argosy.serve.worker.template", "runtime": spec["runtime"]}
            if "python" in spec:
                template_spec["python"] = spec["python"]
            # One thread for BLAS: its pool would not survive the fork, and the runtime has its own.
            template_spec["env"] = {
                "ARGOSY_RUNTIME": spec["runtime"],
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                # Packages of this interpreter are not for another one.
                **({"PYTHONPATH": ""} if "python" in spec else {}),
            }
            template = Child(name, "template", template_spec)
            self._start_child(template)
        return template

    def _greet(self, child: Child) -> None:
        """Give a child what it needs to work: listeners, links, the table of its siblings."""
        if child.kind == "front":
            index: int = child.spec["index"]
            names = [name for name in LISTENERS if index < len(self.listeners[name])]
            fds: list[int] = [self.counters_fd, *(self.listeners[name][index].fileno() for name in names)]
            self._send(child, {"op": "start", "config": self.config, "index": index, "listeners": names}, fds)
            for other in list(self.children.values()):
                if other.kind in ("control", "worker") and other.pid:
                    self._link(child, other)
        elif child.kind == "control":
            fds = [self.counters_fd, self.listeners["admin"][0].fileno()]
            self._send(child, {"op": "start", "config": self.config}, fds)
            for other in list(self.children.values()):
                if other.kind == "worker":
                    self._send(child, self._describe(other))
                elif other.kind == "front" and other.pid:
                    self._link(other, child)
            # Last, so that it knows of every front that may hold a request before it decides anything.
            self._send(child, {"op": "table_end"})
        elif child.kind == "worker":
            for other in list(self.children.values()):
                if other.kind == "front" and other.pid:
                    self._link(other, child)

    def _describe(self, child: Child) -> Message:
        return {
            "op": "worker",
            "name": child.name,
            "pid": child.pid,
            "spec": child.spec,
            "deaths": child.num_deaths,
            "report": child.report,
            "is_stopping": child.is_stopping,
        }

    def _link(self, front: Child, other: Child) -> None:
        """Connect a front with the control process (a stream) or with a worker (packets)."""
        kind = socket.SOCK_STREAM if other.kind == "control" else socket.SOCK_SEQPACKET
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        with left, right:
            self._send(front, {"op": "link", "peer": other.name, "kind": other.kind}, (left.fileno(),))
            self._send(other, {"op": "link", "peer": front.name, "kind": "front"}, (right.fileno(),))

    def _send(self, child: Child, message: Message, fds: tuple[int, ...] | list[int] = ()) -> None:
        if child.channel is None:
            return
        try:
            child.channel.send(message, fds)
        except OSError:
            # It does not read its channel any more: it is stuck, or on its way out.
            self._kill(child)

    def _take_message(self, child: Child, channel: Channel) -> None:
        if child.channel is not channel:
            # Closed by an event that was handled before this one in the same turn.
            return
        try:
            received = channel.receive()
        except (BlockingIOError, ValueError):
            return
        if received is None:
            self._drop_channel(child, channel)
            if not child.pid:
                # A worker that died before it said who it is.
                self._after_death(child, "did not start")
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        operation = message.get("op")
        if operation == "hello" and child.kind == "worker" and not child.pid:
            self._adopt(child, message["pid"])
            self._tell_control(self._describe(child))
            self._greet(child)
        elif operation == "report":
            child.report = message["report"]
            self._tell_control(self._describe(child))
        elif child.kind == "control":
            self._obey(message)

    def _drop_channel(self, child: Child, channel: Channel) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(channel)
        channel.close()
        if child.channel is channel:
            child.channel = None

    def _obey(self, message: Message) -> None:
        """Do what the control process asks."""
        name = message["name"]
        child = self.children.get(name)
        if message["op"] == "start_worker" and child is None:
            self._start_child(Child(name, "worker", message["spec"]))
        elif message["op"] == "stop_worker" and child is not None:
            child.is_stopping = True
            child.restart_s = None
            if not child.pid and child.channel is None:
                del self.children[name]
                self._tell_control({"op": "gone", "name": name})
            else:
                child.kill_s = time.monotonic() + KILL_AFTER_S
                self._kill(child, signal.SIGTERM)
        elif message["op"] == "kill_worker" and child is not None:
            self._kill(child)

    def _tell_control(self, message: Message) -> None:
        control = self.children.get("control")
        if control is not None and control.pid:
            self._send(control, message)

    # deaths

    def _take_death(self, child: Child) -> None:
        self.selector.unregister(child.pidfd)
        status = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        child.pid, child.pidfd, child.kill_s = 0, -1, None
        if child.channel is not None:
            # What it said last may still be unread.
            self._read_rest(child, child.channel)
        code = status.si_status if status is not None else 0
        killed = status is not None and status.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        self._after_death(child, f"signal {signal.Signals(code).name}" if killed else f"exit code {code}", code, killed)

    def _read_rest(self, child: Child, channel: Channel) -> None:
        with contextlib.suppress(BlockingIOError, ValueError, OSError):
            while (received := channel.receive()) is not None:
                message, fds = received
                for fd in fds:
                    os.close(fd)
                if message.get("op") == "report":
                    child.report = message["report"]
                elif child.kind == "control":
                    self._obey(message)
        self._drop_channel(child, channel)

    def _after_death(self, child: Child, how: str, code: int = 1, killed: bool = False) -> None:
        if self.is_stopping:
            return
        if time.monotonic() - child.started_s > STABLE_S:
            child.num_deaths = 0
        child.num_deaths += 1
        is_refused = child.kind == "worker" and code == EXIT_REFUSED and not killed
        is_final = child.is_stopping or is_refused or child.kind == "template"
        if not child.is_stopping:
            self._say(f"{child.name} died: {how}; its log: {self._log_path(child.name)}")
        if is_final:
            self.children.pop(child.name, None)
        else:
            child.restart_s = time.monotonic() + BACKOFF_S[min(child.num_deaths, len(BACKOFF_S)) - 1]
        if child.kind == "worker":
            tail = "" if child.is_stopping else read_tail(self._log_path(child.name))
            self._tell_control(
                {"op": "died", "name": child.name, "how": how, "log": tail, "is_final": is_final, "report": child.report}
            )

    def _log_path(self, name: str) -> Path:
        return self.run / "logs" / f"{name}.log"

    def _say(self, text: str) -> None:
        print(f"argosy: {text}", file=sys.stderr, flush=True)


def _ignore(number: int, frame: object) -> None:
    """Nothing: the wake-up descriptor has told the loop."""


def main() -> None:
    """Run as `python -m argosy.serve.node.supervisor CONFIG`, where CONFIG is one JSON object."""
    supervisor = Supervisor(json.loads(sys.argv[1]))
    supervisor.start()
    sys.exit(supervisor.run_forever())


if __name__ == "__main__":
    main()
