"""What a confined process can still do: every framework builds, saves, loads and runs models there."""

from __future__ import annotations

import importlib.util
import signal
import venv
from pathlib import Path

import pytest

import argosy
from argosy.confine.confine import describe_confinement
from tests.confine.box import Box

pytestmark = pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel cannot confine a process")

USES = {
    "torch": (
        "import torch\nmodel = torch.nn.Linear(4, 2)\nmodel(torch.ones(8, 4)).sum().backward()\n"
        "torch.jit.script(model).save(WRITE + '/m.pt'); torch.jit.load(WRITE + '/m.pt')(torch.ones(1, 4))\n"
        "torch.save(model, WRITE + '/m.pkl'); torch.load(WRITE + '/m.pkl', weights_only=False)"
    ),
    "keras": (
        "import keras, numpy\nmodel = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse'); model.fit(numpy.ones((8, 4)), numpy.ones((8, 1)), verbose=0)\n"
        "model.save(WRITE + '/m.keras'); keras.models.load_model(WRITE + '/m.keras')\n"
        "import tensorflow as tf\nmodel.export(WRITE + '/saved', verbose=False); tf.saved_model.load(WRITE + '/saved')"
    ),
    "jax": "import jax\njax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))).block_until_ready()",
    "sklearn": (
        "import joblib, numpy\nfrom sklearn.ensemble import RandomForestClassifier\n"
        "model = RandomForestClassifier(5, n_jobs=2).fit(numpy.eye(8), range(8))\n"
        "joblib.dump(model, WRITE + '/m.joblib'); joblib.load(WRITE + '/m.joblib').predict(numpy.eye(8))"
    ),
    "xgboost": (
        "import numpy, xgboost\nmodel = xgboost.XGBRegressor(n_estimators=3).fit(numpy.eye(8), numpy.arange(8.0))\n"
        "model.save_model(WRITE + '/m.ubj'); model.load_model(WRITE + '/m.ubj'); model.predict(numpy.eye(8))"
    ),
    "lightgbm": (
        "import lightgbm, numpy\ndata = lightgbm.Dataset(numpy.eye(64), numpy.arange(64.0))\n"
        "lightgbm.train({'verbose': -1}, data, 3).predict(numpy.eye(64))"
    ),
    "onnxruntime": "import onnxruntime\nonnxruntime.get_available_providers()",
}


@pytest.mark.parametrize("framework", [pytest.param(name, marks=[pytest.mark.slow] if name == "keras" else []) for name in USES])
def test_framework_works_confined(tmp_path: Path, framework: str) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    done = Box(tmp_path).run(USES[framework] + "\nprint('used')", env={"KERAS_BACKEND": "tensorflow"}, memory_bytes=8 << 30)
    assert done.stdout.decode().endswith("used\n"), done.stderr


def test_libraries_may_use_threads_pairs_and_signals_of_their_own(tmp_path: Path) -> None:
    done = Box(tmp_path).run(
        "import asyncio, threading\n"
        "thread = threading.Thread(target=lambda: print('thread')); thread.start(); thread.join()\n"
        "left, right = socket.socketpair(); left.send(b'pair'); print(right.recv(9))\n"
        "asyncio.run(asyncio.sleep(0)); print(len(os.urandom(4)), os.cpu_count()); os.abort()"
    )
    assert done.stdout.decode().split() == []  # abort() does not flush, and nothing was denied before it
    assert (done.stderr, done.returncode) == ("", -signal.SIGABRT)


def test_other_interpreter_sees_argosy_and_none_of_its_libraries(tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    done = Box(tmp_path / "box").run(
        "import argosy, argosy.errors, importlib.util, sys\n"
        "print(argosy.__file__, importlib.util.find_spec('numpy'), sys.prefix, sep='\\n')",
        python=tmp_path / "other" / "bin" / "python",
    )
    assert done.stdout.decode().splitlines() == [argosy.__file__, "None", str(tmp_path / "other")], done.stderr
