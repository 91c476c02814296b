"""The store through its public API: publish, find, describe, derive the index."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from argosy.errors import ArgosyError, InputError, NotFoundError, StoreError
from argosy.store import database
from argosy.store.local import Golden, Store, Version

Publish = Callable[..., Version]


def test_published_version_comes_back_as_it_was_given(store: Store, publish: Publish, golden: Golden, tmp_path: Path) -> None:
    weights = tmp_path / "some weights.bin"
    weights.write_bytes(bytes(range(256)) * 50_000)
    version = publish(
        files={"model.onnx": b"graph", "weights.bin": weights, "tokenizer/vocab.txt": b"a\nb\n"},
        golden=golden,
        repeatable=False,
        lineage={"data": {"rows": 150}, "parents": [1, 2]},
        measurements={"accuracy": 0.97},
        options={"precision": "fp32"},
    )
    found = Store(store.home).get_version("iris@1")
    assert found == version
    assert (found.name, found.number, found.aliases) == ("iris", 1, ("latest",))
    manifest = found.manifest
    assert (manifest.runtime, manifest.entry, manifest.repeatable, manifest.num_golden) == ("onnx", "model.onnx", False, 3)
    assert manifest.lineage == {"data": {"rows": 150}, "parents": [1, 2]}
    assert manifest.options == {"precision": "fp32"}
    assert found.measurements == manifest.measurements == {"accuracy": 0.97}
    folder = store.open_artifact(found)
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert (folder / "weights.bin").read_bytes() == weights.read_bytes()
    assert (folder / "tokenizer" / "vocab.txt").read_bytes() == b"a\nb\n"
    np.testing.assert_array_equal(store.load_golden(found).outputs["y"], golden.outputs["y"])
    store.verify(found)
    assert found.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_later_changes_of_the_source_do_not_reach_the_store(store: Store, publish: Publish, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"as published")
    version = publish(files={"model.onnx": source})
    source.write_bytes(b"changed since")
    assert (store.open_artifact(version) / "model.onnx").read_bytes() == b"as published"


def test_numbers_count_up_for_each_model(publish: Publish) -> None:
    assert [publish("a").number, publish("b").number, publish("a").number] == [1, 1, 2]


def test_number_of_a_removed_version_is_never_given_again(store: Store, publish: Publish) -> None:
    publish()
    publish()
    with store.transaction() as connection:
        connection.execute("DELETE FROM versions WHERE number = 2")
    assert publish().number == 3


def test_home_is_private_and_blobs_are_read_only(store: Store, publish: Publish) -> None:
    version = publish()
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((store.open_artifact(version) / "model.onnx").stat().st_mode) == 0o444


def test_home_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path / "elsewhere"))
    assert Store().home == tmp_path / "elsewhere"


def test_artifact_is_an_oci_image_with_modelpack_layers(
    store: Store, publish: Publish, golden: Golden, blob_of: Callable
) -> None:
    version = publish(
        files={"model.onnx": b"w", "model.py": b"c", "vocab.json": b"{}"}, golden=golden, lineage={"precision": "fp32"}
    )
    assert json.loads((store.home / "store" / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    image = json.loads(blob_of(version.digest).read_bytes())
    assert image["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert image["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in image["layers"]}
    assert layers == {
        "model.onnx": "application/vnd.cncf.model.weight.v1.raw",
        "model.py": "application/vnd.cncf.model.code.v1.raw",
        "vocab.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "golden.npz": "application/vnd.cncf.model.dataset.v1.raw",
        "argosy.json": "application/vnd.cncf.model.weight.config.v1.raw",
    }
    assert image["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    config = json.loads(blob_of(image["config"]["digest"]).read_bytes())
    assert config["descriptor"]["name"] == "iris"
    assert config["config"] == {"format": "onnx", "precision": "fp32"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in image["layers"]]}


@pytest.mark.parametrize(
    ("reference", "number"),
    [
        pytest.param("iris", 3, id="name means newest"),
        pytest.param("iris@2", 2, id="number"),
        pytest.param("iris@champion", 1, id="alias"),
        pytest.param("iris@latest", 3, id="latest"),
    ],
)
def test_reference_finds_its_version(store: Store, publish: Publish, reference: str, number: int) -> None:
    for _ in range(3):
        publish()
    store.set_alias("iris", "champion", 1)
    assert store.get_version(reference).number == number


@pytest.mark.parametrize(
    ("reference", "error", "key", "text"),
    [
        pytest.param("rose", NotFoundError, "unknown_model", "known: iris", id="model"),
        pytest.param("iris@7", NotFoundError, "unknown_version", "it has: 1, 2", id="version"),
        pytest.param("iris@0", NotFoundError, "unknown_version", "it has: 1, 2", id="version zero"),
        pytest.param("iris@best", NotFoundError, "unknown_alias", "it has: champion, latest", id="alias"),
        pytest.param("iris@", InputError, "bad_reference", "NAME@VERSION", id="empty selector"),
        pytest.param("@1", InputError, "bad_reference", "NAME@VERSION", id="empty name"),
        pytest.param("iris@1@2", InputError, "bad_reference", "NAME@VERSION", id="two selectors"),
        pytest.param("iris@" + "9" * 30, InputError, "bad_reference", "NAME@VERSION", id="number beyond 64 bits"),
        pytest.param("../etc", InputError, "bad_name", "Model name", id="path for a name"),
        pytest.param("iris@../x", InputError, "bad_name", "Alias name", id="path for an alias"),
        pytest.param("iris@-1", InputError, "bad_name", "Alias name", id="negative number"),
    ],
)
def test_wrong_reference_says_what_is_known(
    store: Store, publish: Publish, reference: str, error: type[ArgosyError], key: str, text: str
) -> None:
    publish()
    publish()
    store.set_alias("iris", "champion", 1)
    with pytest.raises(error) as caught:
        store.get_version(reference)
    assert caught.value.key == key
    assert text in caught.value.message


def test_alias_moves_and_history_keeps_both(store: Store, publish: Publish) -> None:
    publish()
    publish()
    store.set_alias("iris", "champion", 1)
    store.set_alias("iris", "champion", 2)
    store.set_alias("iris", "champion", 2)
    (model,) = store.list_models()
    assert model.aliases == {"champion": 2, "latest": 2}
    assert [version.aliases for version in store.list_versions("iris")] == [(), ("champion", "latest")]
    events = [(event.event, event.number, event.detail.get("before")) for event in store.list_history("iris")]
    assert events == [("published", 1, None), ("published", 2, None), ("alias_set", 1, None), ("alias_set", 2, 1)]


@pytest.mark.parametrize(
    ("alias", "number", "key"),
    [
        pytest.param("7", 1, "bad_alias", id="integer"),
        pytest.param("007", 1, "bad_alias", id="integer with zeros"),
        pytest.param("\u0663", 1, "bad_alias", id="integer in other digits"),
        pytest.param("latest", 1, "reserved_alias", id="latest"),
        pytest.param("a/b", 1, "bad_name", id="path"),
        pytest.param("", 1, "bad_name", id="empty"),
        pytest.param("champion", 2, "unknown_version", id="to a version that is not there"),
    ],
)
def test_alias_is_refused(store: Store, publish: Publish, alias: str, number: int, key: str) -> None:
    publish()
    with pytest.raises(ArgosyError) as caught:
        store.set_alias("iris", alias, number)
    assert caught.value.key == key
    assert store.list_models()[0].aliases == {"latest": 1}


def test_history_cannot_be_changed(store: Store, publish: Publish) -> None:
    publish()
    for statement in ("DELETE FROM history", "UPDATE history SET event = 'nothing'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), store.transaction() as connection:
            connection.execute(statement)
    assert [event.event for event in store.list_history("iris")] == ["published"]


def test_measurements_are_added_and_replaced(store: Store, publish: Publish) -> None:
    version = publish(measurements={"accuracy": 0.9})
    store.add_measurements(version, {"p50_s": 0.002, "accuracy": np.float32(0.5)})
    found = store.get_version("iris")
    assert found.measurements == {"accuracy": 0.5, "p50_s": 0.002}
    assert found.manifest.measurements == {"accuracy": 0.9}
    with pytest.raises(InputError, match="finite number"):
        store.add_measurements(version, {"loss": float("nan")})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        pytest.param({"name": "a/b"}, "bad_name", id="name"),
        pytest.param({"runtime": "torhc"}, "unknown_choice", id="runtime"),
        pytest.param({"entry": "other.onnx"}, "missing_entry", id="entry that is not there"),
        pytest.param({"lineage": {"x": float("nan")}}, "bad_option", id="lineage that JSON cannot hold"),
        pytest.param({"options": {"x": np.float32(1)}}, "bad_option", id="options that JSON cannot hold"),
        pytest.param({"measurements": {"x": float("inf")}}, "bad_option", id="infinite measurement"),
        pytest.param({"golden_is_synthetic": True}, "bad_option", id="synthetic golden examples without any"),
        pytest.param({"files": {"model.onnx": Path("/does/not/exist")}}, "missing_file", id="source that is not there"),
        pytest.param({"files": {"model.onnx": Path("/dev/zero")}}, "missing_file", id="source without an end"),
        pytest.param({"files": {"model.onnx": b"", "argosy.json": b"{}"}}, "bad_file_name", id="the store's own file"),
        pytest.param({"files": {"model.onnx": b"", "model.onnx/x": b""}}, "bad_file_name", id="file and folder of one name"),
    ],
)
def test_wrong_argument_is_refused_and_nothing_is_published(
    store: Store, publish: Publish, changes: dict[str, object], key: str
) -> None:
    with pytest.raises(InputError) as caught:
        publish(**changes)
    assert caught.value.key == key
    assert store.list_models() == []
    assert [
        path
        for path in (store.home / "store").rglob("*")
        if path.name not in ("oci-layout", "index.json", "lock") and path.is_file()
    ] == []


def test_named_pipe_as_source_is_refused_at_once(publish: Publish, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        publish(files={"model.onnx": tmp_path / "pipe"})


def test_equal_files_are_kept_once(store: Store, publish: Publish) -> None:
    first = publish(files={"model.onnx": b"same", "copy.bin": b"same"})
    second = publish("other", files={"model.onnx": b"same"})
    paths = [
        store.open_artifact(first) / "model.onnx",
        store.open_artifact(first) / "copy.bin",
        store.open_artifact(second) / "model.onnx",
    ]
    assert len({path.stat().st_ino for path in paths}) == 1


def test_staged_files_are_what_is_published(store: Store, publish: Publish, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"first")
    with store.stage() as staged:
        staged.add("model.onnx", source)
        source.write_bytes(b"second")
        assert (staged.folder / "model.onnx").read_bytes() == b"first"
        version = publish(files=staged)
    assert (store.open_artifact(version) / "model.onnx").read_bytes() == b"first"


def test_unknown_model_has_no_versions_to_list(store: Store) -> None:
    assert store.list_models() == []
    with pytest.raises(NotFoundError, match="known: none"):
        store.list_versions("iris")


def test_index_is_rebuilt_from_the_database_alone(store: Store, publish: Publish) -> None:
    publish("a")
    publish("b")
    publish("a", measurements={"x": 1})
    store.set_alias("a", "champion", 1)
    path = store.home / "store" / "index.json"
    derived = path.read_bytes()
    references = {
        entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in json.loads(derived)["manifests"]
    }
    assert sorted(references) == ["a:1", "a:2", "a:champion", "a:latest", "b:1", "b:latest"]
    assert references["a:champion"] == references["a:1"] == store.get_version("a@1").digest
    path.unlink()
    store.rebuild_index()
    assert path.read_bytes() == derived


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"annotations":{"dev.argosy.generation":"0"}}'], ids=["gone", "empty", "no index", "old"]
)
def test_opening_brings_the_index_up_to_date(store: Store, publish: Publish, content: bytes | None) -> None:
    publish()
    path = store.home / "store" / "index.json"
    derived = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    Store(store.home)
    assert path.read_bytes() == derived


def test_transaction_commits_whole_or_not_at_all(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute("CREATE TABLE deployments (name TEXT)")
        connection.execute("INSERT INTO deployments VALUES ('kept')")
    with pytest.raises(ZeroDivisionError), store.transaction() as connection:
        connection.execute("INSERT INTO deployments VALUES ('lost')")
        raise ZeroDivisionError
    with store.transaction() as connection:
        assert [row["name"] for row in connection.execute("SELECT * FROM deployments")] == ["kept"]


def test_transaction_inside_a_transaction_is_an_error_and_no_deadlock(store: Store, publish: Publish) -> None:
    with pytest.raises(RuntimeError, match="cannot contain another"), store.transaction():
        publish()
    assert publish().number == 1


def test_writer_that_waits_too_long_says_for_what(store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with Store(store.home).transaction(), pytest.raises(StoreError) as caught:
        publish()
    assert caught.value.key == "store_busy"
    assert "argosy.db" in caught.value.message
    assert publish().number == 1


def test_folder_that_cannot_be_written_is_named(store: Store, publish: Publish) -> None:
    shutil.rmtree(store.home / "store" / "blobs")
    with pytest.raises(StoreError) as caught:
        publish()
    assert caught.value.key == "write_failed"
    assert "blobs/sha256" in caught.value.message


def test_file_system_without_hard_links_is_named(store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError) as caught:
        publish()
    assert caught.value.key == "no_hard_links"
    assert "local disk" in caught.value.hint


def test_commit_stands_when_the_index_cannot_be_written(store: Store, publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    index = store.home / "store" / "index.json"
    index.unlink()
    index.mkdir()
    with caplog.at_level(logging.WARNING):
        assert publish().number == 1
    assert "index.json" in caplog.text
    index.rmdir()
    assert len(json.loads((Store(store.home).home / "store" / "index.json").read_bytes())["manifests"]) == 2


def test_store_of_a_newer_argosy_is_not_touched(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError) as caught:
        Store(store.home)
    assert caught.value.key == "store_too_new"


def test_damaged_database_is_reported_as_such(store: Store) -> None:
    (store.home / "argosy.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreError) as caught:
        Store(store.home)
    assert caught.value.key == "damaged_database"


def test_importing_the_store_imports_no_onnx() -> None:
    code = (
        "import argosy.store, argosy.store.local, argosy.importers.onnx, sys; print({'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    path = Path(sys.modules["argosy.store.local"].__file__ or "").parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": str(path)}, text=True).strip() == "set()"
