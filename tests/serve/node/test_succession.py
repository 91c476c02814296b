"""A restart that cannot succeed: whatever is wrong with the successor, the server goes on as it was, and the command says why."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import argosy
from argosy.errors import ArgosyError, FaultError
from argosy.server import Server, restart_server
from tests.home import Home
from tests.load import Load
from tests.processes import find_workers, read_state, wait_until

CONTROL = "argosy.deploy.control"
DRAIN_S = 0.5


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, which a test may damage; servers run by it."""
    folder = tmp_path / "package" / "argosy"
    shutil.copytree(Path(argosy.__file__).parent, folder)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def is_double(value: float, answer: object, version: str) -> bool:
    return bool((answer == value * 2).all())  # type: ignore[attr-defined]


@contextmanager
def answers(server: Server) -> Generator[None, None, None]:
    """All that clients ask is answered meanwhile."""
    with Load(server, "scale", is_double, num_clients=3) as load:
        load.wait_for(20)
        yield
        load.wait_for(20)
    assert load.failures == []


@contextmanager
def goes_on(server: Server) -> Generator[None, None, None]:
    """The same, by the same workers, and the server can be told to do something later."""
    workers = find_workers(server, "scale")
    with answers(server):
        yield
    assert wait_until(lambda: find_workers(server, "scale")) == workers
    assert list((server.home / "run").glob("trial-*")) == []
    server.deploy("scale", replicas=2)


def append(path: str, text: str) -> Callable[[Path], None]:
    """Damage that an upgrade may do to a file of the package."""

    def damage(package: Path) -> None:
        with (package / path).open("a") as file:
            file.write(f"\n{text}\n")

    return damage


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    """The same, in the middle of it."""

    def damage(package: Path) -> None:
        text = (package / path).read_text()
        assert old in text
        (package / path).write_text(text.replace(old, new))

    return damage


def remove(path: str) -> Callable[[Path], None]:
    """A file that is not there any more."""
    return lambda package: (package / path).unlink()


DAMAGES = {
    "supervisor": (append("serve/node/supervisor.py", "import nothing_such"), "nothing_such"),
    "control process": (remove("deploy/reconcile.py"), r"argosy\.deploy\.reconcile"),
    "front, when it begins": (
        replace("serve/front/front.py", "    prepare_front()\n", "    raise OSError('no loop')\n"),
        "no loop",
    ),
    "workers": (append("serve/worker/template.py", "raise RuntimeError('half of it')"), "half of it"),
    "store": (replace("store/database.py", "SCHEMA_VERSION: Final = 1", "SCHEMA_VERSION: Final = 0"), "newer"),
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=SLOW if name in ("workers", "supervisor") else ()) for name in DAMAGES]
)
def test_restart_to_a_package_that_does_not_start_is_refused(home: Home, package: Path, damage: str) -> None:
    harm, reason = DAMAGES[damage]
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, goes_on(server):
        harm(package)
        with pytest.raises(FaultError, match=f"(?s)goes on as it was: .*{reason}"):
            restart_server(home.store.home)


@pytest.mark.parametrize(
    "path",
    [pytest.param("serve/node/supervisor.py", id="supervisor", marks=SLOW), pytest.param("serve/front/front.py", id="front")],
)
def test_package_that_breaks_while_the_fronts_end_is_not_run(home: Home, package: Path, path: str) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, ExitStack() as stack:
        stack.enter_context(answers(server))
        said = home.store.home / "serve.log"

        def harm() -> None:
            wait_until(lambda: "restarting" in said.read_text())
            append(path, "import nothing_such")(package)

        thread = threading.Thread(target=harm)
        thread.start()
        with pytest.raises(FaultError, match=r"goes on as it was: .*(?s:.*)nothing_such"):
            restart_server(home.store.home)
        thread.join()


def test_restart_without_the_database_is_refused(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server:
        database = home.store.home / "argosy.db"
        away = database.with_suffix(".away")
        with goes_on(server):
            database.rename(away)
            with pytest.raises(ArgosyError, match=r"goes on as it was: .*argosy\.db"):
                restart_server(home.store.home)
            away.rename(database)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("", id="empty", marks=SLOW),
        pytest.param("[]", id="list", marks=SLOW),
        pytest.param('{"config": {"home": "/", "num_fronts": 1}}', id="another home"),
    ],
)
def test_job_that_no_successor_can_have_is_refused_and_told(home: Home, job: str) -> None:
    home.publish_scale()
    with home.serve("scale", drain_s=DRAIN_S) as server, goes_on(server):
        (home.store.home / "run" / "restart.json").write_text(job)
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: read_state(server)["refused_restarts"])
