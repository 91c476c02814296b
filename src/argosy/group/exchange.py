"""What the workers of a group tell each other in each step. They meet in rounds: each says something, all hear the same.

The first of them, the *leader*, hears all the others and answers each; so there is one who decides whether a round was whole.
Whoever fails says so in the next round, whatever the others do in it.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.errors import ArgosyError, FaultError, ModelError, list_choices
from argosy.group.memory import Layout, Region, make_file
from argosy.group.wire import Wire

__all__ = ["Changed", "Ended", "Follower", "Group", "Leader", "Peer"]

Array = NDArray[Any]

_LOG = logging.getLogger(__name__)

_SILENT_S: Final = 60.0
_WATCHED_STEPS: Final = 50
_SLOW: Final = 1.5
_FOLLOWS: Final = "follows"
READY: Final = "ready"


class Changed(Exception):
    """A worker is gone, or one came: the group forms anew, and goes on from a state that its leader kept."""


class Ended(Exception):
    """The run is over for all workers, because one of them failed."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(str(error))
        self.error = error


class Formation(NamedTuple):
    """What a worker is told when a group forms."""

    rank: int
    """Of this worker, counted from 0; that of the leader is 0."""
    size: int
    """Number of workers."""
    folder: str
    """In which they share memory."""
    num_threads: int | None
    """That each worker computes with from now on; None: as many as before."""
    start: Any
    """What they begin with."""


class _Said(NamedTuple):
    kind: str
    value: Any


class _Heard(NamedTuple):
    status: Literal["ok", "bad", "ended", "changed"]
    value: Any


class _Offer(NamedTuple):
    path: Path
    """Where it lies."""
    loss: float
    num_rows: int
    has: tuple[bool, ...]
    worked_s: float
    """Since the step began."""


class Peer(Protocol):
    """Another worker, as the leader has it."""

    @property
    def wire(self) -> Wire: ...


class Group(ABC):
    """One worker's view of its group. What follows a round is the same in all workers."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.num_rows = 0
        """Of the batch that this worker has; set before each step."""
        self.waited_s = 0.0
        """That this worker spent in rounds, mostly waiting for others."""
        self._begun_s = 0.0
        self.folder = ""
        """In which workers share memory; the leader is told before it forms the group."""
        self.is_changing = False
        """The next round forms the group anew, because its leader, who alone knows, wants other workers."""
        self.set_threads: Callable[[int], object] = bool
        """Called with the number of threads of a new formation."""
        self._regions: dict[Layout, Region] = {}
        self._trouble: _Heard | None = None

    @abstractmethod
    def begin(self, start: Any) -> Any:
        """Wait until the group has formed, and give what all begin with: what the leader gives here.

        Raises:
            Ended: a worker cannot begin, or the leader is gone.
        """

    # Within a step.

    def average(
        self, loss: float, gradients: Sequence[Array], has: Sequence[bool], beside: Sequence[Array] = ()
    ) -> Sequence[bool]:
        """Turn each worker's gradients into the mean over the rows of all, in place.

        Where that cannot be, because a worker is gone or its loss is not finite, they become NaN, so that no weight is moved.

        Args:
            loss: mean over this worker's rows.
            gradients: of that; writeable.
            has: which of them there are; those that are none hold zeros.
            beside: what else is averaged so, such as running statistics; it stays as it is where that cannot be.

        Returns:
            Which of them there are in any worker.
        """
        if self._trouble is None:
            if self.size == 1:
                return has
            try:
                return self._average(loss, [*gradients, *beside], has)
            except _TroubleError as error:
                self._trouble = error.heard
        for gradient in gradients:
            gradient[...] = np.nan
        return has

    def _average(self, loss: float, arrays: Sequence[Array], has: Sequence[bool]) -> Sequence[bool]:
        layout = Layout.of(arrays)
        region = self._regions.get(layout)
        if region is None:
            path = self._meet("open", layout)
            region = self._regions[layout] = Region(Path(path), layout, self.rank, self.size)
        region.write(arrays)
        worked_s = time.perf_counter() - self._begun_s
        offer = _Offer(region.path, loss, self.num_rows, tuple(has), worked_s)
        shares, mean, together = self._meet("average", offer)
        if not math.isfinite(mean):
            raise _TroubleError(_Heard("ok", None))
        region.reduce(shares)
        self._meet("reduced", None)
        region.read(arrays)
        return together

    # Around steps.

    def begin_step(self, num_rows: int) -> None:
        """Say how many rows this worker's batch has."""
        self.num_rows = num_rows
        self._trouble = None
        self._begun_s = time.perf_counter()

    def end_step(self, number: int) -> None:
        """Know that the step of a number was taken."""
        del number

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the others that this worker failed in a step, and raise what follows from it for all.

        An error of the model's (`ModelError`) is one of the step, which all take back; any other ends the run.

        Raises:
            Changed, Ended: see there.
            ModelError: what one of the workers met.
        """
        if self._trouble is None or self._trouble.status == "ok":
            try:
                self._meet("fail", error)
            except _TroubleError as trouble:
                self._trouble = trouble.heard
        assert self._trouble is not None
        self._raise(self._trouble)

    def settle(self, values: Sequence[float]) -> list[float]:
        """Give the sums of numbers over all workers."""
        return self._ask("settle", [*values])

    def follow(self, value: Any) -> Any:
        """Give what the leader says."""
        return self._ask(_FOLLOWS, value if self.rank == 0 else None)

    def _ask(self, kind: str, value: Any) -> Any:
        try:
            return self._meet(kind, value)
        except _TroubleError as trouble:
            self._raise(trouble.heard)

    @staticmethod
    def _raise(heard: _Heard) -> NoReturn:
        if heard.status == "changed":
            raise Changed
        if heard.status == "bad":
            raise heard.value
        raise Ended(heard.value)

    def _meet(self, kind: str, value: Any) -> Any:
        """Say something, and give what follows from what all said."""
        started_s = time.perf_counter()
        heard = self._hold_round(_Said(kind, value))
        self.waited_s += time.perf_counter() - started_s
        if heard.status != "ok":
            raise _TroubleError(heard)
        return heard.value

    @abstractmethod
    def _hold_round(self, said: _Said) -> _Heard: ...

    def _take_place(self, formation: Formation) -> None:
        self.rank, self.size, self.folder = formation.rank, formation.size, formation.folder
        self._regions.clear()
        self._trouble = None
        if formation.num_threads is not None:
            self.set_threads(formation.num_threads)


class Follower(Group):
    """Any worker but the first."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def begin(self, start: Any) -> Any:
        try:
            while not isinstance(formation := self._wire.recv(), Formation):
                pass  # Rows for a step that is not taken.
        except (EOFError, OSError) as error:
            raise Ended(None) from error
        self._take_place(formation)
        return formation.start

    def report(self, error: BaseException) -> None:
        """Say that this worker cannot begin."""
        try:
            self._wire.send(_Said("fail", error))
        except OSError:
            pass

    def say_ready(self) -> None:
        """Say that it can."""
        self._wire.send(_Said(READY, None))

    def fetch(self) -> Any:
        try:
            return self._wire.recv()
        except (EOFError, OSError) as error:
            raise Ended(None) from error

    def _hold_round(self, said: _Said) -> _Heard:
        try:
            self._wire.send(said)
            return self._wire.recv()
        except (EOFError, OSError):
            return _Heard("ended", None)


class Leader(Group):
    """The first worker."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[Peer] = []
        self.lost: list[Peer] = []
        """Those of whom the last round heard nothing any more."""
        self._worked_s: list[float] = []
        self._num_watched = 0
        self._named: set[int] = set()
        self._number = 0
        self._files: list[Path] = []

    def hear_ready(self, peer: Peer) -> None:
        """Wait until a new peer can begin.

        Raises:
            Ended: it cannot, and says why.
            EOFError, OSError: it is gone.
        """
        said = self._hear(peer, "the worker that starts")
        if said.kind != READY:
            raise Ended(said.value)

    def form(self, peers: Sequence[Peer], start: Any, num_threads: int | None = None) -> None:
        """Form the group of this worker and some peers, all of whom wait for it."""
        self._number += 1
        self._remove_files()
        self.peers, self.lost = [*peers], []
        self._worked_s, self._num_watched = [0.0] * (len(peers) + 1), 0
        for rank, peer in enumerate(peers, 1):
            self._send(peer, Formation(rank, len(peers) + 1, self.folder, num_threads, start))
        self._take_place(Formation(0, len(peers) + 1, self.folder, num_threads, None))

    def feed(self, shares: Sequence[Any]) -> None:
        """Give each worker something of its own, in the order of their ranks; the first is this worker's."""
        for peer, share in zip(self.peers, shares[1:], strict=True):
            self._send(peer, share)

    def close(self) -> None:
        """Remove what is shared."""
        self._regions.clear()
        self._remove_files()

    def _remove_files(self) -> None:
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files.clear()

    def _hold_round(self, said: _Said) -> _Heard:
        heard: list[_Said] = [said]
        for rank, peer in enumerate(self.peers, 1):
            try:
                heard.append(self._hear(peer, f"worker {rank + 1} of {self.size}"))
            except (EOFError, OSError):
                self.lost.append(peer)
        verdict = _Heard("changed", None) if self.lost or self.is_changing else self._judge(heard)
        for peer in self.peers:
            if peer not in self.lost:
                self._send(peer, verdict)
        return verdict

    def _hear(self, peer: Peer, name: str) -> _Said:
        while not peer.wire.poll(_SILENT_S):
            _LOG.warning("%s has said nothing for %.0f s; all wait for it", name, _SILENT_S)
        return peer.wire.recv()

    def _send(self, peer: Peer, message: Any) -> None:
        try:
            peer.wire.send(message)
        except OSError:
            pass  # The next round finds that it is gone.

    def _judge(self, heard: list[_Said]) -> _Heard:
        failed = [said.value for said in heard if said.kind == "fail"]
        if failed:
            fatal = [error for error in failed if not isinstance(error, ModelError)]
            return _Heard("ended", fatal[0]) if fatal else _Heard("bad", failed[0])
        kind = heard[0].kind
        values = [said.value for said in heard]
        if any(said.kind != kind for said in heard):
            return _Heard("ended", FaultError("group_differs", kinds=list_choices(said.kind for said in heard)))
        about = [value.path if isinstance(value, _Offer) else value if kind == "open" else None for value in values]
        if any(one != about[0] for one in about):
            return _Heard("ended", FaultError("group_differs", kinds="gradients of other shapes, or in another order"))
        try:
            return _Heard("ok", getattr(self, f"_judge_{kind}")(values))
        except (OSError, ArgosyError) as error:
            return _Heard("ended", error)

    def _judge_open(self, values: list[Layout]) -> str:
        name = f"{self._number}-{len(self._files)}"
        try:
            path = make_file(Path(self.folder), name, values[0], self.size)
        except OSError:
            path = make_file(self.find_room(), name, values[0], self.size)
        self._files.append(path)
        return str(path)

    def find_room(self) -> Path:
        """Give another folder for what the first has no room for."""
        return Path(self.folder)

    def _judge_average(self, values: list[_Offer]) -> tuple[list[float], float, list[bool]]:
        total = sum(offer.num_rows for offer in values)
        shares = [offer.num_rows / total for offer in values]
        loss = sum(share * offer.loss for share, offer in zip(shares, values, strict=True) if share)
        self._watch([offer.worked_s for offer in values])
        return shares, loss, [any(row) for row in zip(*(offer.has for offer in values), strict=True)]

    def _watch(self, seconds: list[float]) -> None:
        """Name a worker that takes much longer than the others, once: all wait for it."""
        self._worked_s = [before + new for before, new in zip(self._worked_s, seconds, strict=True)]
        self._num_watched += 1
        if self._num_watched % _WATCHED_STEPS:
            return
        for rank, own in enumerate(self._worked_s):
            others = statistics.median(other for place, other in enumerate(self._worked_s) if place != rank)
            if own > _SLOW * others and rank not in self._named:
                self._named.add(rank)
                name = f"worker {rank + 1} of {self.size}"
                _LOG.warning("%s falls behind: its steps take %.1f times as long as the others'", name, own / others)
        self._worked_s = [0.0] * len(seconds)

    def _judge_reduced(self, values: list[None]) -> None:
        """All have made their part."""

    def _judge_settle(self, values: list[list[float]]) -> list[float]:
        return [sum(column) for column in zip(*values, strict=True)]

    def _judge_follows(self, values: list[Any]) -> Any:
        return values[0]


class _TroubleError(Exception):
    def __init__(self, heard: _Heard) -> None:
        super().__init__(heard.status)
        self.heard = heard
