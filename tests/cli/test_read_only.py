"""A home on a disk that takes nothing, or that is not one's own: what only reads works, and the rest says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from argosy.deploy.ledger import Ledger
from argosy.errors import ArgosyError
from argosy.home import find_server
from argosy.server import Server
from tests.home import Home, make_scale_model, row
from tests.processes import find_workers, wait_until
from tests.registry.registry_server import start_registry

PORTS = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "admin")]
READS = {"models", "models scale", "config show", "logs", "push", "list", "history", "verify", "golden", "open", "ledger"}
IS_ROOT = os.geteuid() == 0
SEAL = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def seal(home: Path, way: str) -> list[str]:
    """Have a home take nothing more; what a command that is to find it so begins with."""
    if way == "disk":
        if not IS_ROOT or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("this process may mount nothing")
        return ["unshare", "-m", "sh", "-c", SEAL, str(home)]
    for path in [home, *home.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    # Root may write what nobody may; without its rights it is as everybody.
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT else []


def tear(home: Path) -> None:
    """Leave a home as copies and dead writers leave one: without empty folders, and with a commit in the journal alone."""
    (home / "store" / "lock").unlink()
    shutil.rmtree(home / "store" / "unpacked")
    kill = "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    kill += "db.execute(\"INSERT INTO aliases VALUES ('scale', 'left', 1)\"); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", kill, str(home / "argosy.db")])
    (home / "argosy.db-shm").unlink()


@pytest.mark.parametrize("way", ["disk", "permissions"])
@pytest.mark.parametrize("is_torn", [False, True], ids=["whole", "torn"])
def test_home_that_cannot_be_written_is_read_and_nothing_is_half_done(home: Home, way: str, is_torn: bool) -> None:
    store = home.store
    for factor in (2.0, 3.0):
        home.publish_scale(factor=factor)
    store.open_artifact(store.get_version("scale@1"))
    Ledger(store).request_rollout(Ledger(store).plan("scale@1"))
    file = make_scale_model(home.files / "scale.onnx", 4.0)
    program, began = home.files / "program.py", home.files / "began"
    program.write_text(f"def fit():\n    open({str(began)!r}, 'w').close()\n    return {{}}\n")
    if is_torn:
        tear(store.home)
    before = {path: path.lstat().st_mtime_ns for path in store.home.rglob("*")}
    with start_registry() as registry:
        arguments = [str(store.home), f"{program}:fit", str(file), f"{registry.address}/team/scale:1"]
        command = [*seal(store.home, way), sys.executable, "-m", "tests.cli.read_only_calls", *arguments]
        environment = os.environ | {"HOME": str(home.files), "TMPDIR": str(home.files)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, env=environment)
        assert done.returncode == 0, done.stderr
        assert registry.count("PUT", "manifests/1")
    found: dict[str, str] = json.loads(done.stdout)
    assert {name: text for name, text in found.items() if name in READS and text} == {}
    reason = "Read-only file system" if way == "disk" else "Permission denied"
    assert {name: text for name, text in found.items() if name not in READS and reason not in text} == {}
    assert not began.exists()
    assert not any(text.startswith("raw") for text in found.values())
    assert {path: path.lstat().st_mtime_ns for path in store.home.rglob("*")} == before
    for path in [store.home, *store.home.rglob("*")]:
        path.chmod(0o700)
    if is_torn:
        with sqlite3.connect(store.home / "argosy.db") as db:
            assert db.execute("SELECT alias FROM aliases").fetchall() == [("left",)]


@contextmanager
def serve_from(store: Path, environment: dict[str, str]) -> Generator[Server, None, None]:
    """A server that cannot write to its store, though to its home."""
    home = store.parent
    command = [*seal(store, "disk"), sys.executable, "-m", "argosy", "serve", *PORTS, "--home", str(home), "--drain-s", "0"]
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    try:
        yield Server(home, wait_until(lambda: find_server(home)))
    finally:
        process.terminate()
        process.wait(30)


def test_version_that_a_read_only_store_has_never_unpacked_is_served_from_copies(home: Home) -> None:
    home.publish_scale()
    shutil.rmtree(home.store.home / "store" / "unpacked")
    temporary = home.files / "temporary"
    temporary.mkdir()
    with serve_from(home.store.home / "store", {"TMPDIR": str(temporary)}) as server, server.client() as client:
        server.deploy("scale")
        np.testing.assert_array_equal(client.predict("scale", {"x": row(3)})["y"], row(6))
        (worker,) = find_workers(server, "scale")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: find_workers(server, "scale") not in ([], [worker]))
        np.testing.assert_array_equal(client.predict("scale", {"x": row(3)})["y"], row(6))
        # A copy that is not what it should be is none.
        (copy,) = temporary.glob("argosy-*/*/*.onnx")
        copy.unlink()
        copy.write_bytes(b"")
        server.deploy("scale", max_batch_rows=3)
        np.testing.assert_array_equal(client.predict("scale", {"x": row(3)})["y"], row(6))


def test_read_only_store_says_where_it_has_tried_to_unpack_a_version(home: Home) -> None:
    home.publish_scale()
    shutil.rmtree(home.store.home / "store" / "unpacked")
    folder = home.files / f"argosy-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with serve_from(home.store.home / "store", {"TMPDIR": str(home.files)}) as server:
        reason = (
            rf"(?s)scale@1 can be unpacked neither in the store .*Read-only file system.*{folder}: other users may change.*TMPDIR"
        )
        with pytest.raises(ArgosyError, match=reason):
            server.deploy("scale")
        folder.chmod(0o700)
        server.deploy("scale")
