"""Deployments and rollouts in the store's database: what should run, what was tried, what happened.

Every step of a rollout is written before it counts, so that a control process that starts anew goes on
where the last one stopped.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from argosy.deploy.ledger_tables import make_tables
from argosy.deploy.signature_change import check_signatures
from argosy.deploy.spec import Deployment, DeploymentSpec, Rollout, RolloutEvent, choose_runtime
from argosy.errors import ConflictError, FaultError, InputError, NotFoundError, list_choices
from argosy.store.local import Store
from argosy.store.manifest import Version

__all__ = ["Ledger", "Mark", "Standing"]


class Mark(NamedTuple):
    """How far changes were read."""

    ledger: int
    store: int

    def follows(self, earlier: Mark) -> bool:
        """Say whether both can be of one database."""
        return self.ledger >= earlier.ledger and self.store >= earlier.store


class Standing(NamedTuple):
    """What is to become of one name: that of a deployment, of a model, or of both."""

    deployment: Deployment | None
    rollout: Rollout | None
    """The one that has not ended."""
    newest: int | None
    """Version of the model of this name."""


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
        make_tables(store)

    # what has changed

    def read_changes(self, since: Mark | None) -> tuple[Mark, set[str]]:
        """Names of the deployments and models that something was written about since a mark.

        All there are, without a mark, or where it is of another database than the one that is there now.
        """
        with self.store.snapshot() as db:
            (ledger,) = db.execute("SELECT COALESCE(MAX(number), 0) FROM deployment_changes").fetchone()
            (store,) = db.execute("SELECT COALESCE(MAX(id), 0) FROM history").fetchone()
            mark = Mark(ledger, store)
            if since is None or not mark.follows(since):
                query = "SELECT name FROM deployments UNION SELECT name FROM rollouts UNION SELECT model FROM versions"
                rows = db.execute(query).fetchall()
            elif mark == since:
                return mark, set()
            else:
                query = """SELECT name FROM deployment_changes WHERE number > ?
                           UNION SELECT model FROM history WHERE id > ? AND event = 'published'"""
                rows = db.execute(query, since).fetchall()
        return mark, {name for (name,) in rows}

    def read_standings(self, names: Iterable[str]) -> dict[str, Standing]:
        """What is to become of some names."""
        wanted = json.dumps(sorted(names))
        with self.store.snapshot() as db:
            deployments = {
                row["name"]: _read_deployment(row)
                for row in db.execute("SELECT * FROM deployments WHERE name IN (SELECT value FROM json_each(?))", (wanted,))
            }
            rollouts = {
                row["name"]: _read_rollout(row)
                for row in db.execute(
                    """SELECT * FROM rollouts WHERE state IN ('pending', 'running')
                       AND name IN (SELECT value FROM json_each(?)) ORDER BY id DESC""",
                    (wanted,),
                )
            }
            newest = dict(
                db.execute(
                    """SELECT model, MAX(number) FROM versions
                       WHERE model IN (SELECT value FROM json_each(?)) GROUP BY model""",
                    (wanted,),
                ).fetchall()
            )
        return {name: Standing(deployments.get(name), rollouts.get(name), newest.get(name)) for name in json.loads(wanted)}

    # deployments

    def list_deployments(self) -> list[Deployment]:
        """Every deployment that has been asked for."""
        with self.store.snapshot() as db:
            return [_read_deployment(row) for row in db.execute("SELECT * FROM deployments ORDER BY name")]

    def find_deployment(self, name: str) -> Deployment:
        """One deployment.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self.store.snapshot() as db:
            return _find_deployment(db, name)

    def remove_deployment(self, name: str) -> None:
        """Forget a deployment; its workers are stopped by whoever runs them.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self.store.transaction() as db:
            _find_deployment(db, name)
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
        (standing,) = self.read_standings([chosen]).values()
        kept: dict[str, Any] = msgspec.to_builtins(standing.deployment.spec) if standing.deployment else {}
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

    def request_rollout(self, spec: DeploymentSpec, *, allow_signature_change: bool = False) -> Rollout:
        """Ask that a deployment becomes `spec`; whoever runs it takes it from here.

        A rollout that has not ended gives way to the newer wish, and is that rollout where it is the same.

        Args:
            spec: of the deployment.
            allow_signature_change: it may take and give other tensors than the live version does.

        Raises:
            NotFoundError: no such version.
            InputError: `bad_option`, as `choose_runtime`.
            NotAllowedError: `signature_changes`.
        """
        return self._request(spec, allow_signature_change, held=None)

    def _request(self, spec: DeploymentSpec, allow_signature_change: bool, held: int | None) -> Rollout:
        version = self.store.get_version(f"{spec.model}@{spec.version}")
        choose_runtime(spec, version.manifest.runtime)
        with self.store.transaction() as db:
            current = _read_current(db, spec.name)
            live = current.spec if current is not None and current.is_live else None
            if live is not None and not allow_signature_change:
                self._check_signatures(live, version, spec.name)
            if (same := self._end_open(db, spec, live)) is not None:
                return same
            if current is None:
                db.execute(
                    "INSERT INTO deployments (name, spec, is_live, created) VALUES (?, ?, 0, ?)",
                    (spec.name, _write_spec(spec), _now()),
                )
            elif live is None:
                db.execute("UPDATE deployments SET spec = ? WHERE name = ?", (_write_spec(spec), spec.name))
            cursor = db.execute(
                "INSERT INTO rollouts (name, spec, from_version, state, created) VALUES (?, ?, ?, 'pending', ?)",
                (spec.name, _write_spec(spec), live.version if live is not None else None, _now()),
            )
            identifier = cursor.lastrowid
            assert identifier is not None
            if held is not None:
                db.execute("INSERT INTO rollbacks (rollout, held) VALUES (?, ?)", (identifier, held))
        return self.find_rollout(identifier)

    def _check_signatures(self, live: DeploymentSpec, version: Version, name: str) -> None:
        try:
            known = self.store.get_version(f"{live.model}@{live.version}")
        except NotFoundError:
            return  # nobody can say what its clients know
        check_signatures(name, known, version)

    def _end_open(self, db: sqlite3.Connection, spec: DeploymentSpec, live: DeploymentSpec | None) -> Rollout | None:
        """End the rollout of a deployment that has not ended, for a newer wish; or give it, if that is what is carried out."""
        for row in db.execute(
            "SELECT * FROM rollouts WHERE name = ? AND state IN ('pending', 'running')", (spec.name,)
        ).fetchall():
            rollout = _read_rollout(row)
            if rollout.state == "running" and rollout.spec == spec and live != spec:
                return rollout
            # One whose version holds the traffic has done what it was for; another must not do so any more.
            state = "done" if rollout.state == "running" and rollout.spec == live else "failed"
            if state == "failed":
                detail = f"a newer rollout, to version {spec.version}, took its place"
                version = rollout.spec.version
                reason = FaultError("rollout_failed", name=spec.name, version=version, step=rollout.state, detail=detail)
                _insert_event(db, rollout, "failed", str(reason))
            db.execute("UPDATE rollouts SET state = ?, ended = ? WHERE id = ?", (state, _now(), rollout.id))
        return None

    def request_rollback(self, name: str, *, allow_signature_change: bool = False) -> Rollout:
        """Ask for the version that held all of the traffic before the live one did; again and again, for ever earlier ones.

        While a rollout is on its way to another version, it is that one which is taken back: the live version stays.

        Args:
            name: of the deployment.
            allow_signature_change: as `request_rollout`.

        Raises:
            NotFoundError: no such deployment.
            ConflictError: `no_rollback`, no other version held it before.
            NotAllowedError: `signature_changes`.
        """
        deployment, rollout, _ = self.read_standings([name])[name]
        live = self.find_deployment(name).spec if deployment is None else deployment.spec
        if deployment is not None and deployment.is_live and rollout is not None and rollout.spec != live:
            return self.request_rollout(live)
        with self.store.snapshot() as db:
            rows = db.execute("SELECT id, spec FROM held WHERE name = ? ORDER BY id DESC", (name,)).fetchall()
        for held, text in rows:
            spec = _read_spec(text)
            if (spec.model, spec.version) != (live.model, live.version):
                return self._request(spec, allow_signature_change, held)
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

    def list_latest_rollouts(self, limit: int) -> dict[str, list[Rollout]]:
        """The latest rollouts of every deployment, newest first, by name."""
        found: dict[str, list[Rollout]] = {}
        where = """WHERE EXISTS (SELECT 1 FROM deployments WHERE deployments.name = rollouts.name) AND id IN
                   (SELECT id FROM rollouts AS own WHERE own.name = rollouts.name ORDER BY id DESC LIMIT ?) ORDER BY id DESC"""
        for rollout in self._read_rollouts(where, limit):
            found.setdefault(rollout.spec.name, []).append(rollout)
        return found

    def _read_rollouts(self, where: str, *values: Any) -> list[Rollout]:
        # `where` is one of the constants above; values are bound.
        with self.store.snapshot() as db:
            return [_read_rollout(row) for row in db.execute(f"SELECT * FROM rollouts {where}", values)]  # noqa: S608

    def start_rollout(self, rollout: Rollout) -> bool:
        """Mark it as running; False where it is over, because it was replaced or its deployment removed."""
        with self.store.transaction() as db:
            db.execute("UPDATE rollouts SET state = 'running' WHERE id = ? AND state = 'pending'", (rollout.id,))
            return _is_open(db, rollout)

    def shift(self, rollout: Rollout) -> None:
        """Record that the new version holds all of the traffic from now on.

        Raises:
            FaultError: the rollout is over, for its deployment was removed meanwhile.
        """
        text = _write_spec(rollout.spec)
        with self.store.transaction() as db:
            if not _is_open(db, rollout):
                detail = "the deployment was removed meanwhile, or a newer rollout took its place"
                raise FaultError(
                    "rollout_failed", name=rollout.spec.name, version=rollout.spec.version, step="shift", detail=detail
                )
            db.execute("UPDATE deployments SET spec = ?, is_live = 1 WHERE name = ?", (text, rollout.spec.name))
            for (held,) in db.execute("SELECT held FROM rollbacks WHERE rollout = ?", (rollout.id,)).fetchall():
                db.execute("DELETE FROM held WHERE name = ? AND id > ?", (rollout.spec.name, held))
            last = db.execute("SELECT spec FROM held WHERE name = ? ORDER BY id DESC LIMIT 1", (rollout.spec.name,)).fetchone()
            if last is None or last[0] != text:
                db.execute("INSERT INTO held (name, spec, at) VALUES (?, ?, ?)", (rollout.spec.name, text, _now()))

    def end_rollout(self, rollout: Rollout, state: str) -> None:
        """Mark it as done or failed, unless it is over."""
        with self.store.transaction() as db:
            db.execute(
                "UPDATE rollouts SET state = ?, ended = ? WHERE id = ? AND state IN ('pending', 'running')",
                (state, _now(), rollout.id),
            )

    def add_event(self, rollout: Rollout, step: str, detail: str) -> None:
        """Record a step."""
        with self.store.transaction() as db:
            _insert_event(db, rollout, step, detail)

    def list_events(self, identifier: int, after: int = 0) -> list[RolloutEvent]:
        """The steps of a rollout after number `after`."""
        with self.store.snapshot() as db:
            rows = db.execute(
                "SELECT number, at, step, detail FROM rollout_events WHERE rollout = ? AND number > ? ORDER BY number",
                (identifier, after),
            ).fetchall()
        return [RolloutEvent(*row) for row in rows]

    def find_turn(self, rollout: Rollout) -> RolloutEvent | None:
        """The last step that ended a version's workers before another's were there: `swap` or `restore`."""
        return next((event for event in reversed(self.list_events(rollout.id)) if event.step in ("swap", "restore")), None)


def _read_deployment(row: sqlite3.Row) -> Deployment:
    return Deployment(_read_spec(row["spec"]), bool(row["is_live"]), row["created"])


def _read_rollout(row: sqlite3.Row) -> Rollout:
    return Rollout(row["id"], _read_spec(row["spec"]), row["from_version"], row["state"], row["created"], row["ended"])


def _insert_event(db: sqlite3.Connection, rollout: Rollout, step: str, detail: str) -> None:
    db.execute(
        """INSERT INTO rollout_events (rollout, number, at, step, detail)
           SELECT ?, COALESCE(MAX(number), 0) + 1, ?, ?, ? FROM rollout_events WHERE rollout = ?""",
        (rollout.id, _now(), step, detail, rollout.id),
    )


def _read_current(db: sqlite3.Connection, name: str) -> Deployment | None:
    row = db.execute("SELECT * FROM deployments WHERE name = ?", (name,)).fetchone()
    return _read_deployment(row) if row is not None else None


def _find_deployment(db: sqlite3.Connection, name: str) -> Deployment:
    if (deployment := _read_current(db, name)) is not None:
        return deployment
    known = list_choices(other for (other,) in db.execute("SELECT name FROM deployments"))
    raise NotFoundError("unknown_deployment", name=name[:128], known=known)


def _is_open(db: sqlite3.Connection, rollout: Rollout) -> bool:
    row = db.execute("SELECT state FROM rollouts WHERE id = ?", (rollout.id,)).fetchone()
    return row is not None and row["state"] in ("pending", "running")
