"""Who we are to a registry: credentials from the places where other tools leave them. They are never shown.

    ARGOSY_REGISTRY_USERNAME, ARGOSY_REGISTRY_PASSWORD    for ARGOSY_REGISTRY_HOST alone, if that is set
    $REGISTRY_AUTH_FILE                                   podman, skopeo
    $DOCKER_CONFIG/config.json
    $XDG_RUNTIME_DIR/containers/auth.json
    ~/.config/containers/auth.json
    ~/.docker/config.json                                 unless DOCKER_CONFIG is set

The first place that knows the host wins. In a file its own helper of the host (credHelpers) goes before its entries
(auths), and the helper of all hosts (credsStore) comes last: what `docker login` does.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from argosy.errors import InputError
from argosy.registry.location import Location

__all__ = ["Credentials", "find_credentials"]

_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HELPER_TIMEOUT_S: Final = 30.0
_MAX_BYTES: Final = 1 << 20
_IDENTITY: Final = "<token>"
"""The user name by which a helper says that the secret is a refresh token."""
_DOCKER_HUB_KEY: Final = "https://index.docker.io/v1/"
_UNKNOWN: Final = "credentials not found"
"""What every helper says of a host that it does not know."""


class Credentials:
    """A name and its password, or a refresh token. Printing it shows none of them."""

    __slots__ = ("password", "refresh_token", "username")

    def __init__(self, username: str = "", password: str = "", *, refresh_token: str = "") -> None:
        self.username = username
        self.password = password
        self.refresh_token = refresh_token


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True, rename={"creds_store": "credsStore", "cred_helpers": "credHelpers"}):
    auths: dict[str, _Entry] = {}
    creds_store: str = ""
    cred_helpers: dict[str, str] = {}


class _Secret(msgspec.Struct, frozen=True, rename="pascal"):
    username: str
    secret: str


def find_credentials(location: Location, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """Find the credentials of a repository's registry; None where no place has any.

    Raises:
        InputError: `bad_credentials`, a place cannot be read, or its helper does not answer.
    """
    environment = os.environ if environment is None else environment
    username, password = (environment.get(f"ARGOSY_REGISTRY_{part}", "") for part in ("USERNAME", "PASSWORD"))
    if bool(username) != bool(password):
        detail = "one of ARGOSY_REGISTRY_USERNAME and ARGOSY_REGISTRY_PASSWORD is set without the other"
        raise InputError("bad_credentials", source="the environment", detail=detail)
    if username and environment.get("ARGOSY_REGISTRY_HOST", location.host).lower() == location.host:
        return Credentials(username, password)
    for path in _list_files(environment):
        file = _read_file(path)
        if file is not None and (found := _look_up(file, path, location, environment)):
            return found
    return None


def _list_files(environment: Mapping[str, str]) -> list[Path]:
    home = Path(environment.get("HOME") or Path.home())
    docker = environment.get("DOCKER_CONFIG")
    runtime = environment.get("XDG_RUNTIME_DIR")
    named = environment.get("REGISTRY_AUTH_FILE")
    return [
        *([Path(named)] if named else []),
        *([Path(docker) / "config.json"] if docker else []),
        *([Path(runtime) / "containers" / "auth.json"] if runtime else []),
        Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json",
        *([] if docker else [home / ".docker" / "config.json"]),
    ]


def _read_file(path: Path) -> _File | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        return msgspec.json.decode(data, type=_File)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError("bad_credentials", source=path, detail=error.strerror) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("bad_credentials", source=path, detail=error) from error


def _look_up(file: _File, path: Path, location: Location, environment: Mapping[str, str]) -> Credentials | None:
    keys = location.credentials_keys
    for key in keys:
        if key in file.cred_helpers:
            return _ask_helper(file.cred_helpers[key], key, path, environment)
    # Docker writes some hosts as URLs, Docker Hub's always.
    entries = {re.sub(r"^https?://|(/v[12])?/*$", "", key): entry for key, entry in file.auths.items()}
    for key in keys:
        if (entry := entries.get(key)) and (found := _read_entry(entry, key, path)):
            return found
    server = _DOCKER_HUB_KEY if "docker.io" in keys else location.host
    return _ask_helper(file.creds_store, server, path, environment) if file.creds_store else None


def _read_entry(entry: _Entry, key: str, path: Path) -> Credentials | None:
    """Read an entry of `auths`; None for an empty one, which Docker writes beside a helper."""
    if entry.identitytoken:
        return Credentials(refresh_token=entry.identitytoken)
    if not entry.auth:
        return Credentials(entry.username, entry.password) if entry.username else None
    try:
        username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        username = colon = password = ""
    if not colon or not username:
        # Without the cause, whose text may show a part of the secret.
        raise InputError("bad_credentials", source=path, detail=f"`auth` of {key} is not base64 of USER:PASSWORD")
    return Credentials(username, password.rstrip("\0"))


def _ask_helper(name: str, server: str, path: Path, environment: Mapping[str, str]) -> Credentials | None:
    """Ask the program docker-credential-NAME, as Docker does: the host on its input, JSON on its output."""
    if not _HELPER_NAME.fullmatch(name):
        raise InputError("bad_credentials", source=path, detail="the name of its credential helper is not a plain name")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_TIMEOUT_S, env=dict(environment)
        )
    except OSError as error:
        raise InputError("bad_credentials", source=path, detail=f"{program} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        detail = f"{program} did not answer within {_HELPER_TIMEOUT_S:.0f} s"
        raise InputError("bad_credentials", source=path, detail=detail) from error
    if done.returncode:
        if _UNKNOWN in (done.stdout + done.stderr).decode(errors="replace"):
            return None
        raise InputError("bad_credentials", source=path, detail=f"{program} ended with code {done.returncode}")
    try:
        found = msgspec.json.decode(done.stdout, type=_Secret)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError("bad_credentials", source=path, detail=f"{program} does not answer in its protocol") from error
    if found.username == _IDENTITY:
        return Credentials(refresh_token=found.secret)
    return Credentials(found.username, found.secret)
