"""The repository extension's side of the control process: load and unload for who shows the token, and what the index lists.

A front asks on a client's behalf and knows no token; what is asked is recorded before it is carried out, so that a client
that goes away, or a front that dies, takes nothing back.
"""

from __future__ import annotations

import asyncio
import hmac
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from argosy.deploy.ledger import Ledger
from argosy.deploy.spec import Deployment, DeploymentSpec, Rollout
from argosy.errors import ArgosyError, AuthError, FaultError, NotAllowedError
from argosy.runtimes.base import CODE_RUNTIMES
from argosy.serve.wire.control_messages import ErrandDone, LoadModel, UnloadModel, fit_text
from argosy.serve.wire.table import RepositoryEntry
from argosy.signature import check_name

if TYPE_CHECKING:
    from argosy.deploy.reconcile import Reconciler

__all__ = ["Repository", "describe_repository"]

_POLL_S: Final = 0.02
_MAX_REASON: Final = 300


def describe_repository(
    ledger: Ledger, deployments: Mapping[str, Deployment], problems: Mapping[str, str]
) -> tuple[RepositoryEntry, ...]:
    """Every deployment with its version, and the newest version of every other model of the store, with what keeps it away.

    Args:
        ledger: deployments and rollouts.
        deployments: all of them, by name.
        problems: by deployment.
    """
    with ledger.store.snapshot() as db:
        newest = db.execute("SELECT model, MAX(number) FROM versions GROUP BY model").fetchall()
    entries = [RepositoryEntry(model, str(number), "not deployed") for model, number in newest if model not in deployments]
    for name, deployment in deployments.items():
        reason = problems.get(name, "")
        if not reason and not deployment.is_live:
            reason = _explain_absence(ledger, name)
        entries.append(RepositoryEntry(name, str(deployment.spec.version), reason[:_MAX_REASON]))
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _explain_absence(ledger: Ledger, name: str) -> str:
    rollouts = ledger.list_rollouts(name, 1)
    return _last_word(ledger, rollouts[0]) if rollouts and rollouts[0].is_over else "it is being loaded"


def _last_word(ledger: Ledger, rollout: Rollout) -> str:
    events = ledger.list_events(rollout.id)
    return events[-1].detail if events and events[-1].step == "failed" else "its rollout was ended before it was done"


class Repository:
    """Carries out what clients ask for through fronts.

    Args:
        reconciler: what makes it so.
        token: what a client must show.
    """

    def __init__(self, reconciler: Reconciler, token: str) -> None:
        self._reconciler = reconciler
        self._ledger = reconciler.ledger
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
            return ErrandDone(message.errand, type(error).__name__, fit_text(error.message), fit_text(error.hint))
        except Exception as error:  # the edge of a task: the client must be told, and the control process go on
            traceback.print_exc()
            return ErrandDone(message.errand, "FaultError", f"Internal error: {type(error).__name__}")
        return ErrandDone(message.errand)

    async def _load(self, name: str, version: str) -> None:
        """Roll a version out, the newest if none is named, and wait until it takes requests.

        Raises:
            NotFoundError: no such model or version.
            NotAllowedError: it may run code, and the deployment does not allow that.
            ConflictError: the deployment is being rolled out to another version.
            FaultError: it could not be loaded.
        """
        present = {deployment.spec.name: deployment.spec for deployment in self._ledger.list_deployments()}
        model = present[name].model if name in present else name
        spec = self._ledger.plan(f"{model}@{version}" if version else model, name=name)
        manifest = self._ledger.store.get_version(f"{spec.model}@{spec.version}").manifest
        if manifest.runtime in CODE_RUNTIMES and not spec.allow_code:
            raise NotAllowedError("code_not_allowed", name=spec.model, version=spec.version, runtime=manifest.runtime)
        rollout = self._find_open(spec) or self._ledger.request_rollout(spec)
        self._reconciler.wake.set()
        await self._wait_live(rollout)

    def _find_open(self, spec: DeploymentSpec) -> Rollout | None:
        """The rollout that does the same already: two clients may ask for one thing."""
        return next((rollout for rollout in self._ledger.list_open_rollouts() if rollout.spec == spec), None)

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
        self._reconciler.wake.set()
        while True:
            if not self._reconciler.list_lanes(name):
                break
            await asyncio.sleep(_POLL_S)
        await self._reconciler.publish()
