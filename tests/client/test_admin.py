from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from argosy.client import AdminClient
from argosy.deploy.ledger import Ledger
from argosy.errors import ConflictError, FaultError, InputError, NotFoundError, UnavailableError
from argosy.server import Server
from tests.home import Home, make_scale_model, row
from tests.processes import find_child


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("admin"))
    home.publish_scale("scale", 2.0)
    return home


@pytest.fixture(scope="module")
def server(filled: Home) -> Iterator[Server]:
    with filled.serve("scale") as server:
        yield server


def test_admin_needs_a_server(home: Home) -> None:
    with pytest.raises(UnavailableError, match=str(home.store.home)) as caught:
        AdminClient(home.store.home)
    assert caught.value.key == "no_server"


def test_admin_takes_a_stale_state_for_no_server(home: Home) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    run = home.store.home / "run"
    run.mkdir()
    (run / "serve.json").write_text(json.dumps({"pid": child.pid, "token": "t", "admin_port": 1}))
    with pytest.raises(UnavailableError):
        AdminClient(home.store.home)


def test_admin_rolls_out_and_back(filled: Home, server: Server) -> None:
    for factor in (3.0, 4.0):
        filled.publish_scale("moving", factor)
    ledger = Ledger(filled.store)
    with server.admin() as admin:
        first = admin.deploy(ledger.plan("moving@1"))
        assert first.state in ("pending", "running") and first.from_version is None
        assert [event.step for event in admin.follow(first.id)] == ["check", "load", "verify", "shift", "done"]
        assert admin.rollout(first.id).rollout.state == "done"
        seen: list[str] = []
        second = admin.wait(admin.deploy(ledger.plan("moving@2")).id, lambda event: seen.append(event.step))
        assert (second.state, second.from_version, seen[-1]) == ("done", 1, "done")
        with server.client() as client:
            assert client.predict("moving", row(1.0)).version == "2"
            admin.wait(admin.rollback("moving").id)
            assert client.predict("moving", row(1.0))["y"][0, 0] == 3.0
        progress = admin.rollout(second.id, after=2)
        assert progress.is_over and progress.events[0].number == 3


def test_admin_wait_tells_why_a_rollout_failed(filled: Home, server: Server) -> None:
    filled.publish_code("return {'y': x}", "untrusted")
    with server.admin() as admin:
        rollout = admin.deploy(Ledger(filled.store).plan("untrusted"))
        with pytest.raises(FaultError, match="may run code of its maker") as caught:
            admin.wait(rollout.id)
    assert caught.value.key == "rollout_failed"
    assert caught.value.hint == "say --allow-code (allow_code=True) if you trust its publisher"


def test_admin_errors_keep_class_key_and_text(filled: Home, server: Server) -> None:
    with server.admin() as admin:
        with pytest.raises(NotFoundError, match="nothing") as caught:
            admin.undeploy("nothing")
        assert caught.value.key == "unknown_deployment"
        with pytest.raises(ConflictError) as conflict:
            admin.rollback("scale")
        assert conflict.value.key == "no_rollback"
        with pytest.raises(NotFoundError):
            admin.rollout(10**9)


def test_admin_publishes_a_file(filled: Home, server: Server) -> None:
    path = make_scale_model(filled.files / "sent.onnx", 5.0)
    with server.admin() as admin:
        assert admin.publish("sent", path) | {"digest": ""} == {"name": "sent", "version": 1, "digest": ""}
        with pytest.raises(InputError, match="does not exist"):
            admin.publish("sent", filled.files / "none.onnx")
        (filled.files / "text.onnx").write_text("no model")
        with pytest.raises(InputError, match="not an ONNX model"):
            admin.publish("sent", filled.files / "text.onnx")
    assert filled.store.get_version("sent@1").manifest.runtime == "onnx"


def test_admin_tells_status_stats_and_logs(server: Server) -> None:
    with server.client() as client:
        client.predict("scale", row(1.0))
    with server.admin() as admin:
        assert admin.url == server.url and admin.pid == server.pid
        assert set(admin.addresses) == {"http", "grpc", "metrics", "admin"}
        status = {deployment["spec"]["name"]: deployment for deployment in admin.status()["deployments"]}
        assert status["scale"]["is_ready"]
        series = {(entry["name"], entry["version"]): entry for entry in admin.stats()["series"]}
        assert series["scale", "1"]["ok"] >= 1
        assert "control" in admin.logs()
        assert "is live" in admin.logs("control")
        assert len(admin.logs("control", max_bytes=10)) <= 10
        with pytest.raises(NotFoundError, match="control"):
            admin.logs("nothing")


def test_admin_follow_survives_a_new_control_process(filled: Home, server: Server) -> None:
    filled.publish_scale("surviving", 6.0)
    with server.admin() as admin:
        rollout = admin.deploy(Ledger(filled.store).plan("surviving"))
        os.kill(find_child(server, "argosy.deploy.control"), signal.SIGKILL)
        assert admin.wait(rollout.id).state == "done"
