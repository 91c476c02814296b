"""A store, a made-up machine, and one control process after another."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import argosy
from argosy.deploy.lanes import Lanes
from argosy.deploy.ledger import Ledger
from argosy.deploy.reconcile import Reconciler
from argosy.deploy.repository import Repository
from argosy.deploy.spec import DeploymentSpec, Rollout
from argosy.errors import StoreError
from argosy.store.local import Store
from tests.deploy.driven_loop import OWNER, DrivenLoop, run
from tests.deploy.made_up_node import MB, Behaviour, Front, Killed, Machine, MadeUpNode, Request
from tests.home import SIGNATURE

TOKEN = "token"

_SHARED_MEMORY = Path("/dev/shm")


class WatchedStore(Store):
    """A store whose writing can be stopped: by the end of the control process, or by a disk that refuses."""

    def __init__(self, home: Path) -> None:
        self.before: Callable[[str], None] = lambda what: None
        super().__init__(home)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        self.before("write")
        with super().transaction() as db:
            yield db
        self.before("written")


class Control:
    """One control process, from its start to its end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.steps: list[str] = []
        self.kill_at: int | None = None
        """The step before which it dies."""
        self.away_s: float | None = None
        """How long it is away then; for ever, or until a test says so, where there is nothing."""
        self.is_dead = False
        self.refuse_at: int | None = None
        """The step from which on the disk refuses to write."""
        self.refuse_s = 0.0
        """For so long."""
        self._refused_from_s = math.inf
        self.node = MadeUpNode(world.machine, self.step)
        world.store.before = self.step
        self.lanes = Lanes(world.ledger, self.node, world.name_series, world.num_fronts)
        self.lanes.log = world.log.append
        self.node.wake = self.lanes.wake.set
        self.reconciler = Reconciler(self.lanes)
        self.repository = Repository(self.lanes, TOKEN)
        context = contextvars.copy_context()
        context.run(OWNER.set, self)
        self.task = world.loop.create_task(self.reconciler.run_forever(), context=context)

    def die(self) -> None:
        """End, whatever is under way."""
        self.is_dead = True
        self.world.loop.cancel_tasks_of(self)
        if self.away_s is not None:
            self.world.loop.call_later(self.away_s, self._replace)

    def _replace(self) -> None:
        if self.world.control is self:
            self.world.restart()

    def step(self, what: str) -> None:
        """Something that others see is about to happen."""
        if self.is_dead:
            raise Killed
        self.steps.append(what)
        if self.kill_at is not None and len(self.steps) > self.kill_at:
            self.die()
            raise Killed
        if what == "write" and self.refuse_at is not None and len(self.steps) > self.refuse_at:
            now_s = self.world.loop.time()
            self._refused_from_s = min(self._refused_from_s, now_s)
            if now_s < self._refused_from_s + self.refuse_s:
                raise StoreError("disk_full", what="argosy.db", detail="no space left")


class World:
    """Everything that a test needs.

    Args:
        home: of the store.
        memory_mb: what all workers may use together.
        num_fronts: of the machine.
    """

    def __init__(self, home: Path, *, memory_mb: int = 1000, num_fronts: int = 2) -> None:
        self.log: list[str] = []
        self.num_fronts = num_fronts
        self.store = WatchedStore(home)
        self.ledger = Ledger(self.store)
        self.machine = Machine(num_fronts, memory_mb * MB)
        self.loop = cast(DrivenLoop, asyncio.get_running_loop())
        self._series: dict[tuple[str, str], int] = {}
        self.control = Control(self)

    def name_series(self, name: str, version: str) -> int:
        return self._series.setdefault((name, version), len(self._series))

    # what a user does

    def publish(self, name: str = "m", **behaviour: Any) -> int:
        """Publish a version, of which so much is known; returns its number."""
        made = Behaviour(**behaviour)
        files = {"model.onnx": f"{name} {len(self.log)} {made}".encode()}
        measurements = {"memory_bytes": float(made.memory_bytes)}
        with self.quiet_store():
            version = self.store.publish(name, files, signature=SIGNATURE, entry="model.onnx", measurements=measurements)
        self.machine.behaviours[name, version.number] = made
        return version.number

    def deploy(self, reference: str, **settings: Any) -> Rollout:
        """Ask for a rollout, and let it begin in its own time."""
        with self.quiet_store():
            rollout = self.ledger.request_rollout(self.ledger.plan(reference, **settings))
        self.control.lanes.wake.set()
        return rollout

    def rollback(self, name: str = "m") -> Rollout:
        with self.quiet_store():
            rollout = self.ledger.request_rollback(name)
        self.control.lanes.wake.set()
        return rollout

    def undeploy(self, name: str = "m") -> None:
        with self.quiet_store():
            self.ledger.remove_deployment(name)
        self.control.lanes.wake.set()

    def damage(self, reference: str) -> None:
        """Have a version's file hold something else than it did."""
        version = self.store.get_version(reference)
        folder = self.store.open_artifact(version)
        path = folder / version.manifest.entry
        path.chmod(0o600)
        path.write_bytes(b"something else")

    @contextlib.contextmanager
    def quiet_store(self) -> Iterator[None]:
        """What another process writes is no step of the control process."""
        before, self.store.before = self.store.before, lambda what: None
        try:
            yield
        finally:
            self.store.before = before

    def send_requests(self, name: str = "m", every_s: float = 0.1) -> list[Request]:
        """Have a client ask every front for ever; returns its requests, as they come."""
        requests: list[Request] = []

        async def send() -> None:
            while True:
                requests.extend(self.machine.ask(name, front=front) for front in self.machine.fronts)
                await asyncio.sleep(every_s)

        self._client = self.loop.create_task(send())
        return requests

    # what happens to the control process

    def restart(self) -> None:
        """The control process is killed, if it is not dead, and another one is started."""
        if not self.control.is_dead:
            self.control.away_s = None
            self.control.die()
        self.control = Control(self)

    # how it stands

    def state(self, rollout: Rollout) -> str:
        return self.ledger.find_rollout(rollout.id).state

    def events(self, rollout: Rollout) -> list[str]:
        return [f"{event.step}: {event.detail}" for event in self.ledger.list_events(rollout.id)]

    def steps(self, rollout: Rollout) -> list[str]:
        return [event.step for event in self.ledger.list_events(rollout.id)]

    def live(self, name: str = "m") -> int | None:
        """The version that the ledger says is live."""
        deployment = self.ledger.read_standings([name])[name].deployment
        return deployment.spec.version if deployment is not None and deployment.is_live else None

    def workers(self, name: str = "m") -> list[tuple[int, bool]]:
        """Version and readiness of a deployment's workers."""
        known = [worker for worker in self.machine.workers.values() if worker.spec["deployment"] == name]
        return sorted((worker.spec["version"], self.machine.is_ready(worker.name)) for worker in known)

    def served(self, name: str = "m") -> set[str]:
        """Versions that take a deployment's requests, over all fronts."""
        lanes = [front.find_lane(name) for front in self.machine.fronts.values()]
        return {lane.version if lane is not None else "" for lane in lanes}

    async def until(self, condition: Callable[[], Any], timeout_s: float = 2000.0, every_s: float | None = None) -> None:
        """Wait until something is so: looked at every so often, the less often the longer it takes."""
        began_s = self.loop.time()
        while not condition():
            if self.control.is_dead:
                return
            waited_s = self.loop.time() - began_s
            assert waited_s < timeout_s, f"not within {timeout_s} s; the log:\n" + "\n".join(self.log[-30:])
            await asyncio.sleep(every_s or 0.1 + waited_s / 20)

    async def until_over(self, rollout: Rollout) -> str:
        """Wait until a rollout has ended; returns its state."""
        await self.until(lambda: self.ledger.find_rollout(rollout.id).is_over)
        return self.state(rollout)

    async def until_quiet(self) -> None:
        """Wait until all is as it should be, and stays so."""
        reasons: list[str] = []

        def is_quiet() -> bool:
            reasons[:] = self.list_unrest()
            return not reasons

        try:
            await self.until(is_quiet)
        except AssertionError as error:
            raise AssertionError(f"{reasons}; {error}") from None
        if not self.control.is_dead:
            await asyncio.sleep(10.0)
            assert self.list_unrest() == []

    def list_unrest(self) -> list[str]:
        """In what the present state is not the desired one."""
        found: list[str] = []
        deployments = {each.spec.name: each for each in self.ledger.list_deployments()}
        names = {*deployments, *(worker.spec["deployment"] for worker in self.machine.workers.values())}
        for name in names:
            standing = self.ledger.read_standings([name])[name]
            if standing.rollout is not None:
                found.append(f"rollout {standing.rollout.id} of {name} is open")
            lanes = self.control.lanes.list_lanes(name)
            if standing.deployment is None or not standing.deployment.is_live:
                if lanes or self.workers(name):
                    found.append(f"{name} has {len(lanes)} lanes and workers {self.workers(name)}, and is not live")
                continue
            found += self._list_faults(standing.deployment.spec)
        for front in self.machine.fronts.values():
            if front.answers and front.entries.keys() != {name for name in names if self.live(name)}:
                found.append(f"{front.name} serves {sorted(front.entries)}")
        return found

    def _list_faults(self, spec: DeploymentSpec) -> list[str]:
        name = spec.name
        lanes = self.control.lanes.list_lanes(name)
        if [lane.version.number for lane in lanes] != [spec.version]:
            return [f"{name} has lanes of {[lane.version.number for lane in lanes]}, not of {spec.version}"]
        found: list[str] = []
        wanted = sorted(lanes[0].workers)
        present = sorted(worker.name for worker in self.machine.workers.values() if worker.spec["deployment"] == name)
        if wanted != present or len(wanted) != (spec.replicas or lanes[0].num_replicas):
            found.append(f"{name} has workers {present}, wanted {spec.replicas} and known {wanted}")
        if not all(ready for _, ready in self.workers(name)):
            found.append(f"workers of {name} load")
        for front in self.machine.fronts.values():
            lane = front.find_lane(name)
            if front.answers and (lane is None or lane.version != str(spec.version) or sorted(lane.workers) != wanted):
                found.append(f"{front.name} serves {name} by {lane}")
        return found

    def check(self) -> None:
        """Nothing has happened that never may."""
        assert self.machine.violations == [], self.machine.violations


@contextlib.contextmanager
def make_home() -> Iterator[Path]:
    """A folder for a store, in memory where there is one for files."""
    with tempfile.TemporaryDirectory(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def play(scenario: Callable[[World], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """Play a scenario in a world of its own, and see that nothing happened that never may."""

    async def main(home: Path) -> Any:
        world = World(home, **settings)
        found = await scenario(world)
        world.check()
        return found

    with make_home() as home:
        return run(main(home), expected=Killed)


__all__ = ["MB", "Behaviour", "Control", "Front", "Killed", "Machine", "World", "argosy", "make_home", "play"]


async def deploy_first(world: World, **behaviour: Any) -> None:
    """Version 1 is live, and all is quiet."""
    world.publish(**behaviour)
    assert await world.until_over(world.deploy("m@1")) == "done"
    await world.until_quiet()
