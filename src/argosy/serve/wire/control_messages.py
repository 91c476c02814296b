"""Every message between the processes of a server: who sends it, who takes it, and what it holds.

Supervisor and children talk over channels, control process and fronts over streams (both: `channel.py`). A message is one JSON
object: `op`, which `TABLE` knows, and the fields of its class, all of them and no others. What a process receives is believed
only as far as it is checked here: a worker runs code of others.

Standard library only: the supervisor and foreign interpreters import this module.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Annotated, Final, Literal, NamedTuple, cast

from argosy.errors import MessageError
from argosy.serve.wire.checked import Between, Checked, Json, field, fill, read_float, refuse, show, to_json

__all__ = [
    "EXIT_REFUSED",
    "MAX_ERRANDS",
    "MAX_MESSAGE_BYTES",
    "TABLE",
    "Accuse",
    "Alive",
    "Answer",
    "ArrivalsAnswer",
    "Ask",
    "AskArrivals",
    "AskBusy",
    "AskLink",
    "AskLinks",
    "AskStats",
    "Beat",
    "BusyAnswer",
    "EndOfWorkers",
    "ErrandDone",
    "ForkWorker",
    "Held",
    "Hello",
    "JoinEnded",
    "LaneStats",
    "LinksAnswer",
    "LoadModel",
    "Message",
    "NewLink",
    "Process",
    "PutTable",
    "Ready",
    "Refused",
    "Report",
    "StartControl",
    "StartFront",
    "StartWorker",
    "StatsAnswer",
    "StopWorker",
    "TableTaken",
    "UnloadModel",
    "Way",
    "WorkerDied",
    "WorkerGone",
    "WorkerState",
    "decode",
    "encode",
    "fit_text",
    "longest",
]

EXIT_REFUSED: Final = 3
"""A worker's exit code when its model cannot be loaded: it is not started again."""
MAX_ERRANDS: Final = 64
"""Loads and unloads that a front may ask for before the first is answered: each holds a connection, and the control process
has other work."""

MAX_MESSAGE_BYTES: Final = 192 << 10
"""Of one on a channel: a datagram has to fit the kernel's buffers as they are by default."""
# What is told on has to fit again, with more beside it.
_MAX_SPEC_BYTES: Final = 128 << 10
_MAX_REPORT_BYTES: Final = 32 << 10
_MAX_LIST_BYTES: Final = 16 << 20
"""Of one on a stream that lists lanes, workers or arrivals."""
_MAX_TABLE_BYTES: Final = 256 << 20
_MAX_TEXT: Final = 2000
_ARRIVAL_BYTES: Final = 24

Process = Literal["supervisor", "control", "front", "template", "worker"]

_WorkerName = Annotated[str, re.compile(r"w-[A-Za-z0-9._-]{1,240}")]
_RUNTIME: Final = re.compile(r"[a-z0-9_]{1,40}")
_PYTHON: Final = re.compile(r"[^\0]{1,4000}")
_Rows = Annotated[int, Between(1, 1 << 16)]
_Length = Annotated[int, Between(0, 1 << 24)]
# Fronts divide by the square of what a batch took.
_Seconds = Annotated[float, Between(1e-9, 1e6)]


class Message(Checked):
    """One of the classes of `TABLE`."""


# supervisor and control process


class StartControl(Message):
    """Begin. Its descriptors: the counters' memory, the admin listener. What follows are the workers that there are."""

    config: Json
    """`argosy.config.ServeConfig`."""
    token: str
    """What callers of the admin API must show."""


class StartWorker(Message):
    """Start a worker, and start it again whenever it dies."""

    name: _WorkerName
    spec: Json
    """What it is told to load. `runtime` and `python` (where that is not the server's own interpreter) say what forks it."""

    def _check(self) -> None:
        super()._check()
        for pattern, value in ((_RUNTIME, self.spec.get("runtime")), (_PYTHON, self.spec.get("python", "python"))):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                refuse(f"StartWorker.spec has {show(value)}, expected {pattern.pattern}")


class StopWorker(Message):
    """End a worker, and do not start it again."""

    name: _WorkerName


class Accuse(Message):
    """A process that this one is linked with hangs, or says what it may not: end it, so that it is started again."""

    name: str
    pid: int
    """Of the accused, as `NewLink` gave it: another may have its name by now."""
    reason: str


class Held(Message):
    """A worker of this front is at something for a while; said every second, as long as that is so."""

    name: str
    pid: int
    """As in `Accuse`."""
    is_given_up: bool
    """Far longer than it should take, and nobody waits for it."""
    held_s: float


class Beat(Message):
    """Are you there?"""


class Alive(Message):
    """To `Beat`."""


class Ready(Message):
    """A worker has loaded its model, and what it found out."""

    load_s: float
    warm_s: float
    """Verifying and measuring."""
    threads: int
    """Of one operator."""
    memory_bytes: int
    golden_difference: float | None
    """Largest of all golden examples; None where there are none."""
    join_refusal: str
    """Why rows are not joined; "" where they are."""
    joining: str
    """What is known of rows that are joined: `independent` or `unknown`, and why."""
    pad_refusal: str | None
    """Why rows of different lengths are not; "" where they are, None where the signature is not ragged."""
    service_s: tuple[tuple[_Rows, _Seconds], ...]
    """What batches of so many rows took."""
    service: tuple[tuple[_Rows, _Length, _Seconds], ...]
    """The same by rows and length (0 where the signature is not ragged)."""
    escape: float | None = None
    """By how much a joined row has moved that was run again alone, where one has."""
    trial: str = ""
    """What came of a made-up request, where there are no golden examples."""


class JoinEnded(Message):
    """A row that was joined answered differently than alone, which the trials had not shown: no more are to be joined."""

    reason: str
    difference: Annotated[float, Between(0.0, 1e9)]
    """By how much; 1e9 also where no number says it."""


class Refused(Message):
    """A worker cannot load its model, and ends with EXIT_REFUSED."""

    error: str
    tensor: str | None = None
    """The output that differs from its golden example, where that is the reason."""
    got: float | None = None
    """By how much; None where no number says it."""
    how: str | None = None
    """What is another, such as the shape, where no number says it."""
    allowed: float | None = None

    def _check(self) -> None:
        super()._check()
        if (self.tensor is None) != (self.allowed is None):
            refuse("Refused.allowed and Refused.tensor do not go without each other")
        if self.tensor is not None and self.got is None and self.how is None:
            refuse("Refused.got and Refused.how: of a tensor one must say by how much it differs, or how")


Report = Ready | Refused


class WorkerState(Message):
    """How a worker stands: at the start of a control process, and whenever it has started or reported."""

    name: _WorkerName
    pid: int
    """0 while it is being started."""
    spec: Json
    deaths: int
    report: Report | None
    is_stopping: bool
    """It was told to end."""


class EndOfWorkers(Message):
    """A new control process has been told of every worker that there is, and given the link of every front."""


class WorkerDied(Message):
    """A worker ended that was not told to, or that was."""

    name: _WorkerName
    how: str
    log: str
    """The end of it."""
    is_final: bool
    """It is not started again."""
    report: Report | None


class WorkerGone(Message):
    """A worker that was to stop while it was not running."""

    name: _WorkerName


# supervisor and the other children


class StartFront(Message):
    """Begin. Its descriptors: the counters' memory, then its listeners."""

    config: Json
    index: int
    """Its place among the fronts."""
    listeners: tuple[str, ...]
    """What its listeners are for."""
    drain_s: float | None = None
    """The server ends, and new connections are served for so long still; None while it does not."""


class NewLink(Message):
    """The descriptor is one end of a socket pair to a sibling, which gets the other."""

    peer: str
    kind: str
    pid: int
    is_loaded: bool = False
    """It is a worker that has loaded its model."""


class AskLink(Message):
    """The descriptor of a `NewLink` did not arrive, as this process had no room for it: make another."""

    peer: str


class ForkWorker(Message):
    """Fork a worker. Its descriptors: the worker's end of its channel, its log."""

    name: _WorkerName
    supervisor: int
    """Process id."""
    spec: Json


class Hello(Message):
    """A worker was forked. The kernel says which process this comes from."""


# control process and fronts


class Ask(Message):
    """A control process asks; the answer has the same number."""

    id: int = field(default=0, kw_only=True)


class Answer(Message):
    """A front answers."""

    id: int


class PutTable(Ask):
    """Serve by this table from now on."""

    table: Json
    """`argosy.serve.wire.table.Table`."""


class TableTaken(Answer):
    """It does; or it had not the table that this was a change of."""

    epoch: int
    """Of the table that it serves by."""


class AskBusy(Ask):
    """Whether one of these lanes (deployment, version) holds a request, or one of these workers a batch."""

    lanes: tuple[tuple[str, str], ...]
    workers: tuple[str, ...]


class BusyAnswer(Answer):
    """To `AskBusy`."""

    is_busy: bool


class AskLinks(Ask):
    """Which of these workers the front could give no request of a deployment at once, were it told to: have it make ready."""

    name: str
    workers: tuple[str, ...]
    is_raw: bool
    """They answer raw requests."""


class LinksAnswer(Answer):
    """To `AskLinks`."""

    lacking: tuple[str, ...]
    """Those that it has no link to, or no descriptor or memory to share with."""


class AskStats(Ask):
    """How the front's lanes stand."""


class LaneStats(Checked):
    """One lane of a front, as `argosy stats` shows it."""

    name: str
    version: str
    replicas: int
    queued_rows: int
    open_requests: int
    rows_per_s: float
    can_join: bool
    join_refusal: str
    joining: str
    pad_refusal: str
    limit_rows: int
    limit_reason: str
    limit_s: float


class StatsAnswer(Answer):
    """To `AskStats`."""

    lanes: tuple[LaneStats, ...]


class AskArrivals(Ask):
    """When requests arrived for a deployment since this recording was last asked for; the first time it begins."""

    recording: str
    name: str


class ArrivalsAnswer(Answer):
    """To `AskArrivals`."""

    arrivals: bytes
    """Three doubles each: the moment (`time.monotonic()`), rows, length (0 where there is none)."""
    num_missed: int

    def _check(self) -> None:
        super()._check()
        if len(self.arrivals) % _ARRIVAL_BYTES or not all(0.0 <= number < 1e15 for number in array("d", self.arrivals)):
            refuse("ArrivalsAnswer.arrivals are none")


class LoadModel(Message):
    """A client asked for a load."""

    errand: int
    """The front's number of it."""
    name: str
    version: str
    """A number or alias; "" for the newest."""
    token: str
    """As the client showed it."""


class UnloadModel(Message):
    """A client asked for an unload."""

    errand: int
    name: str
    token: str


class ErrandDone(Message):
    """It is done, or went wrong."""

    errand: int
    kind: str | None = None
    """Class of the error; None where all went well."""
    text: str = ""
    hint: str = ""


# the table


class Way(NamedTuple):
    """A message's way."""

    kind: type[Message]
    senders: tuple[Process, ...]
    receivers: tuple[Process, ...]
    num_fds: int | None = 0
    """Descriptors that come with it; None where the message itself says how many."""
    max_bytes: int = MAX_MESSAGE_BYTES


TABLE: Final[dict[str, Way]] = {
    "start_control": Way(StartControl, ("supervisor",), ("control",), num_fds=2),
    "worker": Way(WorkerState, ("supervisor",), ("control",)),
    "end_of_workers": Way(EndOfWorkers, ("supervisor",), ("control",)),
    "died": Way(WorkerDied, ("supervisor",), ("control",)),
    "gone": Way(WorkerGone, ("supervisor",), ("control",)),
    "start_front": Way(StartFront, ("supervisor",), ("front",), num_fds=None),
    "link": Way(NewLink, ("supervisor",), ("control", "front", "worker"), num_fds=1),
    "ask_link": Way(AskLink, ("front",), ("supervisor",)),
    "fork": Way(ForkWorker, ("supervisor",), ("template",), num_fds=2),
    "hello": Way(Hello, ("worker",), ("supervisor",)),
    "ready": Way(Ready, ("worker",), ("supervisor",), max_bytes=_MAX_REPORT_BYTES),
    "join_ended": Way(JoinEnded, ("worker",), ("supervisor",)),
    "refused": Way(Refused, ("worker",), ("supervisor",), max_bytes=_MAX_REPORT_BYTES),
    "start_worker": Way(StartWorker, ("control",), ("supervisor",), max_bytes=_MAX_SPEC_BYTES),
    "stop_worker": Way(StopWorker, ("control",), ("supervisor",)),
    "held": Way(Held, ("front",), ("supervisor",)),
    "beat": Way(Beat, ("supervisor",), ("control", "front")),
    "alive": Way(Alive, ("control", "front"), ("supervisor",)),
    "accuse": Way(Accuse, ("control", "front"), ("supervisor",)),
    "table": Way(PutTable, ("control",), ("front",), max_bytes=_MAX_TABLE_BYTES),
    "table_taken": Way(TableTaken, ("front",), ("control",)),
    "busy": Way(AskBusy, ("control",), ("front",), max_bytes=_MAX_LIST_BYTES),
    "busy_answer": Way(BusyAnswer, ("front",), ("control",)),
    "links": Way(AskLinks, ("control",), ("front",), max_bytes=_MAX_LIST_BYTES),
    "links_answer": Way(LinksAnswer, ("front",), ("control",), max_bytes=_MAX_LIST_BYTES),
    "stats": Way(AskStats, ("control",), ("front",)),
    "stats_answer": Way(StatsAnswer, ("front",), ("control",), max_bytes=_MAX_LIST_BYTES),
    "arrivals": Way(AskArrivals, ("control",), ("front",)),
    "arrivals_answer": Way(ArrivalsAnswer, ("front",), ("control",), max_bytes=_MAX_LIST_BYTES),
    "load": Way(LoadModel, ("front",), ("control",)),
    "unload": Way(UnloadModel, ("front",), ("control",)),
    "errand_done": Way(ErrandDone, ("control",), ("front",)),
}
_OPS: Final = {route.kind: op for op, route in TABLE.items()}


def longest(sender: Process, receiver: Process) -> int:
    """The most bytes of one message from a sender of this kind to a receiver of that."""
    return max(route.max_bytes for route in TABLE.values() if sender in route.senders and receiver in route.receivers)


def encode(message: Message) -> bytes:
    """Write a message.

    Raises:
        MessageError: `message_too_large`; or `bad_message`, a part of it is nothing that JSON holds.
    """
    op = _OPS[type(message)]
    fields = {"op": op, **vars(message)}
    try:
        data = json.dumps(fields, separators=(",", ":"), allow_nan=False, default=to_json).encode()
    except (TypeError, ValueError, RecursionError) as error:
        refuse(f"`{op}` cannot be written ({error})")
    if len(data) > TABLE[op].max_bytes:
        raise MessageError("message_too_large", op=op, got=len(data), limit=TABLE[op].max_bytes)
    return data


def decode(data: bytes, sender: Process, receiver: Process, num_fds: int = 0) -> Message:
    """Read and check a message.

    Args:
        data: as received.
        sender: what kind of process sent it.
        receiver: what kind of process this is.
        num_fds: descriptors that came with it; none where this process has no room for them.

    Raises:
        MessageError: `bad_message`, it is none that such a process may send to this one.
    """
    try:
        fields: object = json.loads(data.decode(), parse_constant=read_float, parse_float=read_float)
    except RecursionError:
        refuse("it is nested too deep")
    except ValueError as error:
        refuse(f"it is no JSON ({error})")
    if not isinstance(fields, dict):
        refuse("it is no JSON object")
    fields = cast(Json, fields)
    op = fields.pop("op", None)
    route = TABLE.get(op) if isinstance(op, str) else None
    if route is None:
        refuse(f"its op is {show(op)}, which is none")
    if sender not in route.senders or receiver not in route.receivers:
        refuse(f"`{op}` is none that a {sender} process sends to a {receiver} process")
    if route.num_fds is not None and num_fds not in (0, route.num_fds):
        refuse(f"{num_fds} descriptors came with `{op}`, expected {route.num_fds}")
    if len(data) > route.max_bytes:
        refuse(f"`{op}` is longer than {route.max_bytes} bytes")
    return fill(route.kind, fields)


def fit_text(text: str, length: int = _MAX_TEXT) -> str:
    """A text from elsewhere as a message can hold it: cut, and without halves of surrogate pairs."""
    return text[:length].encode(errors="replace").decode()
