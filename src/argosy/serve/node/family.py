"""The life of the supervisor's children: started, heard, killed when they break a rule, started again. Standard library only."""

from __future__ import annotations

import contextlib
import math
import os
import select
import selectors
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from argosy.errors import MessageError
from argosy.serve.node.children import Child, ChildChannel, describe_template, open_log, spawn
from argosy.serve.node.pulse import BEAT_S, Pulse
from argosy.serve.wire.channel import Received
from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import EXIT_REFUSED, Beat, ForkWorker, Message

__all__ = ["KILL_AFTER_S", "Family"]

KILL_AFTER_S: Final = 5.0
"""A child that was told to end is killed after this."""
CLOSED_S: Final = 1.0
"""Within which a child ends that has closed its channel: the kernel closes a dead process's descriptors before it tells."""
# Pauses before a child that dies again and again is started again; a child that lived longer than the last starts anew.
BACKOFF_S: Final = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_S: Final = 10.0
_REFUSED_S: Final = 0.05
"""Pause after what the kernel refused, for the event that asked for it may come again at once."""


class Family:
    """The children, by name. What one of them says or does that it may not costs that child alone.

    Args:
        logs: folder of their logs.
        greet: called with a child that has started, to give it what it needs.
        obey: called with a child and what it has said; raises MessageError where that makes no sense.
        mourn: called with a child that has died, how, and whether that was the last time.
    """

    def __init__(
        self,
        logs: Path,
        greet: Callable[[Child], None],
        obey: Callable[[Child, Received], None],
        mourn: Callable[[Child, str, bool], None],
    ) -> None:
        self.children: dict[str, Child] = {}
        self.selector = selectors.DefaultSelector()
        self.fronts_until_s = math.inf
        """Until then a front that ends is started again, for somebody may connect to it."""
        self._beat_s = 0.0
        """When to look whether all children are there."""
        self._reap_s: float | None = None
        """When to look for dead processes that nobody here started."""
        self._logs = logs
        self._greet = greet
        self._obey = obey
        self._mourn = mourn

    @property
    def has_fronts(self) -> bool:
        """A front runs, or will again."""
        return any(child.kind == "front" and (child.pid or child.restart_s is not None) for child in self.children.values())

    def running(self, *kinds: str) -> list[Child]:
        """Those of these kinds that run."""
        return [child for child in self.children.values() if child.kind in kinds and child.pid]

    # life

    def start(self, child: Child) -> None:
        """Start a child, now and whenever it has died."""
        self.children[child.name] = child
        child.started_s = time.monotonic()
        child.report, child.suspicion, child.fault, child.pulse = None, "", "", Pulse()
        try:
            channel = child.channel = ChildChannel(child.kind)
            with channel.theirs:
                log, fault = open_log(self.log_path(child.name))
                with log:
                    if child.kind == "worker":
                        self._fork_worker(child, channel.theirs.fileno(), log.fileno())
                    else:
                        self._spawn(child, channel.theirs.fileno(), log.fileno())
            self.selector.register(channel, selectors.EVENT_READ, lambda: self._take_turn(child, channel))
        except OSError as error:
            # Its interpreter has gone, or the machine has no process or descriptor left for it.
            fault = f"it cannot be started ({error})"
            if child.pid:
                self._give_up(child, fault)
                return
            self._drop_channel(child)
            self._after_death(child, fault)
            return
        if fault:
            self.say(f"{child.name} has no log: {fault}")
        if child.pid:
            self._greet(child)

    def _spawn(self, child: Child, theirs: int, log: int) -> None:
        pid = spawn(child, theirs, log)
        try:
            self._watch_process(child, pid)
        except OSError:
            # One that cannot be watched would be there twice when it is started again.
            os.kill(pid, signal.SIGKILL)
            raise

    def _fork_worker(self, child: Child, theirs: int, log: int) -> None:
        template = describe_template(child.spec)
        known = self.children.get(template.name)
        if known is None or known.channel is None:
            self.start(template)
        else:
            template = known
        self.send(template, ForkWorker(child.name, os.getpid(), child.spec), (theirs, log))

    def adopt(self, child: Child, pid: int) -> None:
        """A worker was forked, and says so from the process `pid`.

        Raises:
            MessageError: it has said so before, or the process is none that can be this worker.
        """
        if child.pid:
            refuse("`hello` came for the second time")
        if any(other.pid == pid for other in self.children.values()):
            refuse("`hello` came from a process that is another child")
        try:
            self._watch_process(child, pid)
        except OSError as error:
            refuse(f"`hello` came from a process that cannot be watched ({error})")
        if child.is_stopping:
            self.kill(child)
        self._greet(child)

    def _watch_process(self, child: Child, pid: int) -> None:
        """Take a process for a child's.

        Raises:
            OSError: it is no child of this process, or cannot be watched.
        """
        pidfd = os.pidfd_open(pid)
        try:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            self.selector.register(pidfd, selectors.EVENT_READ, lambda: self._take_death(child))
        except OSError:
            os.close(pidfd)
            raise
        child.pid, child.pidfd = pid, pidfd

    def stop(self, child: Child) -> bool:
        """End a child, and do not start it again; False where it was not running, and is forgotten now."""
        child.is_stopping = True
        child.restart_s = None
        if not child.pid and child.channel is None:
            del self.children[child.name]
            return False
        child.kill_s = time.monotonic() + KILL_AFTER_S
        self.kill(child, signal.SIGTERM)
        return True

    def kill(self, child: Child, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a child a signal, if it runs."""
        if child.pidfd >= 0:
            # It has ended, or is another user's by now.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(child.pidfd, number)

    def condemn(self, child: Child, fault: str, after_s: float = 0.0) -> None:
        """Kill a child for its fault, now or if it has not ended soon; it is started again as after any other death."""
        if after_s:
            child.kill_s, child.suspicion = time.monotonic() + after_s, fault
        else:
            # The first says why: one that is being killed may be suspected of much.
            child.fault = child.fault or fault
            self.kill(child)

    def drain(self, until_s: float, number: signal.Signals) -> None:
        """Have the fronts finish what they have begun, once nobody connects to them any more, which is so from `until_s` on.

        One that is not there begins now: those that connect are to be served until then.

        Args:
            until_s: see above.
            number: SIGTERM where they are to serve on for `drain_s`, SIGINT where not.
        """
        self.fronts_until_s = until_s
        for child in self.children.values():
            if child.kind == "front" and child.pid:
                self.kill(child, number)
            elif child.kind == "front":
                child.restart_s = time.monotonic()

    def revive(self) -> None:
        """Have all fronts there again, new ones in the place of those that were told to end."""
        self.fronts_until_s = math.inf
        for child in self.children.values():
            if child.kind == "front" and child.pid:
                self.kill(child)
            elif child.kind == "front":
                child.restart_s = time.monotonic()

    def stop_all(self) -> None:
        """End everybody: the control process in peace, the others at once."""
        for child in self.children.values():
            self.kill(child, signal.SIGTERM if child.kind == "control" else signal.SIGKILL)
        deadline = time.monotonic() + KILL_AFTER_S
        for child in self.children.values():
            if child.pid:
                # Needs no descriptor, as there may be none.
                waiter = select.poll()
                waiter.register(child.pidfd, select.POLLIN)
                if not waiter.poll(max(0.0, deadline - time.monotonic()) * 1e3):
                    self.kill(child)

    # the loop

    def turn(self, stop_s: float | None) -> None:
        """Wait until something happens, at most until `stop_s`, and deal with it."""
        due = [t for child in self.children.values() for t in (child.restart_s, child.kill_s, child.stuck_s) if t is not None]
        due += [at_s for at_s in (stop_s, self._reap_s, self._beat_s) if at_s is not None]
        for key, _ in self.selector.select(max(0.0, min(due) - time.monotonic()) if due else None):
            self._bear(key.data)
        now = time.monotonic()
        if self._reap_s is not None and self._reap_s <= now:
            self._reap_strangers()
        if self._beat_s <= now:
            self._beat(now)
        for child in list(self.children.values()):
            self._bear(partial(self._look_at, child, now))

    def _look_at(self, child: Child, now: float) -> None:
        """Do what is due."""
        if child.restart_s is not None and child.restart_s <= now:
            child.restart_s = None
            self.start(child)
        if child.kill_s is not None and child.kill_s <= now:
            child.kill_s = None
            self.condemn(child, child.suspicion)
        if child.stuck_s is not None and child.stuck_s <= now:
            self._give_up(child, "it does not read its channel")

    def _bear(self, work: Callable[[], None]) -> None:
        """Whatever the kernel refuses costs what it was for, and never this process."""
        try:
            work()
        except OSError as error:
            self.say(f"the machine refuses: {error}")
            time.sleep(_REFUSED_S)

    def _beat(self, now: float) -> None:
        """Give up children that are stopped or do not answer, and ask them again."""
        is_late, self._beat_s = now - self._beat_s > BEAT_S, now + BEAT_S
        if is_late:
            return  # this process itself was kept from running, and so may all others have been
        for child in self.running("control", "front", "template", "worker"):
            if fault := child.pulse.beat(child.pid):
                self.condemn(child, fault)
            elif child.kind in ("control", "front"):
                self.send(child, Beat())

    def note_death(self) -> None:
        """A process below the supervisor has ended, a child or one that it does not know."""
        if self._reap_s is None:
            # Not at once: it may be a worker whose word that it was forked is not read yet.
            self._reap_s = time.monotonic() + CLOSED_S

    def _reap_strangers(self) -> None:
        """Let go of dead processes that a worker's code started: when the worker ends, they come to the supervisor."""
        self._reap_s = None
        known = {child.pid for child in self.children.values()}
        with contextlib.suppress(OSError):
            below = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for pid in {int(found) for found in below} - known:
                os.waitpid(pid, os.WNOHANG)

    # channels

    def send(self, child: Child, message: Message, fds: tuple[int, ...] | list[int] = ()) -> None:
        """Tell a child something; one that cannot be told is given up."""
        if child.channel is None:
            return
        try:
            child.channel.send(message, fds)
            self._watch(child.channel)
        except ConnectionError:
            pass  # it is on its way out, as reading tells
        except MessageError as error:
            self.say(f"{child.name} is not told what it should be: {error}")
        except OSError as error:
            self._give_up(child, f"it can be told nothing ({error})")

    def _watch(self, channel: ChildChannel) -> None:
        """Be called when a child says something; also when it takes something, while something waits for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.stuck_s is not None else 0)
        key = self.selector.get_key(channel)
        if key.events != events:
            self.selector.modify(channel, events, key.data)

    def _take_turn(self, child: Child, channel: ChildChannel) -> None:
        if child.channel is not channel:
            # Closed by an event that was handled before this one in the same turn.
            return
        received: Received | None = None
        try:
            channel.flush()
            self._watch(channel)
            received = channel.receive()
            if received is not None:
                self._obey(child, received)
                return
        except BlockingIOError:
            return
        except MessageError as error:
            self._give_up(child, error.message)
            return
        except OSError:
            if received is not None:
                raise  # not of the channel, but of what was to be done
        self._drop_channel(child)
        if child.pid:
            self.condemn(child, "it closed its channel", CLOSED_S)
        else:
            # A worker that died before it said who it is.
            self._after_death(child, "did not start")

    def _give_up(self, child: Child, fault: str) -> None:
        """Kill a child for its fault, and hear no more of it."""
        self.condemn(child, fault)
        # Only now: it would end by itself without the channel.
        self._drop_channel(child)
        if not child.pid:
            self._after_death(child, f"killed: {fault}")

    def _drop_channel(self, child: Child) -> None:
        channel, child.channel = child.channel, None
        if channel is not None:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(channel)
            channel.close()

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
        how = f"signal {signal.Signals(code).name}" if killed else f"exit code {code}"
        if killed and code == signal.SIGKILL and child.fault:
            how = f"killed: {child.fault}"
        self._after_death(child, how, code, killed)

    def _read_rest(self, child: Child, channel: ChildChannel) -> None:
        with contextlib.suppress(OSError, MessageError):
            while (received := channel.receive()) is not None:
                self._obey(child, received)
        self._drop_channel(child)

    def _after_death(self, child: Child, how: str, code: int = 1, killed: bool = False) -> None:
        if child.kind == "front" and time.monotonic() > self.fronts_until_s:
            return
        if time.monotonic() - child.started_s > STABLE_S:
            child.num_deaths = 0
        child.num_deaths += 1
        is_refused = child.kind == "worker" and code == EXIT_REFUSED and not killed
        is_final = child.is_stopping or is_refused or child.kind == "template"
        if not child.is_stopping:
            self.say(f"{child.name} died: {how}; its log: {self.log_path(child.name)}")
        if not is_final:
            child.restart_s = time.monotonic() + BACKOFF_S[min(child.num_deaths, len(BACKOFF_S)) - 1]
            if child.kind == "front" and child.restart_s > self.fronts_until_s:
                child.restart_s = None
        elif self.children.get(child.name) is child:
            del self.children[child.name]
        self._mourn(child, how, is_final)

    def log_path(self, name: str) -> Path:
        """Of a child."""
        return self._logs / f"{name}.log"

    def say(self, text: str) -> None:
        """One line for the person who started the server."""
        with contextlib.suppress(OSError):  # who started it may have closed that
            print(f"argosy: {text}", file=sys.stderr, flush=True)
