"""Whatever happens in whatever order, what never may does not, and in the end all is as it should be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from argosy.errors import ConflictError, NotFoundError
from tests.deploy.driven_loop import DrivenLoop, end_loop, start_loop
from tests.deploy.made_up_node import MB, Killed
from tests.deploy.world import World, make_home

NAMES = ("a", "b")
FRONTS = ("front-0", "front-1")


class AnyOrder(RuleBasedStateMachine):
    """Two deployments on a machine of two fronts, with room for four workers or for many."""

    def __init__(self) -> None:
        super().__init__()
        self.home = contextlib.ExitStack()
        self.loop: DrivenLoop = start_loop(expected=Killed)
        self.world: World

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def main() -> Any:
            found = await work
            # What is due now is done now.
            await asyncio.sleep(0.01)
            return found

        return self.loop.run_until_complete(main())

    @initialize(memory_mb=st.sampled_from([150, 250, 450, 2000]), num_replicas=st.integers(1, 2))
    def begin(self, memory_mb: int, num_replicas: int) -> None:
        path = self.home.enter_context(make_home())

        async def main() -> None:
            self.world = World(path, memory_mb=memory_mb)
            for name in (*NAMES, *NAMES):
                self.world.publish(name)
            await self.world.until_over(self.world.deploy("a@1", replicas=num_replicas, threads=1))
            await self.world.until_quiet()

        self.loop.run_until_complete(main())

    # what users do

    @rule(
        name=st.sampled_from(NAMES),
        behaviour=st.sampled_from(
            [
                {},
                {},
                {"load_s": 20.0},
                {"end_s": 4.0},
                {"memory_bytes": 200 * MB},
                {"refusal": "no model"},
                {"golden_difference": 0.5},
                {"num_deaths": 2},
                {"num_deaths": 10**9, "load_s": 0.1},
                {"service_s": {"1": 1.0}},
            ]
        ),
    )
    def publish(self, name: str, behaviour: dict[str, Any]) -> None:
        async def work() -> None:
            self.world.publish(name, **behaviour)

        self.run(work())

    @rule(
        name=st.sampled_from(NAMES),
        back=st.integers(0, 3),
        replicas=st.integers(0, 3),
        threads=st.integers(1, 2),
        seconds=st.sampled_from([0.0, 0.3, 3.0]),
    )
    def deploy(self, name: str, back: int, replicas: int, threads: int, seconds: float) -> None:
        async def work() -> None:
            newest = len(self.world.store.list_versions(name))
            with contextlib.suppress(ConflictError):
                self.world.deploy(f"{name}@{max(1, newest - back)}", replicas=replicas, threads=threads)
            await asyncio.sleep(seconds)

        self.run(work())

    @rule(name=st.sampled_from(NAMES))
    def roll_back(self, name: str) -> None:
        async def work() -> None:
            with contextlib.suppress(ConflictError, NotFoundError):
                self.world.rollback(name)

        self.run(work())

    @rule(name=st.sampled_from(NAMES))
    def undeploy(self, name: str) -> None:
        async def work() -> None:
            with contextlib.suppress(NotFoundError):
                self.world.undeploy(name)

        self.run(work())

    @rule(name=st.sampled_from(NAMES), front=st.sampled_from(FRONTS), busy_s=st.sampled_from([0.01, 1.0, 10.0]))
    def ask(self, name: str, front: str, busy_s: float) -> None:
        async def work() -> None:
            if front in self.world.machine.fronts and self.world.machine.fronts[front].answers:
                self.world.machine.ask(name, busy_s=busy_s, front=front)

        self.run(work())

    # what happens

    @rule(seconds=st.sampled_from([0.02, 0.3, 0.6, 2.0, 7.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        if seconds >= 2.0 and not self.world.control.is_dead:
            assert self.list_forsaken() == []

    def list_forsaken(self) -> list[str]:
        """Live versions that have no worker, while nothing explains it."""
        world = self.world
        standings = world.ledger.read_standings(NAMES)
        return [
            name
            for name, standing in standings.items()
            if standing.deployment is not None
            and standing.deployment.is_live
            and standing.rollout is None
            and not world.control.lanes.problems.get(name)
            and not any(version == standing.deployment.spec.version for version, _ in world.workers(name))
        ]

    @rule(number=st.integers(0, 9))
    def kill_worker(self, number: int) -> None:
        async def work() -> None:
            workers = list(self.world.machine.workers)
            if workers and self.world.machine.workers[name := workers[number % len(workers)]].pid:
                self.world.machine.die(name)

        self.run(work())

    @rule(number=st.integers(0, 9))
    def refuse_when_loaded_again(self, number: int) -> None:
        async def work() -> None:
            workers = list(self.world.machine.workers)
            if workers and self.world.machine.workers[name := workers[number % len(workers)]].pid:
                self.world.machine.refuse(name, "the file has changed")

        self.run(work())

    @rule(steps=st.integers(0, 30), away_s=st.sampled_from([0.05, 3.0, 50.0]))
    def kill_control(self, steps: int, away_s: float) -> None:
        control = self.world.control
        if not control.is_dead:
            control.kill_at, control.away_s = len(control.steps) + steps, away_s

    @rule(seconds=st.sampled_from([0.1, 8.0]))
    def refuse_writes(self, seconds: float) -> None:
        control = self.world.control
        control.refuse_at, control.refuse_s = len(control.steps), seconds

    @rule(front=st.sampled_from(FRONTS), late_s=st.sampled_from([0.0, 0.5, 3.0]))
    def slow_front(self, front: str, late_s: float) -> None:
        if front in self.world.machine.fronts:
            self.world.machine.fronts[front].late_s = late_s

    @rule(front=st.sampled_from(FRONTS))
    def stop_or_continue_front(self, front: str) -> None:
        async def work() -> None:
            machine = self.world.machine
            if front in machine.fronts:
                (machine.stop_front if machine.fronts[front].answers else machine.continue_front)(front)

        self.run(work())

    @rule(front=st.sampled_from(FRONTS))
    def kill_or_start_front(self, front: str) -> None:
        async def work() -> None:
            machine = self.world.machine
            (machine.kill_front if front in machine.fronts else machine.start_front)(front)

        self.run(work())

    @invariant()
    def nothing_that_never_may(self) -> None:
        self.world.check()
        limit = self.world.machine.memory_limit_bytes
        assert self.world.machine.most_memory_bytes <= limit, f"{self.world.machine.most_memory_bytes >> 20} MiB are used"

    def teardown(self) -> None:
        try:
            self.run(self.end())
        finally:
            end_loop(self.loop)
            self.home.close()

    async def end(self) -> None:
        """Nothing happens any more: all comes to rest, as it should be."""
        world = self.world
        world.control.kill_at = world.control.refuse_at = None
        if world.control.is_dead:
            world.restart()
        for name in FRONTS:
            if name not in world.machine.fronts:
                world.machine.start_front(name)
            elif not world.machine.fronts[name].answers:
                world.machine.continue_front(name)
        await world.until_quiet()
        world.check()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
