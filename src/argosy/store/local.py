"""The store of one machine: publish versions, find them by reference, open their files.

    HOME/argosy.db      the truth (SQLite): versions, aliases, measurements, history
    HOME/store/         an OCI image layout: the content; index.json is derived from the database

A version exists from the moment its row is committed; by then its blobs are durable. Killed before, a
publisher leaves at most files that nothing refers to. Any number of processes and threads may use one HOME.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import msgspec

from argosy.errors import InputError, NotFoundError, StoreError, list_choices
from argosy.home import find_home
from argosy.signature import JoinVerdict, Signature, check_name
from argosy.store import records
from argosy.store.blobs import Blobs, list_files
from argosy.store.database import Database
from argosy.store.golden import Golden, check_golden, decode_golden, encode_golden
from argosy.store.manifest import (
    CONFIG_TYPE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    RUNTIMES,
    Descriptor,
    ImageManifest,
    Manifest,
    ModelInfo,
    Version,
    build_config,
    build_image,
    check_data,
    check_measurements,
    decode_image,
    decode_manifest,
    encode,
)
from argosy.store.preprocess import try_steps
from argosy.store.records import HistoryEvent
from argosy.store.staging import Staged, StagedBlob
from argosy.store.temporary import WRITE_KEYS, explain_write, fsync_folder

__all__ = ["Golden", "HistoryEvent", "Manifest", "ModelInfo", "Staged", "Store", "Version"]

_LOG = logging.getLogger(__name__)


class _IndexHead(msgspec.Struct):
    annotations: dict[str, str]


class Store:
    """All models of one ARGOSY_HOME."""

    def __init__(self, home: Path | str | None = None) -> None:
        """Open the store, making it if there is none.

        One that is there is opened also where nothing can be written: on a disk that is full or read-only, in a folder of
        another user's. Whatever only reads it works then.

        Args:
            home: default: the environment's ARGOSY_HOME, else `~/.argosy`.

        Raises:
            StoreError: `disk_full`, `write_failed`, `missing_database`, `damaged_database`, `store_too_new`, `store_busy`.
        """
        self.home = find_home(home)
        self._database = Database(self.home / "argosy.db")
        self._blobs = Blobs(self.home / "store")
        try:
            self._make()
        except StoreError as error:
            if error.key not in WRITE_KEYS or not self._database.is_there() or not self._database.check():
                raise
            return
        self._blobs.sweep(self._take_back)
        if not self._is_index_current():
            self._refresh_index()

    def _make(self) -> None:
        """Have all there that a store is made of."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._blobs.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise explain_write(self.home, error) from error
        with self._blobs.lock():
            self._blobs.create()
            if self._database.create(is_new=self._blobs.is_empty()):
                fsync_folder(self.home)

    def check_writable(self) -> None:
        """See that a version can be published, before the work that makes it.

        Raises:
            StoreError: `disk_full`, `write_failed`, `store_busy`, `missing_database`, `damaged_database`.
        """
        with self.stage(), self.transaction():
            pass

    def stage(self) -> AbstractContextManager[Staged]:
        """Give an empty `Staged`, whose files can be looked at before they are published.

        At the end of the block whatever was not published is removed.

        Raises:
            StoreError: `disk_full`, `write_failed`.
        """
        return self._blobs.stage()

    def publish(
        self,
        name: str,
        files: Mapping[str, Path | str | bytes] | Staged,
        *,
        signature: Signature,
        runtime: str = "onnx",
        entry: str,
        repeatable: bool = True,
        golden: Golden | None = None,
        golden_is_synthetic: bool = False,
        lineage: Mapping[str, object] = {},
        measurements: Mapping[str, float] = {},
        options: Mapping[str, object] = {},
        joining: JoinVerdict = JoinVerdict(),  # noqa: B008 - it cannot be changed
    ) -> Version:
        """Make files a new version of a model: whole and durable when this returns, or not at all.

        Args:
            name: the model's; the first version makes the model.
            files: by their names in the artifact, to copy (in pieces) or as content; or what `stage` gave.
            signature: the tensors in and out.
            runtime: one of `RUNTIMES`.
            entry: which of the files the runtime loads.
            repeatable: the same request may safely run twice.
            golden: examples with the artifact's own outputs.
            golden_is_synthetic: the golden inputs are random.
            lineage: where it comes from; JSON data.
            measurements: what is known of it already; finite numbers, units in the names.
            options: for the runtime at load; JSON data.
            joining: whether rows of several requests may be joined, as far as the artifact tells.

        Raises:
            InputError: `bad_name`, `bad_file_name`, `missing_file`, `missing_entry`, `unknown_choice`,
                `bad_option`, `bad_golden`, `bad_preprocess`.
            StoreError: `disk_full`, `write_failed`, `store_busy`, `no_hard_links`; nothing was published.
        """
        check_name(name)
        if runtime not in RUNTIMES:
            raise InputError("unknown_choice", kind="runtime", got=runtime, known=list_choices(RUNTIMES))
        names = files.names if isinstance(files, Staged) else files.keys()
        if entry not in names:
            raise InputError("missing_entry", entry=entry, known=list_choices(names))
        if golden is not None:
            check_golden(golden, signature, name)
        elif golden_is_synthetic:
            raise InputError("bad_option", option="golden_is_synthetic", got=True, expected="False without golden examples")
        manifest = Manifest(
            signature=signature,
            runtime=runtime,
            entry=entry,
            repeatable=repeatable,
            options=check_data("options", options),
            joining=joining,
            num_golden=golden.num_examples if golden else 0,
            golden_is_synthetic=golden_is_synthetic,
            lineage=check_data("lineage", lineage),
            measurements=check_measurements(measurements),
        )
        if isinstance(files, Staged):
            return self._commit(name, files, manifest, golden)
        with self.stage() as staged:
            for file_name, source in files.items():
                staged.add(file_name, source)
            return self._commit(name, staged, manifest, golden)

    def _commit(self, name: str, staged: Staged, manifest: Manifest, golden: Golden | None) -> Version:
        try_steps(manifest.signature, staged.folder)
        if golden is not None:
            staged.add_own(GOLDEN_FILE, encode_golden(golden))
        data = encode(manifest)
        staged.add_own(MANIFEST_FILE, data)
        config = staged.add_blob(encode(build_config(name, manifest, staged.layers, records.now())))
        image = staged.add_blob(encode(build_image(Descriptor(CONFIG_TYPE, config.digest, config.size_bytes), staged.layers)))
        version, _ = self._insert(name, staged, image, data, manifest, "")
        return version

    def _insert(
        self, name: str, staged: Staged, image: StagedBlob, data: bytes, manifest: Manifest, pulled_from: str
    ) -> tuple[Version, bool]:
        """Make what is staged a version. Returns it and True; of what was pulled, the same version as before and False."""
        damaged = self._blobs.find_damaged(staged)
        try:
            with self.transaction() as connection:
                if pulled_from and (known := records.find_digest(connection, name, image.digest)):
                    return records.list_versions(connection, name, known)[0], False
                self._blobs.keep(staged, damaged)
                number = records.insert_version(
                    connection,
                    name,
                    digest=image.digest,
                    image_bytes=image.size_bytes,
                    manifest=data,
                    size_bytes=sum(layer.size for layer in staged.layers),
                    blobs=staged.blobs,
                    pulled_from=pulled_from,
                )
                records.upsert_measurements(connection, name, number, manifest.measurements)
                (version,) = records.list_versions(connection, name, number)
        except BaseException:
            # So that a full disk is not fuller than before.
            self._take_back(staged.created)
            raise
        self._refresh_index()
        return version, True

    def publish_image(
        self, name: str, staged: Staged, image: StagedBlob, manifest: bytes, pulled_from: str
    ) -> tuple[Version, bool]:
        """Make an artifact that was published elsewhere a version of a model, byte for byte, so that its digest stays.

        Args:
            name: the model's.
            staged: holds all of the artifact, which the caller has checked: its files, its config, its image manifest.
            image: the image manifest.
            manifest: the content of its `argosy.json`.
            pulled_from: what `Version.pulled_from` will say.

        Returns:
            The new version and True; or the one of this model that has the image's digest already, and False.

        Raises:
            InputError: `bad_name`.
            StoreError: as `publish`; `bad_manifest`.
        """
        described = decode_manifest(manifest, pulled_from)
        return self._insert(check_name(name), staged, image, manifest, described, pulled_from)

    def adopt(self, staged: Staged, blob: Descriptor) -> StagedBlob | None:
        """Stage a blob that the store has, whole, without a copy; None if it has to come from elsewhere."""
        return self._blobs.adopt(staged, blob)

    def read_image(self, version: Version) -> bytes:
        """Read a version's OCI image manifest, as it is in a registry.

        Raises:
            StoreError: `corrupt_blob`, `missing_blob`.
        """
        return self._blobs.read(version.digest, _describe(version))

    def open_blob(self, version: Version, blob: Descriptor) -> BinaryIO:
        """Open a blob of a version's image, after its digest was checked.

        Raises:
            StoreError: `corrupt_blob`, `missing_blob`.
        """
        return self._blobs.open(blob, _describe(version))

    def _take_back(self, digests: set[str]) -> bool:
        """Remove blobs of a commit that failed or whose writer died. Returns whether that could be done."""
        try:
            # Another publisher may rely on them since; and a commit whose last fsync failed may stand nevertheless.
            with self.transaction() as connection:
                for digest in digests:
                    if not records.is_needed(connection, digest):
                        self._blobs.remove(digest)
        except (StoreError, OSError) as error:
            _LOG.warning("blobs of a version that was not published remain: %s", error)
            return False
        return True

    def get_version(self, reference: str) -> Version:
        """Return the version that NAME (the newest), NAME@3 or NAME@alias means now.

        Raises:
            InputError: `bad_reference`, `bad_name`.
            NotFoundError: `unknown_model`, `unknown_version`, `unknown_alias`; the message lists what there is.
        """
        parsed = records.parse_reference(reference)
        with self._database.snapshot() as connection:
            number = records.resolve(connection, parsed)
            (version,) = records.list_versions(connection, parsed.name, number)
        return version

    def list_models(self) -> list[ModelInfo]:
        """List the models, by name."""
        with self._database.snapshot() as connection:
            return records.list_models(connection)

    def list_versions(self, name: str) -> list[Version]:
        """List a model's versions, oldest first.

        Raises:
            NotFoundError: `unknown_model`.
        """
        with self._database.snapshot() as connection:
            records.resolve(connection, records.Reference(check_name(name)))
            return records.list_versions(connection, name)

    def list_history(self, name: str) -> list[HistoryEvent]:
        """List what happened to a model, oldest first."""
        with self._database.snapshot() as connection:
            return records.read_history(connection, check_name(name))

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version, from wherever it pointed before.

        Raises:
            InputError: `bad_name`; `bad_alias`, it is an integer; `reserved_alias`, it is `latest`.
            NotFoundError: `unknown_model`, `unknown_version`.
        """
        check_name(name)
        if alias.isdecimal():
            raise InputError("bad_alias", got=alias[:200])
        if check_name(alias, "Alias") == records.LATEST:
            raise InputError("reserved_alias", alias=alias)
        with self.transaction() as connection:
            records.resolve(connection, records.Reference(name, version))
            records.move_alias(connection, name, alias, version)
        self._refresh_index()

    def add_measurements(self, version: Version, values: Mapping[str, float]) -> None:
        """Record what was measured of a version later; `get_version` shows it, a same name is replaced.

        Raises:
            InputError: `bad_option`, a value is not a finite number.
            NotFoundError: `unknown_model`, `unknown_version`.
        """
        checked = check_measurements(values)
        with self.transaction() as connection:
            records.resolve(connection, records.Reference(version.name, version.number))
            records.upsert_measurements(connection, version.name, version.number, checked)

    def open_artifact(self, version: Version) -> Path:
        """Give a folder that holds the version's files under their own names, every digest just checked.

        The files are hard links to the store's blobs: read-only, and the same for everybody. `copy_artifact`
        gives files to change, or for programs that refuse files with several names (`onnx.load` does).
        Where the store cannot be written and has not unpacked the version, they are copies in a folder of temporary files.

        Raises:
            StoreError: `corrupt_blob`, `missing_blob`, `bad_manifest`; `unpack_failed`, `no_hard_links`.
        """
        what = _describe(version)
        return self._blobs.unpack(version.digest, self._read_image(version), what)

    def copy_artifact(self, version: Version, folder: Path) -> Path:
        """Copy the version's files into a folder, which is made if need be, checked while they are copied.

        Returns:
            The entry file in `folder`.

        Raises:
            StoreError: `corrupt_blob`, `missing_blob`, `bad_manifest`; `disk_full`, `write_failed`.
        """
        self._blobs.copy_out(self._read_image(version), folder, _describe(version))
        return folder / version.manifest.entry

    def load_golden(self, version: Version) -> Golden:
        """Load the golden examples of a version that has some (`manifest.num_golden`).

        Raises:
            NotFoundError: `no_golden`, with the reason.
            StoreError: `corrupt_blob`, `missing_blob`, `bad_manifest`.
        """
        what = _describe(version)
        layer = list_files(self._read_image(version), what).get(GOLDEN_FILE)
        if layer is None:
            detail = version.manifest.lineage.get("golden_error", "none were given when it was published")
            raise NotFoundError("no_golden", name=version.name, version=version.number, detail=detail)
        return decode_golden(self._blobs.read(layer.digest, what), what)

    def verify(self, version: Version) -> None:
        """Check every digest of a version, and that the database describes it as its artifact does.

        Raises:
            StoreError: `corrupt_blob`, `missing_blob`, `bad_manifest`.
        """
        what = _describe(version)
        image = self._read_image(version)
        self._blobs.verify(image, what)
        layer = list_files(image, what).get(MANIFEST_FILE)
        if layer is None or decode_manifest(self._blobs.read(layer.digest, what), what) != version.manifest:
            raise StoreError("bad_manifest", what=what, detail=f"{MANIFEST_FILE} and the database differ")

    def rebuild_index(self) -> None:
        """Write `index.json` anew from the database.

        Raises:
            StoreError: `disk_full`, `write_failed`.
        """
        # The lock spans reading and writing: otherwise an older state could be written last.
        with self._blobs.lock():
            with self._database.snapshot() as connection:
                index = records.build_index(connection)
            self._blobs.replace("index.json", encode(index))

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Give a connection inside BEGIN IMMEDIATE; committed at the block's end, rolled back if it raises.

        For tables of others in the same database. Rows are `sqlite3.Row`. The block must be short and call
        none of the store's own writing methods.

        Raises:
            StoreError: `store_busy`, `disk_full`, `write_failed`, `damaged_database`.
            RuntimeError: the thread is inside another transaction of this store.
        """
        return self._database.transaction()

    def snapshot(self) -> AbstractContextManager[sqlite3.Connection]:
        """Give a connection that reads one state of the database and holds nobody up; for tables of others, as `transaction`."""
        return self._database.snapshot()

    def _read_image(self, version: Version) -> ImageManifest:
        return decode_image(self.read_image(version), _describe(version))

    def _refresh_index(self) -> None:
        """Rebuild `index.json` after a commit. The commit stands, so a failure here is told but not raised."""
        try:
            self.rebuild_index()
        except StoreError as error:
            _LOG.warning("index.json is behind the database until the store is opened again: %s", error)

    def _is_index_current(self) -> bool:
        try:
            head = msgspec.json.decode((self.home / "store" / "index.json").read_bytes(), type=_IndexHead)
        except (OSError, msgspec.DecodeError):
            return False
        with self._database.snapshot() as connection:
            return head.annotations.get(records.GENERATION) == records.get_generation(connection)


def _describe(version: Version) -> str:
    return f"{version.name}@{version.number}"
