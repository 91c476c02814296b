"""What all HTTP connections of a front share: which URL means what, and everything that is not inference."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote

import orjson

from argosy.errors import InputError, NotFoundError
from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.call import Lane
from argosy.serve.dispatch.errands import Errand, Errands
from argosy.serve.dispatch.router import Route, Router
from argosy.serve.http.replies import Sender
from argosy.serve.v2.models import (
    EXTENSIONS,
    ChangeJson,
    IndexJson,
    describe_config,
    describe_lane,
    list_repository,
    list_stats,
    read_repository_body,
)
from argosy.serve.v2.repeats import Repeats

__all__ = ["HttpServer", "KnownHead", "refuse_method", "split_path"]

MAX_LENGTH_DIGITS: Final = 12
MAX_KNOWN_HEADS: Final = 4096
MAX_KNOWN_HEAD_BYTES: Final = 1024
# A request with one of these takes the long way every time.
_UNUSUAL_HEADERS: Final = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"))


class KnownHead(NamedTuple):
    """What a head that was seen before means."""

    route: Route
    length: int
    """Bytes of the body."""
    json_bytes: int | None


class OpenConnection(Protocol):
    """An open connection, as the server that looks after it knows it."""

    def check_idle(self, now: float) -> None:
        """Close it if its client has been silent for too long."""
        ...

    def close_if_idle(self) -> None:
        """Close it, unless a request is being received or answered."""
        ...


class HttpServer:
    """What all HTTP connections of a front share.

    Args:
        router: of this front.
        admit: of this front.
        errands: of this front.
        version: of Argosy, for the server's metadata.
        max_connections: more are closed at once.

    Attributes:
        is_draining: the server is about to end: readiness says no, and connections end with their next answer.
    """

    def __init__(self, router: Router, admit: Admit, errands: Errands, version: str, max_connections: int) -> None:
        self.router = router
        self.admit = admit
        self.errands = errands
        self.connections: set[OpenConnection] = set()
        self.is_draining = False
        self.max_connections = max_connections
        self._version = version
        self._infer_routes: dict[bytes, Route] = {}
        self.heads: dict[bytes, KnownHead] = {}
        router.on_change.append(self._build_routes)

    def _build_routes(self) -> None:
        served = {name: route for name, route in self.router.deployments.items() if not route.is_gone}
        self._infer_routes = {f"/v2/models/{name}/infer".encode(): route for name, route in served.items()}
        for lane in self.router.list_lanes():
            if lane.repeats is None:
                lane.repeats = Repeats(lane)
        self.heads.clear()

    def remember_head(self, head: bytes, url: bytes, headers: dict[bytes, bytes]) -> None:
        """Keep what the head of a plain inference request means: a client's next one is mostly the same to the byte."""
        route = self._infer_routes.get(url)
        if route is None or len(head) > MAX_KNOWN_HEAD_BYTES or not headers.keys().isdisjoint(_UNUSUAL_HEADERS):
            return
        if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return
        if len(self.heads) >= MAX_KNOWN_HEADS:
            self.heads.clear()
        json_bytes = headers.get(b"inference-header-content-length")
        if json_bytes is None or (json_bytes.isdigit() and len(json_bytes) <= MAX_LENGTH_DIGITS):
            self.heads[head] = KnownHead(route, int(headers[b"content-length"]), None if json_bytes is None else int(json_bytes))

    def find_lane(self, url: bytes) -> Lane | None:
        """The lane of an inference URL; None when the URL is not one.

        Raises:
            NotFoundError, UnavailableError: as `Router.find`.
        """
        route = self._infer_routes.get(url)
        if route is not None:
            return route.pick()
        parts = split_path(url)
        if len(parts) in (4, 6) and parts[:2] == ["v2", "models"] and parts[-1] == "infer":
            if len(parts) == 4:
                return self.router.find(parts[2])
            if parts[3] == "versions":
                return self.router.find(parts[2], parts[4])
        return None

    def answer_get(self, url: bytes, method: str = "GET") -> tuple[int, bytes]:
        """Answer everything that is not inference.

        Args:
            url: of the request.
            method: of the request, for the message.

        Raises:
            NotFoundError, UnavailableError: no such path, model or version.
            InputError: `method_not_allowed`, the path is one of inference.
        """
        match split_path(url):
            case ["v2"]:
                body = {"name": "argosy", "version": self._version, "extensions": EXTENSIONS}
                return 200, orjson.dumps(body)
            case ["v2", "health", "live"]:
                return 200, b'{"live":true}'
            case ["v2", "health", "ready"]:
                is_ready = self.router.is_server_ready and not self.is_draining
                return (200, b'{"ready":true}') if is_ready else (503, b'{"ready":false}')
            case ["v2", "models", "stats"]:
                # As in Triton; a model of this name is described under its versions.
                return 200, orjson.dumps(list_stats(self.router, self.router.counters))
            case ["v2", "models", name]:
                return 200, orjson.dumps(describe_lane(self.router.describe(name)))
            case ["v2", "models", name, "versions", version]:
                return 200, orjson.dumps(describe_lane(self.router.describe(name, version)))
            case ["v2", "models", name, "ready"]:
                return self._answer_ready(name, "")
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._answer_ready(name, version)
            case ["v2", "models", name, "config"]:
                return 200, orjson.dumps(describe_config(self.router.describe(name)))
            case ["v2", "models", name, "versions", version, "config"]:
                return 200, orjson.dumps(describe_config(self.router.describe(name, version)))
            case ["v2", "models", name, "stats"]:
                return 200, orjson.dumps(list_stats(self.router, self.router.counters, name))
            case ["v2", "models", name, "versions", version, "stats"]:
                return 200, orjson.dumps(list_stats(self.router, self.router.counters, name, version))
            case ["v2", "repository", "index"] | ["v2", "repository", "models", _, "load" | "unload"]:
                raise refuse_method(method, url)
            case ["v2", "models", _, "infer"] | ["v2", "models", _, "versions", _, "infer"]:
                raise refuse_method(method, url)
            case _:
                raise NotFoundError("no_path", method=method, path=url[:200].decode("ascii", "replace"))

    def answer_post(self, sender: Sender, url: bytes, headers: dict[bytes, bytes], body: bytes | memoryview) -> Errand | None:
        """Answer a POST that is not inference; or say later how an errand went, which is returned.

        Raises:
            NotFoundError: no such path.
            InputError: the path does not take POST, or the body is not what it takes.
            AuthError, OverloadedError, UnavailableError: as `Errands.send`.
        """
        match split_path(url):
            case ["v2", "repository", "index"]:
                asked = read_repository_body(body, IndexJson)
                sender.send(200, orjson.dumps(list_repository(self.router, is_ready=asked.ready)))
            case ["v2", "repository", "models", name, "load" | "unload" as op]:
                parameters = read_repository_body(body, ChangeJson).parameters or {}
                authorization = headers.get(b"authorization", b"").decode("latin-1")
                return self.errands.send(op, name, parameters, authorization, sender.send_outcome)
            case _:
                self.answer_get(url, "POST")
                raise refuse_method("POST", url)
        return None

    def _answer_ready(self, name: str, version: str) -> tuple[int, bytes]:
        is_ready = self.router.is_ready(name, version)
        return (200 if is_ready else 503), orjson.dumps({"name": name, "ready": is_ready})

    def sweep(self, now: float) -> None:
        """Close connections that have been silent for too long; called every second."""
        for connection in list(self.connections):
            connection.check_idle(now)

    def close_idle(self) -> None:
        """Close the connections on which nothing is asked or answered."""
        for connection in list(self.connections):
            connection.close_if_idle()


def refuse_method(method: str, url: bytes) -> InputError:
    """The error for a method that a path does not have."""
    return InputError("method_not_allowed", method=method, path=url[:200].decode("ascii", "replace"))


def split_path(url: bytes) -> list[str]:
    """Decode the path of a URL, once, into its segments."""
    path = url.split(b"?", 1)[0].split(b"#", 1)[0]
    if path.startswith((b"http://", b"https://")):
        # RFC 9112, 3.2.2: the form that is meant for proxies must be taken as well.
        path = path.split(b"//", 1)[1].partition(b"/")[2]
    segments = path.decode("ascii", "replace").strip("/").split("/")
    return [unquote(segment, errors="replace") for segment in segments]
