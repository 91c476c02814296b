"""`Client` and `AsyncClient`: ask a server for predictions.

What they send, and what they make of a reply, stands once: in generators that yield requests and are sent the
replies. The two classes differ only in who carries them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import quote, urlsplit

from argosy.client.wire import (
    HEADER_LENGTH,
    Inputs,
    Metadata,
    Prediction,
    accept,
    decode_answer,
    decode_metadata,
    encode_request,
    fit_inputs,
)
from argosy.errors import FaultError, InputError
from argosy.serve.v2.parameters import MAX_PRIORITY, MAX_TIMEOUT_S

if TYPE_CHECKING:
    import httpx

__all__ = ["AsyncClient", "Client"]

_SLACK_S: Final = 0.25
"""How much longer than a request's deadline its answer is waited for: what the server says of it is on its way."""
_PROBE_TIMEOUT_S: Final = 5.0

T = TypeVar("T")


class _Ask(NamedTuple):
    """A request to carry out."""

    method: str
    path: str
    timeout_s: float
    body: bytes = b""
    headers: Mapping[str, str] = {}


# It is sent the replies, or why there is none; `accept` decides which of httpx's errors means what.
_Plan = Generator[_Ask, "httpx.Response | httpx.RequestError", T]


class _Caller:
    """What `Client` and `AsyncClient` share: everything but carrying requests."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("bad_option", option="url", got=url, expected="http://HOST:PORT")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._metadata: dict[tuple[str, str], Metadata] = {}
        # A proxy of the environment cannot reach this machine's own addresses.
        trust_env = parts.hostname not in ("127.0.0.1", "localhost", "::1")
        # Reading the certificates takes 0.1 s; without TLS nothing is checked by them.
        self._http_settings: dict[str, Any] = {"trust_env": trust_env, "verify": parts.scheme == "https"}

    def _to_httpx(self, ask: _Ask) -> dict[str, Any]:
        return {
            "method": ask.method,
            "url": self.url + ask.path,
            "content": ask.body,
            "headers": ask.headers,
            "timeout": ask.timeout_s,
        }

    def _plan_predict(
        self,
        model: str,
        inputs: Inputs,
        version: str | int | None,
        outputs: Sequence[str] | None,
        timeout_s: float | None,
        request_id: str | None,
        priority: int,
    ) -> _Plan[Prediction]:
        if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise InputError("bad_option", option="timeout_s", got=timeout_s, expected=f"above 0, at most {MAX_TIMEOUT_S:.0f}")
        if not 0 <= priority <= MAX_PRIORITY:
            raise InputError("bad_option", option="priority", got=priority, expected=f"1 (first) to {MAX_PRIORITY}, or 0")
        chosen = "" if version is None else str(version)
        cached = self._metadata.get((model, chosen))
        metadata = cached or (yield from self._plan_metadata(model, chosen))
        while True:
            try:
                arrays = fit_inputs(metadata, inputs, chosen)
                specs = metadata.inputs + metadata.raw_inputs
                body, length = encode_request(arrays, specs, outputs, timeout_s, request_id, priority)
                allowed_s = self.timeout_s if timeout_s is None else timeout_s
                headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}
                path = _build_path(model, chosen, "infer")
                reply = yield _Ask("POST", path, allowed_s + (timeout_s is not None) * _SLACK_S, body, headers)
                return self._read(decode_answer, accept(reply, self.url, allowed_s))
            except InputError:
                # A rollout may have changed the inputs since they were asked for.
                if cached is None:
                    raise
                metadata = yield from self._plan_metadata(model, chosen)
                if metadata.inputs == cached.inputs:
                    raise
                cached = None

    def _plan_metadata(self, model: str, version: str) -> _Plan[Metadata]:
        reply = yield _Ask("GET", _build_path(model, version), self.timeout_s)
        metadata = self._read(decode_metadata, accept(reply, self.url, self.timeout_s))
        self._metadata[model, version] = metadata
        return metadata

    def _build_raw(
        self, model: str, path: str, method: str, body: bytes, headers: Mapping[str, str], version: str | int | None
    ) -> _Ask:
        if path and not path.startswith("/"):
            raise InputError("bad_option", option="path", got=path[:200], expected="nothing, or a path that begins with a slash")
        target = _build_path(model, "" if version is None else str(version), "raw") + path
        return _Ask(method, target, self.timeout_s, body, headers)

    def _plan_raw(self, ask: _Ask) -> _Plan[httpx.Response]:
        reply = yield ask
        if isinstance(reply, Exception):
            return accept(reply, self.url, self.timeout_s)
        return reply

    def _plan_probe(self, path: str) -> _Plan[bool]:
        """Ask for health; a server that cannot be reached is not well, and a model that is not there not ready."""
        reply = yield _Ask("GET", path, min(_PROBE_TIMEOUT_S, self.timeout_s))
        if isinstance(reply, Exception) or reply.status_code in (404, 503):
            return False
        accept(reply, self.url, self.timeout_s)
        return True

    def _read(self, decode: Callable[[httpx.Response], T], response: httpx.Response) -> T:
        try:
            return decode(response)
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:  # msgspec's are ValueErrors
            raise FaultError("bad_answer", url=self.url, detail=f"{type(error).__name__}: {error}") from error


class Client(_Caller):
    """Asks a server for predictions; threads may share one.

        with Client("http://127.0.0.1:8000") as client:
            prediction = client.predict("digits", {"image": images})

    Args:
        url: of the server's V2 API.
        timeout_s: how long an answer is waited for, where the request has no deadline of its own.

    Raises:
        InputError: `bad_option`, it is not a URL.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout_s: float = 30.0) -> None:
        import httpx

        super().__init__(url, timeout_s)
        self._http = httpx.Client(**self._http_settings)

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Prediction:
        """Ask a model for its outputs.

        Args:
            model: the deployment's name.
            inputs: arrays (or lists) by input name, or one array where the model has one input. Floats are rounded
                to the input's precision; integers are converted where their values fit; nothing else is.
            version: of the model; default: as the deployment's traffic is split.
            outputs: names of those that are wanted; default: all.
            timeout_s: deadline of the request; default: the deployment's.
            request_id: comes back in the answer.
            priority: 1 is taken first, then 2 and so on; 0 is the deployment's default.

        Raises:
            InputError: the inputs do not fit the model; found before they are sent where possible.
            NotFoundError: no such deployment or version.
            OverloadedError: the queue is full; `retry_after_s` says when to try again.
            UnavailableError: no server answers, or no replica is ready.
            DeadlineError: the deadline passed.
            FaultError: the model or the server failed.
        """
        return self._run(self._plan_predict(model, inputs, version, outputs, timeout_s, request_id, priority))

    def metadata(self, model: str, version: str | int | None = None) -> Metadata:
        """Ask for a deployment's inputs and outputs.

        Raises:
            NotFoundError: no such deployment or version.
            UnavailableError: no server answers.
        """
        return self._run(self._plan_metadata(model, "" if version is None else str(version)))

    def raw(
        self,
        model: str,
        path: str = "",
        *,
        method: str = "POST",
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        version: str | int | None = None,
    ) -> httpx.Response:
        """Ask the raw endpoint of a model, whose own code answers.

        Args:
            model: the deployment's name.
            path: what follows `/raw` in the URL, a query included: nothing, or it begins with a slash.
            method: of HTTP.
            body: as it is.
            headers: further ones, such as Content-Type.
            version: of the model; default: as the deployment's traffic is split.

        Returns:
            The answer with whatever status the model gave it; the server's own errors are answers, too.

        Raises:
            InputError: the path does not begin with a slash.
            UnavailableError: no server answers.
            DeadlineError: no answer came within the client's `timeout_s`.
        """
        return self._run(self._plan_raw(self._build_raw(model, path, method, body, headers, version)))

    def raw_stream(
        self,
        model: str,
        path: str = "",
        *,
        method: str = "POST",
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        version: str | int | None = None,
    ) -> Iterator[bytes]:
        """As `raw`, but the parts of the body are given as they come.

        Raises:
            ArgosyError: what the server or the model said, where the status is no success.
            UnavailableError: no server answers, or the answer was cut.
            DeadlineError: the next part did not come within the client's `timeout_s`.
        """
        import httpx

        ask = self._build_raw(model, path, method, body, headers, version)
        try:
            with self._http.stream(**self._to_httpx(ask)) as reply:
                if not reply.is_success:
                    reply.read()
                accept(reply, self.url, self.timeout_s)
                yield from reply.iter_raw()
        except httpx.RequestError as error:
            accept(error, self.url, self.timeout_s)

    def is_ready(self, model: str | None = None) -> bool:
        """Say whether the server, or a model on it, answers now; False also where it cannot be reached."""
        return self._run(self._plan_probe(_build_ready_path(model)))

    def is_live(self) -> bool:
        """Say whether a server is there."""
        return self._run(self._plan_probe("/v2/health/live"))

    def _run(self, plan: _Plan[T]) -> T:
        import httpx

        try:
            ask = next(plan)
            while True:
                try:
                    reply = self._http.request(**self._to_httpx(ask))
                except httpx.RequestError as error:
                    reply = error
                ask = plan.send(reply)
        except StopIteration as stop:
            return stop.value

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient(_Caller):
    """As `Client`, for asyncio; tasks of one loop may share one.

    Args:
        url: of the server's V2 API.
        timeout_s: how long an answer is waited for, where the request has no deadline of its own.

    Raises:
        InputError: `bad_option`, it is not a URL.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout_s: float = 30.0) -> None:
        import httpx

        super().__init__(url, timeout_s)
        self._http = httpx.AsyncClient(**self._http_settings)

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | int | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Prediction:
        """As `Client.predict`."""
        return await self._run(self._plan_predict(model, inputs, version, outputs, timeout_s, request_id, priority))

    async def metadata(self, model: str, version: str | int | None = None) -> Metadata:
        """As `Client.metadata`."""
        return await self._run(self._plan_metadata(model, "" if version is None else str(version)))

    async def raw(
        self,
        model: str,
        path: str = "",
        *,
        method: str = "POST",
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        version: str | int | None = None,
    ) -> httpx.Response:
        """As `Client.raw`."""
        return await self._run(self._plan_raw(self._build_raw(model, path, method, body, headers, version)))

    async def raw_stream(
        self,
        model: str,
        path: str = "",
        *,
        method: str = "POST",
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        version: str | int | None = None,
    ) -> AsyncIterator[bytes]:
        """As `Client.raw_stream`."""
        import httpx

        ask = self._build_raw(model, path, method, body, headers, version)
        try:
            async with self._http.stream(**self._to_httpx(ask)) as reply:
                if not reply.is_success:
                    await reply.aread()
                accept(reply, self.url, self.timeout_s)
                async for part in reply.aiter_raw():
                    yield part
        except httpx.RequestError as error:
            accept(error, self.url, self.timeout_s)

    async def is_ready(self, model: str | None = None) -> bool:
        """As `Client.is_ready`."""
        return await self._run(self._plan_probe(_build_ready_path(model)))

    async def is_live(self) -> bool:
        """As `Client.is_live`."""
        return await self._run(self._plan_probe("/v2/health/live"))

    async def _run(self, plan: _Plan[T]) -> T:
        import httpx

        # A StopIteration may not leave a coroutine: it ends here, as in `Client._run`.
        try:
            ask = next(plan)
            while True:
                try:
                    reply = await self._http.request(**self._to_httpx(ask))
                except httpx.RequestError as error:
                    reply = error
                ask = plan.send(reply)
        except StopIteration as stop:
            return stop.value

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def _build_path(model: str, version: str, action: str = "") -> str:
    parts = ["/v2/models", quote(model, safe="")]
    parts += ["versions", quote(version, safe="")] if version else []
    return "/".join([*parts, action] if action else parts)


def _build_ready_path(model: str | None) -> str:
    return "/v2/health/ready" if model is None else _build_path(model, "", "ready")
