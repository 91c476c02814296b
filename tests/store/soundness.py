"""What a store promises, whatever has happened to it."""

from __future__ import annotations

from pathlib import Path

from argosy.store.local import Store


def assert_sound(home: Path) -> list[int]:
    """Open the store anew and check all that it promises. Returns the numbers of its versions."""
    store = Store(home)
    versions = [version for model in store.list_models() for version in store.list_versions(model.name)]
    for version in versions:
        store.verify(version)
        store.open_artifact(version)
    assert list((home / "store").rglob(".incoming-*")) == []
    index = (home / "store" / "index.json").read_bytes()
    store.rebuild_index()
    assert (home / "store" / "index.json").read_bytes() == index
    return [version.number for version in versions]
