"""One machine as a node: what its fronts are told and asked, over real links whose other ends are played here."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import pytest

from argosy.deploy.front_link import SILENT_S
from argosy.deploy.local_node import LocalNode
from argosy.deploy.table_log import TableLog
from argosy.serve.wire.channel import Channel, read_message, write_message
from argosy.serve.wire.checked import Json
from argosy.serve.wire.control_messages import (
    Accuse,
    Answer,
    ArrivalsAnswer,
    Ask,
    AskArrivals,
    AskBusy,
    AskStats,
    BusyAnswer,
    ErrandDone,
    LaneStats,
    LoadModel,
    Message,
    PutTable,
    Ready,
    StartWorker,
    StatsAnswer,
    StopWorker,
    TableTaken,
    UnloadModel,
    WorkerDied,
    WorkerState,
)
from argosy.serve.wire.table import RepositoryEntry, TableEntry
from tests.deploy.driven_loop import run

PID = 4711
"""Of every front."""
LANE = LaneStats("m", "1", 1, 0, 0, 1234.5, True, "", "independent", "", 64, "full", 0.002)


class PlayedFront:
    """The front's end of a control link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.epoch = 0
        self.is_busy = False
        self.taken: list[Message] = []
        self.runs = asyncio.Event()
        """Set while it reads."""
        self.runs.set()
        self.task = asyncio.create_task(self.serve())

    async def serve(self) -> None:
        while True:
            await self.runs.wait()
            message = await read_message(self.reader, "front", "control")
            if message is None:
                return
            await self.runs.wait()
            self.taken.append(message)
            if isinstance(message, Ask):
                write_message(self.writer, self.answer(message))

    def answer(self, ask: Ask) -> Answer:
        match ask:
            case PutTable(table):
                if table["base"] in (0, self.epoch):
                    self.epoch = table["epoch"]
                return TableTaken(ask.id, self.epoch)
            case AskBusy():
                return BusyAnswer(ask.id, self.is_busy)
            case AskStats():
                return StatsAnswer(ask.id, (LANE,))
            case _:
                return ArrivalsAnswer(ask.id, b"", 0)

    @property
    def tables(self) -> list[Json]:
        """Those that it was told."""
        return [message.table for message in self.taken if isinstance(message, PutTable)]

    def stop(self) -> None:
        self.runs.clear()

    def go_on(self) -> None:
        self.runs.set()

    def die(self) -> None:
        self.task.cancel()
        self.writer.close()


class Scene:
    """A node, the supervisor's end of its channel, and fronts."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setblocking(False)
        self.ours, self.supervisor = Channel(ours, "control", "supervisor"), Channel(theirs, "supervisor", "control")
        self.errands: list[LoadModel | UnloadModel] = []
        self.node = LocalNode(self.ours, 1 << 40, self.take_errand)
        self.log = TableLog()
        self.loop = asyncio.get_running_loop()
        self.played: list[PlayedFront] = []

    async def connect(self, name: str, pid: int = PID) -> PlayedFront:
        """Have a front linked."""
        ours, theirs = socket.socketpair()
        front = PlayedFront(*await asyncio.open_connection(sock=theirs))
        self.played.append(front)
        await self.node.add_front(name, pid, ours)
        return front

    async def take_errand(self, message: LoadModel | UnloadModel) -> ErrandDone:
        self.errands.append(message)
        return ErrandDone(message.errand, "NotFoundError", "no such model")

    def receive(self) -> Message | None:
        """What the supervisor is told next; None where nothing is there."""
        try:
            received = self.supervisor.receive()
        except BlockingIOError:
            return None
        assert received is not None
        return received.message

    def update(self, *names: str, model: str = "m") -> None:
        """Have deployments changed, and fronts told."""
        self.log.update({name: TableEntry(name, model, ()) for name in names})
        self.node.tell_table(self.log)


async def settle() -> None:
    """Let everybody do all that there is to do: time passes only then."""
    await asyncio.sleep(0.01)


def play(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        scene = Scene()
        try:
            await scenario(scene)
        finally:
            for front in scene.played:
                front.die()
            await settle()
            scene.ours.close()
            scene.supervisor.close()

    run(main())


def names_of(table: Json) -> list[str]:
    return [entry["name"] for entry in table["deployments"]]


# tables


def test_front_gets_the_whole_table_when_it_comes_and_changes_after_that() -> None:
    async def scenario(scene: Scene) -> None:
        early = await scene.connect("front-0")
        scene.update("a", "b")
        assert await scene.node.wait_told() == ()
        late = await scene.connect("front-1")
        assert await scene.node.wait_told() == ()
        whole = scene.log.epoch
        scene.update("b", model="other")
        scene.log.update({"a": None}, {"m": RepositoryEntry("m", "1", "not deployed")})
        assert await scene.node.wait_told() == ()
        scene.node.tell_table(scene.log)
        assert await scene.node.wait_told() == ()
        for front in (early, late):
            first, second, third = front.tables
            assert (first["base"], names_of(first), first["epoch"]) == (0, ["a", "b"], whole)
            assert (second["base"], names_of(second), second["removed"]) == (whole, ["b"], [])
            assert (third["base"], names_of(third), third["removed"]) == (second["epoch"], [], ["a"])
            assert [entry["name"] for entry in third["repository"]] == ["m"]
            assert front.epoch == scene.log.epoch

    play(scenario)


def test_front_that_is_slow_gets_all_that_has_changed_meanwhile_in_one_table() -> None:
    async def scenario(scene: Scene) -> None:
        slow = await scene.connect("front-0")
        quick = await scene.connect("front-1")
        scene.update("a")
        await scene.node.wait_told()
        slow.stop()
        for number in range(50):
            scene.update(f"m{number}")
            await settle()
        slow.go_on()
        assert await scene.node.wait_told() == ()
        assert len(quick.tables) == 51
        assert [len(names_of(table)) for table in slow.tables] == [1, 1, 49]

    play(scenario)


def test_front_that_has_not_what_changes_are_of_gets_the_whole_table() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        scene.update("a")
        await scene.node.wait_told()
        front.epoch = 7
        scene.update("b")
        assert await scene.node.wait_told() == ()
        assert [table["base"] == 0 for table in front.tables] == [True, False, True]
        assert names_of(front.tables[-1]) == ["a", "b"]

    play(scenario)


def test_table_of_a_log_that_has_not_changed_is_told_once() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        for _ in range(3):
            scene.update("a")
            assert await scene.node.wait_told() == ()
        assert len(front.tables) == 1

    play(scenario)


# asks


def test_answer_counts_only_of_a_front_that_serves_by_the_present_table() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        scene.update("a")
        await scene.node.wait_told()
        scene.update("b")
        assert (await scene.node.ask_busy([("a", "1")], ["w"])).answers == {"front-0": False}
        assert [type(message) for message in front.taken] == [PutTable, PutTable, AskBusy]
        assert front.taken[-1] == AskBusy((("a", "1"),), ("w",), id=3)

    play(scenario)


@pytest.mark.parametrize("num_tables", [0, 1])
def test_silent_front_is_named_and_finds_no_heap_of_questions(num_tables: int) -> None:
    async def scenario(scene: Scene) -> None:
        silent = await scene.connect("front-0")
        other = await scene.connect("front-1")
        other.is_busy = True
        for number in range(num_tables):
            scene.update(f"m{number}")
        await scene.node.wait_told()
        silent.stop()
        began_s = scene.loop.time()
        asked = await scene.node.ask_busy([], ["w"])
        assert (asked.answers, asked.silent) == ({"front-1": True}, ("front-0",))
        assert scene.loop.time() - began_s == pytest.approx(SILENT_S, abs=0.1)
        # It is known to be silent by now: nobody waits for it again, and nothing more is sent.
        began_s = scene.loop.time()
        for _ in range(20):
            assert (await scene.node.ask_busy([], ["w"])).silent == ("front-0",)
            assert (await scene.node.ask_stats()).silent == ("front-0",)
        assert await scene.node.wait_told() == ("front-0",)
        assert scene.loop.time() - began_s < 0.1
        silent.go_on()
        await settle()
        assert [type(message) for message in silent.taken[num_tables:]] == [AskBusy]
        assert (await scene.node.ask_busy([], ["w"])).answers == {"front-0": False, "front-1": True}

    play(scenario)


@contextmanager
def process() -> Generator[int, None, None]:
    """A process that does nothing."""
    found = subprocess.Popen(["sleep", "60"])
    try:
        yield found.pid
    finally:
        found.kill()
        found.wait()


def test_front_whose_process_is_stopped_is_silent_at_once_and_until_it_goes_on() -> None:
    async def scenario(scene: Scene) -> None:
        with process() as pid:
            front = await scene.connect("front-0", pid)
            assert (await scene.node.ask_busy([], ["w"])).answers == {"front-0": False}
            front.stop()
            os.kill(pid, signal.SIGSTOP)
            began_s = scene.loop.time()
            for number in range(5):
                scene.update(f"m{number}")
                assert await scene.node.wait_told() == ("front-0",)
            assert scene.loop.time() - began_s < 1.0
            os.kill(pid, signal.SIGCONT)
            front.go_on()
            assert await scene.node.wait_told() == ()
            assert front.epoch == scene.log.epoch

    play(scenario)


def test_front_that_dies_while_it_is_asked_is_neither_silent_nor_busy() -> None:
    async def scenario(scene: Scene) -> None:
        dying = await scene.connect("front-0")
        await scene.connect("front-1")
        dying.stop()
        began_s = scene.loop.time()
        scene.loop.call_later(1.0, dying.die)
        asked = await scene.node.ask_busy([], ["w"])
        assert (asked.answers, asked.silent) == ({"front-1": False}, ())
        assert scene.loop.time() - began_s < 1.1
        assert scene.node.fronts.keys() == {"front-1"}

    play(scenario)


def test_fronts_are_asked_at_once() -> None:
    async def scenario(scene: Scene) -> None:
        fronts = [await scene.connect(f"front-{index}") for index in range(3)]
        for front in fronts:
            front.stop()
            scene.loop.call_later(2.0, front.go_on)
        began_s = scene.loop.time()
        asked = await scene.node.ask_arrivals("recording", "m")
        assert asked.answers.keys() == {"front-0", "front-1", "front-2"}
        assert scene.loop.time() - began_s < 2.5
        assert [front.taken for front in fronts] == [[AskArrivals("recording", "m", id=1)]] * 3
        assert (await scene.node.ask_stats()).answers == {f"front-{index}": (LANE,) for index in range(3)}

    play(scenario)


def test_load_that_a_front_asks_for_is_carried_out_and_answered() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        write_message(front.writer, LoadModel(5, "m", "", "secret"))
        await settle()
        assert scene.errands == [LoadModel(5, "m", "", "secret")]
        assert front.taken == [ErrandDone(5, "NotFoundError", "no such model")]
        assert scene.receive() is None

    play(scenario)


def test_front_that_says_what_it_may_not_is_accused_and_heard_no_more() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        # Whoever hangs is named to the supervisor, not here.
        write_message(front.writer, Accuse("w-1", 7, "it hangs"))
        write_message(front.writer, LoadModel(5, "m", "", "secret"))
        await settle()
        told = scene.receive()
        assert isinstance(told, Accuse)
        assert (told.name, told.pid) == ("front-0", PID)
        assert "`accuse` is none that a front process sends to a control process" in told.reason
        assert scene.receive() is None
        assert (scene.errands, scene.node.fronts) == ([], {})

    play(scenario)


# workers


SPEC: Json = {"deployment": "m", "runtime": "onnx", "key": "k", "folder": "/nowhere", "filler": "x" * 2000}
READY = Ready(0.25, 0.5, 1, 5, None, "", "independent", None, ((1, 0.001),), ())


def test_supervisor_that_has_no_room_gets_everything_later_and_in_order() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        names = [scene.node.start_worker("m", 1, SPEC) for _ in range(200)]
        scene.node.stop_workers(names)
        got: list[Message] = []
        while len(got) < 400:
            if (message := scene.receive()) is None:
                await asyncio.sleep(0)
            else:
                got.append(message)
        started = [message for message in got if isinstance(message, StartWorker)]
        # With the limits of its memory, which are the moment's.
        assert all(message.spec.items() >= SPEC.items() for message in started)
        assert [message.name for message in started] == names
        assert got == started + [StopWorker(name) for name in names]

    play(scenario)


def test_worker_is_followed_through_its_deaths_to_its_end() -> None:
    async def scenario(scene: Scene) -> None:
        node = scene.node
        name = node.start_worker("m", 1, SPEC)
        assert node.workers.take_changed() == {"m"}
        node.take_supervisor_message(WorkerState(name, 7, SPEC, 0, READY, is_stopping=False))
        worker = node.workers[name]
        assert (worker.is_ready, worker.memory_bytes, node.workers.measure(name)) == (True, 5, 5)
        for number in (1, 2):
            node.take_supervisor_message(WorkerDied(name, "signal SIGKILL", "the end", is_final=False, report=None))
            # It had run for long before: the supervisor counts anew.
            node.take_supervisor_message(WorkerState(name, 7, SPEC, 1, None, is_stopping=False))
            assert (worker.num_deaths, worker.num_seen_deaths) == (1, number)
        assert worker.last_death == "signal SIGKILL; its log ends: the end"
        node.stop_workers([name])
        assert worker.is_stopping
        assert node.workers.take_changed() == {"m"}
        node.take_supervisor_message(WorkerDied(name, "signal SIGKILL", "the end", is_final=True, report=None))
        assert (worker.is_gone, len(node.workers), node.workers.of("m"), node.workers.take_changed()) == (True, 0, [], {"m"})

    play(scenario)


def test_worker_that_was_told_to_end_is_known_as_such_by_the_next_control_process() -> None:
    async def scenario(scene: Scene) -> None:
        for is_stopping in (True, False):
            scene.node.take_supervisor_message(WorkerState("w-m-1", 7, SPEC, 0, None, is_stopping))
            assert scene.node.workers["w-m-1"].is_stopping

    play(scenario)
