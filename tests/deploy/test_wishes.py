"""Newer wishes for a deployment, over a made-up node: what gives way, what a rollback goes back to, what an undeploy leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from argosy.errors import ConflictError
from argosy.serve.wire.control_messages import ErrandDone, LoadModel, UnloadModel
from tests.deploy.world import TOKEN, World, deploy_first, play

FOREVER = 10**9


async def have_versions(world: World, *behaviours: dict[str, Any]) -> None:
    """Version 1 is live, and so many more are published."""
    await deploy_first(world)
    for behaviour in behaviours:
        world.publish(**behaviour)


# a newer rollout


@pytest.mark.parametrize("memory_mb", [1000, 150], ids=["beside", "swapped"])
@pytest.mark.parametrize("bad", [{"load_s": FOREVER}, {"num_deaths": FOREVER, "load_s": 15.0}], ids=["hangs", "dies"])
@pytest.mark.parametrize("delay_s", [0.0, 0.2, 1.0, 20.0])
def test_good_version_takes_over_from_a_rollout_that_does_not_end(memory_mb: int, bad: dict[str, Any], delay_s: float) -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, bad, {})
        requests = world.send_requests()
        first = world.deploy("m@2")
        await asyncio.sleep(delay_s)
        began_s = world.loop.time()
        second = world.deploy("m@3")
        assert await world.until_over(second) == "done"
        assert world.loop.time() - began_s < 40.0
        await world.until_quiet()
        assert (world.live(), world.workers(), world.served()) == (3, [(3, True)], {"3"})
        assert (world.state(first), "a newer rollout, to version 3" in world.events(first)[-1]) == ("failed", True)
        assert {request.outcome for request in requests} <= {"", "answered by 1", "answered by 3"}

    play(scenario, memory_mb=memory_mb)


def test_good_version_takes_over_while_the_live_one_cannot_load_and_another_hangs() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {"load_s": FOREVER}, {})
        world.machine.behaviours["m", 1].refusal = "the file has changed"
        world.machine.die(*world.machine.workers)
        world.deploy("m@2")
        await asyncio.sleep(30.0)
        request = world.machine.ask("m")
        assert await world.until_over(world.deploy("m@3")) == "done"
        await world.until_quiet()
        assert request.outcome == "answered by 3"
        assert world.control.lanes.problems == {}

    play(scenario)


def test_rollout_that_has_shifted_is_done_when_a_newer_one_comes() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {}, {})
        request = world.machine.ask("m", busy_s=20.0)
        first = world.deploy("m@2")
        await asyncio.sleep(5.0)
        assert world.served() == {"2"}
        second = world.deploy("m@3")
        assert world.state(first) == "done"
        assert await world.until_over(second) == "done"
        await world.until_quiet()
        assert request.outcome == "answered by 1"

    play(scenario)


def test_same_wish_twice_is_one_rollout() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {"load_s": 5.0})
        first = world.deploy("m@2")
        await asyncio.sleep(1.0)
        assert world.deploy("m@2").id == first.id
        assert await world.until_over(first) == "done"

    play(scenario)


def test_newer_rollout_takes_over_though_the_control_process_dies_meanwhile() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {"load_s": FOREVER}, {})
        world.deploy("m@2")
        await asyncio.sleep(5.0)
        second = world.deploy("m@3")
        world.restart()
        assert await world.until_over(second) == "done"
        await world.until_quiet()
        assert world.workers() == [(3, True)]

    play(scenario, memory_mb=150)


# rollbacks


def test_rollbacks_go_ever_further_back_and_a_new_version_comes_on_top() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {}, {}, {})
        for version in (2, 3):
            assert await world.until_over(world.deploy(f"m@{version}")) == "done"
        assert await world.until_over(world.deploy("m@3", replicas=2)) == "done"
        for expected in (2, 1):
            assert await world.until_over(world.rollback()) == "done"
            assert world.live() == expected
        with pytest.raises(ConflictError, match="nothing to roll back"):
            world.rollback()
        assert await world.until_over(world.deploy("m@4")) == "done"
        assert await world.until_over(world.rollback()) == "done"
        assert world.live() == 1

    play(scenario)


def test_rollback_that_fails_forgets_nothing() -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {}, {})
        for version in (2, 3):
            assert await world.until_over(world.deploy(f"m@{version}")) == "done"
        world.machine.behaviours["m", 2].refusal = "the file has changed"
        assert await world.until_over(world.rollback()) == "failed"
        assert world.live() == 3
        world.machine.behaviours["m", 2].refusal = ""
        for expected in (2, 1):
            assert await world.until_over(world.rollback()) == "done"
            assert world.live() == expected

    play(scenario)


@pytest.mark.parametrize("memory_mb", [1000, 150], ids=["beside", "swapped"])
def test_rollback_during_a_rollout_takes_that_back_and_leaves_the_live_version(memory_mb: int) -> None:
    async def scenario(world: World) -> None:
        await have_versions(world, {}, {"load_s": FOREVER})
        assert await world.until_over(world.deploy("m@2")) == "done"
        first = world.deploy("m@3")
        await asyncio.sleep(5.0)
        assert await world.until_over(world.rollback()) == "done"
        await world.until_quiet()
        assert (world.live(), world.workers(), world.state(first)) == (2, [(2, True)], "failed")

    play(scenario, memory_mb=memory_mb)


# what an undeploy leaves


def test_all_that_wait_are_answered_when_their_deployment_is_removed_and_newer_ones_are_not_taken() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        waiting = [world.machine.ask("m", busy_s=2.0, front=f"front-{index % 2}") for index in range(6)]
        world.undeploy()
        await asyncio.sleep(0.5)
        assert world.machine.ask("m").outcome == "refused: not deployed"
        await world.until_quiet()
        assert {request.outcome for request in waiting} == {"answered by 1"}
        assert world.workers() == []

    play(scenario)


def test_removed_deployment_without_a_replica_refuses_all_that_wait_at_once() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.machine.behaviours["m", 1].refusal = "the file has changed"
        world.machine.die(*world.machine.workers)
        await asyncio.sleep(1.0)
        waiting = [world.machine.ask("m") for _ in range(3)]
        world.undeploy()
        await asyncio.sleep(2.0)
        assert {request.outcome for request in waiting} == {"refused: no replica"}

    play(scenario)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03, 0.2])
def test_unload_is_answered_though_a_load_of_the_same_name_comes_meanwhile(delay_s: float) -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world, load_s=0.0, end_s=0.0)
        repository = world.control.repository
        unload = asyncio.create_task(repository.answer(UnloadModel(1, "m", TOKEN)))
        await asyncio.sleep(delay_s)
        load = asyncio.create_task(repository.answer(LoadModel(2, "m", "1", TOKEN)))
        async with asyncio.timeout(60.0):
            assert await asyncio.gather(unload, load) == [ErrandDone(1), ErrandDone(2)]
        await world.until_quiet()
        assert world.served() == {"1"}

    play(scenario)
