"""Publishing of Python models: parsed, never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from argosy.errors import InputError
from argosy.importers.python import publish_python
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Golden, Store

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
GOOD = """
import no_such_module
raise SystemExit("this line must not run")

class Model:
    def load(self, folder):
        self.offset = 1

    def infer(self, inputs):
        return {"y": inputs["x"] + self.offset}
"""


def test_python_model_is_published_without_running_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "add_one.py"
    path.write_text(GOOD)
    golden = Golden({"x": np.zeros(1, np.float32)}, {"y": np.ones(1, np.float32)})
    version = publish_python(store, path, "add-one", signature=SIGNATURE, golden=golden, options={"offset": 1})
    manifest = version.manifest
    assert (manifest.runtime, manifest.entry, manifest.repeatable, manifest.num_golden) == ("python", "add_one.py", False, 1)
    assert (manifest.lineage, manifest.options) == ({"source_file": "add_one.py"}, {"offset": 1})
    assert (store.open_artifact(version) / "add_one.py").read_text() == GOOD


@pytest.mark.parametrize(
    ("file_name", "source", "text"),
    [
        pytest.param("model.txt", GOOD, "does not end in .py", id="suffix"),
        pytest.param("model.py", "class Model", "does not parse", id="syntax"),
        pytest.param("model.py", "x = 1\0", "does not parse", id="null byte"),
        pytest.param("model.py", "(" * 5000, "does not parse", id="too deep"),
        pytest.param("model.py", "class Modell: pass", "no class `Model`", id="no class"),
        pytest.param("model.py", "def f():\n  class Model: pass", "no class `Model`", id="class inside a function"),
        pytest.param("model.py", "class Model:\n  def load(self, folder): pass", "infer(self, inputs)", id="no infer"),
        pytest.param("model.py", GOOD.replace("(self, folder)", "(self)"), "load(self, folder)", id="load without folder"),
        pytest.param("model.py", "#" * (5 << 20), "bytes", id="too large"),
    ],
)
def test_file_that_is_no_python_model_is_refused(store: Store, tmp_path: Path, file_name: str, source: str, text: str) -> None:
    path = tmp_path / file_name
    path.write_text(source)
    with pytest.raises(InputError) as caught:
        publish_python(store, path, "evil", signature=SIGNATURE)
    assert caught.value.key == "bad_python_model"
    assert text in caught.value.message
    assert store.list_models() == []
