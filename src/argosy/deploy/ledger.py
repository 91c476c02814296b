"""Deployments and rollouts in the store's database: what should run, what was tried, what happened.

Every step of a rollout is written before it counts, so that a control process that starts anew goes on
where the last one stopped.
"""

from __future__ import annotations

import datetime
from typing import Any, Final

import msgspec

from argosy.deploy.spec import Deployment, DeploymentSpec, Event, Rollout, choose_runtime
from argosy.errors import ConflictError, InputError, NotFoundError, list_choices
from argosy.store.local import Store

__all__ = ["Ledger"]

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
)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read_spec(text: str) -> DeploymentSpec:
    return msgspec.json.decode(text, type=DeploymentSpec)


def _write_spec(spec: DeploymentSpec) -> str:
    return msgspec.json.encode(spec).decode()


class Ledger:
    """Reads and writes the tables; safe for many processes at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        with self.store.transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)

    # deployments

    def list_deployments(self) -> list[Deployment]:
        """Every deployment that has been asked for."""
        with self.store.snapshot() as db:
            rows = db.execute("SELECT spec, is_live, created FROM deployments ORDER BY name").fetchall()
        return [Deployment(_read_spec(spec), bool(is_live), created) for spec, is_live, created in rows]

    def find_deployment(self, name: str) -> Deployment:
        """One deployment.

        Raises:
            NotFoundError: there is none of this name.
        """
        deployments = {deployment.spec.name: deployment for deployment in self.list_deployments()}
        if name in deployments:
            return deployments[name]
        known = list_choices(deployments)
        raise NotFoundError("unknown_deployment", name=name[:128], known=known)

    def remove_deployment(self, name: str) -> None:
        """Forget a deployment; its workers are stopped by whoever runs them.

        Raises:
            NotFoundError: there is none of this name.
        """
        self.find_deployment(name)
        with self.store.transaction() as db:
            db.execute("DELETE FROM deployments WHERE name = ?", (name,))
            db.execute("DELETE FROM held WHERE name = ?", (name,))
            db.execute(
                "UPDATE rollouts SET state = 'failed', ended = ? WHERE name = ? AND state IN ('pending', 'running')",
                (_now(), name),
            )

    # rollouts

    def plan(self, reference: str, *, name: str | None = None, **settings: Any) -> DeploymentSpec:
        """What a deployment would become; settings that are not given keep their present values.

        Args:
            reference: NAME, NAME@VERSION or NAME@ALIAS; an alias is resolved now.
            name: of the deployment; default: the model's.
            settings: fields of `DeploymentSpec`; None stands for not given. A precision belongs to its runtime: with another
                runtime, it is forgotten.

        Raises:
            InputError: a setting is unknown or out of range, or the runtime cannot run the version.
            NotFoundError: no such version.
        """
        version = self.store.get_version(reference)
        chosen = name or version.name
        present = [deployment.spec for deployment in self.list_deployments() if deployment.spec.name == chosen]
        kept: dict[str, Any] = msgspec.to_builtins(present[0]) if present else {}
        given = {key: value for key, value in settings.items() if value is not None}
        own = version.manifest.runtime
        if "runtime" in given and given["runtime"] != (kept.get("runtime") or own):
            kept.pop("precision", None)
        try:
            spec = msgspec.convert(
                {**kept, **given, "name": chosen, "model": version.name, "version": version.number}, DeploymentSpec
            )
        except msgspec.ValidationError as error:
            raise InputError("bad_config", component="deployment", source="settings", detail=str(error)) from None
        # A version's own runtime is not written down, so that a later version of another framework can follow it.
        return spec if choose_runtime(spec, own) != own else msgspec.structs.replace(spec, runtime=None)

    def request_rollout(self, spec: DeploymentSpec) -> Rollout:
        """Ask that a deployment becomes `spec`; whoever runs it takes it from here.

        Raises:
            NotFoundError: no such version.
            InputError: `bad_option`, as `choose_runtime`.
            ConflictError: another rollout of this deployment has not ended.
        """
        choose_runtime(spec, self.store.get_version(f"{spec.model}@{spec.version}").manifest.runtime)
        with self.store.transaction() as db:
            running = db.execute(
                "SELECT spec FROM rollouts WHERE name = ? AND state = 'running' ORDER BY id DESC", (spec.name,)
            ).fetchone()
            if running is not None:
                raise ConflictError("rollout_running", name=spec.name, version=_read_spec(running[0]).version)
            # One that nobody has begun yet is replaced by the newer wish.
            db.execute(
                "UPDATE rollouts SET state = 'failed', ended = ? WHERE name = ? AND state = 'pending'", (_now(), spec.name)
            )
            current = db.execute("SELECT spec, is_live FROM deployments WHERE name = ?", (spec.name,)).fetchone()
            from_version = _read_spec(current[0]).version if current is not None and current[1] else None
            if current is None:
                db.execute(
                    "INSERT INTO deployments (name, spec, is_live, created) VALUES (?, ?, 0, ?)",
                    (spec.name, _write_spec(spec), _now()),
                )
            elif not current[1]:
                db.execute("UPDATE deployments SET spec = ? WHERE name = ?", (_write_spec(spec), spec.name))
            cursor = db.execute(
                "INSERT INTO rollouts (name, spec, from_version, state, created) VALUES (?, ?, ?, 'pending', ?)",
                (spec.name, _write_spec(spec), from_version, _now()),
            )
            identifier = cursor.lastrowid
            assert identifier is not None
        return self.find_rollout(identifier)

    def request_rollback(self, name: str) -> Rollout:
        """Ask for the version that last held all of the traffic before the present one.

        Raises:
            NotFoundError: no such deployment.
            ConflictError: no other version ever held it, or a rollout has not ended.
        """
        deployment = self.find_deployment(name)
        with self.store.snapshot() as db:
            rows = db.execute("SELECT spec FROM held WHERE name = ? ORDER BY id DESC", (name,)).fetchall()
        for (text,) in rows:
            spec = _read_spec(text)
            if (spec.model, spec.version) != (deployment.spec.model, deployment.spec.version):
                return self.request_rollout(spec)
        raise ConflictError("no_rollback", name=name)

    def find_rollout(self, identifier: int) -> Rollout:
        """One rollout.

        Raises:
            NotFoundError: there is none of this number.
        """
        rows = self._read_rollouts("WHERE id = ?", identifier)
        if not rows:
            raise NotFoundError("unknown_choice", kind="rollout", got=identifier, known="argosy status lists them")
        return rows[0]

    def list_rollouts(self, name: str, limit: int = 20) -> list[Rollout]:
        """The latest rollouts of a deployment, newest first."""
        return self._read_rollouts("WHERE name = ? ORDER BY id DESC LIMIT ?", name, limit)

    def list_open_rollouts(self) -> list[Rollout]:
        """Rollouts that have not ended, oldest first."""
        return self._read_rollouts("WHERE state IN ('pending', 'running') ORDER BY id")

    def _read_rollouts(self, where: str, *values: Any) -> list[Rollout]:
        # `where` is one of the constants above; values are bound.
        query = f"SELECT id, spec, from_version, state, created, ended FROM rollouts {where}"  # noqa: S608
        with self.store.snapshot() as db:
            rows = db.execute(query, values).fetchall()
        return [Rollout(row[0], _read_spec(row[1]), *row[2:]) for row in rows]

    def start_rollout(self, rollout: Rollout) -> None:
        """Mark it as running."""
        with self.store.transaction() as db:
            db.execute("UPDATE rollouts SET state = 'running' WHERE id = ? AND state = 'pending'", (rollout.id,))

    def shift(self, rollout: Rollout) -> None:
        """Record that the new version holds all of the traffic from now on."""
        text = _write_spec(rollout.spec)
        with self.store.transaction() as db:
            db.execute("UPDATE deployments SET spec = ?, is_live = 1 WHERE name = ?", (text, rollout.spec.name))
            last = db.execute("SELECT spec FROM held WHERE name = ? ORDER BY id DESC LIMIT 1", (rollout.spec.name,)).fetchone()
            if last is None or last[0] != text:
                db.execute("INSERT INTO held (name, spec, at) VALUES (?, ?, ?)", (rollout.spec.name, text, _now()))

    def end_rollout(self, rollout: Rollout, state: str) -> None:
        """Mark it as done or failed."""
        with self.store.transaction() as db:
            db.execute("UPDATE rollouts SET state = ?, ended = ? WHERE id = ?", (state, _now(), rollout.id))

    def add_event(self, rollout: Rollout, step: str, detail: str) -> None:
        """Record a step."""
        with self.store.transaction() as db:
            db.execute(
                """INSERT INTO rollout_events (rollout, number, at, step, detail)
                   SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ? FROM rollout_events WHERE rollout = ?""",
                (rollout.id, _now(), step, detail, rollout.id),
            )

    def list_events(self, identifier: int, after: int = 0) -> list[Event]:
        """The steps of a rollout after number `after`."""
        with self.store.snapshot() as db:
            rows = db.execute(
                "SELECT number, at, step, detail FROM rollout_events WHERE rollout = ? AND number > ? ORDER BY number",
                (identifier, after),
            ).fetchall()
        return [Event(*row) for row in rows]
