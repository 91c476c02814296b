"""References to registries are parsed strictly, and credentials are found where other tools leave them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from argosy.errors import InputError
from argosy.registry.credentials import Credentials, find_credentials
from argosy.registry.location import parse_location

DIGEST = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("ghcr.io/me/iris:3", "ghcr.io", "me/iris", "3", ""),
        ("localhost/iris", "localhost", "iris", "latest", ""),
        ("LOCALHOST:5000/iris", "localhost:5000", "iris", "latest", ""),
        ("registry:5000/a/b__c/d-e.f", "registry:5000", "a/b__c/d-e.f", "latest", ""),
        (f"127.0.0.1:5000/iris@{DIGEST}", "127.0.0.1:5000", "iris", "", DIGEST),
        (f"[::1]:5000/iris:v1@{DIGEST}", "[::1]:5000", "iris", "v1", DIGEST),
        ("docker.io/iris", "docker.io", "library/iris", "latest", ""),
    ],
)
def test_reference_is_split(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    found = parse_location(text)
    assert (found.host, found.repository, found.tag, found.digest) == (host, repository, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "iris",
        "team/iris",
        "ghcr.io",
        "ghcr.io/",
        "ghcr.io//iris",
        "ghcr.io/Iris",
        "ghcr.io/iris/",
        "ghcr.io/../iris",
        "ghcr.io/iris:",
        "ghcr.io/iris:a/b",
        "ghcr.io/iris:" + "t" * 129,
        "ghcr.io/iris@",
        "ghcr.io/iris@sha512:" + "0" * 128,
        "ghcr.io/iris@sha256:" + "A" * 64,
        "ghcr.io/" + "a" * 256,
        "ghcr.io:0/iris",
        "ghcr.io:65536/iris",
        "ghcr.io:5000x/iris",
        "me:pw@ghcr.io/iris",
        "https://ghcr.io/iris",
        "ghcr.io/iris?x=1",
        "ghcr.io/iris\n",
        "ghcr.io\\@evil.example/iris",
        "-ghcr.io/iris",
        "[::1/iris",
        "[zz::]:80/iris",
        "ghcr.io:\u0665/iris",
    ],
)
def test_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_location(text)
    assert caught.value.key == "bad_location"


# credentials


def encode(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(user.encode()).decode()}


def find(tmp_path: Path, text: str = "ghcr.io/me/iris", **variables: str) -> tuple[str, str, str] | None:
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"} | variables
    found = find_credentials(parse_location(text), environment)
    return None if found is None else (found.username, found.password, found.refresh_token)


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def write_helper(tmp_path: Path, script: str) -> None:
    path = write(tmp_path / "bin" / "docker-credential-test", f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


PLACES = {
    "docker": (".docker/config.json", {}),
    "docker-config": ("else/config.json", {"DOCKER_CONFIG": "else"}),
    "auth-file": ("else.json", {"REGISTRY_AUTH_FILE": "else.json"}),
    "runtime": ("run/containers/auth.json", {"XDG_RUNTIME_DIR": "run"}),
    "config": (".config/containers/auth.json", {}),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_usual_place_is_looked_at(tmp_path: Path, place: str) -> None:
    file, variables = PLACES[place]
    write(tmp_path / file, {"auths": {"ghcr.io": encode("me:a:b")}})
    paths = {name: str(tmp_path / value) for name, value in variables.items()}
    assert find(tmp_path, **paths) == ("me", "a:b", "")
    assert find(tmp_path, "other.io/iris", **paths) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ghcr.io/me/iris", "https://ghcr.io"),
        ("ghcr.io/me/iris", "https://ghcr.io/v2/"),
        ("ghcr.io/me/iris", "ghcr.io/me"),
        ("docker.io/me/iris", "https://index.docker.io/v1/"),
    ],
)
def test_keys_of_other_tools_are_understood(tmp_path: Path, text: str, key: str) -> None:
    write(tmp_path / ".docker" / "config.json", {"auths": {key: encode("me:pw")}, "HttpHeaders": {"X": "y"}})
    assert find(tmp_path, text) == ("me", "pw", "")


def test_most_specific_entry_wins(tmp_path: Path) -> None:
    entries = {"ghcr.io": encode("all:1"), "ghcr.io/me": encode("mine:2"), "ghcr.io/me/iris": {"identitytoken": "3"}}
    write(tmp_path / ".config" / "containers" / "auth.json", {"auths": entries})
    assert find(tmp_path) == ("", "", "3")
    assert find(tmp_path, "ghcr.io/me/rose") == ("mine", "2", "")
    assert find(tmp_path, "ghcr.io/you/iris") == ("all", "1", "")


def test_environment_wins_and_can_be_kept_to_one_host(tmp_path: Path) -> None:
    write(tmp_path / ".docker" / "config.json", {"auths": {"ghcr.io": encode("file:pw")}})
    variables = {"ARGOSY_REGISTRY_USERNAME": "env", "ARGOSY_REGISTRY_PASSWORD": "pw"}
    assert find(tmp_path, **variables) == ("env", "pw", "")
    assert find(tmp_path, **variables, ARGOSY_REGISTRY_HOST="other.io") == ("file", "pw", "")
    with pytest.raises(InputError, match="without the other"):
        find(tmp_path, ARGOSY_REGISTRY_USERNAME="env")


@pytest.mark.parametrize("key", ["credsStore", "credHelpers"])
def test_helper_is_asked_for_its_host(tmp_path: Path, key: str) -> None:
    write_helper(tmp_path, 'read host; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"$host\\"}"')
    value: Any = "test" if key == "credsStore" else {"ghcr.io": "test"}
    write(tmp_path / ".docker" / "config.json", {key: value, "auths": {"ghcr.io": {}}})
    assert find(tmp_path) == ("get", "ghcr.io", "")


def test_helper_that_gives_a_token_gives_a_refresh_token(tmp_path: Path) -> None:
    write_helper(tmp_path, 'echo \'{"Username": "<token>", "Secret": "abc"}\'')
    write(tmp_path / ".docker" / "config.json", {"credsStore": "test"})
    assert find(tmp_path) == ("", "", "abc")


def test_helper_that_knows_nothing_leaves_it_to_the_next_place(tmp_path: Path) -> None:
    write_helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    write(tmp_path / ".config" / "containers" / "auth.json", {"credsStore": "test"})
    write(tmp_path / ".docker" / "config.json", {"auths": {"ghcr.io": encode("me:pw")}})
    assert find(tmp_path) == ("me", "pw", "")


@pytest.mark.parametrize(
    ("config", "script"),
    [
        ("{secret", None),
        ({"auths": {"ghcr.io": {"auth": "c2VjcmV0"}}}, None),
        ({"auths": {"ghcr.io": {"auth": "secret!"}}}, None),
        ({"auths": {"ghcr.io": {"auth": base64.b64encode(b"\xffsecret:secret").decode()}}}, None),
        ({"credsStore": "../test"}, None),
        ({"credsStore": "missing"}, None),
        ({"credsStore": "test"}, "echo secret; exit 1"),
        ({"credsStore": "test"}, "echo secret"),
    ],
    ids=["json", "no-colon", "no-base64", "no-text", "path", "missing", "exit", "answer"],
)
def test_place_that_cannot_be_used_is_reported_without_its_secrets(tmp_path: Path, config: Any, script: str | None) -> None:
    write(tmp_path / ".docker" / "config.json", config)
    if script is not None:
        write_helper(tmp_path, script)
    with pytest.raises(InputError) as caught:
        find(tmp_path)
    assert caught.value.key == "bad_credentials"
    assert "secret" not in str(caught.value)


def test_credentials_do_not_show_themselves() -> None:
    assert "secret" not in repr(Credentials("secret", "secret", refresh_token="secret"))
