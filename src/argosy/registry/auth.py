"""How a registry lets us in: its challenge to a request, Basic or a Bearer token, after the Distribution specification.

Nothing is sent before a registry asks for it, and then to the registry itself, or to the token server that it names, alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

import msgspec

from argosy.errors import AuthError, RegistryError
from argosy.registry.credentials import Credentials
from argosy.registry.location import Location

__all__ = ["Ask", "Authorizer"]

_SCHEME: Final = re.compile(r"(?:^|,)\s*(basic|bearer)\s+", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"([^"]*)"|([^\s",]+))')
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
_CLIENT_ID: Final = "argosy"

Ask = Callable[[str, str, dict[str, str], bytes], tuple[int, bytes]]
"""Sends a request (method, URL, headers, body) to a token server, and nothing else with it; the reply's status and body."""


class _Answer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class Authorizer:
    """Holds the Authorization header for one repository, and gets a new one when the registry asks for it.

    Args:
        location: of the repository.
        find: finds its credentials; called when the registry asks, and never before.
        ask: how a token server is spoken to.
    """

    def __init__(self, location: Location, find: Callable[[Location], Credentials | None], ask: Ask) -> None:
        self.header = ""
        """"" while the registry did not ask for one."""
        self._location = location
        self._find = find
        self._ask = ask
        self._scopes: set[str] = set()

    def answer(self, challenges: list[str]) -> None:
        """Get the header that a 401 asks for.

        Args:
            challenges: its WWW-Authenticate headers.

        Raises:
            AuthError: `registry_unauthorized`, there are no credentials, or the token server does not take them.
            InputError: `bad_credentials`.
            RegistryError: `bad_registry_answer`, the challenge or the token is of no kind that is known.
        """
        found = _parse_challenges(challenges)
        if "bearer" in found:
            self.header = f"Bearer {self._get_token(found['bearer'])}"
        elif "basic" in found:
            credentials = self._find(self._location)
            if credentials is None or not credentials.username:
                raise self._refuse("none were found")
            self.header = _encode_basic(credentials)
        else:
            detail = "it asks for credentials (401) in neither of the ways Basic and Bearer"
            raise RegistryError("bad_registry_answer", host=self._location.host, detail=detail)

    def _get_token(self, challenge: dict[str, str]) -> str:
        realm = challenge.get("realm", "")
        if "://" not in realm:
            raise RegistryError("bad_registry_answer", host=self._location.host, detail="it names no token server")
        credentials = self._find(self._location)
        # A token for all that was asked for so far: a mount needs two repositories, the next request one of them.
        self._scopes |= set(challenge.get("scope", "").split())
        fields = {"scope": " ".join(sorted(self._scopes))} if self._scopes else {}
        fields |= {"service": challenge["service"]} if "service" in challenge else {}
        if credentials is not None and credentials.refresh_token:
            fields |= {"grant_type": "refresh_token", "refresh_token": credentials.refresh_token, "client_id": _CLIENT_ID}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            status, data = self._ask("POST", realm, headers, urlencode(fields).encode())
        else:
            headers = {"Authorization": _encode_basic(credentials)} if credentials is not None else {}
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(_spread_scope(fields))}"
            status, data = self._ask("GET", url, headers, b"")
        if status in (400, 401, 403):
            raise self._refuse("its token server did not take them" if credentials else "none were found")
        return self._read_token(status, data)

    def _read_token(self, status: int, data: bytes) -> str:
        try:
            answer = msgspec.json.decode(data, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = _Answer()
        token = answer.token or answer.access_token
        if status != 200 or not _TOKEN.fullmatch(token):
            detail = f"its token server answers HTTP {status} without a usable token"
            raise RegistryError("bad_registry_answer", host=self._location.host, detail=detail)
        return token

    def _refuse(self, detail: str) -> AuthError:
        location = self._location
        return AuthError("registry_unauthorized", host=location.host, repository=location.repository, detail=detail)


def _spread_scope(fields: dict[str, str]) -> list[tuple[str, str]]:
    """Give each scope a parameter of its own, as token servers expect them in a URL."""
    scopes = [("scope", scope) for scope in fields.get("scope", "").split()]
    return [(key, value) for key, value in fields.items() if key != "scope"] + scopes


def _encode_basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def _parse_challenges(headers: list[str]) -> dict[str, dict[str, str]]:
    """Give the parameters of the first challenge of each known scheme."""
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        _, *parts = _SCHEME.split(header)
        for scheme, text in zip(parts[::2], parts[1::2], strict=True):
            parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(text)}
            found.setdefault(scheme.lower(), parameters)
    return found
