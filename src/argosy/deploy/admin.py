"""The admin API: deployments, rollouts, status, logs, publishing. On loopback, with a token, deny by default."""

from __future__ import annotations

import asyncio
import hmac
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from argosy.deploy.lanes import DesiredLane, Lanes
from argosy.deploy.repository import describe_name, explain_unready
from argosy.deploy.spec import Deployment, DeploymentSpec, Rollout
from argosy.errors import ArgosyError, AuthError, FaultError, InputError, NotFoundError, list_choices
from argosy.serve.dispatch.recorder import unpack_arrivals
from argosy.serve.wire.counters import Counters
from argosy.signature import check_name
from argosy.store.temporary import explain_write

__all__ = ["Admin", "build_admin"]

_NUM_ROLLOUTS: Final = 5
_MAX_WAIT_S: Final = 30.0
_POLL_S: Final = 0.02
_MAX_LOG_BYTES: Final = 1 << 20
_MAX_IMPORTS: Final = 2
"""ONNX files that are looked into at once, each by a process of its own; more wait."""
_IMPORT_TIMEOUT_S: Final = 240.0
"""Of that process; a client gives up after 600 s, and one other may come first."""
_SIGNATURE_FLAG: Final = "allow_signature_change"
_MAX_ID_DIGITS: Final = 18  # the database's integers have 63 bits

Handler = Callable[["Admin", Request], Awaitable[Any]]


class Admin:
    """The handlers.

    Args:
        lanes: of the node; who keeps them carries out what is asked.
        counters: the node's counters.
        home: ARGOSY_HOME.
    """

    def __init__(self, lanes: Lanes, counters: Counters, home: Path) -> None:
        self.lanes = lanes
        self.node = lanes.node
        self.ledger = lanes.ledger
        self.counters = counters
        self.logs = home / "run" / "logs"
        self.uploads = home / "run" / "uploads"
        # Of their own: what a rollout has to do in a thread does not wait for files that somebody sends.
        self._imports = ThreadPoolExecutor(_MAX_IMPORTS, thread_name_prefix="import")
        shutil.rmtree(self.uploads, ignore_errors=True)

    async def get_status(self, request: Request) -> Any:
        """Deployments with their lanes, workers, latest rollouts and problems."""
        answers = (await self.node.ask_stats()).answers
        ready: dict[tuple[str, str], list[int]] = {}
        for found in answers.values():
            for lane in found:
                ready.setdefault((lane.name, lane.version), []).append(lane.replicas)
        rollouts = self.ledger.list_latest_rollouts(_NUM_ROLLOUTS)
        deployments = [
            self._describe(deployment, ready, rollouts.get(deployment.spec.name, []))
            for deployment in self.ledger.list_deployments()
        ]
        return {
            "is_ready": all(deployment["is_ready"] for deployment in deployments),
            "fronts": sorted(answers),
            "memory_limit_bytes": self.node.memory_limit_bytes,
            "memory_free_bytes": self.node.free_memory_bytes(),
            "deployments": deployments,
        }

    def _describe(self, deployment: Deployment, ready: dict[tuple[str, str], list[int]], rollouts: list[Rollout]) -> Any:
        name = deployment.spec.name
        lanes = [self._describe_lane(lane, ready) for lane in self.lanes.list_lanes(name)]
        is_ready = any(lane["ready_replicas"] and not lane["is_draining"] for lane in lanes)
        return {
            "spec": msgspec.to_builtins(deployment.spec),
            "is_live": deployment.is_live,
            "is_ready": is_ready,
            "reason": "" if is_ready else self._explain(deployment),
            "problem": self.lanes.problems.get(name, ""),
            "lanes": lanes,
            "rollouts": [msgspec.to_builtins(rollout) for rollout in rollouts],
        }

    def _explain(self, deployment: Deployment) -> str:
        """Why a deployment is not ready."""
        name = deployment.spec.name
        known = describe_name(self.ledger, name, self.ledger.read_standings([name])[name], self.lanes.problems.get(name, ""))
        return (known.reason if known is not None else "") or explain_unready(self.node.workers.of(name))

    def _describe_lane(self, lane: DesiredLane, ready: dict[tuple[str, str], list[int]]) -> dict[str, Any]:
        workers = [worker for name in lane.workers if (worker := self.node.workers.get(name)) is not None]
        reports = [worker.report for worker in workers if worker.report]
        return {
            "version": lane.version.number,
            "runtime": lane.runtime,
            "precision": lane.spec.precision,
            "weight": lane.weight,
            "is_draining": lane.is_draining,
            "replicas": lane.num_replicas,
            "ready_replicas": min(ready.get((lane.name, str(lane.version.number)), [0])),
            "golden_is_synthetic": lane.version.manifest.golden_is_synthetic,
            "num_golden": lane.version.manifest.num_golden,
            "join_refusal": reports[0].get("join_refusal", "") if reports else "not known yet",
            "joining": reports[0].get("joining", "") if reports else "",
            "pad_refusal": reports[0].get("pad_refusal", "") if reports else "",
            "workers": [
                {
                    "name": worker.name,
                    "pid": worker.pid,
                    "is_ready": worker.is_ready,
                    "memory_bytes": worker.memory_bytes,
                    "deaths": worker.num_deaths,
                    "last_death": worker.last_death,
                }
                for worker in workers
            ],
        }

    async def put_deployment(self, request: Request) -> Any:
        """Make a deployment, or roll it out to another version."""
        body = await request.body()
        try:
            spec = msgspec.json.decode(body, type=DeploymentSpec)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError("bad_json", detail=str(error)) from None
        if spec.name != request.path_params["name"]:
            raise InputError("bad_option", option="name", got=spec.name, expected=request.path_params["name"])
        return self._accept(self.ledger.request_rollout(spec, allow_signature_change=_read_flag(request)))

    async def delete_deployment(self, request: Request) -> Any:
        """Forget a deployment and stop its workers."""
        self.ledger.remove_deployment(request.path_params["name"])
        self.lanes.wake.set()
        return {"removed": request.path_params["name"]}

    async def post_rollback(self, request: Request) -> Any:
        """Roll back to the version that held all of the traffic before."""
        name = request.path_params["name"]
        return self._accept(self.ledger.request_rollback(name, allow_signature_change=_read_flag(request)))

    def _accept(self, rollout: Rollout) -> Any:
        self.lanes.wake.set()
        return {"rollout": msgspec.to_builtins(rollout)}

    async def get_rollout(self, request: Request) -> Any:
        """A rollout and its steps after number `after`; waits up to `wait_s` for a new one."""
        text = request.path_params["id"]
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS):
            raise NotFoundError("unknown_choice", kind="rollout", got=text[:40], known="argosy status lists them")
        identifier = int(text)
        after = _read_number(request, "after", 0)
        deadline = time.monotonic() + min(_read_number(request, "wait_s", 0), _MAX_WAIT_S)
        while True:
            rollout = self.ledger.find_rollout(identifier)
            events = self.ledger.list_events(identifier, int(after))
            if events or rollout.is_over or time.monotonic() >= deadline:
                return {
                    "rollout": msgspec.to_builtins(rollout),
                    "is_over": rollout.is_over,
                    "events": [msgspec.to_builtins(event) for event in events],
                }
            await asyncio.sleep(_POLL_S)

    async def get_stats(self, request: Request) -> Any:
        """Counters since the start, and queues now."""
        answers = (await self.node.ask_stats()).answers
        return {
            "series": [
                {"name": name, "version": version, **self.counters.summarize(index)}
                for index, (name, version) in enumerate(self.counters.list_series())
            ],
            "fronts": {name: [vars(lane) for lane in lanes] for name, lanes in answers.items()},
        }

    async def post_arrivals(self, request: Request) -> Any:
        """When requests arrived since the recording that the caller names was last asked for, and what they were like.

        All that came before `until_s` is told by now; what comes in fronts that start meanwhile is told from the next time on.
        """
        name, recording = request.path_params["name"], request.query_params.get("recording", "")
        self.ledger.find_deployment(name)
        until_s = time.monotonic()
        answers = (await self.node.ask_arrivals(recording[:64], name)).answers
        arrivals = [arrival for answer in answers.values() for arrival in unpack_arrivals(answer.arrivals)]
        num_missed = sum(answer.num_missed for answer in answers.values())
        return {"arrivals": arrivals, "num_missed": num_missed, "until_s": until_s}

    async def get_logs(self, request: Request) -> Any:
        """The end of a process's log; without a name, the names."""
        names = sorted(path.stem for path in self.logs.glob("*.log"))
        name = request.query_params.get("name")
        if name is None:
            return {"names": names}
        if name not in names:
            raise NotFoundError("unknown_choice", kind="log", got=name[:200], known=list_choices(names))
        size = int(min(_read_number(request, "max_bytes", 16384), _MAX_LOG_BYTES))
        with (self.logs / f"{name}.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            data = file.read(size)
        return {"name": name, "text": data.decode(errors="replace")}

    async def post_version(self, request: Request) -> Any:
        """Publish the ONNX file that is the body as the next version of a model."""
        from argosy.importers.onnx import import_onnx

        name = check_name(request.path_params["name"])
        # On disk, so that a large body does not fill the memory; what a killed process left goes at the next start.
        try:
            self.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.uploads) as folder:
                path = Path(folder) / "model.onnx"
                with path.open("wb") as file:
                    async for chunk in request.stream():
                        await asyncio.to_thread(file.write, chunk)
                work = partial(import_onnx, self.ledger.store, path, name, timeout_s=_IMPORT_TIMEOUT_S)
                version = await asyncio.get_running_loop().run_in_executor(self._imports, work)
        except OSError as error:
            raise explain_write(self.uploads, error) from error
        return {"name": version.name, "version": version.number, "digest": version.digest}


def _read_flag(request: Request) -> bool:
    """Whether a rollout may change the signature."""
    text = request.query_params.get(_SIGNATURE_FLAG, "false")
    if text not in ("true", "false"):
        raise InputError("bad_parameter", name=_SIGNATURE_FLAG, got=text[:40], expected="true or false")
    return text == "true"


def _read_number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise InputError("bad_parameter", name=name, got=text[:40], expected="a number, 0 or above")
    return value


_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/v1/status", Admin.get_status),
    ("GET", "/v1/stats", Admin.get_stats),
    ("GET", "/v1/logs", Admin.get_logs),
    ("PUT", "/v1/deployments/{name}", Admin.put_deployment),
    ("POST", "/v1/deployments/{name}/arrivals", Admin.post_arrivals),
    ("DELETE", "/v1/deployments/{name}", Admin.delete_deployment),
    ("POST", "/v1/deployments/{name}/rollback", Admin.post_rollback),
    ("GET", "/v1/rollouts/{id}", Admin.get_rollout),
    ("POST", "/v1/models/{name}/versions", Admin.post_version),
)


def build_admin(find: Callable[[], Awaitable[Admin]], token: str) -> Starlette:
    """The application that the admin listener serves.

    Args:
        find: gives the handlers; raises an ArgosyError while there are none, which is the answer then.
        token: what a caller must show.
    """
    expected = f"Bearer {token}".encode()

    class Guard(BaseHTTPMiddleware):
        """Everything needs the token, also what does not exist."""

        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return _answer_error(AuthError("unauthorized"))
            return await call_next(request)

    def wrap(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return Response(msgspec.json.encode(await handler(await find(), request)), media_type="application/json")
            except ArgosyError as error:
                return _answer_error(error)
            except ClientDisconnect:
                # Nobody reads this answer.
                return _answer_error(InputError("bad_http", detail="the client left before its request was complete"))
            except OSError as error:
                # The machine has no descriptor left, or a log has gone.
                return _answer_error(FaultError("internal", detail=str(error)))

        return endpoint

    async def not_found(request: Request, error: Exception) -> Response:
        return _answer_error(NotFoundError("no_path", method=request.method, path=request.url.path[:200]))

    routes = [Route(path, wrap(handler), methods=[method]) for method, path, handler in _ROUTES]
    return Starlette(routes=routes, middleware=[Middleware(Guard)], exception_handlers={404: not_found, 405: not_found})


def _answer_error(error: ArgosyError) -> Response:
    body = {"error": str(error), "key": error.key}
    return Response(msgspec.json.encode(body), status_code=error.status, media_type="application/json")
