"""Triton's C++ core with the models of `argosy conformance` in its Python backend; a program."""

import shutil
from pathlib import Path

from conformance_graph import FOLDER, GRPC_PORT, PORT, Graph, list_names
from triton_start import start

HERE = Path(__file__).parent


MAX_ROWS = 4096


def describe(word: str, tensors: list) -> str:
    """Tensors of a model; of their shape what follows the axis of rows."""
    lines = []
    for spec in tensors:
        kind = {"BYTES": "STRING"}.get(spec["datatype"], spec["datatype"])
        # Without a further axis there is one of length 1 for Triton.
        reshape = "" if spec["shape"][1:] else "reshape: { shape: [] } "
        lines.append(f'{word} {{ name: "{spec["name"]}" data_type: TYPE_{kind} dims: {spec["shape"][1:] or [1]} {reshape}}}\n')
    return "".join(lines)


def make_repository() -> Path:
    repository = FOLDER / "triton"
    for name in list_names():
        graph, folder = Graph(name), repository / name
        (folder / "1").mkdir(parents=True)
        shutil.copy(HERE / "conformance_triton_model.py", folder / "1" / "model.py")
        shutil.copy(HERE / "conformance_graph.py", folder / "1")
        config = f'name: "{name}"\nbackend: "python"\nmax_batch_size: {MAX_ROWS}\n' + describe("input", graph.inputs)
        (folder / "config.pbtxt").write_text(config + describe("output", graph.outputs))
    return repository


if __name__ == "__main__":
    start(make_repository(), PORT, GRPC_PORT, "--model-control-mode=explicit", "--load-model=*")
