"""The control process dies before every single step, and another one takes over: all ends as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import pytest

from tests.deploy.world import MB, World, play

Work = Callable[[World], Coroutine[Any, Any, Any]]


class Story(NamedTuple):
    """Something that takes many steps."""

    prepare: Work
    act: Work
    """What the user asks for; returns the rollouts and their states in the end."""
    live: tuple[int, ...]
    """Versions one of which is live in the end; none for a deployment that is gone."""
    memory_mb: int = 1000


async def have_two(world: World, **behaviour: Any) -> None:
    world.publish()
    assert await world.until_over(world.deploy("m@1")) == "done"
    world.publish(**behaviour)
    await world.until_quiet()


async def have_two_replicas(world: World) -> None:
    world.publish()
    assert await world.until_over(world.deploy("m@1", replicas=2, threads=1)) == "done"
    await world.until_quiet()


async def have_nothing(world: World) -> None:
    world.publish()


async def have_a_refusing_version(world: World) -> None:
    await have_two(world, refusal="no model")


async def have_open_replicas(world: World) -> None:
    world.publish(service_s={"1": 1.0})


async def deploy_second(world: World) -> None:
    world.deploy("m@2")


async def undeploy_meanwhile(world: World) -> None:
    world.deploy("m@2")
    await asyncio.sleep(0.3)
    world.undeploy()


STORIES = {
    "first deployment": Story(have_nothing, lambda world: ask(world, "m@1"), (1,)),
    "replicas left open": Story(have_open_replicas, lambda world: ask(world, "m@1", replicas=0), (1,)),
    "rollout": Story(have_two, deploy_second, (2,)),
    "rollout that fails": Story(have_a_refusing_version, deploy_second, (1,)),
    "swap": Story(have_two, deploy_second, (2,), memory_mb=150),
    "swap that fails": Story(have_a_refusing_version, deploy_second, (1,), memory_mb=150),
    "fewer replicas": Story(have_two_replicas, lambda world: ask(world, "m@1", replicas=1, threads=1), (1,)),
    "other workers": Story(have_two_replicas, lambda world: ask(world, "m@1", threads=2), (1,)),
    "other workers, swapped": Story(have_two_replicas, lambda world: ask(world, "m@1", threads=2), (1,), memory_mb=250),
    "undeploy during a rollout": Story(have_two, undeploy_meanwhile, ()),
    "undeploy during a swap": Story(have_two, undeploy_meanwhile, (), memory_mb=150),
}


async def ask(world: World, reference: str, **settings: Any) -> None:
    world.deploy(reference, **settings)


def tell(story: Story, *, kill_at: int | None = None, refuse_at: int | None = None, away_s: float = 0.0) -> list[str]:
    """Play a story. The control process dies before a step of it, or the disk refuses to write from a step on, for a time.

    Returns:
        The steps.
    """

    async def scenario(world: World) -> list[str]:
        await story.prepare(world)
        control = world.control
        control.steps.clear()
        control.kill_at, control.refuse_at, control.refuse_s = kill_at, refuse_at, away_s
        held = [world.machine.ask("m", busy_s=0.3, front=front) for front in world.machine.fronts if world.live()]
        requests = world.send_requests() if held and story.live else []
        await story.act(world)
        await world.until_quiet()
        steps = list(control.steps)
        if kill_at is not None:
            assert control.is_dead
            await asyncio.sleep(away_s)
            world.restart()
            await world.until_quiet()
        live = story.live if refuse_at is None else (*story.live, 1)
        assert world.live() in (live if story.live else (None,))
        if story.live:
            outcomes = {request.outcome for request in [*held, *requests] if request not in requests[-4:]}
            assert outcomes <= {"answered by 1", "answered by 2"}, outcomes
        assert world.machine.most_memory_bytes <= story.memory_mb * MB
        assert world.control.lanes.problems == {}
        return steps

    return play(scenario, memory_mb=story.memory_mb)


@pytest.mark.parametrize("name", STORIES)
def test_whatever_step_the_control_process_dies_before_the_next_one_ends_what_it_began(name: str) -> None:
    steps = tell(STORIES[name])
    assert len(steps) > 5
    for number, (before, step) in enumerate(zip(["", *steps], steps, strict=False)):
        if (before, step) in (("ask", "ask"), ("written", "write")):
            # Nothing has happened since the step before.
            continue
        try:
            tell(STORIES[name], kill_at=number, away_s=0.05 if number % 2 else 2.0)
        except AssertionError as error:
            raise AssertionError(f"killed before step {number} ({step}) of {steps}: {error}") from error


@pytest.mark.parametrize("name", STORIES)
def test_whatever_step_the_disk_refuses_all_is_as_it_should_be_when_it_writes_again(name: str) -> None:
    steps = tell(STORIES[name])
    for number, step in enumerate(steps):
        if step == "write":
            try:
                tell(STORIES[name], refuse_at=number, away_s=0.2 if number % 4 else 12.0)
            except AssertionError as error:
                raise AssertionError(f"nothing is written from step {number} on of {steps}: {error}") from error
