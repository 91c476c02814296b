"""Change versions under load; versions that must not come up; memory that is not there."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

import argosy
from argosy.deploy.ledger import Ledger
from argosy.errors import ConflictError, FaultError, NotAllowedError, NotFoundError
from argosy.importers.python import publish_python
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from tests.home import SIGNATURE, Home, golden_scale, row
from tests.load import Load
from tests.processes import find_workers, read_state, wait_until


def is_scaled(value: float, answer: np.ndarray, version: str) -> bool:
    return bool((answer == row(value) * (int(version) + 1)).all())


@pytest.fixture
def two_versions(home: Home) -> Home:
    """Version n answers y = (n + 1) * x."""
    home.publish_scale(factor=2.0)
    home.publish_scale(factor=3.0)
    return home


def test_rollouts_and_rollbacks_under_load_lose_nothing(two_versions: Home) -> None:
    with two_versions.serve("scale@1") as server, Load(server, "scale", is_scaled) as load:
        for _ in range(3):
            time.sleep(0.2)
            server.deploy("scale@2")
            with server.admin() as admin:
                rollout = admin.rollback("scale")
                events = list(admin.follow(rollout.id))
            assert events[-1].step == "done", events
        time.sleep(0.2)
    assert load.failures == []
    assert load.versions == {"1", "2"}
    assert load.sent > 300


def test_old_version_is_unloaded_after_the_rollout(two_versions: Home) -> None:
    with two_versions.serve("scale@1") as server:
        before = find_workers(server, "scale")
        server.deploy("scale@2")
        after = find_workers(server, "scale")
        assert len(after) == 1 and after != before
        wait_until(lambda: not Path(f"/proc/{before[0]}").exists())


def test_version_that_cannot_load_leaves_the_live_one(two_versions: Home) -> None:
    two_versions.store.publish("scale", {"model.onnx": b"not a model"}, signature=SIGNATURE, entry="model.onnx")
    with two_versions.serve("scale@1") as server, Load(server, "scale", is_scaled) as load:
        with pytest.raises(FaultError, match="failed at step load") as caught:
            server.deploy("scale@3")
        assert "INVALID_PROTOBUF" in str(caught.value) or "Protobuf" in str(caught.value)
    assert load.failures == []
    assert load.versions == {"1"}


def test_version_that_answers_wrongly_leaves_the_live_one(home: Home) -> None:
    home.publish_scale("scale", 2.0)
    path = home.files / "2.0.onnx"
    wrong = golden_scale(5.0)
    home.store.publish("scale", {"model.onnx": path}, signature=SIGNATURE, entry="model.onnx", golden=wrong)
    with home.serve("scale@1") as server:
        with pytest.raises(FaultError, match="golden examples"):
            server.deploy("scale@2")
        with server.client() as client:
            answer = client.predict("scale", {"x": row(1)})
        assert answer.version == "1"
        np.testing.assert_array_equal(answer["y"], row(2))


def test_worker_that_dies_while_it_loads_fails_the_rollout_with_its_log(home: Home) -> None:
    home.publish_scale("scale", 2.0)
    home.files.joinpath("m.py").write_text(
        "import os, sys\nclass Model:\n    def load(self, folder):\n        print('about to die', file=sys.stderr, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n    def infer(self, inputs):\n        return inputs\n"
    )
    publish_python(home.store, home.files / "m.py", "scale", signature=SIGNATURE)
    with home.serve("scale@1") as server:
        with pytest.raises(FaultError, match="SIGKILL") as caught:
            server.deploy("scale@2", allow_code=True)
        assert "about to die" in str(caught.value)
        with server.client() as client:
            assert client.predict("scale", {"x": row(1)}).version == "1"


def test_python_code_needs_an_opt_in(home: Home) -> None:
    home.publish_code("return {'y': x * 2}")
    with home.serve() as server:
        with pytest.raises(FaultError, match="--allow-code"):
            server.deploy("code")
        assert NotAllowedError.status == 403
        server.deploy("code", allow_code=True)
        with server.client() as client:
            np.testing.assert_array_equal(client.predict("code", {"x": row(1)})["y"], row(2))


def test_rollbacks_go_back_through_what_was_live(two_versions: Home) -> None:
    two_versions.publish_scale(factor=4.0)
    with two_versions.serve("scale@1") as server, server.admin() as admin, server.client() as client:
        with pytest.raises(ConflictError, match="nothing to roll back"):
            admin.rollback("scale")
        server.deploy("scale@2")
        server.deploy("scale@3")
        for expected in ("2", "1"):
            rollout = admin.rollback("scale")
            assert [event.step for event in admin.follow(rollout.id)][-1] == "done"
            assert client.predict("scale", {"x": row(1)}).version == expected
        with pytest.raises(ConflictError, match="nothing to roll back"):
            admin.rollback("scale")


def test_replicas_grow_and_shrink_without_loss(two_versions: Home) -> None:
    with two_versions.serve("scale@1") as server, Load(server, "scale", is_scaled) as load:
        server.deploy("scale@1", replicas=3)
        assert len(find_workers(server, "scale")) == 3
        server.deploy("scale@1", replicas=1)
        wait_until(lambda: len(find_workers(server, "scale")) == 1)
    assert load.failures == []


def test_undeploy_ends_workers_and_answers_404(two_versions: Home) -> None:
    with two_versions.serve("scale@1") as server, server.admin() as admin, server.client() as client:
        (pid,) = find_workers(server, "scale")
        admin.undeploy("scale")
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        with pytest.raises(NotFoundError, match="Unknown model 'scale'"):
            client.predict("scale", {"x": row(1)})


def test_versions_that_do_not_fit_together_are_swapped_and_requests_wait(home: Home) -> None:
    hold = "if not hasattr(self, 'held'): self.held = np.ones(60 << 20, 'u1')\nreturn {'y': x * %d}"
    for factor in (2, 3):
        x = golden_scale().inputs["x"]
        home.publish_code(hold % factor, golden=Golden({"x": x}, {"y": x * factor}))
    with home.serve(memory_limit_bytes=120 << 20) as server:
        server.deploy("code@1", allow_code=True)
        # The second version's need is known only from a load; the first one's stands for it.
        version = home.store.get_version("code@2")
        home.store.add_measurements(version, {"memory_bytes": 70 << 20})
        with Load(server, "code", is_scaled) as load:
            time.sleep(0.3)
            with server.admin() as admin:
                rollout = admin.deploy(_spec(home, "code@2"))
                events = list(admin.follow(rollout.id))
            time.sleep(0.3)
        steps = [event.step for event in events]
        assert "swap" in steps and steps[-1] == "done", events
        assert load.failures == []
        assert load.versions == {"1", "2"}


def test_swap_that_fails_brings_the_old_version_back_and_loses_nothing(home: Home) -> None:
    hold = "if not hasattr(self, 'held'): self.held = np.ones(60 << 20, 'u1')\nreturn {'y': x * %d}"
    x = golden_scale().inputs["x"]
    home.publish_code(hold % 2, golden=Golden({"x": x}, {"y": x * 2}))
    home.publish_code(hold % 3, golden=Golden({"x": x}, {"y": x * 9}))
    with home.serve(memory_limit_bytes=120 << 20) as server:
        server.deploy("code@1", allow_code=True)
        home.store.add_measurements(home.store.get_version("code@2"), {"memory_bytes": 70 << 20})
        with Load(server, "code", is_scaled) as load:
            time.sleep(0.2)
            with pytest.raises(FaultError, match="golden examples"):
                server.deploy("code@2")
            time.sleep(0.2)
        assert load.failures == []
        assert load.versions == {"1"}


def test_version_that_never_fits_is_refused(home: Home) -> None:
    home.publish_scale(factor=2.0)
    home.publish_scale(factor=3.0)
    home.store.add_measurements(home.store.get_version("scale@2"), {"memory_bytes": 1 << 40})
    with home.serve("scale@1") as server:
        with pytest.raises(FaultError, match="needs about"):
            server.deploy("scale@2")
        with server.client() as client:
            assert client.predict("scale", {"x": row(1)}).version == "1"


def test_deploy_without_a_server_is_done_by_the_next(two_versions: Home) -> None:
    from argosy.deploy.ledger import Ledger

    ledger = Ledger(two_versions.store)
    ledger.request_rollout(ledger.plan("scale@1"))
    with two_versions.serve() as server, server.client() as client:
        wait_until(lambda: _ready(client))
        assert client.predict("scale", {"x": row(1)}).version == "1"


def _ready(client: argosy.Client) -> bool:
    try:
        return client.is_ready("scale")
    except NotFoundError:
        return False


def _spec(home: Home, reference: str) -> argosy.DeploymentSpec:
    from argosy.deploy.ledger import Ledger

    return Ledger(home.store).plan(reference)


def test_settings_change_under_load_without_waiting_for_idleness(home: Home) -> None:
    home.publish_code("time.sleep(0.02)\nreturn {'y': x * 2}")
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        # Eight clients of a model that takes one request at a time: the lane is never empty.
        with Load(server, "code", is_scaled) as load:
            time.sleep(0.3)
            (before,) = find_workers(server, "code")
            start = time.monotonic()
            server.deploy("code", max_queue_rows=100)
            assert time.monotonic() - start < 5.0
            assert find_workers(server, "code") == [before]
    assert load.failures == []


def test_rows_are_joined_again_after_a_worker_was_replaced(home: Home) -> None:
    home.publish_scale()
    home.files.joinpath("m.py").write_text(
        "import time\nclass Model:\n    def load(self, folder):\n        time.sleep(1.0)\n"
        "    def infer(self, inputs):\n        return {'y': inputs['x'] * 2}\n"
    )
    publish_python(home.store, home.files / "m.py", "slow", signature=SIGNATURE, golden=golden_scale(), repeatable=True)
    with home.serve() as server:
        server.deploy("slow", allow_code=True)
        (pid,) = find_workers(server, "slow")
        os.kill(pid, signal.SIGKILL)
        # A new table is made while the replica loads.
        server.deploy("scale")
        wait_until(lambda: find_workers(server, "slow"))
        with server.admin() as admin:
            lanes = {lane["name"]: lane for lanes in admin.stats()["fronts"].values() for lane in lanes}
        assert lanes["slow"]["can_join"] is True


def test_another_signature_needs_consent_for_this_rollout_alone(home: Home) -> None:
    home.publish_scale()
    wider = Signature(
        (TensorSpec("x", "FP64", (-1, 4)), TensorSpec("mask", "BOOL", (-1, 4))), (TensorSpec("y", "FP32", (-1, 4)),)
    )
    home.publish_code("return {'y': x.astype('f4') * 3}", "scale", signature=wider)
    differences = "input `mask` is new, BOOL [-1, 4]; input `x` is FP64 [-1, 4], was FP32 [-1, 4]"
    with home.serve("scale@1") as server, server.admin() as admin, server.client() as client:
        workers = find_workers(server, "scale")
        spec = Ledger(home.store).plan("scale@2", allow_code=True)
        with pytest.raises(NotAllowedError, match=re.escape(differences)):
            admin.deploy(spec)
        with pytest.raises(NotAllowedError, match="--allow-signature-change"):
            server.deploy("scale@2", allow_code=True)
        answer = httpx.post(
            f"{server.url}/v2/repository/models/scale/load",
            headers={"Authorization": f"Bearer {read_state(server)['token']}"},
            trust_env=False,
        )
        assert answer.status_code == 403
        assert (find_workers(server, "scale"), admin.status()["deployments"][0]["rollouts"][0]["id"]) == (workers, 1)
        server.deploy("scale@2", allow_code=True, allow_signature_change=True)
        # The same settings once more are no consent; another deployment asks for none.
        with pytest.raises(NotAllowedError, match=r"input `mask` is gone; input `x` is FP32"):
            server.deploy("scale@1")
        server.deploy("scale@1", name="other")
        with pytest.raises(NotAllowedError, match="mask"):
            admin.rollback("scale")
        admin.wait(admin.rollback("scale", allow_signature_change=True).id)
        assert client.predict("scale", {"x": row(1)}).version == "1"


TRIALS = {
    "return {'y': x * 2}": r"was answered in \S+ ms",
    "raise ValueError('what is this')": "failed, which may be for its values: ValueError: what is this",
    "return {'y': [[None] * 4]}": "failed, which may be for its values: AnswerError: output 'y' holds None, .* for float32",
    "raise SystemExit": "failed, which may be for its values: SystemExit",
    "time.sleep(1000)": "was not answered within 2 s",
    "import ctypes\n    ctypes.PyDLL(None).sleep(1000)": "was not answered within 2 s",
    "os._exit(1)": "ended the process",
}


def test_version_without_golden_examples_is_asked_once_and_the_rollout_says_what_came_of_it(home: Home) -> None:
    for body in TRIALS:
        home.publish_code(f"self.count += 1\nif not x.any():\n    {body}\nreturn {{'y': x + self.count}}")
    with home.serve() as server, server.admin() as admin, server.client() as client:
        for version, expected in enumerate(TRIALS.values(), 1):
            rollout = admin.deploy(argosy.DeploymentSpec(name="code", model="code", version=version, allow_code=True))
            steps = {event.step: event.detail for event in admin.follow(rollout.id)}
            assert "done" in steps
            told = f"no golden examples, nothing verified; a made-up request of zeros {expected}; "
            assert re.search(told, steps["verify"]), steps["verify"]
            # Who answers clients knows nothing of it.
            assert client.predict("code", {"x": row(1)})["y"][0, 0] == 2.0


WRONG = {
    "return {'z': x}": "output 'y' is missing; got z",
    "return {}": "output 'y' is missing; got none",
    "return x": "the model gives a ndarray, expected a dict of outputs by their names",
    "return {'y': x.astype('f8')}": "output 'y' has type float64, expected float32",
    "return {'y': [['a'] * 4]}": "output 'y' holds a str, expected numbers for float32",
    "return {'y': x[0]}": "output 'y' has shape (4,), expected (-1, 4)",
    "return {'y': x[:, :3]}": "output 'y' has shape (1, 3), expected (-1, 4)",
}


def test_outputs_that_no_request_would_make_those_of_the_signature_are_refused_before_clients_ask(home: Home) -> None:
    home.publish_code("return {'y': x * 2}")
    for body in WRONG:
        home.publish_code(body)
    with home.serve() as server, server.client() as client:
        server.deploy("code@1", allow_code=True)
        for version, expected in enumerate(WRONG.values(), 2):
            with pytest.raises(FaultError, match=f"what the signature does not have: {re.escape(expected)}"):
                server.deploy(f"code@{version}", allow_code=True)
        assert client.predict("code", {"x": row(1)}).version == "1"


def test_output_of_a_length_that_may_be_for_that_of_the_made_up_request_refuses_nothing(home: Home) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, 4)),))
    home.publish_code("return {'y': x}", signature=signature)
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        assert client.predict("code", {"x": row(1)})["y"].shape == (1, 4)


def test_import_that_takes_longer_than_a_made_up_request_may_is_left_whole(home: Home) -> None:
    lazy = "import sys, types\nif 'lazy' not in sys.modules:\n    made = sys.modules['lazy'] = types.ModuleType('lazy')\n"
    home.publish_code(f"{lazy}    time.sleep(2.5)\n    made.factor = 3\nreturn {{'y': x * sys.modules['lazy'].factor}}")
    with home.serve() as server, server.client() as client:
        server.deploy("code", allow_code=True)
        assert client.predict("code", {"x": row(1)}, timeout_s=20)["y"][0, 0] == 3.0
