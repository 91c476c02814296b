"""`AdminClient`: deploy, roll back and look into the server that runs for an ARGOSY_HOME."""

from __future__ import annotations

import bisect
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar, overload
from urllib.parse import quote

import msgspec

from argosy.client.wire import accept, make_error
from argosy.errors import FaultError, InputError, UnavailableError
from argosy.home import find_home

if TYPE_CHECKING:
    from argosy.deploy.spec import Arrival, DeploymentSpec, Rollout, RolloutEvent

__all__ = ["AdminClient", "RolloutProgress"]

Found = TypeVar("Found")

_TIMEOUT_S: Final = 30.0
_PUBLISH_TIMEOUT_S: Final = 600.0
_FOLLOW_WAIT_S: Final = 20.0
_RESTART_S: Final = 15.0
"""How long a control process that starts anew is waited for."""
_RETRY_S: Final = 0.1
_RECORD_PERIOD_S: Final = 0.1
_CHUNK_BYTES: Final = 1 << 20


class RolloutProgress(NamedTuple):
    """How far a rollout is."""

    rollout: Rollout
    is_over: bool
    events: list[RolloutEvent]
    """Its steps, oldest first, after the one that was asked for."""


def _url_of(host: str, port: int) -> str:
    """The URL under which this machine reaches a listener."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


class AdminClient:
    """Speaks to the admin API of the server that runs for a home.

    Attributes:
        home: the server's ARGOSY_HOME.
        pid: of its supervisor.
        started_s: when it was started, or restarted last, in seconds since 1970.
        num_restarts: how often it was restarted by `argosy restart`.
        url: of its V2 API.
        addresses: of its listeners: `http`, `grpc`, `metrics`, `admin`.

    Args:
        home: default: ARGOSY_HOME.

    Raises:
        UnavailableError: `no_server`, none runs; `server_hidden`, one does, but the file that says where is damaged.
    """

    def __init__(self, home: Path | str | None = None) -> None:
        import httpx

        self.home = find_home(home)
        state = self._find_server()
        if state is None:
            raise self._explain_absence()
        self.pid: int = state["pid"]
        self.started_s: float = state["started_s"]
        self.num_restarts: int = state["num_restarts"]
        self.url = _url_of(state["host"], state["http_port"])
        self._admin_url = _url_of("127.0.0.1", state["admin_port"])
        self.addresses = {
            "http": self.url,
            "grpc": _url_of(state["host"], state["grpc_port"]).removeprefix("http://"),
            "metrics": _url_of(state["host"], state["metrics_port"]) + "/metrics",
            "admin": self._admin_url,
        }
        # A proxy of the environment cannot reach this machine's own addresses. They are spoken to without TLS, so
        # that there are no certificates to read, which would take 0.1 s.
        headers = {"Authorization": f"Bearer {state['token']}"}
        self._http = httpx.Client(trust_env=False, verify=False, headers=headers)  # noqa: S501

    def _find_server(self) -> dict[str, Any] | None:
        from argosy.home import find_server

        return find_server(self.home)

    def _explain_absence(self) -> UnavailableError:
        from argosy.home import find_holder

        pid = find_holder(self.home)
        if pid is None:
            return UnavailableError("no_server", home=self.home)
        return UnavailableError("server_hidden", pid=pid, home=self.home, path=self.home / "run" / "serve.json")

    # what runs

    def status(self) -> dict[str, Any]:
        """Deployments with their versions, workers, latest rollouts and problems."""
        return self._ask("GET", "/v1/status")

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and queues now."""
        return self._ask("GET", "/v1/stats")

    @overload
    def logs(self, name: None = None, *, max_bytes: int = 16384) -> list[str]: ...
    @overload
    def logs(self, name: str, *, max_bytes: int = 16384) -> str: ...
    def logs(self, name: str | None = None, *, max_bytes: int = 16384) -> list[str] | str:
        """Give the names of the processes' logs; or the end of one of them.

        Raises:
            NotFoundError: there is no such log.
        """
        if name is None:
            return self._ask("GET", "/v1/logs")["names"]
        return self._ask("GET", "/v1/logs", params={"name": name, "max_bytes": max_bytes})["text"]

    # changes

    def deploy(self, spec: DeploymentSpec, *, allow_signature_change: bool = False) -> Rollout:
        """Make a deployment, or roll it out to another version; `follow` and `wait` tell how it goes.

        It takes the place of a rollout of this deployment that has not ended.

        Args:
            spec: of the deployment.
            allow_signature_change: the version may take and give other tensors than the live one does.

        Raises:
            InputError: a setting is out of range.
            NotFoundError: no such version.
            NotAllowedError: `signature_changes`, with what differs.
        """
        path = f"/v1/deployments/{quote(spec.name, safe='')}"
        asked = self._ask("PUT", path, content=msgspec.json.encode(spec), params=_write_flag(allow_signature_change))
        return _read_rollout(asked["rollout"])

    def undeploy(self, name: str) -> None:
        """Forget a deployment and stop its workers.

        Raises:
            NotFoundError: there is none of this name.
        """
        self._ask("DELETE", f"/v1/deployments/{quote(name, safe='')}")

    def rollback(self, name: str, *, allow_signature_change: bool = False) -> Rollout:
        """Roll back to the version that held all of the traffic before the live one; again, to the one before that.

        A rollout that has not ended is taken back instead, and the live version stays.

        Args:
            name: of the deployment.
            allow_signature_change: as `deploy`.

        Raises:
            NotFoundError: no such deployment.
            ConflictError: `no_rollback`, no other version held it before.
            NotAllowedError: `signature_changes`, with what differs.
        """
        path = f"/v1/deployments/{quote(name, safe='')}/rollback"
        return _read_rollout(self._ask("POST", path, params=_write_flag(allow_signature_change))["rollout"])

    def publish(self, name: str, path: Path) -> dict[str, Any]:
        """Publish an ONNX file, without external data, as the next version of a model.

        Returns:
            `name`, `version` and `digest`.

        Raises:
            InputError: `missing_file`; it is not an ONNX model that can be served.
        """
        try:
            with path.open("rb") as file:
                chunks = iter(lambda: file.read(_CHUNK_BYTES), b"")
                target = f"/v1/models/{quote(name, safe='')}/versions"
                return self._ask("POST", target, content=chunks, timeout_s=_PUBLISH_TIMEOUT_S)
        except OSError as error:
            raise InputError("missing_file", path=path, detail=error.strerror) from error

    # rollouts

    def rollout(self, rollout_id: int, *, after: int = 0, wait_s: float = 0.0) -> RolloutProgress:
        """Look at a rollout.

        Args:
            rollout_id: its number.
            after: number of the last step that is known already.
            wait_s: how long to wait for a new step.

        Raises:
            NotFoundError: there is none of this number.
        """
        from argosy.deploy.spec import RolloutEvent

        parameters = {"after": after, "wait_s": wait_s}
        found = self._ask("GET", f"/v1/rollouts/{rollout_id}", params=parameters, timeout_s=_TIMEOUT_S + wait_s)
        events = msgspec.convert(found["events"], list[RolloutEvent])
        return RolloutProgress(_read_rollout(found["rollout"]), found["is_over"], events)

    def follow(self, rollout_id: int) -> Iterator[RolloutEvent]:
        """Give a rollout's steps as they happen, until it is over; then `rollout` tells its final state.

        Raises:
            NotFoundError: there is none of this number.
            UnavailableError: the server has stopped. The rollout goes on when it starts again.
        """
        after = 0
        while True:
            progress = self._outlast(partial(self.rollout, rollout_id, after=after, wait_s=_FOLLOW_WAIT_S))
            for event in progress.events:
                after = event.number
                yield event
            if progress.is_over:
                return

    def wait(self, rollout_id: int, on_event: Callable[[RolloutEvent], None] | None = None) -> Rollout:
        """Wait until a rollout is done.

        Args:
            rollout_id: its number.
            on_event: told each step as it happens.

        Raises:
            FaultError: `rollout_failed`, with what the server says of it.
            UnavailableError: as `follow`.
        """
        reason = ""
        for event in self.follow(rollout_id):
            reason = event.detail if event.step == "failed" else ""
            if on_event is not None:
                on_event(event)
        rollout = self.rollout(rollout_id).rollout
        if rollout.state == "done":
            return rollout
        if reason:
            raise make_error(FaultError, reason, "rollout_failed")
        detail = "a newer one took its place, or the deployment was removed"
        raise FaultError("rollout_failed", name=rollout.spec.name, version=rollout.spec.version, step="pending", detail=detail)

    # traffic

    def record(self, name: str) -> Iterator[list[Arrival]]:
        """Give the requests that a deployment gets, in the order of their arrival, ten times a second, for ever.

        Requests that are refused count, raw ones do not. What text or a picture becomes is not known where requests arrive:
        they have no length.

        Raises:
            NotFoundError: there is no such deployment.
            FaultError: `arrivals_missed`, so many came that some were not kept.
            UnavailableError: the server has stopped.
        """
        from argosy.deploy.spec import Arrival

        path, parameters = f"/v1/deployments/{quote(name, safe='')}/arrivals", {"recording": secrets.token_hex(8)}
        waiting: list[tuple[float, int, int | None]] = []
        while True:
            found = self._outlast(partial(self._ask, "POST", path, params=parameters))
            if found["num_missed"]:
                raise FaultError("arrivals_missed", name=name, got=found["num_missed"])
            # A front that was asked earlier may still hold older ones than another has told.
            waiting = sorted([*waiting, *map(tuple, found["arrivals"])])
            num_told = bisect.bisect_left(waiting, (found["until_s"],))
            told, waiting = waiting[:num_told], waiting[num_told:]
            yield [Arrival(*arrival) for arrival in told]
            time.sleep(_RECORD_PERIOD_S)

    def _outlast(self, ask: Callable[[], Found]) -> Found:
        """Ask, again if need be: a control process may die and start anew, and goes on then."""
        failed_s: float | None = None
        while True:
            try:
                return ask()
            except UnavailableError:
                failed_s = failed_s or time.monotonic()
                if self._find_server() is None or time.monotonic() - failed_s > _RESTART_S:
                    raise
                time.sleep(_RETRY_S)

    def _ask(self, method: str, path: str, *, timeout_s: float = _TIMEOUT_S, **more: Any) -> dict[str, Any]:
        import httpx

        try:
            reply = self._http.request(method, self._admin_url + path, timeout=timeout_s, **more)
        except httpx.RequestError as error:
            reply = error
        return msgspec.json.decode(accept(reply, self._admin_url, timeout_s).content)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _write_flag(allow_signature_change: bool) -> dict[str, str]:
    return {"allow_signature_change": "true"} if allow_signature_change else {}


def _read_rollout(found: Any) -> Rollout:
    from argosy.deploy.spec import Rollout

    return msgspec.convert(found, Rollout)
