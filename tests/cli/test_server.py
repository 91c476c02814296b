"""The commands beside a real server, each a process of its own.

The server is shared: `affine` stays at version 1, and a test that changes something has a deployment of its own.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import Result

from argosy.client import AdminClient, Client
from argosy.deploy.ledger import Ledger
from argosy.home import find_server
from tests.cli.site import Site, make_affine_model
from tests.processes import wait_until

CODE = (
    "class Model:\n    def load(self, folder):\n        pass\n\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
)
SIGNATURE = {side: [{"name": name, "datatype": "FP32", "shape": [-1]}] for side, name in (("inputs", "x"), ("outputs", "y"))}


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Site]:
    """The site's server; `recorded` was deployed before it ran, `affine` by `serve` itself."""
    done = site.run("deploy", "affine@1", "--as", "recorded")
    assert done.stdout == "no server runs: recorded, the next `argosy serve` will deploy affine@1 as recorded\n"
    site.start("--deploy", "affine@1", "--drain-s", "0.2")
    with Client(url_of(site)) as client:
        wait_until(lambda: client.is_ready("recorded") and client.is_ready("affine"))
    yield site
    assert site.stop() == 0
    assert find_server(site.home) is None


def url_of(site: Site) -> str:
    state = find_server(site.home)
    assert state is not None
    return f"http://127.0.0.1:{state['http_port']}"


def deploy(site: Site, reference: str, name: str) -> None:
    """Deploy from this process, which is quicker."""
    with AdminClient(site.home) as admin:
        admin.wait(admin.deploy(Ledger(site.store).plan(reference, name=name)).id)


def run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]


def run_pasted(done: subprocess.CompletedProcess[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paste what `deploy` printed into a shell and into Python; the two answers."""
    _, curl, python = done.stdout.rstrip().split("\n\n")
    answered = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    (output,) = json.loads(answered.stdout)["outputs"]
    printed: list[Any] = []
    lines = python.splitlines()
    assert len(lines) == 3
    scope: dict[str, Any] = {"print": printed.append}
    exec(python, scope)
    scope["client"].close()
    return np.array(output["data"], np.float32).reshape(output["shape"]), printed[0]["y"]


def test_serve_deploys_what_was_recorded_and_asked_for(served: Site) -> None:
    with Client(url_of(served)) as client:
        for name in ("recorded", "affine"):
            assert client.predict(name, np.zeros((1, 4))).version == "1"


def test_second_server_is_refused(served: Site) -> None:
    found = served.read("serve", code=1)
    assert found["key"] == "server_running" and str(served.server and served.server.pid) in found["error"]


def test_deploy_prints_steps_and_lines_that_work(served: Site) -> None:
    deploy(served, "affine@1", "stepped")
    done = served.run("deploy", "affine@2", "--as", "stepped")
    steps = [line.split()[1] for line in done.stderr.splitlines()]
    assert steps == ["check", "load", "verify", "shift", "drain", "unload", "done"]
    assert done.stdout.startswith(f"stepped answers with affine@2 at {url_of(served)}/v2/models/stepped\n")
    golden = served.store.load_golden(served.store.get_version("affine@2"))
    expected = run_onnx(served.folder / "affine2.onnx", {"x": golden.inputs["x"][:1]})
    for answer in run_pasted(done):
        # The numbers are written exactly, and the same session answers: what differs is the batch it ran in.
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)


def test_large_request_to_paste_works(served: Site) -> None:
    path = make_affine_model(served.folder / "wide.onnx", 3, width=5000)
    served.run("import", path, "--name", "wide")
    done = served.run("deploy", "wide")
    expected = run_onnx(path, {"x": np.zeros((1, 5000), np.float32)})
    for answer in run_pasted(done):
        np.testing.assert_allclose(answer, expected, rtol=1e-6, atol=1e-6)


def test_deploy_keeps_settings_that_are_not_given(served: Site) -> None:
    first = served.read("deploy", "affine@1", "--as", "kept", "--max-batch-rows", 8, "--timeout-s", 5, "--no-wait")
    assert first["rollout"]["state"] in ("pending", "running")
    wait_until(lambda: not Ledger(served.store).list_open_rollouts())
    second = served.read("deploy", "affine@latest", "--as", "kept", "--replicas", 2)
    spec = second["rollout"]["spec"]
    assert (spec["version"], spec["replicas"], spec["max_batch_rows"], spec["timeout_s"]) == (2, 2, 8, 5.0)
    assert second["rollout"]["state"] == "done" and second["events"][-1]["step"] == "done"
    assert second["curl"].startswith("curl") and second["python"].startswith("from argosy import Client")


def test_failed_deploy_says_why_and_leaves_the_live_version(served: Site) -> None:
    (served.folder / "code.py").write_text(CODE)
    (served.folder / "code.json").write_text(json.dumps(SIGNATURE))
    served.run("import", "code.py", "--name", "code", "--signature", "code.json")
    done = served.run("deploy", "code", code=1)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-2].startswith("error: ") and "was not allowed" in lines[-2]
    assert lines[-1] == "hint: say --allow-code (allow_code=True) if you trust its publisher"
    found = served.read("deploy", "code", code=1)
    assert found["key"] == "rollout_failed"
    # Without golden examples the lines are made of zeros.
    x, y = run_pasted(served.run("deploy", "code", "--allow-code"))
    assert x.tolist() == y.tolist() == [0.0]


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".json"])
def test_predict_reads_files(suffix: str, served: Site) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
    path = served.folder / f"inputs{suffix}"
    match suffix:
        case ".npz":
            np.savez(path, x=x)
        case ".npy":
            np.save(path, x)
        case _:
            path.write_text(json.dumps({"x": x.tolist()}))
    found = served.read("predict", "affine", "--input", path)
    assert (found["model"], found["version"], found["golden_difference"]) == ("affine", "1", None)
    output = found["outputs"]["y"]
    assert output["datatype"] == "FP32" and output["shape"] == [2, 3]
    np.testing.assert_allclose(output["data"], run_onnx(served.folder / "affine1.onnx", {"x": x}), rtol=1e-6, atol=1e-6)


def test_predict_sends_golden_examples(served: Site) -> None:
    lines = served.run("predict", "affine", "--golden", 3).stdout.splitlines()
    assert lines[:2] == ["affine version 1", "y FP32 (1, 3)"]
    assert float(lines[-1].removeprefix("largest difference from the recorded outputs: ")) < 1e-5
    assert served.read("predict", "affine", "--golden", 8, code=1)["key"] == "bad_option"


def test_predict_shows_the_refusal_of_the_server(served: Site) -> None:
    (served.folder / "short.json").write_text("[[1, 2]]")
    done = served.run("predict", "affine", "--input", "short.json", "--url", url_of(served), code=1)
    assert done.stderr.startswith("error: Input 'x' of model 'affine' version 1 has shape (1, 2), expected (-1, 4)")
    unreachable = served.read("predict", "affine", "--input", "short.json", "--url", "http://127.0.0.1:1", code=1)
    assert unreachable["key"] == "no_connection" and "http://127.0.0.1:1" in unreachable["error"]
    assert served.read("predict", "affine", "--input", "short.json", "--version", 9, code=1)["error"].startswith("Version 9")


def test_rollback_goes_to_the_version_before(served: Site) -> None:
    deploy(served, "affine@1", "moving")
    assert served.read("rollback", "moving", code=1)["key"] == "no_rollback"
    deploy(served, "affine@2", "moving")
    done = served.run("rollback", "moving")
    assert done.stdout == "moving answers with affine@1\n"
    assert done.stderr.splitlines()[-1].split()[1] == "done"
    with Client(url_of(served)) as client:
        assert client.predict("moving", np.zeros((1, 4))).version == "1"


def test_status_shows_what_runs(served: Site) -> None:
    lines = served.run("status").stdout.splitlines()
    assert lines[0].startswith("server: process ") and url_of(served) in lines[0]
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert rows["NAME"][1:4] == ["MODEL", "VERSION", "READY"]
    assert rows["affine"][1:6] == ["affine", "1", "yes", "100%", "1/1"]
    found = served.read("status")
    assert found["addresses"]["http"] == url_of(served)
    assert {deployment["spec"]["name"] for deployment in found["deployments"]} <= set(rows)


def test_stats_count_answers(served: Site) -> None:
    with Client(url_of(served)) as client:
        client.predict("affine", np.zeros((2, 4)))
    rows = {tuple(line.split()[:2]): line.split() for line in served.run("stats").stdout.splitlines()}
    series = {(entry["name"], entry["version"]): entry for entry in served.read("stats")["series"]}
    assert series["affine", "1"]["ok"] == int(rows["affine", "1"][2]) >= 1
    assert rows["NAME", "VERSION"][2:4] == ["OK", "BAD"]


def test_logs_are_read_by_name(served: Site) -> None:
    names = served.run("logs").stdout.split()
    assert {"control", "front-0"} <= set(names)
    lines = served.run("logs", "control", "--lines", 3).stdout.splitlines()
    assert len(lines) == 3 and "rollout" in lines[-1]
    assert served.read("logs", "control", "--lines", 2)["lines"] == served.read("logs", "control", "--lines", 3)["lines"][1:]
    assert served.read("logs", "../serve", code=1)["key"] == "unknown_choice"


@pytest.mark.parametrize("command", ["status", "stats"])
def test_help_says_what_each_column_means_and_so_do_the_docs(served: Site, command: str) -> None:
    table = next(line for line in served.run(command).stdout.splitlines() if line.startswith("NAME"))
    columns = re.split(r" {2,}", table)
    told = served.run(command, "--help").stdout
    assert [name for name in columns if not re.search(rf"\b{name}\b", told)] == (
        [] if command == "status" else ["NAME", "VERSION"]
    )
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    rows = " ".join(re.findall(r"^\| ([A-Z0-9/, ]+) \|", page, re.MULTILINE))
    assert [name for name in columns if name not in rows] == []


def test_undeploy_ends_a_deployment(served: Site) -> None:
    deploy(served, "affine@1", "gone")
    assert served.run("undeploy", "gone").stdout == "gone is not deployed any more\n"
    refused = served.read("undeploy", "gone", code=1)
    assert refused["key"] == "unknown_deployment" and "affine, " in refused["error"]
    with Client(url_of(served)) as client:
        wait_until(lambda: not client.is_ready("gone"))
    assert served.store.get_version("affine@1").number == 1


def test_without_a_server_changes_are_recorded(call: Callable[..., Result], tmp_path: Path) -> None:
    for seed in (1, 2):
        call("import", make_affine_model(tmp_path / "a.onnx", seed), "--name", "affine")
    found = json.loads(call("deploy", "affine@1", "--threads", 1, "--json").stdout)
    assert found["rollout"]["state"] == "pending" and found["rollout"]["spec"]["threads"] == 1
    assert call("rollback", "affine").exit_code == 1
    assert call("undeploy", "affine").exit_code == 0
    assert call("undeploy", "affine").exit_code == 1


def test_pasted_python_needs_nothing_but_the_package(served: Site) -> None:
    found = served.read("deploy", "affine@1")
    done = subprocess.run(
        [sys.executable, "-c", found["python"]], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.startswith("Prediction({'y': array([[") and "version='1'" in done.stdout


def test_restart_runs_the_server_anew_and_status_says_so(served: Site) -> None:
    before = find_server(served.home)
    assert before is not None
    done = served.run("restart", "--json")
    assert json.loads(done.stdout) == {"pid": before["pid"], "url": url_of(served), "num_restarts": 1}
    assert "restarted (1) at" in served.run("status").stdout
    assert json.loads(served.run("status", "--json").stdout)["restarts"] == 1
    # What its starter gave counts again.
    after = find_server(served.home)
    assert after is not None
    assert (after["given"], after["http_port"]) == (before["given"], before["http_port"])


def test_stop_ends_the_server_and_says_when_none_runs(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert "No server runs" in site.read("stop", code=1)["error"]
    site.start("--drain-s", "30")
    server = site.server
    assert server is not None
    late = site.read("stop", "--timeout-s", "0.2", code=1)
    assert late["key"] == "stop_failed" and f"process {server.pid}) has not ended within 0.2 s" in late["error"]
    # It was told already, and ends at once now.
    assert re.fullmatch(rf"the server \(process {server.pid}\) has ended, after [0-3]\.\d s\n", site.run("stop").stdout)
    assert server.wait(1.0) == 0
    assert site.read("stop", code=1)["key"] == "no_server"


def test_port_in_use_says_which_setting_names_another(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = site.run("serve", "--http-port=0", f"--grpc-port={port}", code=2)
    assert (
        f"Port {port} of 127.0.0.1 cannot be used: Address already in use\nhint: --grpc-port names another (or ARGOSY_"
        in done.stderr
    )
