"""Files of the store: damage is found, names are safe, leftovers go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from argosy.errors import InputError, StoreError
from argosy.store.local import Golden, Store, Version

Publish = Callable[..., Version]
BlobOf = Callable[[str], Path]


def flip_byte(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def digests_of(version: Version, blob_of: BlobOf) -> dict[str, str]:
    image = json.loads(blob_of(version.digest).read_bytes())
    files = {layer["annotations"]["org.cncf.model.filepath"]: layer["digest"] for layer in image["layers"]}
    return files | {"image": version.digest, "config": image["config"]["digest"]}


PARTS = ["model.onnx", "argosy.json", "golden.npz", "config", "image"]


@pytest.mark.parametrize("part", PARTS)
def test_one_flipped_bit_is_found(store: Store, publish: Publish, golden: Golden, blob_of: BlobOf, part: str) -> None:
    version = publish(files={"model.onnx": bytes(100_000)}, golden=golden)
    store.open_artifact(version)
    digest = digests_of(version, blob_of)[part]
    flip_byte(blob_of(digest))
    for check in (store.open_artifact, store.verify):
        with pytest.raises(StoreError) as caught:
            check(version)
        assert caught.value.key == "corrupt_blob"
        assert digest in caught.value.message
        assert "iris@1" in caught.value.message


@pytest.mark.parametrize("part", PARTS)
def test_missing_blob_is_named(store: Store, publish: Publish, golden: Golden, blob_of: BlobOf, part: str) -> None:
    version = publish(golden=golden)
    digest = digests_of(version, blob_of)[part]
    blob_of(digest).unlink()
    with pytest.raises(StoreError) as caught:
        store.open_artifact(version)
    assert (caught.value.key, digest in caught.value.message) == ("missing_blob", True)


def test_damaged_golden_examples_are_not_loaded(store: Store, publish: Publish, golden: Golden, blob_of: BlobOf) -> None:
    version = publish(golden=golden)
    flip_byte(blob_of(digests_of(version, blob_of)["golden.npz"]))
    with pytest.raises(StoreError, match="damaged"):
        store.load_golden(version)


def test_damage_is_also_found_after_the_artifact_was_opened(store: Store, publish: Publish, blob_of: BlobOf) -> None:
    version = publish(files={"model.onnx": bytes(1000)})
    path = store.open_artifact(version) / "model.onnx"
    times = path.stat()
    flip_byte(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(StoreError, match="damaged"):
        store.open_artifact(version)


def test_publishing_again_repairs_a_damaged_blob(store: Store, publish: Publish, blob_of: BlobOf) -> None:
    version = publish(files={"model.onnx": bytes(1000)})
    store.open_artifact(version)
    flip_byte(blob_of(digests_of(version, blob_of)["model.onnx"]))
    publish(files={"model.onnx": bytes(1000)})
    assert (store.open_artifact(version) / "model.onnx").read_bytes() == bytes(1000)
    store.verify(version)


def test_database_that_describes_another_artifact_is_found(store: Store, publish: Publish) -> None:
    publish()
    with store.transaction() as connection:
        connection.execute("UPDATE versions SET manifest = CAST(replace(manifest, 'true', 'false') AS BLOB)")
    with pytest.raises(StoreError, match="differ"):
        store.verify(store.get_version("iris"))


def test_artifact_is_hard_links_to_the_blobs(store: Store, publish: Publish, blob_of: BlobOf) -> None:
    version = publish()
    path = store.open_artifact(version) / "model.onnx"
    assert path.stat().st_ino == blob_of(digests_of(version, blob_of)["model.onnx"]).stat().st_ino
    assert store.open_artifact(version) == path.parent


@pytest.mark.parametrize("harm", ["replaced", "symlink", "removed"])
def test_changed_unpacked_folder_is_made_anew(store: Store, publish: Publish, tmp_path: Path, harm: str) -> None:
    version = publish(files={"model.onnx": b"weights", "sub/vocab.txt": b"v"})
    path = store.open_artifact(version) / "model.onnx"
    path.unlink()
    (tmp_path / "evil").write_bytes(b"evil")
    if harm == "replaced":
        path.write_bytes(b"evil")
    elif harm == "symlink":
        path.symlink_to(tmp_path / "evil")
    assert (store.open_artifact(version) / "model.onnx").read_bytes() == b"weights"
    assert (path.parent / "sub" / "vocab.txt").read_bytes() == b"v"
    assert len(list((store.home / "store" / "unpacked").iterdir())) == 1


def test_unpacked_folders_may_be_deleted(store: Store, publish: Publish) -> None:
    version = publish()
    store.open_artifact(version)
    shutil.rmtree(store.home / "store" / "unpacked")
    assert (Store(store.home).open_artifact(version) / "model.onnx").read_bytes() == b"weights"


def test_copied_artifact_can_be_changed_without_harm(store: Store, publish: Publish, tmp_path: Path) -> None:
    version = publish(files={"model.onnx": b"weights", "sub/vocab.txt": b"v"})
    entry = store.copy_artifact(version, tmp_path / "copy")
    assert (entry, entry.stat().st_nlink) == (tmp_path / "copy" / "model.onnx", 1)
    entry.write_bytes(b"changed")
    assert (tmp_path / "copy" / "sub" / "vocab.txt").read_bytes() == b"v"
    store.verify(version)


def test_copy_of_a_damaged_artifact_is_refused(store: Store, publish: Publish, blob_of: BlobOf, tmp_path: Path) -> None:
    version = publish(files={"model.onnx": bytes(1000)})
    flip_byte(blob_of(digests_of(version, blob_of)["model.onnx"]))
    with pytest.raises(StoreError, match="damaged"):
        store.copy_artifact(version, tmp_path / "copy")


HOSTILE_NAMES = {
    "parent": "../evil",
    "parent inside": "a/../../evil",
    "absolute": "/tmp/evil",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "empty component": "a//b",
    "folder": "a/",
    "backslash": "..\\evil",
    "null": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1b[2Jb",
    "right-to-left": "gnp\u202e.onnx",
    "surrogate": "a\udc80",
    "long component": "a" * 256,
    "long path": "/".join(["a" * 200] * 6),
    "temporary name": ".incoming-1-a",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_hostile_file_name_is_refused_at_publishing(store: Store, publish: Publish, name: str) -> None:
    with pytest.raises(InputError) as caught:
        publish(files={"model.onnx": b"w", name: b"evil"})
    assert caught.value.key == "bad_file_name"
    assert store.list_models() == []


def swap_image(store: Store, image: dict[str, object], blob_of: BlobOf) -> None:
    """Give the only version another image manifest, as a registry could send it: the digest right, the content hostile."""
    with store.stage() as staged:
        evil = staged.add_blob(json.dumps(image).encode())
        blob_of(evil.digest).write_bytes(evil.path.read_bytes())
    with store.transaction() as connection:
        connection.execute("UPDATE versions SET digest = ?", (evil.digest,))


def test_blob_of_another_size_than_the_image_manifest_says_is_damaged(store: Store, publish: Publish, blob_of: BlobOf) -> None:
    version = publish()
    image = json.loads(blob_of(version.digest).read_bytes())
    image["layers"][0]["size"] += 1
    swap_image(store, image, blob_of)
    with pytest.raises(StoreError) as caught:
        store.verify(store.get_version("iris"))
    assert caught.value.key == "corrupt_blob"


@pytest.mark.parametrize("name", [HOSTILE_NAMES[key] for key in ("parent", "absolute", "null", "empty")] + ["model.onnx"])
def test_hostile_file_name_in_an_image_manifest_is_refused_at_opening(
    store: Store, publish: Publish, blob_of: BlobOf, name: str
) -> None:
    version = publish(files={"model.onnx": b"w", "other.bin": b"o"})
    image = json.loads(blob_of(version.digest).read_bytes())
    image["layers"][1]["annotations"]["org.cncf.model.filepath"] = name
    swap_image(store, image, blob_of)
    with pytest.raises(StoreError) as caught:
        store.open_artifact(store.get_version("iris"))
    assert caught.value.key == "bad_manifest"
    assert list((store.home / "store" / "unpacked").iterdir()) == []


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "sha256:" + "../" * 20, "sha256:" + "A" * 64, "md5:00"])
def test_digest_that_is_none_never_becomes_a_path(store: Store, publish: Publish, digest: str) -> None:
    publish()
    with store.transaction() as connection:
        connection.execute("UPDATE versions SET digest = ?", (digest,))
    with pytest.raises(StoreError) as caught:
        store.open_artifact(store.get_version("iris"))
    assert caught.value.key == "missing_blob"


def test_opening_removes_what_dead_writers_left_and_nothing_of_the_living(
    store: Store, publish: Publish, start_python: Callable
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from argosy.store.local import Store\n"
        "with Store(Path(sys.argv[1])).stage() as staged:\n"
        "    staged.add('model.onnx', b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    dead = start_python(code, store.home)
    dead.communicate()
    assert dead.returncode == -9
    leftovers = set((store.home / "store").rglob(".incoming-*"))
    assert len(leftovers) == 2
    with store.stage() as staged:
        staged.add("model.onnx", b"whole")
        Store(store.home)
        left = set((store.home / "store").rglob(".incoming-*"))
        assert left.isdisjoint(leftovers)
        assert len(left) == 2
        version = publish(files=staged)
    store.verify(version)
    assert list((store.home / "store").rglob(".incoming-*")) == []
