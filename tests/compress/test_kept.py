"""A search of recipes is kept trial by trial: killed at any moment, the same call goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from argosy.errors import ConflictError, InputError
from argosy.importers.onnx import import_onnx
from argosy.search.journal import hold_folder
from argosy.store.local import Store
from tests.compress.outliers import make_layers

# Its own search of four recipes for the size, told line by line.
SEARCH = """
import importlib, sys
import numpy as np
from argosy.compress import compress
from argosy.compress.recipe import get_recipe
from argosy.store.local import Store
find = importlib.import_module("argosy.compress.find")
find._QUICK_S = find._CAREFUL_S = 0.02
names = ("float16", "simplify", "int8")
find.list_recipes = lambda artifact, workshop: [get_recipe(name) for name in names]
result = compress("net", objective="size", search=sys.argv[2], data=np.load(sys.argv[3]), store=Store(sys.argv[1]), served=False,
    budget=find.Budget(trials=5), say=lambda text: print(text, flush=True))
print("found", result.title, result.version.number, flush=True)
"""


def run(home: Path, method: str, rows: Path, num_lines: int | None = None) -> list[str]:
    """Run a search, and kill it after it has said so much."""
    command = [sys.executable, "-c", SEARCH, str(home), method, str(rows)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if len(lines) == num_lines:
                process.send_signal(signal.SIGKILL)
                break
    return lines


@pytest.mark.parametrize("method", ["gradient", pytest.param("tpe", marks=pytest.mark.slow)])
def test_killed_compression_goes_on_and_tries_nothing_twice(method: str, tmp_path: Path) -> None:
    artifact, rows = make_layers(tmp_path / "network", "channel")
    np.save(tmp_path / "rows.npy", rows)
    homes = [tmp_path / name for name in ("killed", "whole")]
    for home in homes:
        import_onnx(Store(home), artifact.path, "net")
    undisturbed = run(homes[1], method, tmp_path / "rows.npy")
    first = run(homes[0], method, tmp_path / "rows.npy", 2)
    rest = run(homes[0], method, tmp_path / "rows.npy")
    assert rest[0].startswith("2 recipes were tried before") and rest[-1] == undisturbed[-1]
    assert not list((homes[0] / "search").iterdir())

    def list_tried(lines: list[str]) -> list[str]:
        return [line.partition(": ")[0] for line in lines if "of the original" in line and not line.startswith("once more")]

    assert first == undisturbed[:2]
    assert list_tried(first) + list_tried(rest) == list_tried(undisturbed)


def test_compression_that_another_process_searches_is_refused(store: Store, tmp_path: Path) -> None:
    from argosy.compress import run as module
    from argosy.compress.judge import Guard

    artifact, rows = make_layers(tmp_path / "network", "channel")
    version = import_onnx(store, artifact.path, "net")
    found = []
    choose = module.choose_keeping
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose_keeping", lambda *args: found.append(choose(*args)) or found[0])
        patch.setattr("argosy.compress.find.list_recipes", lambda artifact, workshop: [])
        with pytest.raises(ConflictError):
            module.compress(version, data=rows, guard=Guard(), store=store)
    folder = store.home / "search" / found[0].name
    with hold_folder(folder, "it"), pytest.raises(ConflictError, match="the same compression of net@1 now") as caught:
        module.compress(version, data=rows, guard=Guard(), store=store)
    # Its user has named no search, and can name no other.
    assert "--name" not in caught.value.hint and "--restart" not in caught.value.hint
    (folder / "journal.log").write_text('{"op_code": 99}\n')
    with pytest.raises(InputError, match="for the compression of net@1 has kept cannot be read") as damaged:
        module.compress(version, data=rows, guard=Guard(), store=store)
    assert f"remove the folder {folder}" in damaged.value.hint
