"""What describes a version: the OCI image manifest, the CNCF ModelPack config, and Argosy's own part.

An artifact is an OCI image manifest whose layers are the version's files, each raw and under its own name
(`org.cncf.model.filepath`), so that any OCI registry keeps it and any ModelPack client reads it. What those
formats have no word for (signature, runtime, lineage ...) is the layer `argosy.json`, a `Manifest`.

No blob holds the version's number: the number is taken in the commit, when the blobs are on disk already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from argosy.errors import InputError, StoreError
from argosy.runtimes import base as runtimes
from argosy.signature import JoinVerdict, Signature

__all__ = [
    "ARTIFACT_TYPE",
    "CONFIG_TYPE",
    "FILE_PATH",
    "GOLDEN_FILE",
    "INDEX_TYPE",
    "MANIFEST_FILE",
    "MANIFEST_TYPE",
    "OWN_FILES",
    "RUNTIMES",
    "WEIGHTS_FILE",
    "Descriptor",
    "ImageIndex",
    "ImageManifest",
    "Manifest",
    "ModelInfo",
    "ModelPackConfig",
    "Version",
    "build_config",
    "build_image",
    "check_data",
    "check_measurements",
    "decode_image",
    "decode_manifest",
    "encode",
    "media_type_of",
]

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE: Final = "application/vnd.cncf.model.weight.config.v1.raw"
CODE_TYPE: Final = "application/vnd.cncf.model.code.v1.raw"
DATASET_TYPE: Final = "application/vnd.cncf.model.dataset.v1.raw"

FILE_PATH: Final = "org.cncf.model.filepath"
"""The layer annotation that holds the file's name."""

MANIFEST_FILE: Final = "argosy.json"
GOLDEN_FILE: Final = "golden.npz"
OWN_FILES: Final = (MANIFEST_FILE, GOLDEN_FILE)
"""Names that the store itself gives to layers; no file of a publisher may have them."""

WEIGHTS_FILE: Final = "argosy.safetensors"
"""Weights of a live model by its framework's names, for training to start from: no runtime reads it, it is no part of what is
served, nor of its size."""

RUNTIMES: Final = tuple(sorted((*runtimes.RUNTIMES, "llm")))
"""What a version may name: those that there are, and one whose versions can be kept already."""

_CODE_SUFFIXES: Final = frozenset({".py"})
_CONFIG_SUFFIXES: Final = frozenset({".json", ".txt", ".yaml", ".yml", ".toml", ".model", ".jinja"})
_FORMATS: Final = {"torch": "pytorch"}


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An OCI content descriptor: which blob, how large, what it is."""

    media_type: str
    digest: str
    size: int
    """Bytes."""
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class ImageManifest(msgspec.Struct, frozen=True, rename="camel"):
    """An OCI image manifest: the config and the layers of one artifact."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageIndex(msgspec.Struct, frozen=True, rename="camel"):
    """An OCI image index: which artifacts a layout holds."""

    schema_version: int
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str]


class ModelDescriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """ModelPack's general information. Its `version` stays unset: see the module's docstring."""

    created_at: str
    """RFC 3339, UTC."""
    name: str


class ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """ModelPack's technical information."""

    format: str
    precision: str | None = None


class ModelFS(msgspec.Struct, frozen=True, rename="camel"):
    """ModelPack's list of layer digests; raw layers are their own uncompressed content."""

    type: str
    diff_ids: tuple[str, ...]


class ModelPackConfig(msgspec.Struct, frozen=True):
    """The config blob of a ModelPack artifact."""

    descriptor: ModelDescriptor
    config: ModelConfig
    modelfs: ModelFS


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Argosy's own description of a version, as published; the layer `argosy.json`."""

    signature: Signature
    runtime: str
    """What executes the artifact; one of `RUNTIMES`."""
    entry: str
    """Which of the files the runtime loads."""
    repeatable: bool = True
    """The same request may safely run twice."""
    options: dict[str, Any] = {}
    """What the runtime is told at load, such as its precision."""
    num_golden: int = 0
    """How many golden examples the version has."""
    golden_is_synthetic: bool = False
    """The golden inputs are random, not from the model's data."""
    joining: JoinVerdict = JoinVerdict()
    """Whether rows of several requests may be joined."""
    lineage: dict[str, Any] = {}
    """Where the version comes from. `golden_error` says why there are no golden examples."""
    measurements: dict[str, float] = {}
    """What was known when it was published; `Version.measurements` has the later ones too."""


class Version(msgspec.Struct, frozen=True):
    """An immutable artifact of a model, numbered by the store."""

    name: str
    """The model's."""
    number: int
    digest: str
    """Of the OCI image manifest, `sha256:...`."""
    manifest: Manifest
    created: str
    """When the version was committed: RFC 3339, UTC."""
    size_bytes: int
    """Of all files together."""
    aliases: tuple[str, ...]
    """Sorted; the newest version's end in `latest`."""
    measurements: dict[str, float]
    pulled_from: str = ""
    """HOST/REPOSITORY:TAG@DIGEST of the registry that it came from; "" if it was published here."""


class ModelInfo(msgspec.Struct, frozen=True):
    """A model of the store: its versions (ascending) and what each alias points to, `latest` among them."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]


def media_type_of(file_name: str) -> str:
    """Return the ModelPack media type of a layer by its file's suffix: code, weight config, else weights."""
    suffix = PurePosixPath(file_name).suffix.lower()
    if file_name == GOLDEN_FILE:
        return DATASET_TYPE
    if suffix in _CODE_SUFFIXES:
        return CODE_TYPE
    return WEIGHT_CONFIG_TYPE if suffix in _CONFIG_SUFFIXES else WEIGHT_TYPE


def build_config(name: str, manifest: Manifest, layers: Iterable[Descriptor], created: str) -> ModelPackConfig:
    """Build the ModelPack config of a model's new version; `precision` is taken from the lineage."""
    precision = manifest.lineage.get("precision")
    return ModelPackConfig(
        ModelDescriptor(created_at=created, name=name),
        ModelConfig(_FORMATS.get(manifest.runtime, manifest.runtime), precision if isinstance(precision, str) else None),
        ModelFS("layers", tuple(layer.digest for layer in layers)),
    )


def build_image(config: Descriptor, layers: Iterable[Descriptor]) -> ImageManifest:
    """Build the OCI image manifest of a config and its layers."""
    return ImageManifest(2, MANIFEST_TYPE, ARTIFACT_TYPE, config, tuple(layers))


def encode(value: msgspec.Struct) -> bytes:
    """Serialise to JSON whose bytes, and so whose digest, depend on the content alone."""
    return msgspec.json.encode(value, order="deterministic")


def decode_manifest(data: bytes, what: str) -> Manifest:
    """Read an `argosy.json`.

    Raises:
        StoreError: `bad_manifest`, it is not one, or from a newer Argosy.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise StoreError("bad_manifest", what=what, detail=error) from error


def decode_image(data: bytes, what: str) -> ImageManifest:
    """Read an OCI image manifest.

    Raises:
        StoreError: `bad_manifest`, it is not one.
    """
    try:
        return msgspec.json.decode(data, type=ImageManifest)
    except msgspec.DecodeError as error:
        raise StoreError("bad_manifest", what=what, detail=error) from error


def check_data(option: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of `values` if JSON holds it exactly, as lineage and options must be.

    Raises:
        InputError: `bad_option`, something in it is not JSON data (a NaN and a NumPy number are not).
    """
    try:
        return json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("bad_option", option=option, got=values, expected=f"JSON data ({error})") from error


def check_measurements(values: Mapping[str, float]) -> dict[str, float]:
    """Return the measurements as plain floats.

    Raises:
        InputError: `bad_option`, one is not a finite number.
    """
    checked: dict[str, float] = {}
    for name, value in values.items():
        try:
            checked[name] = float(value)
        except (TypeError, ValueError):
            checked[name] = math.nan
        if not math.isfinite(checked[name]):
            raise InputError("bad_option", option=f"measurement {name}", got=value, expected="a finite number")
    return checked
