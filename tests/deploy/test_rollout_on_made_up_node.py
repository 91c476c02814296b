"""Rollouts over a made-up node: what they do, and what they leave, whatever goes wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from argosy.deploy.front_link import SILENT_S
from argosy.deploy.rollout import LOAD_TIMEOUT_S
from argosy.deploy.spec import Rollout
from argosy.errors import StoreError
from argosy.serve.worker.cores import count_cores
from tests.deploy.world import MB, World, deploy_first, play

FOREVER = 10**9
DISK_FULL = StoreError("disk_full", what="argosy.db", detail="no space left")


def find_detail(world: World, rollout: Any, step: str) -> str:
    """What was said of a step, the last time."""
    return next(event for event in reversed(world.events(rollout)) if event.startswith(f"{step}: "))


# to the end


def test_first_version_is_loaded_verified_and_served() -> None:
    async def scenario(world: World) -> None:
        world.publish()
        rollout = world.deploy("m@1", replicas=2)
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.steps(rollout) == ["check", "load", "verify", "shift", "done"]
        assert world.workers() == [(1, True), (1, True)]
        assert world.served() == {"1"}

    play(scenario)


def test_new_version_takes_over_and_the_old_one_answers_what_it_holds() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        requests = [world.machine.ask("m", busy_s=2.0, front=f"front-{index}") for index in (0, 1)]
        rollout = world.deploy("m@2")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.steps(rollout) == ["check", "load", "verify", "shift", "drain", "unload", "done"]
        assert find_detail(world, rollout, "drain") == "drain: version 1 holds no request"
        assert {request.outcome for request in requests} == {"answered by 1"}
        assert world.workers() == [(2, True)]

    play(scenario)


def test_rollback_at_once_does_not_rely_on_workers_that_are_ending() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world, end_s=4.0)
        world.publish()
        assert await world.until_over(world.deploy("m@2")) == "done"
        assert world.workers() == [(1, True), (2, True)]
        assert await world.until_over(world.rollback()) == "done"
        request = world.machine.ask("m")
        await world.until_quiet()
        assert request.outcome == "answered by 1"
        assert (world.workers(), world.control.lanes.problems) == ([(1, True)], {})
        assert not any("cannot load" in line for line in world.log)

    play(scenario)


def test_settings_that_workers_need_not_know_change_without_new_ones() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        before = set(world.machine.workers)
        assert await world.until_over(world.deploy("m@1", max_queue_rows=7)) == "done"
        await world.until_quiet()
        assert set(world.machine.workers) == before
        assert {front.find_lane("m").max_queue_rows for front in world.machine.fronts.values()} == {7}

    play(scenario)


def test_replicas_grow_and_shrink_and_those_that_leave_answer_first() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        assert await world.until_over(world.deploy("m@1", replicas=3, threads=1)) == "done"
        requests = [world.machine.ask("m", busy_s=3.0) for _ in range(6)]
        kept = set(world.machine.workers)
        # Of as many threads as three replicas have: those that stay are the same.
        rollout = world.deploy("m@1", replicas=2, threads=1)
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert {request.outcome for request in requests} == {"answered by 1"}
        assert len(world.machine.workers.keys() & kept) == 2
        assert find_detail(world, rollout, "shift") == "shift: 2 replica(s), 1 of the old ones leave"

    play(scenario)


def test_requests_under_an_earlier_longer_deadline_are_answered_before_replicas_leave() -> None:
    async def scenario(world: World) -> None:
        world.publish()
        assert await world.until_over(world.deploy("m@1", timeout_s=300.0, threads=1)) == "done"
        request = world.machine.ask("m", busy_s=200.0, timeout_s=300.0)
        assert await world.until_over(world.deploy("m@1", timeout_s=1.0, threads=2)) == "done"
        await world.until_quiet()
        assert request.outcome == "answered by 1"

    play(scenario)


@pytest.mark.parametrize(("row_s", "expected"), [(1e-6, 1), (1.0, count_cores())])
def test_replicas_that_are_left_open_are_as_many_as_the_first_one_shows_to_pay(row_s: float, expected: int) -> None:
    async def scenario(world: World) -> None:
        world.publish(service_s={"1": row_s})
        rollout = world.deploy("m@1", replicas=0)
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.workers() == [(1, True)] * expected
        # A control process that starts anew comes to the same.
        before = set(world.machine.workers)
        world.restart()
        await world.until_quiet()
        assert set(world.machine.workers) == before

    play(scenario)


# that fail


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param({"refusal": "it is no model"}, "it is no model", id="refuses"),
        pytest.param({"golden_difference": 0.5}, "golden examples", id="answers wrongly"),
        pytest.param({"num_deaths": FOREVER}, "SIGKILL; its log ends: about to die", id="dies again and again"),
        pytest.param({"num_deaths": FOREVER, "load_s": 15.0}, "SIGKILL; its log ends", id="dies late, again and again"),
        pytest.param({"load_s": FOREVER}, f"not ready after {LOAD_TIMEOUT_S:.0f} s", id="never ends to load"),
    ],
)
@pytest.mark.parametrize("replicas", [1, 2])
def test_version_that_cannot_load_leaves_the_live_one(behaviour: dict[str, Any], reason: str, replicas: int) -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        before = set(world.machine.workers)
        world.publish(**behaviour)
        began_s = world.loop.time()
        rollout = world.deploy("m@2", replicas=replicas)
        assert await world.until_over(rollout) == "failed"
        assert reason in find_detail(world, rollout, "failed")
        assert world.loop.time() - began_s < (1.1 * LOAD_TIMEOUT_S if "not ready" in reason else 60.0)
        await world.until_quiet()
        assert (world.live(), set(world.machine.workers)) == (1, before)

    play(scenario)


def test_version_that_dies_twice_while_it_loads_is_given_a_third_try() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish(num_deaths=2)
        assert await world.until_over(world.deploy("m@2")) == "done"
        await world.until_quiet()

    play(scenario)


def test_second_replica_that_refuses_takes_the_first_with_it() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        rollout = world.deploy("m@2", replicas=2)
        await world.until(lambda: len(world.workers()) == 3)
        world.machine.behaviours["m", 2].refusal = "out of memory"
        assert await world.until_over(rollout) == "failed"
        await world.until_quiet()
        assert world.workers() == [(1, True)]

    play(scenario)


def test_damaged_file_fails_the_rollout_and_nothing_else() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.damage("m@2")
        rollout = world.deploy("m@2")
        assert await world.until_over(rollout) == "failed"
        assert "is damaged" in find_detail(world, rollout, "failed")
        await world.until_quiet()

    play(scenario)


# memory


def test_versions_that_do_not_fit_together_are_swapped_and_requests_wait() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        held = world.machine.ask("m", busy_s=1.0)
        rollout = world.deploy("m@2")
        await world.until(lambda: "drain" in world.steps(rollout), every_s=0.01)
        waiting = world.machine.ask("m")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.steps(rollout) == ["check", "swap", "drain", "load", "verify", "shift", "done"]
        assert (held.outcome, waiting.outcome) == ("answered by 1", "answered by 2")
        assert world.machine.most_memory_bytes <= 150 * MB

    play(scenario, memory_mb=150)


def test_swap_that_fails_brings_the_old_version_back_and_loses_nothing() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish(golden_difference=0.5)
        rollout = world.deploy("m@2")
        await world.until(lambda: not world.workers() or world.workers()[0][0] == 2, every_s=0.01)
        waiting = world.machine.ask("m")
        assert await world.until_over(rollout) == "failed"
        await world.until_quiet()
        steps = ["check", "swap", "drain", "load", "restore", "drain", "load", "verify", "failed"]
        assert world.steps(rollout) == steps
        assert "golden examples" in find_detail(world, rollout, "restore")
        assert "golden examples" in find_detail(world, rollout, "failed")
        assert waiting.outcome == "answered by 1"
        assert (world.live(), world.workers()) == (1, [(1, True)])
        assert world.machine.most_memory_bytes <= 150 * MB

    play(scenario, memory_mb=150)


def test_replica_that_answers_already_ends_in_peace_when_another_fails_the_swap() -> None:
    async def scenario(world: World) -> None:
        world.publish(memory_bytes=50 * MB)
        assert await world.until_over(world.deploy("m@1", replicas=2)) == "done"
        await world.until_quiet()
        world.publish(memory_bytes=50 * MB)
        rollout = world.deploy("m@2")
        await world.until(lambda: world.workers() == [(2, False)] * 2, every_s=0.01)
        first, second = world.machine.workers
        world.machine.load(first)
        request = world.machine.ask("m", busy_s=3.0)
        assert request.worker == first
        world.machine.refuse(second, "out of memory")
        assert await world.until_over(rollout) == "failed"
        await world.until_quiet()
        assert request.outcome == "answered by 2"
        assert world.workers() == [(1, True)] * 2

    play(scenario, memory_mb=150)


def test_swap_whose_old_version_cannot_come_back_says_both_and_goes_on_trying() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish(refusal="the new one is no model")
        world.machine.behaviours["m", 1].refusal = "the old one is none any more"
        rollout = world.deploy("m@2")
        assert await world.until_over(rollout) == "failed"
        failed = find_detail(world, rollout, "failed")
        assert "the new one is no model" in failed and "the old one is none any more" in failed
        await world.until(lambda: "cannot load any more" in world.control.lanes.problems.get("m", ""))
        world.machine.behaviours["m", 1].refusal = ""
        await world.until_quiet()
        assert world.control.lanes.problems == {}

    play(scenario, memory_mb=150)


def test_version_that_never_fits_is_refused() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish(memory_bytes=200 * MB)
        rollout = world.deploy("m@2")
        assert await world.until_over(rollout) == "failed"
        assert "needs about 200 MiB" in find_detail(world, rollout, "failed")
        await world.until_quiet()

    play(scenario, memory_mb=150)


def test_memory_that_an_ending_version_gives_back_is_waited_for() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world, end_s=4.0)
        world.publish(name="other")
        world.undeploy()
        rollout = world.deploy("other@1")
        assert await world.until_over(rollout) == "done"
        assert any("waits for memory that returns" in event for event in world.events(rollout))
        await world.until_quiet()
        assert world.machine.most_memory_bytes <= 150 * MB

    play(scenario, memory_mb=150)


def test_two_rollouts_at_once_do_not_both_take_the_memory_that_is_free() -> None:
    async def scenario(world: World) -> None:
        world.publish("a")
        world.publish("b")
        rollouts = [world.deploy("a@1"), world.deploy("b@1")]
        states = [await world.until_over(rollout) for rollout in rollouts]
        assert sorted(states) == ["done", "failed"]
        await world.until_quiet()
        assert world.machine.most_memory_bytes <= 150 * MB

    play(scenario, memory_mb=150)


def test_memory_that_another_rollout_gives_back_as_it_fails_is_used() -> None:
    async def scenario(world: World) -> None:
        world.publish("a", refusal="no model")
        world.publish("b")
        rollouts = [world.deploy("a@1"), world.deploy("b@1")]
        assert [await world.until_over(rollout) for rollout in rollouts] == ["failed", "done"]
        await world.until_quiet()

    play(scenario, memory_mb=150)


def test_replicas_for_which_there_is_no_memory_are_refused() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        rollout = world.deploy("m@1", replicas=3)
        assert await world.until_over(rollout) == "failed"
        assert "needs about 300 MiB" in find_detail(world, rollout, "failed")
        await world.until_quiet()
        assert world.machine.most_memory_bytes <= 250 * MB

    play(scenario, memory_mb=250)


def test_settings_that_need_new_workers_swap_them_where_both_do_not_fit() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        held = world.machine.ask("m", busy_s=1.0)
        rollout = world.deploy("m@1", threads=2)
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert "swap" in world.steps(rollout)
        assert held.outcome == "answered by 1"
        assert world.machine.most_memory_bytes <= 150 * MB

    play(scenario, memory_mb=150)


def test_swapped_settings_that_fail_bring_the_old_workers_back() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (before,) = [worker.spec["key"] for worker in world.machine.workers.values()]
        rollout = world.deploy("m@1", threads=2)
        await world.until(lambda: [w.spec["key"] for w in world.machine.workers.values()] not in ([], [before]), every_s=0.01)
        (name,) = world.machine.workers
        world.machine.refuse(name, "no such threads")
        waiting = world.machine.ask("m")
        assert await world.until_over(rollout) == "failed"
        await world.until_quiet()
        assert [worker.spec["key"] for worker in world.machine.workers.values()] == [before]
        assert waiting.outcome == "answered by 1"

    play(scenario, memory_mb=150)


# environments


def test_environment_is_built_once_and_the_status_says_what_is_waited_for() -> None:
    async def scenario(world: World) -> None:
        world.machine.environments["onnx"] = False
        world.publish()
        rollout = world.deploy("m@1")
        await world.until(lambda: "which is being built" in world.control.lanes.problems.get("m", ""))
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.steps(rollout)[:3] == ["check", "check", "check"]
        assert world.control.lanes.problems == {}

    play(scenario)


def test_environment_that_cannot_be_built_fails_the_rollout() -> None:
    async def scenario(world: World) -> None:
        world.machine.environments["onnx"] = "no network"
        world.publish()
        rollout = world.deploy("m@1")
        assert await world.until_over(rollout) == "failed"
        assert "no network" in find_detail(world, rollout, "failed")
        await world.until_quiet()

    play(scenario)


# fronts that are silent


def test_draining_version_is_kept_while_a_front_is_silent_and_the_events_say_so() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        held = world.machine.ask("m", busy_s=20.0, front="front-1")
        world.machine.stop_front("front-1")
        rollout = world.deploy("m@2")
        await world.until(lambda: any("is kept until front-1" in event for event in world.events(rollout)))
        assert "front-1 will do so when it answers again" in find_detail(world, rollout, "shift")
        assert world.machine.fronts["front-0"].find_lane("m").version == "2"
        assert world.workers() == [(1, True), (2, True)]
        world.machine.continue_front("front-1")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert held.outcome == "answered by 1"
        assert find_detail(world, rollout, "drain") == "drain: version 1 holds no request"

    play(scenario)


def test_draining_version_goes_when_the_silent_front_is_dead() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.machine.ask("m", busy_s=20.0, front="front-1")
        world.machine.stop_front("front-1")
        rollout = world.deploy("m@2")
        await world.until(lambda: "drain" in world.steps(rollout))
        before_s = world.loop.time()
        world.machine.kill_front("front-1")
        assert await world.until_over(rollout) == "done"
        assert world.loop.time() - before_s < 1.0
        world.machine.start_front("front-1")
        await world.until_quiet()

    play(scenario)


def test_rollout_does_not_wait_for_ever_for_a_front_that_is_stopped() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.machine.stop_front("front-1")
        rollout = world.deploy("m@2", timeout_s=30.0)
        began_s = world.loop.time()
        assert await world.until_over(rollout) == "done"
        assert 30.0 < world.loop.time() - began_s < 40.0
        assert find_detail(world, rollout, "drain").startswith("drain: front-1 does not answer, but the deadlines of all")
        await asyncio.sleep(60.0)
        world.machine.continue_front("front-1")
        await world.until_quiet()

    play(scenario)


def test_silent_front_delays_no_table_of_another_and_no_other_deployment() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.publish("other")
        world.machine.stop_front("front-1")
        world.deploy("m@2")
        # It is known to be silent by then.
        await asyncio.sleep(SILENT_S + 1.0)
        began_s = world.loop.time()
        world.deploy("other@1")
        await world.until(lambda: world.machine.fronts["front-0"].find_lane("other") is not None, every_s=0.01)
        assert world.loop.time() - began_s < 1.0
        world.machine.continue_front("front-1")
        await world.until_quiet()

    play(scenario)


def test_front_that_takes_a_table_late_still_gives_the_old_version_its_requests() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.machine.fronts["front-1"].late_s = 3.0
        rollout = world.deploy("m@2")
        await world.until(lambda: world.machine.fronts["front-0"].find_lane("m").version == "2", every_s=0.01)
        late = world.machine.ask("m", busy_s=2.0, front="front-1")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert late.outcome == "answered by 1"

    play(scenario)


def test_swap_waits_for_a_silent_front_until_the_deadlines_have_passed() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.machine.stop_front("front-1")
        rollout = world.deploy("m@2")
        began_s = world.loop.time()
        assert await world.until_over(rollout) == "done"
        assert 30.0 < world.loop.time() - began_s < 40.0
        world.machine.continue_front("front-1")
        await world.until_quiet()

    play(scenario, memory_mb=150)


# deployments that go


@pytest.mark.parametrize("memory_mb", [1000, 150])
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.6, 0.8, 1.2, 3.0])
def test_undeploy_during_a_rollout_ends_it_and_all_workers(memory_mb: int, delay_s: float) -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.machine.ask("m", busy_s=2.0)
        rollout = world.deploy("m@2")
        await asyncio.sleep(delay_s)
        world.undeploy()
        assert await world.until_over(rollout) in ("failed", "done")
        await world.until_quiet()
        assert (world.workers(), world.served()) == ([], {""})

    play(scenario, memory_mb=memory_mb)


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.3, 0.5, 3.0])
def test_deployment_that_is_removed_and_made_again_at_once_is_the_new_one(delay_s: float) -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.publish()
        first = world.deploy("m@2")
        await asyncio.sleep(delay_s)
        world.undeploy()
        second = world.deploy("m@3")
        assert await world.until_over(second) == "done"
        await world.until_quiet()
        assert (world.live(), world.workers()) == (3, [(3, True)])
        assert world.state(first) == ("done" if delay_s > 1.0 else "failed")

    play(scenario)


def test_versions_of_an_earlier_deployment_of_the_name_are_nothing_to_roll_back_to() -> None:
    from argosy.errors import ConflictError

    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.deploy("m@2")
        await asyncio.sleep(0.55)
        world.undeploy()
        await world.until_quiet()
        assert await world.until_over(world.deploy("m@2")) == "done"
        with pytest.raises(ConflictError, match="nothing to roll back"):
            world.rollback()

    play(scenario)


def test_newer_wish_takes_the_place_of_one_that_has_not_begun() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish()
        world.publish()
        first, second = world.deploy("m@2"), world.deploy("m@3")
        assert await world.until_over(second) == "done"
        assert world.state(first) == "failed"
        assert "a newer rollout, to version 3, took its place" in world.events(first)[0]
        await world.until_quiet()

    play(scenario)


# fronts without a descriptor left


async def work_with_full_front(world: World, **behaviour: Any) -> list[Any]:
    """Version 1 is live, version 2 is published, and a front can share memory with no worker beyond those that there are."""
    await deploy_first(world)
    world.publish(**behaviour)
    world.machine.fill_front("front-1")
    return world.send_requests()


CHANGES: dict[str, Callable[[World], Rollout]] = {
    "rollout": lambda world: world.deploy("m@2"),
    "more replicas": lambda world: world.deploy("m@1", replicas=3),
    "other workers": lambda world: world.deploy("m@1", threads=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_traffic_shifts_once_every_front_can_give_requests_to_the_new_workers(change: str) -> None:
    async def scenario(world: World) -> None:
        requests = await work_with_full_front(world)
        rollout = CHANGES[change](world)
        await asyncio.sleep(30.0)
        assert not world.ledger.find_rollout(rollout.id).is_over
        assert "waits: no memory is shared yet by front-1 with w-m-" in find_detail(world, rollout, "load")
        assert len([event for event in world.events(rollout) if "waits" in event]) == 1
        world.machine.relieve_front("front-1")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert {request.outcome for request in requests[:-4]} <= {"answered by 1", "answered by 2"}

    play(scenario)


@pytest.mark.parametrize("change", CHANGES)
def test_change_that_a_front_never_has_room_for_fails_and_what_is_live_stays(change: str) -> None:
    async def scenario(world: World) -> None:
        requests = await work_with_full_front(world)
        rollout = CHANGES[change](world)
        assert await world.until_over(rollout) == "failed"
        reason = f"no memory is shared yet by front-1 with w-m-[^ ]+.* after {LOAD_TIMEOUT_S:.0f} s"
        assert re.search(reason, find_detail(world, rollout, "failed"))
        await world.until_quiet()
        assert (world.workers(), world.served()) == ([(1, True)], {"1"})
        assert {request.outcome for request in requests[:-4]} == {"answered by 1"}

    play(scenario)


def test_rollback_waits_for_a_front_without_descriptors_and_one_that_died_is_not_waited_for() -> None:
    async def scenario(world: World) -> None:
        requests = await work_with_full_front(world)
        world.machine.relieve_front("front-1")
        assert await world.until_over(world.deploy("m@2")) == "done"
        await world.until_quiet()
        world.machine.fill_front("front-1")
        rollout = world.rollback()
        await asyncio.sleep(30.0)
        assert not world.ledger.find_rollout(rollout.id).is_over
        world.machine.kill_front("front-1")
        await asyncio.sleep(1.0)
        world.machine.start_front("front-1")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        outcomes = {request.outcome for request in requests[:-4]}
        assert outcomes <= {"answered by 1", "answered by 2", "front died"}, outcomes

    play(scenario)


def test_swap_ends_once_every_front_can_give_requests_to_the_new_version() -> None:
    async def scenario(world: World) -> None:
        await work_with_full_front(world)
        rollout = world.deploy("m@2")
        await asyncio.sleep(30.0)
        assert not world.ledger.find_rollout(rollout.id).is_over
        world.machine.relieve_front("front-1")
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        assert world.served() == {"2"}

    play(scenario, memory_mb=150)
