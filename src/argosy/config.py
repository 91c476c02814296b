"""Settings of a server: command line over environment over file over default.

The file is `config.toml` in ARGOSY_HOME, with a table `[serve]`; the environment variable of `http_port`
is ARGOSY_HTTP_PORT. Unknown keys are errors.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from argosy.errors import InputError, list_choices
from argosy.home import find_home

__all__ = ["ServeConfig", "load_serve_config"]

_PREFIX: Final = "ARGOSY_"


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `argosy serve` runs."""

    home: str
    """Folder that holds all state."""
    host: str = "127.0.0.1"
    """Address of the HTTP, gRPC and metrics listeners. The admin API is always on 127.0.0.1."""
    http_port: int = 8000
    """V2 over HTTP; 0 takes a free port."""
    grpc_port: int = 8001
    """V2 over gRPC; 0 takes a free port."""
    metrics_port: int = 8002
    """Prometheus; 0 takes a free port."""
    admin_port: int = 8003
    """Admin API on 127.0.0.1; 0 takes a free port."""
    num_fronts: int = 1
    """Processes that accept requests. One does 40,000 small requests/s; more pay off above 4 cores."""
    max_body_bytes: int = 64 << 20
    """Largest request body."""
    max_intake_bytes: int = 1 << 30
    """Bytes of all bodies that are not complete yet, in one front; beyond it all but the oldest wait."""
    max_connections: int = 0
    """Connections that one front holds, for each protocol; 0 stands for 4096, or fewer where the limit of descriptors is low."""
    memory_limit_bytes: int = 0
    """What all workers may use together; 0 stands for 90 % of the machine's (or the control group's) memory."""
    drain_s: float = 5.0
    """How long new connections are served after SIGTERM: time for proxies to ask elsewhere. Readiness says no meanwhile."""
    hang_timeout_s: float = 30.0
    """A worker hangs that is at a batch for longer, where nobody knows how long such a one takes; else after 20 times that, and
    at least 2 s. It is replaced once nobody waits for the batch any more."""

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port", "admin_port"):
            _check(name, getattr(self, name), 0, 65535)
        _check("num_fronts", self.num_fronts, 1, 16)
        _check("max_body_bytes", self.max_body_bytes, 1024, 1 << 40)
        _check("max_intake_bytes", self.max_intake_bytes, 1024, 1 << 40)
        _check("max_connections", self.max_connections, 0, 1 << 20)
        _check("memory_limit_bytes", self.memory_limit_bytes, 0, 1 << 50)
        _check("drain_s", self.drain_s, 0.0, 3600.0)
        _check("hang_timeout_s", self.hang_timeout_s, 0.1, 86400.0)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError("bad_option", option=name, got=value, expected=f"{low} to {high}")


def load_serve_config(
    given: Mapping[str, object] | None = None, *, home: Path | str | None = None, environment: Mapping[str, str] | None = None
) -> tuple[ServeConfig, dict[str, str]]:
    """Merge all sources.

    Args:
        given: settings of the command line or the caller; None values are not given.
        home: folder that holds all state.
        environment: instead of `os.environ`.

    Returns:
        The settings, and for each the source that won: `command line`, `environment`, `file` or `default`.

    Raises:
        InputError: a key is unknown, or a value is of the wrong type or out of range.
    """
    environment = os.environ if environment is None else environment
    folder = find_home(home, environment)
    fields = [field.name for field in msgspec.structs.fields(ServeConfig) if field.name != "home"]
    values: dict[str, Any] = {"home": str(folder)}
    sources = dict.fromkeys(fields, "default")
    from_environment = {name: environment[key] for name in fields if (key := _PREFIX + name.upper()) in environment}
    from_caller = {name: value for name, value in (given or {}).items() if value is not None}
    file = folder / "config.toml"
    for source, layer in (
        ("file", _read_file(file)),
        ("environment", from_environment),
        ("command line", from_caller),
    ):
        for name, value in layer.items():
            place = {"file": str(file), "environment": f"environment variable {_PREFIX}{name.upper()}"}.get(source, source)
            if name not in fields:
                detail = f"unknown key `{name}`; known: {list_choices(fields)}"
                raise InputError("bad_config", component="serve", source=place, detail=detail)
            # Only the environment holds text where a number is meant.
            values[name] = _convert(name, value, place, is_text=source == "environment")
            sources[name] = source
    home_source = "command line" if home else "environment" if environment.get("ARGOSY_HOME") else "default"
    return ServeConfig(**values), {"home": home_source, **sources}


def _convert(name: str, value: object, source: str, *, is_text: bool) -> Any:
    kind = next(field.type for field in msgspec.structs.fields(ServeConfig) if field.name == name)
    try:
        return msgspec.convert(value, kind, strict=not is_text)
    except msgspec.ValidationError as error:
        raise InputError("bad_config", component="serve", source=source, detail=f"`{name}`: {error}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("bad_config", component="serve", source=str(path), detail=str(error)) from None
    unknown = [name for name in data if name != "serve"]
    if unknown:
        raise InputError("bad_config", component="serve", source=str(path), detail=f"unknown table `{unknown[0]}`")
    return data.get("serve", {})
