"""Write the tensors of an ONNX file as safetensors: the confined child of a start from a version that was imported.

    python -m argosy.train.initializers MODEL.onnx FOLDER

The exit code is that of the disk's error where there is one, else 0 or 1; the last line of standard error says what failed.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from argosy.signature import Arrays
from argosy.store.manifest import WEIGHTS_FILE
from argosy.train.kept import write_kept

__all__ = ["main"]

_EXTERNAL: Final = 1  # TensorProto.EXTERNAL


def main() -> None:
    """Read the file in the first argument, and write into the folder in the second."""
    code = 0
    try:
        write_kept(_read(Path(sys.argv[1])), Path(sys.argv[2], WEIGHTS_FILE), ())
    except Exception as error:  # The edge of the process: libraries raise anything on a hostile file.
        code = (error.errno if isinstance(error, OSError) else None) or 1
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
    # Nothing is torn down that a hostile file may have left in whatever state.
    os._exit(code)


def _read(path: Path) -> Arrays:
    """Give the weights of an ONNX file by name, with those that lie in files beside it."""
    onnx: Any = importlib.import_module("onnx")
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    graph = onnx.load(str(path), load_external_data=False).graph
    for tensor in graph.initializer:
        if tensor.data_location == _EXTERNAL:
            # Not by onnx, which refuses the files of a store for having a second name.
            _load_external(tensor, path.parent)
    return {tensor.name: np.asarray(to_array(tensor)) for tensor in graph.initializer}


def _load_external(tensor: Any, folder: Path) -> None:
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        tensor.raw_data = file.read(int(place.get("length", -1)))
    tensor.data_location = 0
    del tensor.external_data[:]


if __name__ == "__main__":
    main()
