"""Where an artifact lies in a registry: HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], parsed strictly."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

from argosy.errors import InputError

__all__ = ["DIGEST", "Location", "is_loopback", "parse_location"]

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
"""The only algorithm that is taken, since the store names its blobs by it."""

_DEFAULT_TAG: Final = "latest"
_MAX_REPOSITORY: Final = 255
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::([0-9]{{1,5}}))?")
# The Distribution specification's grammar of names and tags.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


class Location(msgspec.Struct, frozen=True):
    """One artifact of a repository; the digest counts, where there is one, and the tag otherwise."""

    host: str
    """With the port, if one was given; lower case."""
    repository: str
    tag: str = _DEFAULT_TAG
    """"" where the digest alone was given."""
    digest: str = ""

    @property
    def reference(self) -> str:
        """What stands for the artifact in the registry's URLs."""
        return self.digest or self.tag

    @property
    def api_host(self) -> str:
        """The host that answers: Docker Hub's registry has another name than its images."""
        return "registry-1.docker.io" if self.host in _DOCKER_HUB else self.host

    @property
    def credentials_keys(self) -> tuple[str, ...]:
        """Under which keys files of credentials may hold those of this repository, the most specific first."""
        parts = self.repository.split("/")
        spaces = tuple("/".join([self.host, *parts[:count]]) for count in range(len(parts), -1, -1))
        return spaces + (("docker.io", "index.docker.io", "registry-1.docker.io") if self.host in _DOCKER_HUB else ())

    def __str__(self) -> str:
        tag, digest = (f"{sign}{part}" if part else "" for sign, part in ((":", self.tag), ("@", self.digest)))
        return f"{self.host}/{self.repository}{tag}{digest}"


def parse_location(text: str) -> Location:
    """Split a registry reference; without TAG and DIGEST it means the tag `latest`.

    The host must be one without doubt: `localhost`, or with a dot or a port. No registry is a default.

    Raises:
        InputError: `bad_location`.
    """
    host, slash, rest = text.partition("/")
    found = _HOST.fullmatch(host)
    if not slash or not found or not (host == "localhost" or {".", ":"} & set(host)):
        raise _bad(text, "it does not begin with the host of a registry: a name with a dot or a port, or localhost")
    if (found[1].startswith("[") and not _is_address(found[1][1:-1])) or int(found[2] or 1) not in range(1, 65536):
        raise _bad(text, "its address or its port is out of range")
    rest, at, digest = rest.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise _bad(text, "the digest is not sha256: and 64 digits of 0-9a-f, the one kind that the store knows")
    repository, colon, tag = rest.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _MAX_REPOSITORY:
        raise _bad(text, "the repository is not lower case letters and digits, with / . _ and - between them")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, "the tag is not up to 128 letters, digits, dots, dashes and underscores")
    host = host.lower()
    if host in _DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Location(host, repository, tag or ("" if digest else _DEFAULT_TAG), digest)


def is_loopback(host: str) -> bool:
    """Say whether a host, without its port, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _bad(text: str, detail: str) -> InputError:
    return InputError("bad_location", got=text[:200], detail=detail)
