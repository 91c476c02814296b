"""The rows of the store's database: versions, aliases, measurements, history. Each function works on a given connection."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from argosy.errors import InputError, NotFoundError, list_choices
from argosy.signature import check_name
from argosy.store.manifest import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageIndex,
    ModelInfo,
    Version,
    decode_manifest,
)

__all__ = [
    "GENERATION",
    "LATEST",
    "HistoryEvent",
    "Reference",
    "append_history",
    "build_index",
    "find_digest",
    "get_generation",
    "insert_version",
    "is_needed",
    "list_models",
    "list_places",
    "list_versions",
    "move_alias",
    "now",
    "parse_reference",
    "read_history",
    "resolve",
    "upsert_measurements",
]

LATEST: Final = "latest"
"""The alias that always means the newest version."""

GENERATION: Final = "dev.argosy.generation"
"""The annotation of `index.json` that says which state of the database it shows."""
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_MAX_LISTED: Final = 20


class Reference(NamedTuple):
    """A parsed NAME, NAME@VERSION or NAME@ALIAS; the alias counts when there is no number."""

    name: str
    number: int | None = None
    alias: str = LATEST


class HistoryEvent(msgspec.Struct, frozen=True):
    """A row of the history: `published`, `pushed` or `alias_set`."""

    created: str
    """RFC 3339, UTC."""
    event: str
    name: str
    number: int
    detail: dict[str, Any]


def now() -> str:
    """Give the time as RFC 3339 in UTC, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_reference(reference: str) -> Reference:
    """Split a reference.

    Raises:
        InputError: `bad_reference`, `bad_name`.
    """
    name, at, selector = reference.partition("@")
    if not name or (at and not selector) or "@" in selector:
        raise InputError("bad_reference", got=reference[:200])
    if ":" in name:
        # So versions of images are written elsewhere.
        raise InputError("bad_reference", got=reference[:200])
    check_name(name)
    if not at:
        return Reference(name)
    if _NUMBER.fullmatch(selector):
        return Reference(name, int(selector))
    if selector.isdecimal():
        raise InputError("bad_reference", got=reference[:200])
    return Reference(name, alias=check_name(selector, "Alias"))


def resolve(connection: sqlite3.Connection, reference: Reference) -> int:
    """Return the number of the version that a reference means now.

    Raises:
        NotFoundError: `unknown_model`, `unknown_version`, `unknown_alias`.
    """
    name = reference.name
    numbers = [
        row["number"] for row in connection.execute("SELECT number FROM versions WHERE model = ? ORDER BY number", (name,))
    ]
    if not numbers:
        known = list_choices(row["model"] for row in connection.execute("SELECT DISTINCT model FROM versions"))
        raise NotFoundError("unknown_model", name=name, known=known)
    if reference.number is not None:
        if reference.number not in numbers:
            known = ", ".join(str(number) for number in numbers[-_MAX_LISTED:])
            raise NotFoundError("unknown_version", name=name, version=reference.number, known=known)
        return reference.number
    aliases = _read_aliases(connection, name) | {LATEST: numbers[-1]}
    if reference.alias not in aliases:
        raise NotFoundError("unknown_alias", name=name, alias=reference.alias, known=list_choices(aliases))
    return aliases[reference.alias]


def insert_version(
    connection: sqlite3.Connection,
    name: str,
    *,
    digest: str,
    image_bytes: int,
    manifest: bytes,
    size_bytes: int,
    blobs: Iterable[str],
    pulled_from: str = "",
) -> int:
    """Record a new version, which needs the blobs, under the model's next number, and return it.

    A number is never given twice.
    """
    connection.execute("INSERT INTO models VALUES (?, 1) ON CONFLICT DO NOTHING", (name,))
    take = "UPDATE models SET next_number = next_number + 1 WHERE name = ? RETURNING next_number - 1"
    (number,) = connection.execute(take, (name,)).fetchone()
    columns = "model, number, digest, image_bytes, manifest, size_bytes, created"
    row = (name, number, digest, image_bytes, manifest, size_bytes, now())
    connection.execute(f"INSERT INTO versions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608, a constant
    connection.executemany("INSERT INTO blobs VALUES (?, ?, ?)", [(blob, name, number) for blob in blobs])
    source = {"pulled_from": pulled_from} if pulled_from else {}
    append_history(connection, "published", name, number, {"digest": digest} | source)
    return number


def find_digest(connection: sqlite3.Connection, name: str, digest: str) -> int | None:
    """Give the oldest version of a model that is the artifact with the digest; None if there is none."""
    query = "SELECT min(number) FROM versions WHERE model = ? AND digest = ?"
    (number,) = connection.execute(query, (name, digest)).fetchone()
    return number


def list_places(connection: sqlite3.Connection, digest: str) -> list[str]:
    """Say where in registries a blob was pushed to or pulled from, the latest first."""
    query = (
        "SELECT coalesce(json_extract(detail, '$.pushed_to'), json_extract(detail, '$.pulled_from')) AS place "
        "FROM history JOIN blobs ON history.model = blobs.model AND history.number = blobs.number "
        "WHERE blobs.digest = ? AND event IN ('published', 'pushed') AND place IS NOT NULL ORDER BY id DESC"
    )
    return [row["place"] for row in connection.execute(query, (digest,))]


def is_needed(connection: sqlite3.Connection, digest: str) -> bool:
    """Say whether a version needs the blob."""
    return connection.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is not None


def list_versions(connection: sqlite3.Connection, name: str, number: int | None = None) -> list[Version]:
    """Read the versions of a model, ascending, or the one with the number; empty when there is none."""
    aliases: dict[int, list[str]] = {}
    for alias, target in sorted(_read_aliases(connection, name).items()):
        aliases.setdefault(target, []).append(alias)
    (newest,) = connection.execute("SELECT max(number) FROM versions WHERE model = ?", (name,)).fetchone()
    aliases.setdefault(newest, []).append(LATEST)
    measurements: dict[int, dict[str, float]] = {}
    for row in connection.execute("SELECT number, name, value FROM measurements WHERE model = ? ORDER BY name", (name,)):
        measurements.setdefault(row["number"], {})[row["name"]] = row["value"]
    query = "SELECT number, json_extract(detail, '$.pulled_from') FROM history WHERE model = ? AND event = 'published'"
    sources: dict[int, str | None] = dict(connection.execute(query, (name,)).fetchall())
    query = "SELECT * FROM versions WHERE model = :name AND (:number IS NULL OR number = :number) ORDER BY number"
    return [
        Version(
            name=name,
            number=row["number"],
            digest=row["digest"],
            manifest=decode_manifest(row["manifest"], f"{name}@{row['number']}"),
            created=row["created"],
            size_bytes=row["size_bytes"],
            aliases=tuple(aliases.get(row["number"], ())),
            measurements=measurements.get(row["number"], {}),
            pulled_from=sources.get(row["number"]) or "",
        )
        for row in connection.execute(query, {"name": name, "number": number})
    ]


def list_models(connection: sqlite3.Connection) -> list[ModelInfo]:
    """Read all models that have versions, by name."""
    numbers: dict[str, list[int]] = {}
    for row in connection.execute("SELECT model, number FROM versions ORDER BY model, number"):
        numbers.setdefault(row["model"], []).append(row["number"])
    return [
        ModelInfo(name, tuple(found), _read_aliases(connection, name) | {LATEST: found[-1]}) for name, found in numbers.items()
    ]


def move_alias(connection: sqlite3.Connection, name: str, alias: str, number: int) -> None:
    """Point an alias to a version that exists; pointing it where it points changes nothing."""
    before = _read_aliases(connection, name).get(alias)
    if before == number:
        return
    connection.execute(
        "INSERT INTO aliases VALUES (?, ?, ?) ON CONFLICT (model, alias) DO UPDATE SET number = excluded.number",
        (name, alias, number),
    )
    append_history(connection, "alias_set", name, number, {"alias": alias, "before": before})


def upsert_measurements(connection: sqlite3.Connection, name: str, number: int, values: Mapping[str, float]) -> None:
    """Record measurements of a version; a later value replaces an earlier one of the same name."""
    connection.executemany(
        "INSERT INTO measurements VALUES (?, ?, ?, ?) ON CONFLICT (model, number, name) DO UPDATE SET value = excluded.value",
        [(name, number, key, value) for key, value in values.items()],
    )


def append_history(connection: sqlite3.Connection, event: str, name: str, number: int, detail: Mapping[str, object]) -> None:
    """Add a row to the history, which nothing ever changes or removes."""
    row = (now(), event, name, number, json.dumps(dict(detail)))
    connection.execute("INSERT INTO history (created, event, model, number, detail) VALUES (?, ?, ?, ?, ?)", row)


def read_history(connection: sqlite3.Connection, name: str) -> list[HistoryEvent]:
    """Read what happened to a model, oldest first."""
    rows = connection.execute("SELECT * FROM history WHERE model = ? ORDER BY id", (name,))
    return [HistoryEvent(row["created"], row["event"], row["model"], row["number"], json.loads(row["detail"])) for row in rows]


def get_generation(connection: sqlite3.Connection) -> str:
    """Return a text that changes with every change that `index.json` shows."""
    query = "SELECT coalesce(max(id), 0) FROM history WHERE event IN ('published', 'alias_set')"
    (generation,) = connection.execute(query).fetchone()
    return str(generation)


def build_index(connection: sqlite3.Connection) -> ImageIndex:
    """Build `index.json`: each version as NAME:NUMBER, then each alias as NAME:ALIAS."""
    entries: dict[str, Descriptor] = {}
    found: dict[tuple[str, int], Descriptor] = {}
    newest: dict[str, int] = {}
    for row in connection.execute("SELECT model, number, digest, image_bytes FROM versions ORDER BY model, number"):
        found[row["model"], row["number"]] = Descriptor(MANIFEST_TYPE, row["digest"], row["image_bytes"])
        entries[f"{row['model']}:{row['number']}"] = found[row["model"], row["number"]]
        newest[row["model"]] = row["number"]
    for row in connection.execute("SELECT model, alias, number FROM aliases ORDER BY model, alias"):
        entries[f"{row['model']}:{row['alias']}"] = found[row["model"], row["number"]]
    for name, number in newest.items():
        entries[f"{name}:{LATEST}"] = found[name, number]
    manifests = tuple(msgspec.structs.replace(entry, annotations={_REF_NAME: ref}) for ref, entry in entries.items())
    return ImageIndex(2, INDEX_TYPE, manifests, {GENERATION: get_generation(connection)})


def _read_aliases(connection: sqlite3.Connection, name: str) -> dict[str, int]:
    rows = connection.execute("SELECT alias, number FROM aliases WHERE model = ? ORDER BY alias", (name,))
    return {row["alias"]: row["number"] for row in rows}
