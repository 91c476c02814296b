"""The reconcile loop over a made-up node: what it keeps alive, what it leaves alone, and what it costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from argosy.deploy.spec import DeploymentSpec
from argosy.serve.wire.control_messages import ErrandDone, UnloadModel
from tests.deploy.world import TOKEN, World, deploy_first, play

FOREVER = 10**9


# the version that is live


def test_worker_that_refuses_its_model_when_it_loads_again_is_told_and_replaced() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        world.machine.behaviours["m", 1].refusal = "the file has changed"
        world.machine.die(name)
        await world.until(lambda: "cannot load any more" in world.control.lanes.problems.get("m", ""))
        assert name in world.control.lanes.problems["m"]
        request = world.machine.ask("m")
        world.machine.behaviours["m", 1].refusal = ""
        await world.until_quiet()
        assert request.outcome == "answered by 1"
        assert world.control.lanes.problems == {}

    play(scenario)


def test_damage_is_told_when_a_worker_has_to_be_replaced() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        world.damage("m@1")
        world.machine.refuse(name, "it is no model")
        await world.until(lambda: "is damaged" in world.control.lanes.problems.get("m", ""))
        assert world.workers() == []

    play(scenario)


@pytest.mark.parametrize("behaviour", [{"load_s": FOREVER}, {"num_deaths": FOREVER}, {"refusal": "no model"}])
def test_version_that_cannot_load_any_more_holds_up_no_rollout(behaviour: dict[str, Any]) -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        for field, value in behaviour.items():
            setattr(world.machine.behaviours["m", 1], field, value)
        world.machine.die(name)
        await asyncio.sleep(5.0)
        world.publish()
        assert await world.until_over(world.deploy("m@2")) == "done"
        await world.until_quiet()
        assert world.control.lanes.problems == {}

    play(scenario)


def test_replica_that_is_lost_while_another_version_loads_is_replaced_meanwhile() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        world.publish(load_s=100.0)
        rollout = world.deploy("m@2")
        await asyncio.sleep(1.0)
        world.machine.refuse(name, "out of memory")
        await asyncio.sleep(1.0)
        assert (1, True) in world.workers()
        assert world.machine.ask("m").worker
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()

    play(scenario)


def test_what_a_worker_shows_when_it_loads_again_is_told() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        world.machine.behaviours["m", 1].join_refusal = "rows are not independent"
        world.machine.die(name)
        await asyncio.sleep(2.0)
        lane = world.machine.fronts["front-0"].find_lane("m")
        assert lane is not None
        assert (lane.can_join, lane.join_refusal) == (False, "rows are not independent")

    play(scenario)


def test_environment_that_a_live_version_needs_is_built_again() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        (name,) = world.machine.workers
        world.machine.environments["onnx"] = False
        world.machine.refuse(name, "no interpreter")
        await world.until(lambda: "which is being built" in world.control.lanes.problems.get("m", ""))
        await world.until_quiet()
        assert world.control.lanes.problems == {}

    play(scenario)


# the control process starts again


def test_control_process_that_starts_again_finds_all_and_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        before = set(world.machine.workers)
        held = world.machine.ask("m", busy_s=2.0)
        world.restart()
        await world.until_quiet()
        assert set(world.machine.workers) == before
        assert held.outcome == "answered by 1"

    play(scenario)


def test_version_that_runs_goes_on_though_its_file_is_damaged_when_the_control_process_starts_again() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        before = set(world.machine.workers)
        world.damage("m@1")
        world.restart()
        await world.until_quiet()
        assert set(world.machine.workers) == before
        assert world.machine.ask("m").worker

    play(scenario)


def test_workers_that_were_told_to_end_are_not_taken_for_replicas() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world, end_s=4.0)
        world.publish()
        assert await world.until_over(world.deploy("m@2")) == "done"
        world.rollback()
        world.restart()
        await world.until_quiet()
        assert (world.live(), world.control.lanes.problems) == (1, {})
        assert not any("cannot load" in line for line in world.log)

    play(scenario)


def test_unload_that_comes_before_all_is_known_takes_nothing_else_away() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        world.publish("other")
        assert await world.until_over(world.deploy("other@1")) == "done"
        await world.until_quiet()
        world.restart()
        answer = world.control.repository.answer(UnloadModel(1, "m", TOKEN))
        task = asyncio.create_task(answer)
        request = world.machine.ask("other")
        assert await task == ErrandDone(1)
        assert world.served("m") == {""}
        await world.until_quiet()
        assert request.outcome == "answered by 1"
        assert world.served("other") == {"1"}

    play(scenario)


def test_database_that_goes_away_and_comes_back_stops_no_worker() -> None:
    async def scenario(world: World) -> None:
        await deploy_first(world)
        path = world.store.home / "argosy.db"
        away = path.with_suffix(".away")
        for suffix in ("", "-wal", "-shm"):
            if (source := path.with_name(path.name + suffix)).exists():
                source.rename(away.with_name(away.name + suffix))
        world.control.lanes.wake.set()
        await asyncio.sleep(20.0)
        assert world.machine.ask("m").worker
        assert sum("is missing" in line for line in world.log) == 1
        assert not path.exists()
        for suffix in ("", "-wal", "-shm"):
            if (source := away.with_name(away.name + suffix)).exists():
                source.rename(path.with_name(path.name + suffix))
        await world.until_quiet()
        assert world.workers() == [(1, True)]

    play(scenario)


# what a pass costs


class Counted:
    """How often a store is read."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_reads = 0
        snapshot = world.store.snapshot

        def count() -> Any:
            self.num_reads += 1
            return snapshot()

        monkeypatch.setattr(world.store, "snapshot", count)


@pytest.mark.parametrize("num_deployments", [2, 20])
def test_pass_without_a_change_reads_once_and_tells_nothing(num_deployments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        for number in range(num_deployments):
            world.publish(f"m{number}", memory_bytes=1 << 20)
            world.deploy(f"m{number}@1")
        await world.until_quiet()
        counted = Counted(world, monkeypatch)
        tables = [front.num_tables for front in world.machine.fronts.values()]
        await asyncio.sleep(10.0)
        assert counted.num_reads in (9, 10, 11)
        assert [front.num_tables for front in world.machine.fronts.values()] == tables

    play(scenario)


def test_change_of_one_deployment_sends_that_one_and_reads_no_more_than_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[tuple[int, int]] = []

    async def scenario(world: World, num_deployments: int) -> None:
        for number in range(num_deployments):
            world.publish(f"m{number}", memory_bytes=1 << 20)
            world.deploy(f"m{number}@1")
        await world.until_quiet()
        world.publish("m0", memory_bytes=1 << 20)
        await asyncio.sleep(5.0)
        counted = Counted(world, monkeypatch)
        before = {name: front.num_bytes for name, front in world.machine.fronts.items()}
        rollout = world.deploy("m0@2")
        # Nothing of the test's own reads the store meanwhile.
        await asyncio.sleep(10.0)
        costs.append((counted.num_reads, world.machine.fronts["front-0"].num_bytes - before["front-0"]))
        assert world.state(rollout) == "done"

    play(lambda world: scenario(world, 2))
    play(lambda world: scenario(world, 30))
    (few_reads, few_bytes), (many_reads, many_bytes) = costs
    assert few_reads == many_reads < 60
    assert few_bytes == pytest.approx(many_bytes, rel=0.1)
    assert many_bytes < 8000


def test_front_that_was_stopped_gets_what_it_has_missed_at_once_and_a_new_one_gets_all() -> None:
    async def scenario(world: World) -> None:
        for name in ("a", "b", "c"):
            world.publish(name)
        assert await world.until_over(world.deploy("a@1")) == "done"
        await world.until_quiet()
        front = world.machine.fronts["front-1"]
        world.machine.stop_front("front-1")
        before = front.num_tables, front.num_whole
        assert await world.until_over(world.deploy("b@1")) == "done"
        assert await world.until_over(world.deploy("c@1")) == "done"
        world.undeploy("a")
        await asyncio.sleep(40.0)
        world.machine.continue_front("front-1")
        await asyncio.sleep(0.1)
        assert (front.num_tables - before[0], front.num_whole - before[1]) == (1, 0)
        assert front.entries.keys() == {"b", "c"}
        world.machine.kill_front("front-0")
        world.machine.start_front("front-0")
        await asyncio.sleep(0.1)
        new = world.machine.fronts["front-0"]
        assert (new.num_tables, new.num_whole, new.entries.keys()) == (1, 1, {"b", "c"})
        await world.until_quiet()

    play(scenario)


# the repository's index


def test_index_follows_what_is_published_deployed_and_ails() -> None:
    async def scenario(world: World) -> None:
        def read(name: str) -> tuple[str, str] | None:
            return world.machine.fronts["front-0"].read_index(name)

        world.publish("spare")
        await world.until(lambda: read("spare") == ("1", "not deployed"))
        world.publish("spare")
        await world.until(lambda: read("spare") == ("2", "not deployed"))
        await deploy_first(world)
        assert read("m") == ("1", "")
        world.publish("bad", refusal="it is no model")
        await world.until_over(world.deploy("bad@1"))
        await world.until(lambda: "it is no model" in (read("bad") or ("", ""))[1])
        (name,) = world.machine.workers
        world.machine.behaviours["m", 1].refusal = "the file has changed"
        world.machine.die(name)
        await world.until(lambda: "cannot load any more" in (read("m") or ("", ""))[1])
        world.undeploy()
        await world.until(lambda: read("m") == ("1", "not deployed"))

    play(scenario)


def test_index_has_a_deployment_of_another_name_than_its_models() -> None:
    async def scenario(world: World) -> None:
        world.publish()
        with world.quiet_store():
            rollout = world.ledger.request_rollout(DeploymentSpec("own", "m", 1))
        assert await world.until_over(rollout) == "done"
        await world.until_quiet()
        front = world.machine.fronts["front-0"]
        assert (front.read_index("own"), front.read_index("m")) == (("1", ""), ("1", "not deployed"))
        world.undeploy("own")
        await world.until(lambda: front.read_index("own") is None)

    play(scenario)
