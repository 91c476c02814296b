"""`argosy.push` and `argosy.pull`: a version to an OCI registry, and from one, byte for byte.

The store holds versions as OCI images of CNCF ModelPack already, so only blobs move that the other side lacks, and an
artifact has the same digest in every store and registry. What comes in is staged, checked and committed as any version is.
"""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from argosy.errors import InputError, RegistryError, StoreError
from argosy.registry.artifact import check_artifact, check_files, check_manifest, read_modelpack
from argosy.registry.location import Location, parse_location
from argosy.registry.registry import Registry
from argosy.signature import check_name
from argosy.store import records
from argosy.store.blobs import list_files
from argosy.store.local import Staged, Store, Version
from argosy.store.manifest import MANIFEST_FILE, MANIFEST_TYPE, Descriptor, decode_image
from argosy.store.staging import StagedBlob, check_file_name, write_hashed
from argosy.store.temporary import WRITE_KEYS, explain_write, temp_folder

__all__ = ["Pulled", "Pushed", "Step", "Tell", "pull", "pull_files", "push"]

_LOG = logging.getLogger(__name__)

_CONFIG: Final = "config"
_TAR: Final = ".tar"
_PIECE_BYTES: Final = 1 << 20


class Step(NamedTuple):
    """How far a blob is."""

    name: str
    """Of the file, or `config`."""
    action: str
    """`sent`, `fetched`; `mounted`, from another repository of the registry; `there`, nothing had to move."""
    done_bytes: int
    size_bytes: int


Tell = Callable[[Step], None]


class Pushed(NamedTuple):
    """What a push came to."""

    version: Version
    location: Location
    """With the digest, by which it can be pulled again whatever the tag means later."""
    moved_bytes: int
    """Of the blobs that the registry did not have, or had damaged."""
    replaced: str = ""
    """Digest of another artifact that the tag meant before, which can be pulled by it still; nothing where there was none."""


class Pulled(NamedTuple):
    """What a pull came to."""

    version: Version
    is_new: bool
    """False if the model had a version with this digest already, which `version` is."""
    moved_bytes: int
    """Of the blobs that the store did not have."""


def push(
    reference: str,
    target: str,
    *,
    store: Store | None = None,
    verify: bool = False,
    plain_http: bool = False,
    ca_file: Path | str | None = None,
    tell: Tell | None = None,
) -> Pushed:
    """Send a version to an OCI registry; blobs that are there already do not move.

    One that is there with another length is sent again. Whether its content is what it should be is found out with `verify`.

    Args:
        reference: NAME, NAME@3 or NAME@alias.
        target: HOST[:PORT]/REPOSITORY[:TAG]; without TAG it becomes the registry's `latest`.
        store: default: that of ARGOSY_HOME.
        verify: read what is there already, and send again what is damaged.
        plain_http: speak to the registry without TLS. To this machine's own addresses that is done anyway.
        ca_file: certificates (PEM) of authorities that are trusted beside the usual ones.
        tell: called as blobs move.

    Raises:
        InputError: `bad_location`; `bad_credentials`; `missing_file`, `ca_file`; `bad_reference`, `bad_name`.
        NotFoundError: `unknown_model`, `unknown_version`, `unknown_alias`.
        AuthError: `registry_unauthorized`.
        NotAllowedError: `registry_denied`, `insecure_registry`.
        RegistryError: `registry_unreachable`, after several tries; `registry_refused`, `bad_registry_answer`;
            `blob_stays_damaged`, the registry keeps a damaged blob instead of what was sent.
        StoreError: `corrupt_blob`, `missing_blob`, `bad_manifest`: the version is damaged here.
    """
    location = parse_location(target)
    if location.digest:
        raise InputError(
            "bad_location", got=target[:200], detail="a push goes to a tag, and the registry takes the digest as it is"
        )
    store = store or Store()
    version = store.get_version(reference)
    data = store.read_image(version)
    image = decode_image(data, reference)
    names = {layer.digest: name for name, layer in list_files(image, reference).items()}
    blobs = {blob.digest: blob for blob in (*image.layers, image.config)}
    moved_bytes = 0
    with Registry(location, plain_http=plain_http, ca_file=ca_file) as registry:
        for blob in blobs.values():
            step = Step(names.get(blob.digest, _CONFIG), "sent", 0, blob.size)
            moved_bytes += _send(store, version, registry, blob, step, tell or _tell_nobody, verify=verify)
        before = registry.find_tag()
        registry.put_manifest(data, MANIFEST_TYPE, version.digest)
    _record_push(store, version, location)
    replaced = "" if before == version.digest else before
    return Pushed(version, msgspec.structs.replace(location, digest=version.digest), moved_bytes, replaced)


def _record_push(store: Store, version: Version, location: Location) -> None:
    detail = {"pushed_to": str(location), "digest": version.digest}
    try:
        with store.transaction() as connection:
            records.append_history(connection, "pushed", version.name, version.number, detail)
    except StoreError as error:
        if error.key not in WRITE_KEYS:
            raise
        # It was read from a disk that takes nothing, and is where it should be.
        _LOG.warning("the store's history does not say that %s@%s was pushed: %s", version.name, version.number, error.message)


def _send(store: Store, version: Version, registry: Registry, blob: Descriptor, step: Step, tell: Tell, *, verify: bool) -> int:
    """Have the registry hold a blob; how many bytes had to move."""
    found, action = registry.find_blob(blob.digest), "there"
    source = _find_elsewhere(store, registry.location, blob) if found is None else ""
    if source and registry.mount_blob(blob.digest, source):
        found, action = -1, "mounted"
    is_damaged = found is not None and (found not in (-1, blob.size) or (verify and registry.find_damage(blob) != ""))
    if found is not None and not is_damaged:
        tell(step._replace(action=action, done_bytes=blob.size))
        return 0
    with store.open_blob(version, blob) as file:
        registry.send_blob(blob.digest, file, blob.size, lambda done: tell(step._replace(done_bytes=done)))
    # A registry may take a blob of a name that it has for the same, and keep its own.
    if is_damaged and (detail := registry.find_damage(blob)):
        raise RegistryError("blob_stays_damaged", digest=blob.digest, location=registry.location, detail=detail)
    return blob.size


def _find_elsewhere(store: Store, target: Location, blob: Descriptor) -> str:
    """Name another repository of the same registry that should have the blob, by our history; "" if there is none."""
    with store.snapshot() as connection:
        places = records.list_places(connection, blob.digest)
    for place in map(parse_location, places):
        if place.host == target.host and place.repository != target.repository:
            return place.repository
    return ""


def pull(
    source: str,
    name: str | None = None,
    *,
    store: Store | None = None,
    plain_http: bool = False,
    ca_file: Path | str | None = None,
    tell: Tell | None = None,
) -> Pulled:
    """Make an artifact of an OCI registry a version of a model; blobs that the store has already do not move.

    The version has the artifact's own signature, golden examples, lineage and options, and `Version.pulled_from` says
    where it came from. A version that may run code of its maker is pulled as any other, and deployed only if that is allowed.

    Args:
        source: HOST[:PORT]/REPOSITORY[:TAG][@DIGEST].
        name: the model's; default: the last part of REPOSITORY.
        store: default: that of ARGOSY_HOME.
        plain_http: as in `push`.
        ca_file: as in `push`.
        tell: called as blobs move.

    Raises:
        InputError: `not_modelpack`; `not_servable`, it was not made by Argosy, see `pull_files`; `bad_golden`, `bad_onnx`,
            `bad_external_data`; `bad_file_name`; `bad_location`, `bad_credentials`, `missing_file`; `bad_name`.
        NotFoundError: `not_in_registry`.
        RegistryError: `blob_differs`, a blob has another digest or size than it should; and as `push`.
        AuthError: `registry_unauthorized`.
        NotAllowedError: `registry_denied`, `insecure_registry`.
        StoreError: as `Store.publish`; `bad_manifest`. Whichever is raised, nothing is left in the store.
    """
    location = parse_location(source)
    name = check_name(location.repository.rpartition("/")[2] if name is None else name)
    store = store or Store()
    with Registry(location, plain_http=plain_http, ca_file=ca_file) as registry:
        data, digest = registry.read_manifest()
        files = check_artifact(data, location)
        if found := _find_version(store, name, digest):
            return Pulled(found, False, 0)
        with store.stage() as staged:
            fetch = _Fetch(store, registry, staged, tell or _tell_nobody)
            # It comes first: an artifact that cannot be a version is refused before its weights move.
            staged.add_staged(MANIFEST_FILE, fetch(files[MANIFEST_FILE], MANIFEST_FILE))
            text = (staged.folder / MANIFEST_FILE).read_bytes()
            manifest = check_manifest(text, files, location)
            for file_name in sorted(files.keys() - {MANIFEST_FILE}):
                staged.add_staged(file_name, fetch(files[file_name], file_name))
            check_files(staged.folder, manifest, files, location)
            fetch(decode_image(data, source).config, _CONFIG)
            origin = msgspec.structs.replace(location, digest=digest)
            version, is_new = store.publish_image(name, staged, staged.add_blob(data), text, str(origin))
            return Pulled(version, is_new, fetch.moved_bytes)


def _find_version(store: Store, name: str, digest: str) -> Version | None:
    with store.snapshot() as connection:
        number = records.find_digest(connection, name, digest)
        return records.list_versions(connection, name, number)[0] if number else None


class _Fetch:
    """Stages blobs of an artifact: those that the store has as they are there, the others from the registry, each checked."""

    def __init__(self, store: Store, registry: Registry, staged: Staged, tell: Tell) -> None:
        self.moved_bytes = 0
        self._store, self._registry, self._staged, self._tell = store, registry, staged, tell

    def __call__(self, blob: Descriptor, name: str) -> StagedBlob:
        step = Step(name, "fetched", 0, blob.size)
        found = self._staged.blobs.get(blob.digest) or self._store.adopt(self._staged, blob)
        if found is not None:
            self._tell(step._replace(action="there", done_bytes=blob.size))
            return found
        staged = self._staged.add_blob(_watch(self._registry.read_blob(blob), step, self._tell))
        _check_digest(blob, staged.digest, self._registry.location)
        self.moved_bytes += blob.size
        return staged


def pull_files(
    source: str, folder: Path | str, *, plain_http: bool = False, ca_file: Path | str | None = None, tell: Tell | None = None
) -> list[str]:
    """Fetch the files of a ModelPack artifact into a new folder, whoever made it, and make no version of them.

    Layers that are archives (tar) are unpacked; compressed ones are not taken.

    Args:
        source: as in `pull`.
        folder: is made; whole at the end, or not at all.
        plain_http: as in `push`.
        ca_file: as in `push`.
        tell: called as blobs move.

    Returns:
        The files' names, sorted.

    Raises:
        InputError: `bad_option`, the folder exists; `not_modelpack`; `bad_layer`, it is compressed, or an archive of
            anything but plain files; `bad_file_name`; and as `pull`.
        ArgosyError: as `pull`.
    """
    location = parse_location(source)
    folder = Path(folder).absolute()
    if folder.exists() or not folder.parent.is_dir():
        raise InputError("bad_option", option="files", got=str(folder), expected="a folder that does not exist, in one that does")
    names: set[str] = set()
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(location, plain_http=plain_http, ca_file=ca_file))
        data, _ = registry.read_manifest()
        layers = list_files(read_modelpack(data, location), str(location))
        for name, layer in layers.items():
            if not layer.media_type.endswith((".raw", _TAR)):
                detail = f"it is of type {layer.media_type[:200]!r}, expected one that ends in .raw or {_TAR}"
                raise InputError("bad_layer", location=location, name=name, detail=detail)
        work = stack.enter_context(temp_folder(folder.parent))
        kept, archives = work / "files", work / "archives"
        kept.mkdir()
        archives.mkdir()
        for number, (name, layer) in enumerate(layers.items()):
            is_archive = layer.media_type.endswith(_TAR)
            target = archives / str(number) if is_archive else _claim(kept, name, names)
            _fetch_file(registry, layer, target, Step(name, "fetched", 0, layer.size), tell or _tell_nobody)
            if is_archive:
                _unpack(target, kept, names, name, location)
                target.unlink()
        kept.rename(folder)
    return sorted(names)


def _claim(folder: Path, name: str, names: set[str]) -> Path:
    """Give the path of a new file below a folder, whose parents are made."""
    target = folder / check_file_name(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_write(target, error) from error
    names.add(name)
    return target


def _fetch_file(registry: Registry, layer: Descriptor, target: Path, step: Step, tell: Tell) -> None:
    try:
        with target.open("xb", buffering=0) as file:
            digest, _ = write_hashed(_watch(registry.read_blob(layer), step, tell), file.fileno())
    except OSError as error:
        raise explain_write(target, error) from error
    _check_digest(layer, digest, registry.location)


class _Archive(io.FileIO):
    """A file of which nobody reads more than a piece at once: names in a hostile archive may be as long as itself."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _PIECE_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _unpack(path: Path, folder: Path, names: set[str], layer: str, location: Location) -> None:
    """Unpack the plain files of an archive; nothing else of it is made, and nothing lies outside of the folder."""
    try:
        with _Archive(path) as data, tarfile.open(fileobj=data, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                # A sparse file is larger than its archive, without a bound.
                source = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if source is None:
                    detail = f"it holds {member.name[:200]!r}, which is no plain file"
                    raise InputError("bad_layer", location=location, name=layer, detail=detail)
                target = _claim(folder, member.name.removeprefix("./"), names)
                with source, target.open("xb", buffering=0) as file:
                    write_hashed(_read_pieces(source), file.fileno())
    except tarfile.TarError as error:
        raise InputError("bad_layer", location=location, name=layer, detail=f"it is no archive ({error})") from error
    except OSError as error:
        raise explain_write(folder, error) from error


def _read_pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(_PIECE_BYTES):
        yield piece


def _watch(chunks: Iterator[bytes], step: Step, tell: Tell) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        tell(step._replace(done_bytes=done))
    if not done:
        tell(step)


def _check_digest(blob: Descriptor, got: str, location: Location) -> None:
    if got != blob.digest:
        raise RegistryError("blob_differs", digest=blob.digest, location=location, detail=f"its content has digest {got}")


def _tell_nobody(step: Step) -> None:
    pass
