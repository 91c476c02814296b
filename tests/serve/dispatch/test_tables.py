"""Tables as a front takes them: changes leave the same as whole tables do, and those of another table are not taken."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.config import ServeConfig
from argosy.deploy.table_log import TableLog
from argosy.serve.dispatch.router import Router
from argosy.serve.front.front import Front as FrontProcess
from argosy.serve.wire import channel as channels
from argosy.serve.wire.channel import Channel, read_message, write_message
from argosy.serve.wire.control_messages import Message, NewLink, PutTable, StartFront, TableTaken
from argosy.serve.wire.counters import MEMORY_BYTES
from argosy.serve.wire.table import LaneEntry, RepositoryEntry, Table, TableEntry
from argosy.signature import Signature, TensorSpec
from tests.serve.dispatch.played import Front, Played

SIGNATURES = [Signature((TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("y", "FP32", (-1, width)),)) for width in (4, 5)]
NAMES = ("a", "b", "c")
WORKERS = tuple(f"w-{name}-{number}" for name in NAMES for number in (1, 2))


@st.composite
def make_entry(draw: Any, name: str) -> TableEntry | None:
    """A deployment of up to two versions, of which one may drain; or None, for one that is no more."""
    versions = draw(st.lists(st.sampled_from(["1", "2"]), unique=True, max_size=2))
    if not versions:
        return None
    workers = [worker for worker in WORKERS if worker.startswith(f"w-{name}-")]
    lanes: list[LaneEntry] = []
    for version in versions:
        own = [worker for worker in workers if draw(st.sampled_from(["", *versions])) == version]
        workers = [worker for worker in workers if worker not in own]
        is_draining = version != versions[0]
        signature = SIGNATURES[draw(st.integers(0, 1))]
        limit = draw(st.integers(1, 3))
        lanes.append(
            LaneEntry(
                version,
                float(not is_draining),
                is_draining,
                0,
                signature,
                "onnx",
                tuple(own),
                limit,
                True,
                True,
                30.0,
                9,
                1 << 20,
            )
        )
    return TableEntry(name, "m", tuple(lanes))


CHANGE = st.fixed_dictionaries({}, optional={name: make_entry(name) for name in NAMES})
INDEX = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([None, RepositoryEntry("x", "1", "not deployed")]), max_size=2)


def describe(router: Router) -> Any:
    """All that requests see of a table."""
    return {
        "deployments": {
            name: {
                version: (
                    [link.worker for link in lane.links],
                    lane.max_batch_rows,
                    lane.signature,
                    lane.versions,
                    lane in deployment._targets,
                    version in deployment._served,
                )
                for version, lane in deployment.lanes.items()
            }
            for name, deployment in router.deployments.items()
        },
        "lanes": {(lane.name, lane.version) for lane in router.list_lanes()},
        "workers": {worker: (lane.name, lane.version) for worker, lane in router._lane_of_worker.items()},
        "repository": router.repository,
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CHANGE, INDEX, st.booleans()), min_size=1, max_size=6))
def test_changes_leave_what_whole_tables_leave(steps: list[tuple[Any, Any, bool]]) -> None:
    front = Front()
    for worker in WORKERS:
        Played(front, worker)
    log = TableLog()
    router = front.router
    router.apply(log.get_change(0))
    for deployments, index, is_told in steps:
        named = {name: entry and msgspec.structs.replace(entry, name=name) for name, entry in index.items()}
        log.update(deployments, named)
        if is_told:
            # What a front was not told of alone it is told of together with what comes next.
            router.apply(log.get_change(router.epoch))
    router.apply(log.get_change(router.epoch))
    other = Router(front.loop, front.counters)
    for link in router._links.values():
        other.add_link(link)
    other.apply(log.get_change(0))
    assert describe(router) == describe(other)
    assert router.epoch == log.epoch
    front.close()


def test_lane_that_a_change_does_not_name_is_left_alone() -> None:
    front = Front()
    Played(front, "w0")
    waiting = front.ask(1.0, 2.0)
    lane = front.lane
    heads: list[int] = []
    front.router.on_change.append(lambda: heads.append(1))
    entry = msgspec.structs.replace(front.table.deployments[0], name="other")
    front.router.apply(Table(2, (entry,), base=1))
    assert front.router.find("m") is lane
    assert [link.worker for link in lane.links] == ["w0"]
    assert (lane.num_open, len(heads), front.router.deployments.keys()) == (2, 1, {"m", "other"})
    assert not any(call.errors for call in waiting)
    front.close()


def test_change_of_another_table_is_not_taken() -> None:
    front = Front()
    assert front.router.epoch == 1
    entry = msgspec.structs.replace(front.table.deployments[0], name="other")
    for base in (2, 7):
        front.router.apply(Table(8, (entry,), base=base, removed=("m",)))
    assert (front.router.epoch, front.router.deployments.keys()) == (1, {"m"})
    front.router.apply(Table(8, (entry,), base=1, removed=("m",)))
    # The same once more is one of another table by now.
    front.router.apply(Table(8, (entry,), base=1, removed=("m",)))
    assert (front.router.epoch, front.router.deployments.keys()) == (8, {"other"})
    front.close()


def test_requests_of_a_version_that_comes_back_with_another_signature_are_told() -> None:
    front = Front()
    (asked,) = front.ask(1.0)
    lane = msgspec.structs.replace(front.table.deployments[0].lanes[0], signature=SIGNATURES[1])
    front.router.apply(Table(2, (msgspec.structs.replace(front.table.deployments[0], lanes=(lane,)),), base=1))
    assert [error.key for error in asked.errors] == ["no_replica"]
    assert front.router.find("m").num_open == 0
    front.close()


# the front process


class Linked:
    """A front process' object in this process, and the control processes that it is linked with."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor = Channel(ours, "supervisor", "front")
        self.front = FrontProcess(self.loop, Channel(theirs, "front", "supervisor"))
        counters = os.memfd_create("counters", os.MFD_CLOEXEC)
        os.ftruncate(counters, MEMORY_BYTES)
        config = msgspec.to_builtins(ServeConfig(home="/nowhere"))
        self.supervisor.send(StartFront(config, 0, ()), [counters])
        os.close(counters)
        self.writers: list[asyncio.StreamWriter] = []

    async def link(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, theirs = socket.socketpair()
        with theirs:
            self.supervisor.send(NewLink("control", "control", os.getpid()), [theirs.fileno()])
        reader, writer = await asyncio.open_connection(sock=ours)
        self.writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self.writers:
            writer.close()
        # The front sees that its links have ended.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=5.0)
        self.loop.remove_reader(self.front.channel.fileno())
        self.front.channel.close()
        self.supervisor.close()
        # The front, when it began to accept, took all that there was for everlasting.
        gc.unfreeze()


async def tell(link: tuple[asyncio.StreamReader, asyncio.StreamWriter], number: int, table: Table) -> Message | None:
    reader, writer = link
    write_message(writer, PutTable(msgspec.to_builtins(table), id=number))
    return await read_message(reader, "control", "front")


def test_front_says_which_table_it_serves_by_and_heeds_the_latest_control_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(channels.os, "_exit", ends.append)

    async def scenario(linked: Linked) -> None:
        old = await linked.link()
        entry = TableEntry("a", "m", ())
        assert await tell(old, 1, Table(10, (entry,))) == TableTaken(1, 10)
        assert await tell(old, 2, Table(12, (), base=10, removed=("a",))) == TableTaken(2, 12)
        assert await tell(old, 3, Table(15, (entry,), base=14)) == TableTaken(3, 12)
        router = linked.front.router
        assert (router.epoch, list(router.deployments)) == (12, [])
        new = await linked.link()
        # A clock that was set back makes no difference: who is linked last says what holds.
        assert await tell(new, 1, Table(5, (entry,))) == TableTaken(1, 5)
        assert await tell(old, 4, Table(20, ())) is None
        assert (router.epoch, list(router.deployments)) == (5, ["a"])

    async def main() -> None:
        linked = Linked()
        try:
            await scenario(linked)
        finally:
            await linked.close()

    asyncio.run(main())
    assert ends == []
