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
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

from argosy.serve.node.children import Child, read_tail
from argosy.serve.node.family import KILL_AFTER_S, Family
from argosy.serve.node.listeners import LISTENERS, fail, open_listeners
from argosy.serve.wire.channel import Received
from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import (
    Accuse,
    AskLink,
    EndOfWorkers,
    Hello,
    JoinEnded,
    Message,
    NewLink,
    Ready,
    Refused,
    StartControl,
    StartFront,
    StartWorker,
    StopWorker,
    WorkerDied,
    WorkerGone,
    WorkerState,
    fit_text,
)

__all__ = ["Supervisor", "main"]

DRAIN_S: Final = 15.0
_PR_SET_CHILD_SUBREAPER: Final = 36


class Supervisor:
    """See the module's docstring.

    Args:
        job: `config`, the server's settings as `argosy.config.ServeConfig` writes them; `counters_bytes`, the size of the
            counters' memory; `stop_with_stdin`, whether the end of standard input stops the server.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        config: dict[str, Any] = job["config"]
        self.config = config
        self.run = Path(config["home"]) / "run"
        self.family = Family(self.run / "logs", self._greet, self._obey, self._mourn)
        self.stop_s: float | None = None
        """When to end, once told to."""
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
        self.family.start(Child("control", "control", {"module": "argosy.deploy.control"}))
        for index in range(self.config["num_fronts"]):
            self.family.start(Child(f"front-{index}", "front", {"module": "argosy.serve.front.front", "index": index}))
        addresses = ", ".join(f"{name} {self.config['host']}:{self._port(name)}" for name in LISTENERS)
        self.family.say(f"serving: {addresses}; admin 127.0.0.1:{self._port('admin')}")

    def _port(self, name: str) -> int:
        return self.listeners[name][0].getsockname()[1]

    def _write_state(self) -> None:
        """Tell other commands where this server is; only this user may read it."""
        state = {
            "pid": os.getpid(),
            "host": self.config["host"],
            "token": os.urandom(32).hex(),
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
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, _ignore)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.family.selector.register(reader, selectors.EVENT_READ, self._take_signals)
        if self.job["stop_with_stdin"]:
            self.family.selector.register(0, selectors.EVENT_READ, self._take_stdin)

    def _take_stdin(self) -> None:
        if not os.read(0, 4096):
            self.family.selector.unregister(0)
            self._begin_stop()

    def _take_signals(self) -> None:
        numbers = self._signal_pair[0].recv(64)
        if signal.SIGCHLD in numbers:
            self.family.note_death()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._begin_stop()

    def _begin_stop(self) -> None:
        if self.stop_s is not None:
            # Asked a second time: do not wait for requests.
            self.stop_s = 0.0
            return
        self.stop_s = time.monotonic() + DRAIN_S
        self.family.say("stopping")
        self.family.drain()

    def run_forever(self) -> int:
        """Serve until told to stop; returns the exit code."""
        while self.stop_s is None or (time.monotonic() < self.stop_s and self.family.running("front")):
            self.family.turn(self.stop_s)
        self.family.stop_all()
        with contextlib.suppress(FileNotFoundError):
            (self.run / "serve.json").unlink()
        return 0

    # what children are told

    def _greet(self, child: Child) -> None:
        """Give a child what it needs to work: listeners, links, the table of its siblings."""
        if child.kind == "front":
            index: int = child.spec["index"]
            names = [name for name in LISTENERS if index < len(self.listeners[name])]
            fds: list[int] = [self.counters_fd, *(self.listeners[name][index].fileno() for name in names)]
            self.family.send(child, StartFront(self.config, index, tuple(names)), fds)
            for other in self.family.running("control", "worker"):
                self._link(child, other)
        elif child.kind == "control":
            fds = [self.counters_fd, self.listeners["admin"][0].fileno()]
            self.family.send(child, StartControl(self.config), fds)
            for other in list(self.family.children.values()):
                if other.kind == "worker":
                    self.family.send(child, self._describe(other))
            for front in self.family.running("front"):
                self._link(front, child)
            # Last, so that it knows of every front that may hold a request before it decides anything.
            self.family.send(child, EndOfWorkers())
        elif child.kind == "worker":
            self._tell_control(self._describe(child))
            for front in self.family.running("front"):
                self._link(front, child)

    def _describe(self, child: Child) -> WorkerState:
        return WorkerState(child.name, child.pid, child.spec, child.num_deaths, child.report, child.is_stopping)

    def _link(self, front: Child, other: Child) -> None:
        """Connect a front with the control process (a stream) or with a worker (packets)."""
        kind = socket.SOCK_STREAM if other.kind == "control" else socket.SOCK_SEQPACKET
        for_front, for_other = NewLink(other.name, other.kind, other.pid), NewLink(front.name, front.kind, front.pid)
        try:
            left, right = socket.socketpair(socket.AF_UNIX, kind)
        except OSError:
            # No descriptor is left. A front that is told of a link and gets none asks again.
            self.family.send(front, for_front)
            return
        with left, right:
            self.family.send(front, for_front, (left.fileno(),))
            self.family.send(other, for_other, (right.fileno(),))

    def _mourn(self, child: Child, how: str, is_final: bool) -> None:
        if child.kind == "worker":
            log = "" if child.is_stopping else fit_text(read_tail(self.family.log_path(child.name)))
            self._tell_control(WorkerDied(child.name, fit_text(how), log, is_final, child.report))

    def _tell_control(self, message: Message) -> None:
        for control in self.family.running("control"):
            self.family.send(control, message)

    # what children say

    def _obey(self, child: Child, received: Received) -> None:
        """Do what a child asks. Which may ask what stands in the table of messages.

        Raises:
            MessageError: what it says makes no sense now.
        """
        match received.message:
            case Hello():
                self.family.adopt(child, received.pid)
            case Ready() | Refused() as report:
                self._take_report(child, report)
            case JoinEnded() as end:
                self._end_joining(child, end)
            case StartWorker(name, spec):
                if name not in self.family.children:
                    self.family.start(Child(name, "worker", spec))
            case StopWorker(name):
                worker = self.family.children.get(name)
                if worker is not None and not self.family.stop(worker):
                    self._tell_control(WorkerGone(name))
            case Accuse() as accusation:
                self._judge(child, accusation)
            case AskLink(peer):
                for other in self.family.running("control", "worker"):
                    if other.name == peer:
                        self._link(child, other)
            case _:
                pass

    def _take_report(self, child: Child, report: Ready | Refused) -> None:
        if child.report is not None or not child.pid:
            refuse("a worker's report came for the second time, or before `hello`")
        child.report = report
        if isinstance(report, Refused):
            self.family.condemn(child, "it refused its model, and did not end", KILL_AFTER_S)
        self._tell_control(self._describe(child))

    def _end_joining(self, child: Child, end: JoinEnded) -> None:
        report = child.report
        if not isinstance(report, Ready):
            refuse("`join_ended` came before `ready`")
        fields: dict[str, Any] = {**vars(report), "join_refusal": end.reason, "escape": end.difference}
        child.report = Ready(**fields)
        self._tell_control(self._describe(child))

    def _judge(self, child: Child, accusation: Accuse) -> None:
        """End whom a child accuses of what it does on their link."""
        accused = self.family.children.get(accusation.name)
        if accused is None or not accused.pid or accused.pid != accusation.pid:
            return  # it has ended meanwhile
        if accused.kind not in (("front",) if child.kind == "control" else ("control", "worker")):
            refuse(f"`accuse` names {accused.name}, with which {child.name} has no link")
        self.family.condemn(accused, f"{child.name} says: {accusation.reason}")


def _ignore(number: int, frame: object) -> None:
    """Nothing: the wake-up descriptor has told the loop."""


def main() -> None:
    """Run as `python -m argosy.serve.node.supervisor CONFIG`, where CONFIG is one JSON object."""
    supervisor = Supervisor(json.loads(sys.argv[1]))
    supervisor.start()
    sys.exit(supervisor.run_forever())


if __name__ == "__main__":
    main()
