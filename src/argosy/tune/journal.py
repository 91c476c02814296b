"""What was measured, kept: a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from argosy.serve.worker.cores import count_cores
from argosy.store.temporary import explain_write

__all__ = ["Journal", "describe_machine"]

_PACKAGES: Final = ("argosy", "numpy", "onnxruntime", "openvino", "torch", "tensorflow", "keras", "jax")

T = TypeVar("T")


def describe_machine() -> dict[str, Any]:
    """What a measurement depends on, beside the version and its traffic."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": count_cores(), "versions": versions}


class Journal:
    """A file of JSON lines, each with what was measured and what came out.

    Args:
        path: of the file.
        subject: what all measurements of this run depend on; those of other subjects are left alone.
        is_new: forget what an interrupted run has measured.

    Raises:
        StoreError: `disk_full`, `write_failed`.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any], *, is_new: bool = False) -> None:
        self._path = path
        text = json.dumps(subject, sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known: dict[str, Any] = {}
        if not is_new:
            self._read()
        self.num_resumed = len(self._known)
        """Measurements that an interrupted run has left."""
        if not self.num_resumed:
            self._write({"begin": subject})

    def _read(self) -> None:
        """Take what the last run of this subject has left, unless it came to its end."""
        try:
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise explain_write(self._path, error) from error
        for line in lines:
            try:
                entry = json.loads(line)
                is_ours = entry["key"] == self._key
            except (ValueError, KeyError, TypeError):
                continue  # The line that the interrupt cut.
            if is_ours and "measured" in entry:
                self._known[entry["measured"]] = entry["result"]
            elif is_ours:
                self._known = {}

    def find(self, what: str, kind: type[T]) -> T | None:
        """Give what an interrupted run has measured; None if it has not."""
        found = self._known.get(what)
        try:
            return None if found is None else msgspec.convert(found, kind, str_keys=True)
        except msgspec.ValidationError:
            return None

    def add(self, what: str, result: msgspec.Struct) -> None:
        """Keep a measurement."""
        self._write({"measured": what, "result": msgspec.to_builtins(result, str_keys=True)})

    def end(self, choice: msgspec.Struct) -> None:
        """Keep what was chosen: the next run of this subject begins anew."""
        self._write({"choice": msgspec.to_builtins(choice)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.open("a") as file:
                # A line of its own, whatever an interrupt has left before it.
                file.write("\n" * (file.tell() > 0) + json.dumps({"key": self._key, **entry}, default=str))
        except OSError as error:
            raise explain_write(self._path, error) from error
