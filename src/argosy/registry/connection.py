"""Requests to a registry: who we are, where redirects lead, what is worth another try, what a refusal means.

It believes nothing that a registry says: replies are bounded, bodies are never unpacked, and credentials stay with the host
that they are for.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from argosy.errors import ArgosyError, AuthError, InputError, NotAllowedError, NotFoundError, RegistryError
from argosy.registry.auth import Authorizer
from argosy.registry.credentials import find_credentials
from argosy.registry.location import Location, is_loopback

__all__ = ["CHUNK_BYTES", "Connection", "Lost", "Patience", "Reply", "check_encoding", "read_pieces", "read_reply"]

CHUNK_BYTES: Final = 1 << 20
MAX_TRIES: Final = 5
FIRST_PAUSE_S: float = 0.5
"""Before the second try; each later pause is twice as long."""

PACE_S: float = 60.0
PACE_BYTES: Final = 16 << 10
"""Who sends less than that in PACE_S is as good as silent: an answer that comes byte by byte would never end."""

_MAX_PAUSE_S: Final = 60
"""How long a registry may tell us to wait."""
_MAX_REPLY_BYTES: Final = 1 << 20
_MAX_SHOWN: Final = 300
_MAX_HOPS: Final = 5
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_END_TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0)
"""For the requests that end an upload: a registry may hash, or copy, many gigabytes before it answers."""
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_LOG: Final = logging.getLogger(__name__)

Body = Callable[[], bytes | Iterator[bytes]]
"""Makes a request's body, for each time that it is sent."""


class Reply(NamedTuple):
    """A reply with its whole body."""

    status: int
    headers: httpx.Headers
    data: bytes
    url: httpx.URL


class Lost(Exception):
    """There was no reply, or the registry said that it cannot now: worth another try."""

    def __init__(self, detail: str, *, pause_s: float = 0.0, is_final: bool = False) -> None:
        super().__init__(detail)
        self.pause_s = pause_s
        self.is_final = is_final
        """Another try would end the same way."""


class Patience:
    """Waits between the tries of one request, longer each time, until there were `MAX_TRIES`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._num_tries = 0

    def wait(self, lost: Lost) -> None:
        """Pause before another try.

        Raises:
            RegistryError: `registry_unreachable`, it was the last one.
        """
        self._num_tries += 1
        if lost.is_final or self._num_tries >= MAX_TRIES:
            raise RegistryError("registry_unreachable", host=self._host, detail=lost) from lost
        pause_s = max(lost.pause_s, FIRST_PAUSE_S * 2 ** (self._num_tries - 1))
        _LOG.warning("registry %s: %s; trying again in %.1f s", self._host, lost, pause_s)
        time.sleep(pause_s)

    def refresh(self) -> None:
        """Begin to count anew: the last try brought us further."""
        self._num_tries = 0


class Connection:
    """Carries requests to the registry of a location.

    Args:
        location: whose registry.
        plain_http: speak to it without TLS. To this machine's own addresses that is done anyway, unless `ca_file` is given.
        ca_file: certificates (PEM) of authorities that are trusted beside the usual ones.

    Raises:
        InputError: `missing_file`, `ca_file` holds no certificates.
    """

    def __init__(self, location: Location, *, plain_http: bool, ca_file: Path | str | None) -> None:
        self._location = location
        self._plain_http = plain_http
        is_own = is_loopback(httpx.URL(f"//{location.api_host}").host)
        scheme = "http" if plain_http or (is_own and ca_file is None) else "https"
        self._base = httpx.URL(f"{scheme}://{location.api_host}")
        self._client = httpx.Client(
            # A proxy of the environment cannot reach this machine's own addresses.
            trust_env=not is_own,
            verify=_load_authorities(ca_file) if scheme == "https" else False,
            # Bodies come as they are: one that unfolds to many times its size is an attack, and digests are of the bytes.
            headers={"Accept-Encoding": "identity", "User-Agent": "argosy"},
        )
        self._authorizer = Authorizer(location, find_credentials, self._ask_token_server)

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        body: Body | None = None,
        max_bytes: int = _MAX_REPLY_BYTES,
        is_bare: bool = False,
    ) -> Reply:
        """Send a request, as often as it is worth another try, and read the reply.

        Args:
            method: GET and HEAD are followed where the registry redirects them.
            url: whole, or from the registry's root on.
            headers: beside those of every request.
            body: None for none.
            max_bytes: how long the reply may be.
            is_bare: send what is given alone, without our credentials, and follow it nowhere.

        Raises:
            RegistryError: `registry_unreachable`, after several tries; `bad_registry_answer`.
            AuthError: `registry_unauthorized`.
            NotAllowedError: `insecure_registry`, the URL would be reached without TLS.
            InputError: `bad_credentials`.
        """
        patience = Patience(self._location.host)
        while True:
            try:
                with self.open(method, url, headers=headers, body=body, is_bare=is_bare) as response:
                    return read_reply(response, self._location.host, max_bytes)
            except Lost as lost:
                patience.wait(lost)

    @contextmanager
    def open(
        self, method: str, url: str, *, headers: Mapping[str, str] = {}, body: Body | None = None, is_bare: bool = False
    ) -> Generator[httpx.Response]:
        """Send a request once, more often only to say who we are or to follow it elsewhere; the reply's body is unread.

        Raises:
            Lost: the registry cannot be reached, or not now; also while the block reads.
            ArgosyError: as `ask`.
        """
        target, was_asked, num_hops = self._check_url(url), False, 0
        try:
            while True:
                is_ours = not is_bare and self._is_ours(target)
                known = {"Authorization": self._authorizer.header} if is_ours and self._authorizer.header else {}
                content = body() if body else None
                timeout = _END_TIMEOUT if method == "PUT" else _TIMEOUT
                request = self._client.build_request(
                    method, target, headers={**headers, **known}, content=content, timeout=timeout
                )
                response = self._client.send(request, stream=True)
                try:
                    if response.status_code == 401 and is_ours and not was_asked:
                        was_asked = True
                        self._authorizer.answer(response.headers.get_list("WWW-Authenticate"))
                    elif response.status_code in _REDIRECTS and method in ("GET", "HEAD") and not is_bare:
                        num_hops += 1
                        target = self._follow(response, num_hops)
                    else:
                        _raise_if_busy(response)
                        yield response
                        return
                finally:
                    response.close()
        except httpx.TransportError as error:
            raise _explain_transport(error) from error

    def locate(self, reply: Reply) -> str:
        """Give the URL in a reply's Location.

        Raises:
            RegistryError: `bad_registry_answer`, there is none.
        """
        try:
            return str(reply.url.join(reply.headers["Location"]))
        except (KeyError, httpx.InvalidURL) as error:
            raise self.bad_answer("its Location is missing, or no URL") from error

    def explain(self, reply: Reply, what: str) -> ArgosyError:
        """Turn a reply that is none of those expected into an error; `what` was asked for."""
        host, said = self._location.host, _read_errors(reply.data)
        detail = f"HTTP {reply.status}{': ' if said else ''}{said}"
        if not self._is_ours(reply.url):
            return RegistryError("registry_refused", host=host, what=what, detail=f"{detail}, from {_clean(reply.url.host)}")
        if reply.status == 401:
            return AuthError("registry_unauthorized", host=host, repository=self._location.repository, detail=detail)
        if reply.status == 403:
            return NotAllowedError("registry_denied", host=host, what=what, detail=detail)
        if reply.status == 404:
            return NotFoundError("not_in_registry", host=host, what=what, detail=detail)
        return RegistryError("registry_refused", host=host, what=what, detail=detail)

    def bad_answer(self, detail: str) -> RegistryError:
        """Give the error of an answer that the protocol does not know."""
        return _bad_answer(self._location.host, detail)

    def _ask_token_server(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        reply = self.ask(method, url, headers=headers, body=(lambda: body) if body else None, is_bare=True)
        return reply.status, reply.data

    def _is_ours(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)

    def _check_url(self, url: str) -> httpx.URL:
        """Resolve a URL that the registry gave, perhaps to another host, which is spoken to without TLS only if it may be."""
        try:
            target = self._base.join(url)
        except httpx.InvalidURL as error:
            raise self.bad_answer("it gives a URL that is none") from error
        is_plain = self._base.scheme == "http" and (self._plain_http or is_loopback(target.host))
        if not target.host or target.userinfo or (target.scheme != "https" and not (target.scheme == "http" and is_plain)):
            shown = _clean(f"{target.scheme}://{target.host}")
            raise NotAllowedError("insecure_registry", host=self._location.host, got=shown)
        return target

    def _follow(self, response: httpx.Response, num_hops: int) -> httpx.URL:
        if num_hops > _MAX_HOPS:
            raise self.bad_answer(f"it redirects more than {_MAX_HOPS} times")
        return self._check_url(self.locate(Reply(response.status_code, response.headers, b"", response.url)))


def read_reply(response: httpx.Response, host: str, max_bytes: int = _MAX_REPLY_BYTES) -> Reply:
    """Read the whole body of a reply.

    Raises:
        RegistryError: `bad_registry_answer`, it is longer than `max_bytes`, or packed.
    """
    check_encoding(response, host)
    data = bytearray()
    told = response.headers.get("Content-Length", "") if response.request.method != "HEAD" else ""
    if told.isdecimal() and int(told[:18]) > max_bytes:
        raise _bad_answer(host, f"it has more than {max_bytes} bytes")
    for chunk in read_pieces(response):
        data += chunk
        if len(data) > max_bytes:
            raise _bad_answer(host, f"it has more than {max_bytes} bytes")
    return Reply(response.status_code, response.headers, bytes(data), response.url)


def read_pieces(response: httpx.Response) -> Iterator[bytes]:
    """Give the body of a reply as it comes.

    Raises:
        Lost: it comes too slowly to ever be worth the wait.
    """
    begin_s, num_bytes = time.monotonic(), 0
    for chunk in response.iter_raw():
        yield chunk
        num_bytes += len(chunk)
        if (now_s := time.monotonic()) - begin_s > PACE_S:
            if num_bytes < PACE_BYTES:
                raise Lost(f"it sent {num_bytes} bytes in {now_s - begin_s:.0f} s, at least {PACE_BYTES} are waited for")
            begin_s, num_bytes = now_s, 0


def check_encoding(response: httpx.Response, host: str) -> None:
    """Refuse a body that is packed, which was not asked for.

    Raises:
        RegistryError: `bad_registry_answer`.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _bad_answer(host, "it is packed (Content-Encoding), which was not asked for")


def _bad_answer(host: str, detail: str) -> RegistryError:
    return RegistryError("bad_registry_answer", host=host, detail=detail)


def _raise_if_busy(response: httpx.Response) -> None:
    if response.status_code in _BUSY:
        told = response.headers.get("Retry-After", "")
        pause_s = min(int(told[:9]), _MAX_PAUSE_S) if told.isdecimal() else 0
        raise Lost(f"HTTP {response.status_code}", pause_s=pause_s)


def _explain_transport(error: httpx.TransportError) -> Lost:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Lost(f"its certificate is not trusted ({cause.verify_message})", is_final=True)
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return Lost("no host has that name", is_final=True)
        cause = cause.__cause__ or cause.__context__
    return Lost(_clean(str(error)) or type(error).__name__)


def _load_authorities(ca_file: Path | str | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise InputError("missing_file", path=ca_file, detail=f"no certificates (PEM): {error.strerror}") from error
    return context


def _read_errors(data: bytes) -> str:
    """Give what a registry says of an error, for people."""
    try:
        found: Any = msgspec.json.decode(data)
        return _clean("; ".join(f"{error['code']} {error.get('message', '')}".strip() for error in found["errors"]))
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_SHOWN])
