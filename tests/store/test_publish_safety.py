"""Publishing is whole or not at all: killed, with others at once, on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from argosy.errors import StoreError
from argosy.store.local import Store, Version
from tests.scripts import ROOT
from tests.store.soundness import assert_sound

Publish = Callable[..., Version]

PUBLISH_20 = """
import sys
from pathlib import Path
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store
store = Store(Path(sys.argv[1]))
signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
for index in range(20):
    files = {"model.onnx": f"{sys.argv[2]} {index}".encode(), "shared.bin": bytes(1000)}
    print(store.publish("iris", files, signature=signature, entry="model.onnx").number, flush=True)
"""

PUBLISH_WITH_FILE_LIMIT = """
import resource, sys
from pathlib import Path
from argosy.errors import StoreError
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store
store = Store(Path(sys.argv[1]))
signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for source in (bytes(2 << 20), Path(sys.argv[2])):
    try:
        store.publish("iris", {"model.onnx": source}, signature=signature, entry="model.onnx")
    except StoreError as error:
        print(error.key)
print(store.publish("iris", {"model.onnx": b"small"}, signature=signature, entry="model.onnx").number)
"""


def test_two_processes_get_forty_consecutive_numbers(store: Store, start_python: Callable) -> None:
    # Both also make the store, at the same time.
    processes = [start_python(PUBLISH_20, store.home, name) for name in ("one", "two")]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    numbers = [[int(line) for line in stdout.split()] for stdout, _ in outputs]
    assert all(taken == sorted(taken) for taken in numbers)
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 41)) == assert_sound(store.home)


def test_threads_of_one_process_get_consecutive_numbers(store: Store, publish: Publish) -> None:
    numbers: list[int] = []

    def work(name: str) -> None:
        for index in range(5):
            numbers.append(publish(files={"model.onnx": f"{name} {index}".encode(), "shared": b"s"}).number)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21)) == assert_sound(store.home)


def test_threads_that_open_one_artifact_at_once_get_one_folder(store: Store, publish: Publish) -> None:
    num_threads = 4
    for round_index in range(5):
        version = publish(files={f"file{index}": b"same" for index in range(30)} | {"model.onnx": f"{round_index}".encode()})
        folders: list[Path] = []
        barrier = threading.Barrier(num_threads)

        def work(version: Version = version, folders: list[Path] = folders, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            folders.append(store.open_artifact(version))

        threads = [threading.Thread(target=work) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(folders), len(set(folders))) == (num_threads, 1)
        assert len(list(folders[0].iterdir())) == 32
    assert_sound(store.home)


DIE_BEFORE_COMMIT = """
import os, signal, sys
from pathlib import Path
from argosy.signature import Signature, TensorSpec
from argosy.store import records
from argosy.store.local import Store
store = Store(Path(sys.argv[1]))
signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))
records.insert_version = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store.publish("iris", {"model.onnx": b"new", "shared.bin": b"shared"}, signature=signature, entry="model.onnx")
"""


def test_blobs_of_a_publisher_that_died_before_its_commit_are_removed(
    store: Store, publish: Publish, start_python: Callable
) -> None:
    publish(files={"model.onnx": b"old", "shared.bin": b"shared"})
    blobs = store.home / "store" / "blobs" / "sha256"
    before = set(blobs.iterdir())
    process = start_python(DIE_BEFORE_COMMIT, store.home)
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert len({path for path in blobs.iterdir() if not path.name.startswith(".")} - before) == 3
    assert assert_sound(store.home) == [1]
    assert set(blobs.iterdir()) == before


def test_kill_at_any_moment_breaks_nothing() -> None:
    script = ROOT / "benchmarks" / "publish_kill.py"
    source = Path(sys.modules["argosy.store.local"].__file__ or "").parents[2]
    result = subprocess.run(
        [sys.executable, script, "--kills", "15", "--seed", "1"],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "15 kills" in result.stdout
    assert " 0 broken" in result.stdout


def test_file_size_limit_is_reported_as_a_full_disk(store: Store, start_python: Callable, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    source.write_bytes(bytes(2 << 20))
    process = start_python(PUBLISH_WITH_FILE_LIMIT, store.home, source)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.split() == ["disk_full", "disk_full", "1"], stderr
    assert assert_sound(store.home) == [1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here; the test with a file size limit stands for it")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_too_large_a_file_leaves_a_small_disk_as_it_was(small_disk: Path, publish: Publish, tmp_path: Path) -> None:
    store = Store(small_disk / "home")
    signature = publish().manifest.signature
    store.publish("iris", {"model.onnx": b"first"}, signature=signature, entry="model.onnx")
    source = tmp_path / "large.bin"
    source.write_bytes(bytes(4 << 20))
    for large in (source, bytes(4 << 20)):
        with pytest.raises(StoreError) as caught:
            store.publish("iris", {"model.onnx": large}, signature=signature, entry="model.onnx")
        assert caught.value.key == "disk_full"
    assert assert_sound(store.home) == [1]
    assert store.publish("iris", {"model.onnx": b"second"}, signature=signature, entry="model.onnx").number == 2


def test_disk_that_fills_at_any_moment_breaks_nothing(small_disk: Path, publish: Publish) -> None:
    store = Store(small_disk / "home")
    signature = publish().manifest.signature
    filler = small_disk / "filler"
    taken: list[int] = []
    keys: set[str] = set()
    page = os.sysconf("SC_PAGE_SIZE")
    # One page more is free each time, so that each of a publisher's writes is once the one that fails.
    for num_free in range(40):
        room = os.statvfs(small_disk)
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - num_free * page))
        try:
            files = {"model.onnx": f"{num_free}".encode() * 1000}
            taken.append(store.publish("iris", files, signature=signature, entry="model.onnx").number)
        except StoreError as error:
            keys.add(error.key)
        filler.unlink()
        assert [version.number for version in store.list_versions("iris")] == taken if taken else store.list_models() == []
        # Of each version: model.onnx, argosy.json (the same each time), config, image manifest.
        assert len(list((store.home / "store" / "blobs" / "sha256").iterdir())) == (3 * len(taken) + 1 if taken else 0)
    assert keys == {"disk_full"}
    assert taken == list(range(1, len(taken) + 1)) == assert_sound(store.home)
    assert 0 < len(taken) < 40
