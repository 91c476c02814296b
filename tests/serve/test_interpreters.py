"""Workers in another interpreter: an environment that vanishes under a server costs its models, not the server."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from argosy.environment import find_interpreter, get_environment
from argosy.errors import ArgosyError
from tests.home import Home, row
from tests.processes import find_workers, is_alive, list_children, wait_until

PROGRAM = """
import mxnet as mx, numpy as np
import argosy
model = mx.gluon.nn.HybridSequential()
model.add(mx.gluon.nn.Dense(2, in_units=4))
model.initialize(mx.init.One())
argosy.publish(model, "gluon", sample=np.ones((1, 4), np.float32), native=True)
"""


def test_environment_that_is_removed_costs_its_models_alone(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = find_interpreter("mxnet")
    subprocess.run(
        [str(python), "-W", "ignore", "-c", PROGRAM],
        env=os.environ | {"ARGOSY_HOME": str(home.store.home)},
        check=True,
        timeout=90,
    )
    folder = get_environment("mxnet").folder
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    own = get_environment("mxnet").folder
    own.parent.mkdir(parents=True, mode=0o700)
    subprocess.run(["cp", "-al", str(folder), str(own)], check=True)
    home.publish_scale()
    with home.serve("scale", "gluon") as server, server.client() as client:
        np.testing.assert_allclose(
            client.predict("gluon", {"input": np.ones((3, 4), np.float32)})["output"], np.full((3, 2), 4.0)
        )
        own.rename(own.with_name("away"))
        there = [pid for pid in list_children(server.pid) if str(own) in Path(f"/proc/{pid}/cmdline").read_text()]
        assert {*find_workers(server, "gluon")} < {*there}  # and their template
        for pid in there:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
        assert is_alive(server.pid)
        assert client.predict("scale", {"x": row(3)})["y"].tolist() == (row(3) * 2).tolist()
        own.with_name("away").rename(own)

        def answers() -> bool:
            try:
                return bool(client.predict("gluon", {"input": np.ones((1, 4), np.float32)})["output"].shape == (1, 2))
            except ArgosyError:
                return False

        wait_until(answers, 60)
