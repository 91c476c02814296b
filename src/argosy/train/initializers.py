"""Write the tensors of an ONNX file as safetensors: the confined child of a start from a version.

python -m argosy.train.initializers MODEL.onnx FOLDER

The exit code is that of the disk's error where there is one, else 0 or 1; the last line of standard error says what failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from argosy.frameworks.onnx import read_initializers
from argosy.store.manifest import WEIGHTS_FILE
from argosy.train.kept import write_kept

__all__ = ["main"]


def main() -> None:
    """Read the file in the first argument, and write into the folder in the second."""
    code = 0
    try:
        write_kept(read_initializers(Path(sys.argv[1])), Path(sys.argv[2], WEIGHTS_FILE), None)
    except Exception as error:  # The edge of the process: libraries raise anything on a hostile file.
        code = (error.errno if isinstance(error, OSError) else None) or 1
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
    # Nothing is torn down that a hostile file may have left in whatever state.
    os._exit(code)


if __name__ == "__main__":
    main()
