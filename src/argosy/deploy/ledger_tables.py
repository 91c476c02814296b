"""The tables of deployments and rollouts, in the store's database."""

from __future__ import annotations

from typing import Final

from argosy.store.local import Store

__all__ = ["make_tables"]

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS deployments (
        name TEXT PRIMARY KEY, spec TEXT NOT NULL, is_live INTEGER NOT NULL DEFAULT 0, created TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS rollouts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, spec TEXT NOT NULL, from_version INTEGER,
        state TEXT NOT NULL, created TEXT NOT NULL, ended TEXT)""",
    """CREATE TABLE IF NOT EXISTS rollout_events (
        rollout INTEGER NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL, step TEXT NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (rollout, number))""",
    """CREATE TABLE IF NOT EXISTS held (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, spec TEXT NOT NULL, at TEXT NOT NULL)""",
    # What a rollback goes back to; whatever was live after that is forgotten when it is there.
    "CREATE TABLE IF NOT EXISTS rollbacks (rollout INTEGER PRIMARY KEY, held INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS rollouts_by_name ON rollouts (name, id)",
    "CREATE INDEX IF NOT EXISTS rollouts_open ON rollouts (name) WHERE state IN ('pending', 'running')",
    "CREATE INDEX IF NOT EXISTS held_by_name ON held (name, id)",
    # One row for each deployment that ever was, whose number is new whenever something about it was written.
    """CREATE TABLE IF NOT EXISTS deployment_changes (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE)""",
    *(
        f"""CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table} BEGIN
            INSERT OR REPLACE INTO deployment_changes (name) VALUES ({row}.name); END"""  # noqa: S608 - constants
        for table, event, row in (
            ("deployments", "INSERT", "NEW"),
            ("deployments", "UPDATE", "NEW"),
            ("deployments", "DELETE", "OLD"),
            ("rollouts", "INSERT", "NEW"),
            ("rollouts", "UPDATE", "NEW"),
        )
    ),
)


def make_tables(store: Store) -> None:
    """Have the tables there. Written only where one is missing: what can be read is read on a full disk, too."""
    with store.snapshot() as db:
        known = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if missing := [statement for statement in _SCHEMA if _name_of(statement) not in known]:
        with store.transaction() as db:
            for statement in missing:
                db.execute(statement)


def _name_of(statement: str) -> str:
    """Of what a statement of the schema creates."""
    return statement.split("IF NOT EXISTS ")[1].split()[0]
