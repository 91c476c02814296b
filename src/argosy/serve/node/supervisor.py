"""The root of a server's processes: holds the listeners, starts the others, restarts the dead.

It imports the standard library only, runs no model and answers no request, so that it has nothing to
crash on. If it dies, the kernel kills the rest (`die_with_parent`).

    supervisor ── control            deployments, admin API; the only one that opens the store
               ├─ front-0, front-1   answer requests
               ├─ template-...       imported a runtime; forks workers at the supervisor's word
               └─ w-...              workers: children of the supervisor too, by PR_SET_CHILD_SUBREAPER

Each child has a channel to the supervisor. Fronts are linked with the control process and with every
worker by socket pairs that the supervisor makes anew whenever either side starts.

SIGTERM ends the server: fronts serve new connections for `drain_s` more, then the listeners are closed so that nothing is reset.
SIGINT does the same at once, for who presses Ctrl-C waits.
SIGUSR2 has it succeeded (`argosy restart`): once the fronts have ended in the same way, this process becomes the program anew
by exec, with the listeners and the lock, and who has connected meanwhile is served by the successor. Until it runs, nothing but
the fronts has ended: where it is not run, or a trial of it fails, this process goes on with new ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
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

from argosy.serve.node.children import CONTROL, FRONT, MODULES, Child, read_tail
from argosy.serve.node.family import KILL_AFTER_S, Family
from argosy.serve.node.listeners import LISTENERS, SETTLE_S, fail, inherit_listeners, open_listeners, refuse_connects
from argosy.serve.node.state_file import StateFile
from argosy.serve.node.succession import TOLD, become, end_children, read_job
from argosy.serve.wire.channel import Received
from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import (
    Accuse,
    Alive,
    AskLink,
    EndOfWorkers,
    Held,
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
from argosy.serve.wire.output import guard_output

__all__ = ["Supervisor", "main"]

DRAIN_S: Final = 15.0
"""For the fronts to end, after `drain_s`."""
HEARD_S: Final = 2.5
"""Within which each front that holds a batch of a worker has said so."""
_PR_SET_CHILD_SUBREAPER: Final = 36


class Supervisor:
    """See the module's docstring.

    Args:
        job: `config`, the server's settings as `argosy.config.ServeConfig` writes them; `counters_bytes`, the size of the
            counters' memory; `stop_with_stdin`, whether the end of standard input stops the server; `given`, the settings that
            its starter gave, for successors. Of a successor `inherited` as well: the descriptors that it goes on with; and
            `is_trial`, where it is only to be seen that it could.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        config: dict[str, Any] = job["config"]
        self.config = config
        self.run = Path(config["home"]) / "run"
        self.family = Family(self.run / "logs", self._greet, self._obey, self._mourn)
        self.stop_s: float | None = None
        """When to end, once told to."""
        self._drained_s = 0.0
        """Until when new connections are served then."""
        self.listeners: dict[str, list[socket.socket]] = {}
        self.counters_fd = -1
        self._close_s: float | None = None
        """When to let nobody connect any more, once told to end for good."""
        self._shut_s: float | None = None
        """When to close the listeners after that."""
        self._successor: dict[str, Any] | None = None
        """The job that this process goes on with when the fronts have ended."""
        self._inherited: dict[str, Any] | None = job.pop("inherited", None)
        self._lock: TextIO | None = None
        self._token = os.urandom(32).hex()
        self._started_s = time.time()
        self._state = StateFile(self.run, self.family.say)
        self._refused_restarts: list[str] = []
        """Why this process was not succeeded when it should have been."""

    # start and end

    def start(self) -> None:
        """Take the lock, open the listeners, start the control process and the fronts.

        What can be had later is not needed for it: the file that tells commands of this server, and logs.
        """
        self._take_place()
        if self._inherited is not None:
            end_children(self._inherited.get("children", []))
            self.family.note_death()
        self._keep_state()
        self.family.start(Child("control", "control", {"module": CONTROL}))
        for index in range(self.config["num_fronts"]):
            self.family.start(Child(f"front-{index}", "front", {"module": FRONT, "index": index}))
        addresses = ", ".join(f"{name} {self.config['host']}:{self._port(name)}" for name in LISTENERS)
        self.family.say(f"serving: {addresses}; admin 127.0.0.1:{self._port('admin')}")

    def rehearse(self) -> None:
        """Do what `start` does as far as it can fail and changes nothing, beside the process that this one is to succeed."""
        self._take_place()
        for module in MODULES:
            importlib.import_module(module)

    def _take_place(self) -> None:
        """Have all that a server cannot be without."""
        inherited = self._inherited
        try:
            self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        except BlockingIOError:
            fail(f"A server runs already for this ARGOSY_HOME ({self.config['home']})")
        except OSError as error:
            fail(f"{self.run} cannot be used: {error.strerror or error}")
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # The soft limit of 1,024 descriptors is for programs that use select(); fronts hold a socket a client.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.listeners = open_listeners(self.config) if inherited is None else inherit_listeners(inherited["listeners"])
        try:
            self.counters_fd = os.memfd_create("argosy-counters", os.MFD_CLOEXEC)
            os.ftruncate(self.counters_fd, self.job["counters_bytes"])
            # Before anybody knows of this process: signals that it does not take would end it.
            self._watch_signals()
        except OSError as error:
            fail(f"The machine refuses what a server needs: {error}")

    def _take_lock(self) -> None:
        """Be the one server of this home, or go on being it.

        Raises:
            BlockingIOError: another one is.
            OSError: the file cannot be used.
        """
        if self._inherited is None:
            self._lock = (self.run / "serve.lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.set_inheritable(self._inherited["lock"], False)
            self._lock = os.fdopen(self._inherited["lock"], "a")

    def _port(self, name: str) -> int:
        return self.listeners[name][0].getsockname()[1]

    def _keep_state(self) -> None:
        """Tell other commands where this server is."""
        assert self._lock is not None
        state = {
            "pid": os.getpid(),
            "host": self.config["host"],
            "token": self._token,
            "started_s": self._started_s,
            "num_restarts": 0 if self._inherited is None else self._inherited["num_restarts"],
            "refused_restarts": self._refused_restarts,
            "num_fronts": self.config["num_fronts"],
            "given": self.job["given"],
            "stop_with_stdin": self.job["stop_with_stdin"],
            **{f"{name}_port": self._port(name) for name in self.listeners},
        }
        self._state.keep(state, self._lock)

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._signal_pair = (reader, writer)
        for number in (*TOLD, signal.SIGCHLD):
            signal.signal(number, _ignore)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        self.family.selector.register(reader, selectors.EVENT_READ, self._take_signals)
        if self.job["stop_with_stdin"]:
            self.family.selector.register(0, selectors.EVENT_READ, self._take_stdin)

    def _take_stdin(self) -> None:
        try:
            is_open = bool(os.read(0, 4096))
        except OSError:
            is_open = False
        if not is_open:
            self.family.selector.unregister(0)
            self._begin_stop()

    def _take_signals(self) -> None:
        numbers = self._signal_pair[0].recv(64)
        if signal.SIGCHLD in numbers:
            self.family.note_death()
        if signal.SIGTERM in numbers:
            self._begin_stop()
        elif signal.SIGINT in numbers:
            # Somebody waits for the end, at a terminal.
            self._begin_stop(is_urgent=True)
        elif signal.SIGUSR2 in numbers:
            self._begin_restart()

    def _begin_stop(self, *, is_urgent: bool = False) -> None:
        if self.stop_s is not None and self._successor is None:
            # Asked a second time: do not wait for requests.
            self.stop_s = 0.0
            return
        self._successor = None
        longest_s: float = self.config["drain_s"]
        drain_s = 0.0 if is_urgent else longest_s
        self._close_s = time.monotonic() + drain_s
        # Until then somebody may take the place of a front that dies, and find those that have connected to it.
        self._shut_s = self._close_s + min(SETTLE_S, longest_s)
        self._drain("stopping", drain_s, self._shut_s, signal.SIGINT if is_urgent else signal.SIGTERM)

    def _begin_restart(self) -> None:
        """Read what this process is to go on with, and end the fronts."""
        if self.stop_s is not None:
            return
        try:
            self._successor = read_job(self.run, self.config)
        except (OSError, ValueError) as error:
            self._refuse_restart(f"the successor's job cannot be used ({error})")
            return
        drain_s: float = self.config["drain_s"]
        self._drain("restarting", drain_s, time.monotonic() + drain_s, signal.SIGTERM)

    def _drain(self, what: str, drain_s: float, until_s: float, number: signal.Signals) -> None:
        self._drained_s = time.monotonic() + drain_s
        self.stop_s = self._drained_s + DRAIN_S
        self.family.say(f"{what}; new connections are served for {drain_s:g} s more")
        self.family.drain(until_s, number)

    def _refuse_connects(self, now: float) -> None:
        """Let nobody connect any more. Fronts take those that have, and close their copies of the listeners."""
        assert self._close_s is not None
        late_s, self._close_s = now - self._close_s, None
        for name in LISTENERS:
            for sock in self.listeners[name]:
                with contextlib.suppress(OSError):  # without the filter one that connects now may be reset
                    refuse_connects(sock)
        settle_s = min(SETTLE_S, self.config["drain_s"])
        if settle_s and late_s > settle_s:
            # This process was stopped, and fronts have ended while others could connect still: new ones take these.
            self._shut_s, self.stop_s = now + settle_s, now + DRAIN_S
            self.family.drain(self._shut_s, signal.SIGTERM)

    def _close_listeners(self) -> None:
        self._shut_s = None
        for name in LISTENERS:
            for sock in self.listeners.pop(name):
                sock.close()

    def run_forever(self) -> int:
        """Serve until told to stop; returns the exit code. Where it is succeeded, it does not return."""
        while True:
            self._run()
            if self._successor is None:
                break
            self._give_way(self._successor)
        self.family.stop_all()
        self._state.remove()
        return 0

    def _run(self) -> None:
        """Serve until the fronts have ended, as they were told to."""
        while self.stop_s is None or (time.monotonic() < self.stop_s and self.family.has_fronts):
            due_s = self._state.due_s if self.stop_s is None else self.stop_s
            self.family.turn(min(due_s, self._close_s or due_s, self._shut_s or due_s))
            now = time.monotonic()
            if self.stop_s is None and self._state.due_s <= now:
                self._keep_state()
            if self._close_s is not None and self._close_s <= now:
                self._refuse_connects(now)
            if self._shut_s is not None and self._shut_s <= now:
                self._close_listeners()

    def _give_way(self, job: dict[str, Any]) -> None:
        """Become the successor. Where it cannot be run, go on: the fronts alone have ended."""
        assert self._lock is not None
        num_restarts = 1 if self._inherited is None else self._inherited["num_restarts"] + 1
        children = [child.pid for child in self.family.children.values() if child.pid]
        job["inherited"] = {"num_restarts": num_restarts, "children": children}
        try:
            become(job, self._lock.fileno(), self.listeners)
        except OSError as error:
            fault = f"{sys.executable} cannot be run: {error.strerror or error}"
        self.stop_s = self._successor = None
        self.family.revive()
        self._refuse_restart(fault)

    def _refuse_restart(self, fault: str) -> None:
        self.family.say(f"no restart, this server goes on: {fault}")
        self._refused_restarts.append(fault)
        self._keep_state()

    # what children are told

    def _greet(self, child: Child) -> None:
        """Give a child what it needs to work: listeners, links, the table of its siblings."""
        if child.kind == "front":
            index: int = child.spec["index"]
            names = [name for name in LISTENERS if index < len(self.listeners.get(name, ()))]
            fds: list[int] = [self.counters_fd, *(self.listeners[name][index].fileno() for name in names)]
            drain_s = None if self.stop_s is None else max(0.0, self._drained_s - time.monotonic())
            self.family.send(child, StartFront(self.config, index, tuple(names), drain_s), fds)
            for other in self.family.running("control", "worker"):
                self._link(child, other)
        elif child.kind == "control":
            fds = [self.counters_fd, self.listeners["admin"][0].fileno()]
            self.family.send(child, StartControl(self.config, self._token), fds)
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
        is_loaded = isinstance(other.report, Ready)
        for_front, for_other = NewLink(other.name, other.kind, other.pid, is_loaded), NewLink(front.name, front.kind, front.pid)
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
            case Held() as held:
                self._weigh(held)
            case Alive():
                child.pulse.hear()
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
        if not isinstance(report, Ready) or report.escape is not None:
            refuse("`join_ended` came before `ready`, or for the second time")
        fields: dict[str, Any] = {**vars(report), "join_refusal": end.reason, "escape": end.difference}
        child.report = Ready(**fields)
        self._tell_control(self._describe(child))

    def _weigh(self, held: Held) -> None:
        """End a worker that hangs: a front has given it up, and no other front has a batch there that may be what it works on."""
        worker = self.family.children.get(held.name)
        if worker is None or worker.kind != "worker" or not worker.pid or worker.pid != held.pid:
            return  # it has ended meanwhile
        now = time.monotonic()
        if not held.is_given_up:
            worker.awaited_s = now
            return
        if now - worker.doubted_s > HEARD_S:
            worker.doubted_since_s = now
        worker.doubted_s = now
        # Other fronts are heard first.
        if self.config["num_fronts"] == 1 or (now - worker.doubted_since_s > HEARD_S and now - worker.awaited_s > HEARD_S):
            self.family.condemn(worker, f"it hangs: it has been at one batch for {held.held_s:.1f} s, and nobody waits for that")

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
    guard_output()
    job = json.loads(sys.argv[1])
    supervisor = Supervisor(job)
    if job.get("is_trial"):
        supervisor.rehearse()
        return
    supervisor.start()
    sys.exit(supervisor.run_forever())


if __name__ == "__main__":
    main()
