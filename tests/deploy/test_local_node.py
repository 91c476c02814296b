"""One machine as a node: what its fronts are told and asked, over real links whose other ends are played here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from argosy.deploy.front_link import SILENT_S
from argosy.deploy.local_node import LocalNode
from argosy.deploy.table_log import TableLog
from argosy.serve.wire.channel import Channel, make_channel_pair, read_message, write_message
from argosy.serve.wire.table import RepositoryEntry, TableEntry
from tests.deploy.driven_loop import run

Message = dict[str, Any]


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
            message = await read_message(self.reader)
            if message is None:
                return
            await self.runs.wait()
            self.taken.append(message)
            if "id" in message:
                write_message(self.writer, {"id": message["id"], **self.answer(message)})

    def answer(self, message: Message) -> Message:
        match message["op"]:
            case "table":
                table = message["table"]
                if table["base"] in (0, self.epoch):
                    self.epoch = table["epoch"]
                return {"epoch": self.epoch}
            case "busy":
                return {"busy": self.is_busy}
            case "stats":
                return {"lanes": [{"name": "m"}]}
            case _:
                return {"arrivals": "", "num_missed": 0}

    @property
    def tables(self) -> list[Message]:
        """Those that it was told."""
        return [message["table"] for message in self.taken if message["op"] == "table"]

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
        ours, self.supervisor = make_channel_pair()
        ours.sock.setblocking(False)
        self.ours: Channel = ours
        self.hung: list[str] = []
        self.errands: list[Message] = []
        self.node = LocalNode(ours, 1 << 40, self.hung.append, self.take_errand)
        self.log = TableLog()
        self.loop = asyncio.get_running_loop()
        self.played: list[PlayedFront] = []

    async def connect(self, name: str) -> PlayedFront:
        """Have a front linked."""
        ours, theirs = socket.socketpair()
        front = PlayedFront(*await asyncio.open_connection(sock=theirs))
        self.played.append(front)
        await self.node.add_front(name, ours)
        return front

    async def take_errand(self, message: Message) -> Message:
        self.errands.append(message)
        return {"kind": "NotFoundError", "text": "no such model", "hint": ""}

    def update(self, *names: str, model: str = "m") -> None:
        """Have deployments changed, and fronts told."""
        self.log.update({name: TableEntry(name, model, ()) for name in names})
        self.node.tell_table(self.log)


def play(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        scene = Scene()
        try:
            await scenario(scene)
        finally:
            for front in scene.played:
                front.die()
            await asyncio.sleep(0.01)
            scene.ours.close()
            scene.supervisor.close()

    run(main())


def names_of(table: Message) -> list[str]:
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
            await asyncio.sleep(0.01)
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
        assert [message["op"] for message in front.taken] == ["table", "table", "busy"]
        assert (front.taken[-1]["lanes"], front.taken[-1]["workers"]) == ([["a", "1"]], ["w"])

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
        await asyncio.sleep(0.01)
        assert [message["op"] for message in silent.taken[num_tables:]] == ["busy"]
        assert (await scene.node.ask_busy([], ["w"])).answers == {"front-0": False, "front-1": True}

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

    play(scenario)


def test_what_a_front_says_unasked_is_heard() -> None:
    async def scenario(scene: Scene) -> None:
        front = await scene.connect("front-0")
        write_message(front.writer, {"op": "hung", "worker": "w-1"})
        write_message(front.writer, {"op": "load", "errand": 5, "name": "m"})
        await asyncio.sleep(0.01)
        assert scene.hung == ["w-1"]
        assert [message["errand"] for message in scene.errands] == [5]
        assert front.taken[-1] == {"op": "errand", "errand": 5, "kind": "NotFoundError", "text": "no such model", "hint": ""}

    play(scenario)


# workers


def make_spec(name: str = "m") -> Message:
    return {"deployment": name, "runtime": "onnx", "key": "k", "filler": "x" * 2000}


def test_supervisor_that_has_no_room_gets_everything_later_and_in_order() -> None:
    async def scenario(scene: Scene) -> None:
        scene.ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        names = [scene.node.start_worker("m", 1, make_spec()) for _ in range(200)]
        scene.node.stop_workers(names)
        scene.supervisor.sock.setblocking(False)
        got: list[tuple[str, str]] = []
        while len(got) < 400:
            try:
                received = scene.supervisor.receive()
                assert received is not None
                got.append((received[0]["op"], received[0]["name"]))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert got == [("start_worker", name) for name in names] + [("stop_worker", name) for name in names]

    play(scenario)


def test_worker_is_followed_through_its_deaths_to_its_end() -> None:
    async def scenario(scene: Scene) -> None:
        node = scene.node
        name = node.start_worker("m", 1, make_spec())
        assert node.workers.take_changed() == {"m"}
        described = {"op": "worker", "name": name, "pid": 7, "spec": make_spec(), "deaths": 0, "is_stopping": False}
        node.take_supervisor_message({**described, "report": {"state": "ready", "memory_bytes": 5}})
        worker = node.workers[name]
        assert (worker.is_ready, worker.memory_bytes, node.workers.measure(name)) == (True, 5, 5)
        died = {"op": "died", "name": name, "how": "signal SIGKILL", "log": "the end", "is_final": False, "report": None}
        for number in (1, 2):
            node.take_supervisor_message(died)
            # It had run for long before: the supervisor counts anew.
            node.take_supervisor_message({**described, "deaths": 1, "report": None})
            assert (worker.num_deaths, worker.num_seen_deaths) == (1, number)
        assert worker.last_death == "signal SIGKILL; its log ends: the end"
        node.stop_workers([name])
        assert worker.is_stopping
        assert node.workers.take_changed() == {"m"}
        node.take_supervisor_message({**died, "is_final": True})
        assert (worker.is_gone, len(node.workers), node.workers.of("m"), node.workers.take_changed()) == (True, 0, [], {"m"})

    play(scenario)


def test_worker_that_was_told_to_end_is_known_as_such_by_the_next_control_process() -> None:
    async def scenario(scene: Scene) -> None:
        message = {"op": "worker", "name": "w", "pid": 7, "spec": make_spec(), "deaths": 0, "report": None}
        scene.node.take_supervisor_message({**message, "is_stopping": True})
        assert scene.node.workers["w"].is_stopping
        scene.node.take_supervisor_message({**message, "is_stopping": False})
        assert scene.node.workers["w"].is_stopping

    play(scenario)
