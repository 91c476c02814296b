"""Files that a runtime serves, whether or not a store holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from argosy.signature import Signature
from argosy.store.local import Store
from argosy.store.manifest import OWN_FILES, WEIGHTS_FILE, Version

__all__ = ["Artifact", "open_version"]

_UNSERVED: Final = frozenset((*OWN_FILES, WEIGHTS_FILE))


@dataclass(frozen=True)
class Artifact:
    """A model as a worker loads it."""

    folder: Path
    """Holds its files, and no others."""
    entry: str
    """The file to load, as `Manifest.entry`."""
    runtime: str
    signature: Signature
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the runtime is told, as `Manifest.options`; `precision` among them."""
    has_devices: bool = False
    """It may open devices, as a GPU is one: then it cannot run confined. Never because the artifact itself says so."""

    @property
    def path(self) -> Path:
        """Of the entry."""
        return self.folder / self.entry

    @property
    def files(self) -> dict[str, Path]:
        """All files that serve, by their names below the folder."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {name: path for path in paths if (name := path.relative_to(self.folder).as_posix()) not in _UNSERVED}

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def open_version(store: Store, version: Version) -> Artifact:
    """Give a version's artifact. One that was pulled opens no devices, whatever its options say.

    Raises:
        StoreError: its files are damaged.
    """
    manifest, options = version.manifest, dict(version.manifest.options)
    has_devices = options.get("device", "cpu") != "cpu" and not version.pulled_from
    folder = store.open_artifact(version)
    return Artifact(folder, manifest.entry, manifest.runtime, manifest.signature, options, has_devices)
