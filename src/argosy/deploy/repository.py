"""The repository extension's side of the control process: load and unload for who shows the token, and what the index lists.

A front asks on a client's behalf and knows no token; what is asked is recorded before it is carried out, so that a client
that goes away, or a front that dies, takes nothing back.
"""

from __future__ import annotations

import asyncio
import hmac
import traceback
from collections.abc import Iterable
from typing import Final

from argosy.deploy.lanes import Lanes
from argosy.deploy.ledger import Ledger, Standing
from argosy.deploy.node import WorkerHandle
from argosy.deploy.spec import DeploymentSpec, Rollout
from argosy.errors import ArgosyError, AuthError, FaultError, NotAllowedError
from argosy.runtimes.base import CODE_RUNTIMES
from argosy.serve.wire.control_messages import ErrandDone, LoadModel, UnloadModel, fit_text
from argosy.serve.wire.table import RepositoryEntry
from argosy.signature import check_name

__all__ = ["Repository", "describe_failure", "describe_name", "explain_unready"]

_POLL_S: Final = 0.02
_MAX_REASON: Final = 300


def describe_name(ledger: Ledger, name: str, standing: Standing, problem: str) -> RepositoryEntry | None:
    """A deployment with its version, or the newest version of a model that is not deployed, with what keeps it away.

    Args:
        ledger: deployments and rollouts.
        name: of either.
        standing: what is to become of it.
        problem: of the deployment; "" for none.
    """
    deployment = standing.deployment
    if deployment is None:
        return RepositoryEntry(name, str(standing.newest), "not deployed") if standing.newest is not None else None
    reason = problem
    if not reason and not deployment.is_live:
        reason = "it is being loaded" if standing.rollout is not None else _explain_absence(ledger, name)
    return RepositoryEntry(name, str(deployment.spec.version), reason[:_MAX_REASON], is_wanted=True)


def explain_unready(workers: Iterable[WorkerHandle]) -> str:
    """Say why a version that holds the traffic has no replica that is ready, as far as nothing else is known."""
    known = list(workers)
    for worker in known:
        if worker.num_deaths:
            return (
                f"worker {worker.name} has died {worker.num_deaths} times, last: {worker.last_death or 'before this was noted'}"
            )
    return f"worker {known[0].name} is loading" if known else "no worker has been started yet"


def _explain_absence(ledger: Ledger, name: str) -> str:
    rollouts = ledger.list_rollouts(name, 1)
    return _last_word(ledger, rollouts[0]) if rollouts else "it is being loaded"


def _last_word(ledger: Ledger, rollout: Rollout) -> str:
    events = ledger.list_events(rollout.id)
    return events[-1].detail if events and events[-1].step == "failed" else "its rollout was ended before it was done"


def describe_failure(message: LoadModel | UnloadModel, error: ArgosyError) -> ErrandDone:
    """The answer to what was asked for and could not be done."""
    return ErrandDone(message.errand, type(error).__name__, fit_text(error.message), fit_text(error.hint))


class Repository:
    """Carries out what clients ask for through fronts.

    Args:
        lanes: of the node; who keeps them makes it so.
        token: what a client must show.
    """

    def __init__(self, lanes: Lanes, token: str) -> None:
        self._lanes = lanes
        self._ledger = lanes.ledger
        self._token = token.encode()

    async def answer(self, message: LoadModel | UnloadModel) -> ErrandDone:
        """Carry out what a front was asked for, and say how it went. Never raises."""
        try:
            if not hmac.compare_digest(message.token.encode(), self._token):
                raise AuthError("unauthorized")
            name = check_name(message.name)
            if isinstance(message, LoadModel):
                await self._load(name, message.version)
            else:
                await self._unload(name)
        except ArgosyError as error:
            return describe_failure(message, error)
        except Exception as error:  # the edge of a task: the client must be told, and the control process go on
            traceback.print_exc()
            return ErrandDone(message.errand, "FaultError", f"Internal error: {type(error).__name__}")
        return ErrandDone(message.errand)

    async def _load(self, name: str, version: str) -> None:
        """Roll a version out, the newest if none is named, and wait until it takes requests.

        Raises:
            NotFoundError: no such model or version.
            NotAllowedError: it may run code, and the deployment does not allow that; or its signature is another one.
            FaultError: it could not be loaded.
        """
        deployment = self._ledger.read_standings([name])[name].deployment
        model = deployment.spec.model if deployment is not None else name
        spec = self._ledger.plan(f"{model}@{version}" if version else model, name=name)
        manifest = self._ledger.store.get_version(f"{spec.model}@{spec.version}").manifest
        if manifest.runtime in CODE_RUNTIMES and not spec.allow_code:
            raise NotAllowedError("code_not_allowed", name=spec.model, version=spec.version, runtime=manifest.runtime)
        rollout = self._find_open(spec) or self._ledger.request_rollout(spec)
        self._lanes.wake.set()
        await self._wait_live(rollout)

    def _find_open(self, spec: DeploymentSpec) -> Rollout | None:
        """The rollout that does the same already: two clients may ask for one thing."""
        rollout = self._ledger.read_standings([spec.name])[spec.name].rollout
        return rollout if rollout is not None and rollout.spec == spec else None

    async def _wait_live(self, rollout: Rollout) -> None:
        while True:
            # In this order: what is over has all of its events.
            state = self._ledger.find_rollout(rollout.id)
            if state.state == "done" or any(event.step == "shift" for event in self._ledger.list_events(rollout.id)):
                return
            if state.is_over:
                raise FaultError("server_said", text=_last_word(self._ledger, rollout), hint="argosy status says more")
            await asyncio.sleep(_POLL_S)

    async def _unload(self, name: str) -> None:
        """Remove a deployment, and wait until no front takes requests for it.

        Raises:
            NotFoundError: there is none of this name.
        """
        self._ledger.remove_deployment(name)
        # Those that it had: a load that comes meanwhile makes others of the same name.
        leaving = self._lanes.list_lanes(name)
        self._lanes.wake.set()
        if not self._lanes.settled.is_set():
            # A deployment that was there at the start may have no lane yet.
            await self._lanes.settled.wait()
            leaving = self._lanes.list_lanes(name)
        while True:
            if not any(lane in leaving and not lane.is_draining for lane in self._lanes.list_lanes(name)):
                break
            await asyncio.sleep(_POLL_S)
        await self._lanes.publish(name)
