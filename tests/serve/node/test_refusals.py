"""What the machine refuses a server: logs, descriptors, an output, room on the disk, its own files. It goes on, and heals."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import argosy
from argosy.deploy.ledger import Ledger
from argosy.errors import FaultError, UnavailableError
from argosy.home import find_server
from argosy.importers.python import publish_python
from argosy.server import Server
from tests.home import SIGNATURE, Home, row
from tests.load import Load
from tests.processes import find_child, find_workers, wait_until

CONTROL, FRONT = "argosy.deploy.control", "argosy.serve.front.front"


def is_double(value: float, answer: np.ndarray, version: str) -> bool:
    return bool((answer == row(value) * 2).all())


def kill_worker(server: Server, name: str = "scale") -> None:
    """Kill a deployment's worker, and wait for the one that takes its place."""
    (old,) = find_workers(server, name)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: find_workers(server, name) not in ([], [old]))


def can_answer(server: Server) -> bool:
    with server.client() as client:
        return is_double(3.0, client.predict("scale", {"x": row(3.0)})["y"], "1")


# logs


@pytest.mark.parametrize("damage", ["gone", "a file"])
def test_processes_are_replaced_though_their_logs_cannot_be_written(home: Home, damage: str) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        logs = server.home / "run" / "logs"
        shutil.rmtree(logs)
        if damage == "a file":
            logs.write_text("")
        with Load(server, "scale", is_double) as load:
            for module in (CONTROL, FRONT):
                old = find_child(server, module)
                os.kill(old, signal.SIGKILL)
                wait_until(lambda module=module, old=old: find_child(server, module) not in (0, old))
            kill_worker(server)
            load.wait_for(20)
        assert not [failure for failure in load.failures if "504" in str(failure)]
        said = (server.home / "serve.log").read_text()
        assert ("has no log: " in said) == (damage == "a file")
        assert logs.is_dir() == (damage == "gone")


# descriptors


def test_rollout_that_needs_more_descriptors_than_there_are_fails_and_the_next_server_starts(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        num_open = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        _, most = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (num_open + 6, most))
        with Load(server, "scale", is_double) as load:
            with pytest.raises(FaultError, match="failed at step load"):
                server.deploy("scale", replicas=12)
            load.wait_for(20)
        assert load.failures == []
        with server.admin() as admin:
            deployment = next(each for each in admin.status()["deployments"] if each["spec"]["name"] == "scale")
        assert (deployment["is_ready"], deployment["spec"]["replicas"]) == (True, 1)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (most, most))
        server.deploy("scale", replicas=3)


@contextlib.contextmanager
def leave_descriptors(pid: int, num_spare: int) -> Iterator[None]:
    """A process may open no more than so many beyond those that it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    # The limit is of numbers, not of how many there are.
    free = (number for number in itertools.count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, num_spare, None)), before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def list_steps(server: Server, rollout: int) -> str:
    with server.admin() as admin:
        return "; ".join(f"{event.step}: {event.detail}" for event in admin.rollout(rollout).events)


SCALE_UP: dict[str, Any] = {"version": 1, "replicas": 2}


@pytest.mark.parametrize(
    ("settings", "num_spare"),
    [
        pytest.param({}, 0, id="rollout-0"),
        pytest.param({}, 3, id="rollout-3", marks=pytest.mark.slow),
        pytest.param(SCALE_UP, 0, id="scale up-0", marks=pytest.mark.slow),
        pytest.param(SCALE_UP, 1, id="scale up-1"),
    ],
)
def test_new_workers_get_requests_once_every_front_shares_memory_with_them(
    home: Home, settings: dict[str, Any], num_spare: int
) -> None:
    home.publish_scale()
    home.publish_scale()
    with home.serve("scale@1", num_fronts=2) as server, Load(server, "scale", is_double) as load, server.admin() as admin:
        load.wait_for(100)
        changed: dict[str, Any] = {"name": "scale", "model": "scale", "version": 2, **settings}
        spec = argosy.DeploymentSpec(**changed)
        with leave_descriptors(find_child(server, FRONT), num_spare):
            rollout = admin.deploy(spec).id
            wait_until(lambda: "no memory is shared yet by front-" in list_steps(server, rollout))
            load.wait_for(100)
        admin.wait(rollout)
        load.wait_for(100)
    assert load.failures == []


def test_raw_requests_reach_a_new_version_once_every_front_has_a_stream_to_it(home: Home) -> None:
    path = home.files / "model.py"
    path.write_text("class Model:\n    def load(self, folder): ...\n    def raw(self, request): return request.body\n")
    for _ in range(2):
        publish_python(home.store, path, "raw", repeatable=True)
    with home.serve() as server, server.admin() as admin, httpx.Client(trust_env=False, timeout=5.0) as client:
        server.deploy("raw@1", allow_code=True)
        url = f"{server.url}/v2/models/raw/raw"
        assert client.post(url, content=b"1").content == b"1"
        # Enough for the link and its arenas.
        with leave_descriptors(find_child(server, FRONT), 5):
            rollout = admin.deploy(argosy.DeploymentSpec(name="raw", model="raw", version=2, allow_code=True)).id
            wait_until(lambda: "no memory is shared yet by front-" in list_steps(server, rollout))
            assert client.post(url, content=b"2").content == b"2"
        admin.wait(rollout)
        assert client.post(url, content=b"3").content == b"3"


def test_requests_to_a_worker_without_descriptors_are_answered_by_another(home: Home) -> None:
    home.publish_scale()
    with home.serve() as server:
        server.deploy("scale", replicas=2)
        narrow, _ = find_workers(server, "scale")
        # A front that starts now is linked with it, and then there is no room for arenas.
        with leave_descriptors(narrow, 0):
            os.kill(find_child(server, FRONT), signal.SIGKILL)
            wait_until(lambda: can_answer(server))
            with Load(server, "scale", is_double) as load:
                load.wait_for(200)
            assert load.failures == []
        assert find_workers(server, "scale")[0] == narrow


def test_request_that_no_worker_has_descriptors_for_says_so_and_the_next_one_is_answered(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server, server.client() as client:
        (worker,) = find_workers(server, "scale")
        with leave_descriptors(worker, 0):
            os.kill(front := find_child(server, FRONT), signal.SIGKILL)
            wait_until(lambda: find_child(server, FRONT) not in (0, front))
            reason = r"no room to hand this request .*: it shares no memory with worker w-scale-1-\w+ yet"
            with pytest.raises(UnavailableError, match=reason):
                client.predict("scale", {"x": row(1)})
            assert not client.is_ready("scale")
        wait_until(lambda: client.is_ready("scale"))
        np.testing.assert_array_equal(client.predict("scale", {"x": row(1)})["y"], row(2))


HOARD = "import os, resource\nclass Model:\n    def load(self, folder):\n        self.taken = []\n        {load}\n"
HOARD += "    def infer(self, inputs): return {{'y': inputs['x'] * 2}}\n"
TAKE_ALL = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
TAKE_ALL += "        try:\n            while True: self.taken.append(os.dup(0))\n"
TAKE_ALL += "        except OSError: [os.close(self.taken.pop()) for _ in range(2)]  # what a worker needs to end its load"


def test_version_that_takes_all_descriptors_for_itself_takes_no_traffic(home: Home) -> None:
    path = home.files / "model.py"
    for load in ("pass", TAKE_ALL):
        path.write_text(HOARD.format(load=load))
        publish_python(home.store, path, "scale", signature=SIGNATURE, repeatable=True)
    with home.serve() as server, server.admin() as admin:
        server.deploy("scale@1", allow_code=True)
        with Load(server, "scale", is_double) as load:
            rollout = admin.deploy(argosy.DeploymentSpec(name="scale", model="scale", version=2, allow_code=True)).id
            wait_until(lambda: "no memory is shared yet by front-" in list_steps(server, rollout))
            load.wait_for(100)
            # What takes its place ends it.
            server.deploy("scale@1", allow_code=True)
        assert load.failures == []


def test_raw_requests_that_a_worker_has_no_descriptor_for_do_not_end_the_stream_of_others(home: Home) -> None:
    path, begun = home.files / "model.py", home.files / "begun"
    path.write_text(
        "import time\nclass Model:\n    def load(self, folder): ...\n    def raw(self, request):\n"
        f"        if request.body == b'1.5': open({str(begun)!r}, 'w').close()\n"
        "        time.sleep(float(request.body))\n        return request.body\n"
    )
    publish_python(home.store, path, "raw", repeatable=True)
    with home.serve() as server, httpx.Client(trust_env=False, timeout=10.0) as client, ThreadPoolExecutor() as pool:
        server.deploy("raw", allow_code=True, replicas=1)
        url = f"{server.url}/v2/models/raw/raw"
        (worker,) = find_workers(server, "raw")
        slow = pool.submit(client.post, url, content=b"1.5")
        wait_until(begun.exists)
        with leave_descriptors(worker, 0):
            assert client.post(url, content=b"0").status_code != 200
        assert slow.result().content == b"1.5"
        slow = pool.submit(client.post, url, content=b"1")
        assert client.post(url, content=b"0.1").content == b"0.1"
        assert not slow.done()
        assert slow.result().content == b"1"
        assert find_workers(server, "raw") == [worker]


# what it prints


def fill(fd: int) -> None:
    """Leave no room in a pipe."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(512))
    os.set_blocking(fd, True)


@pytest.fixture(
    params=[
        "closed",
        "nobody reads it",
        pytest.param("/dev/full", marks=pytest.mark.slow),
        pytest.param("its reader is gone", marks=pytest.mark.slow),
    ]
)
def output(request: pytest.FixtureRequest) -> Iterator[int | None]:
    """A standard output and error that take nothing."""
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    if request.param == "its reader is gone":
        os.close(reader)
    elif request.param == "nobody reads it":
        fill(writer)
    yield {"/dev/full": full, "closed": None}.get(request.param, writer)
    for fd in (writer, full) if request.param == "its reader is gone" else (reader, writer, full):
        os.close(fd)


def test_server_starts_serves_and_drains_whatever_becomes_of_its_output(home: Home, output: int | None) -> None:
    home.publish_code("time.sleep(1.0 if (x == 7).any() else 0.0)\nreturn {'y': x * 2}", "scale")
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "admin")]
    serve = [sys.executable, "-m", "argosy", "serve", *ports, "--home", str(home.store.home)]
    script = ["sh", "-c", 'exec "$@" >&- 2>&-' if output is None else 'exec "$@"', "sh", *serve]
    process = subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        state = wait_until(lambda: find_server(home.store.home))
        server = Server(home.store.home, state)
        server.deploy("scale", allow_code=True)
        assert can_answer(server)
        os.kill(find_workers(server, "scale")[0], signal.SIGKILL)
        assert can_answer(server)
        with httpx.Client(trust_env=False, timeout=30.0) as client, contextlib.ExitStack() as stack:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [7.0] * 4}]}
            asked = stack.enter_context(client.stream("POST", f"{server.url}/v2/models/scale/infer", json=body))
            assert json.loads(asked.read())["outputs"][0]["data"] == [14.0] * 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(30.0) == 0
    finally:
        process.kill()
        process.wait()


# the disk


@pytest.fixture
def refusing(home: Home) -> Iterator[Server]:
    """A server whose control process is killed while no file of it may grow, as on a disk that is full."""
    home.publish_scale()
    with home.serve("scale") as server:
        old = find_child(server, CONTROL)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: find_child(server, CONTROL) not in (0, old))
        yield server


def test_full_disk_is_read_and_all_heals_when_it_has_room_again(refusing: Server) -> None:
    server = refusing
    # A front that starts now is told all that it must know.
    control, front = find_child(server, CONTROL), find_child(server, FRONT)
    with server.admin() as admin:
        status = wait_until(admin.status)
        assert [each["is_ready"] for each in status["deployments"]] == [True]
        with pytest.raises(FaultError, match="could not write"):
            admin.rollout(admin.deploy(Ledger(argosy.Store(server.home)).plan("scale", replicas=2)).id)
        with pytest.raises(FaultError, match="could not write"):
            admin.undeploy("scale")
    # Python begins under the limit: a function of this process, called after a fork of it, would not be safe beside its threads.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); from argosy.cli.main import main; main()"
    models = [sys.executable, "-c", limit, "models", "scale", "--home", str(server.home)]
    found = subprocess.run(models, capture_output=True, text=True, timeout=60.0)
    assert (found.returncode, "onnx" in found.stdout) == (0, True), found.stderr
    assert can_answer(server)
    for pid in (server.pid, control):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    server.deploy("scale", replicas=2)
    os.kill(front, signal.SIGKILL)
    assert can_answer(server)
    assert find_child(server, CONTROL) == control


# its own files


@pytest.mark.parametrize(
    "damage", ["gone", pytest.param("empty", marks=pytest.mark.slow), pytest.param("a folder", marks=pytest.mark.slow)]
)
def test_database_that_is_gone_stops_nothing_is_told_and_may_come_back(home: Home, damage: str) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        control, (worker,) = find_child(server, CONTROL), find_workers(server, "scale")
        database = server.home / "argosy.db"
        away = database.with_suffix(".away")
        database.rename(away)
        if damage == "empty":
            database.touch()
        elif damage == "a folder":
            database.mkdir()
        os.kill(control, signal.SIGKILL)
        wait_until(lambda: find_child(server, CONTROL) not in (0, control))
        with server.admin() as admin:
            for ask in (admin.status, lambda: admin.rollback("scale"), lambda: argosy.Store(server.home)):
                with pytest.raises(FaultError, match=r"argosy\.db"):
                    # The admin listener is there before anything else has been tried.
                    wait_until(lambda ask=ask: ask_store(ask))
        time.sleep(1.0)
        os.kill(worker, signal.SIGKILL)
        assert can_answer(server)
        if damage != "gone":
            (database.rmdir if damage == "a folder" else database.unlink)()
        away.rename(database)
        wait_until(lambda: is_served(server))
        assert can_answer(server)
        server.deploy("scale", replicas=2)


def ask_store(ask: object) -> None:
    with contextlib.suppress(UnavailableError):
        ask()  # type: ignore[operator]


def is_served(server: Server) -> bool:
    with contextlib.suppress(argosy.ArgosyError), server.admin() as admin:
        return admin.status()["is_ready"]
    return False


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "[]", "{}", "cut"])
def test_file_that_says_where_a_server_is_comes_back_and_commands_say_what_is_wrong_meanwhile(home: Home, damage: str) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        state = server.home / "run" / "serve.json"
        said = state.read_text()
        with server.admin() as known:
            if damage:
                # Or whole, but for what another version of the package knows nothing of.
                state.write_text(json.dumps({"pid": server.pid, "token": ""}) if damage == "cut" else damage)
            else:
                state.unlink()
            for command in (["status"], ["deploy", "scale"], ["serve"], ["restart"]):
                found = subprocess.run(
                    [sys.executable, "-m", "argosy", *command, "--home", str(server.home)], capture_output=True, text=True
                )
                assert (found.returncode, f"process {server.pid}" in found.stderr) == (1, True), (command, found)
            control = find_child(server, CONTROL)
            os.kill(control, signal.SIGKILL)
            wait_until(lambda: find_child(server, CONTROL) not in (0, control))
            assert wait_until(lambda: is_ready(known))
        assert can_answer(server)
        wait_until(lambda: state.exists() and state.read_text() == said)
        server.deploy("scale", replicas=2)


def is_ready(admin: argosy.client.AdminClient) -> bool:
    with contextlib.suppress(UnavailableError):
        return admin.status()["is_ready"]
    return False


# readiness


def test_server_is_not_ready_before_what_it_should_run_has_loaded_and_status_says_why(home: Home) -> None:
    home.publish_scale()
    gate = home.files / "gate"
    home.files.joinpath("model.py").write_text(
        "import pathlib, time\nclass Model:\n    def load(self, folder):\n"
        f"        while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)\n"
        f"        if pathlib.Path({str(gate)!r}).read_text(): raise RuntimeError('no weights')\n"
        "    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
    )
    publish_python(home.store, home.files / "model.py", "late", signature=SIGNATURE, repeatable=True)
    with home.serve("scale") as server, httpx.Client(base_url=server.url, trust_env=False) as client, server.admin() as admin:
        assert client.get("/v2/health/ready").status_code == 200
        ledger = Ledger(home.store)
        first = admin.deploy(ledger.plan("late", allow_code=True))
        wait_until(lambda: client.get("/v2/health/ready").status_code == 503)
        assert client.get("/v2/models/late/ready").status_code == 503
        assert client.post("/v2/models/late/infer", json={}).status_code == 503
        assert find_reason(admin) == "it is being loaded"
        gate.write_text("bad")
        with pytest.raises(FaultError, match="no weights"):
            admin.wait(first.id)
        assert "no weights" in find_reason(admin)
        assert client.get("/v2/health/ready").status_code == 503
        gate.write_text("")
        server.deploy("late", allow_code=True)
        wait_until(lambda: client.get("/v2/health/ready").status_code == 200)
        assert find_reason(admin) == ""
        admin.undeploy("late")
        wait_until(lambda: client.post("/v2/models/late/infer", json={}).status_code == 404)
        assert client.get("/v2/health/ready").status_code == 200


def find_reason(admin: argosy.client.AdminClient) -> str:
    return next(each["reason"] for each in admin.status()["deployments"] if each["spec"]["name"] == "late")
