"""What is asked of an artifact that was made elsewhere, before it may be a version: it describes itself, and fits together.

Nothing of it is executed, and nothing that it says is believed: digests are checked by whoever fetches it, names here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from argosy.errors import ArgosyError, InputError, list_choices
from argosy.registry.location import DIGEST, Location
from argosy.store.blobs import list_files
from argosy.store.golden import check_golden, decode_golden
from argosy.store.manifest import (
    ARTIFACT_TYPE,
    CONFIG_TYPE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    MANIFEST_TYPE,
    OWN_FILES,
    RUNTIMES,
    Descriptor,
    ImageManifest,
    Manifest,
    check_measurements,
    decode_image,
    decode_manifest,
)

__all__ = ["check_artifact", "check_files", "check_manifest", "read_modelpack"]

_MAX_OWN_BYTES: Final = 256 << 20
"""Of `argosy.json` and of the golden examples, which are read into memory."""
_MAX_SIZE: Final = 1 << 50
_RAW: Final = ".raw"
_MAX_SHOWN: Final = 200
_SPACES: Final = frozenset("\t\n\r")


class _AnyManifest(msgspec.Struct, rename="camel"):
    """As much of a manifest or an index as tells what it is."""

    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: list[msgspec.Raw] | None = None


def read_modelpack(data: bytes, location: Location) -> ImageManifest:
    """Read the manifest of a ModelPack artifact, whoever made it.

    Raises:
        InputError: `not_modelpack`, it is of another kind, or names blobs in a way that cannot be checked.
    """
    try:
        found = msgspec.json.decode(data, type=_AnyManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_modelpack(location, f"its manifest cannot be read ({error})") from error
    if found.manifests is not None:
        raise _not_modelpack(location, "it is an index of several artifacts; name one of them by its digest")
    if found.config is None or found.config.media_type != CONFIG_TYPE:
        got = found.artifact_type or (found.config.media_type if found.config else "")
        raise _not_modelpack(location, f"it is of type {got[:_MAX_SHOWN]!r}, expected a config of type {CONFIG_TYPE}")
    sizes: dict[str, int] = {}
    for blob in (found.config, *found.layers):
        if not DIGEST.fullmatch(blob.digest):
            detail = f"a blob has digest {blob.digest[:_MAX_SHOWN]!r}, expected sha256, the one kind that the store knows"
            raise _not_modelpack(location, detail)
        if not 0 <= blob.size <= _MAX_SIZE or sizes.setdefault(blob.digest, blob.size) != blob.size:
            raise _not_modelpack(location, f"blob {blob.digest} has size {blob.size}, or another one elsewhere")
    return ImageManifest(2, MANIFEST_TYPE, ARTIFACT_TYPE, found.config, found.layers)


def check_artifact(data: bytes, location: Location) -> dict[str, Descriptor]:
    """Say which files an artifact has that Argosy can serve, by their names.

    Raises:
        InputError: `not_servable`, it lacks `argosy.json`, or its files are archives.
        StoreError: `bad_manifest`, a file's name is missing, unsafe or not the only one of its kind.
    """
    files = list_files(read_modelpack(data, location), str(location))
    if MANIFEST_FILE not in files:
        detail = f"it has no {MANIFEST_FILE}, which tells runtime and signature; its files are {list_choices(files)}"
        raise _not_servable(location, detail)
    decode_image(data, str(location))
    for name, layer in files.items():
        if not layer.media_type.endswith(_RAW):
            raise _not_servable(location, f"file {name} is packed, of type {layer.media_type[:_MAX_SHOWN]!r}")
        if name in OWN_FILES and layer.size > _MAX_OWN_BYTES:
            raise _not_servable(location, f"file {name} has {layer.size} bytes, at most {_MAX_OWN_BYTES} are taken")
    return files


def check_manifest(data: bytes, files: Mapping[str, Descriptor], location: Location) -> Manifest:
    """Read the `argosy.json` of an artifact with these files.

    Raises:
        InputError: `not_servable`, it is not one, or the artifact is not what it says.
    """
    try:
        manifest = decode_manifest(data, MANIFEST_FILE)
        check_measurements(manifest.measurements)
    except (ArgosyError, RecursionError) as error:
        raise _not_servable(location, getattr(error, "message", "its description is nested too deeply")) from error
    # Its texts are shown in terminals, which obey escape sequences.
    if not _is_printable(msgspec.to_builtins(manifest)):
        raise _not_servable(location, f"a text in {MANIFEST_FILE} holds control characters")
    if manifest.runtime not in RUNTIMES:
        raise _not_servable(location, f"its runtime {manifest.runtime!r} is none of {list_choices(RUNTIMES)}")
    if manifest.entry not in files.keys() - set(OWN_FILES):
        raise _not_servable(location, f"its entry file {manifest.entry!r} is none of {list_choices(files)}")
    if bool(manifest.num_golden) != (GOLDEN_FILE in files):
        raise _not_servable(location, f"it tells of {manifest.num_golden} golden examples, and {GOLDEN_FILE} does not agree")
    return manifest


def check_files(folder: Path, manifest: Manifest, files: Mapping[str, Descriptor], location: Location) -> None:
    """Check files against what their artifact says: golden examples fit the signature, no file reaches out of the artifact.

    Args:
        folder: holds the files under their own names.
        manifest: of `check_manifest`.
        files: of `check_artifact`.
        location: for messages.

    Raises:
        InputError: `not_servable`, `bad_golden`, `bad_onnx`, `bad_external_data`.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
        StoreError: `bad_manifest`.
    """
    if manifest.num_golden:
        golden = decode_golden((folder / GOLDEN_FILE).read_bytes(), f"{location}, file {GOLDEN_FILE}")
        check_golden(golden, manifest.signature, str(location))
        if golden.num_examples != manifest.num_golden:
            raise _not_servable(location, f"it has {golden.num_examples} golden examples and tells of {manifest.num_golden}")
    if graphs := {name for name in files if name.endswith(".onnx") or (name, manifest.runtime) == (manifest.entry, "onnx")}:
        from argosy.importers.onnx import check_graphs

        paths = [folder / name for name in sorted(graphs)]
        judged = folder / manifest.entry if manifest.entry in graphs else None
        verdict = check_graphs(paths, folder, files, judged=judged, signature=manifest.signature)
        if (manifest.joining.kind, verdict.kind) == ("independent", "dependent"):
            detail = f"it says that its rows are independent of one another; they are not: {verdict.reason}"
            raise _not_servable(location, detail)


def _is_printable(value: Any) -> bool:
    if isinstance(value, str):
        return all(char.isprintable() or char in _SPACES for char in value)
    if isinstance(value, dict):
        return all(_is_printable(part) for pair in cast("dict[Any, Any]", value).items() for part in pair)
    if isinstance(value, list | tuple):
        return all(_is_printable(part) for part in cast("list[Any]", value))
    return True


def _not_modelpack(location: Location, detail: str) -> InputError:
    return InputError("not_modelpack", location=location, detail=detail)


def _not_servable(location: Location, detail: str) -> InputError:
    return InputError("not_servable", location=location, detail=detail)
