"""Have a confined process read the tensors of an ONNX file, which may be hostile, and write them as safetensors."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from argosy.bench.dialogue import list_module_folders
from argosy.confine.confine import hostile_folder, run_confined
from argosy.errors import ModelError
from argosy.store.manifest import WEIGHTS_FILE
from argosy.store.temporary import blame_disk

__all__ = ["extract_tensors"]

_CHILD: Final = "argosy.train.initializers"
_TIMEOUT_S: Final = 600.0
_MEMORY_BYTES: Final = 4 << 30
"""Address space of the process, beside that for the file."""
_MEMORY_TIMES: Final = 4
"""The file's size so many times: its bytes, its messages, their arrays, and what is written of them."""
_MAX_TOLD: Final = 400


@contextmanager
def extract_tensors(folder: Path, entry: str) -> Generator[Path]:
    """Give a file of safetensors with the initializers of an ONNX file by name, for a block; as hostile as that.

    Args:
        folder: the artifact's files.
        entry: the ONNX file; its weights may lie in others of the folder.

    Raises:
        ValueError: it cannot be read.
        StoreError: `temp_full`.
    """
    with hostile_folder("argosy-start-") as work, blame_disk(work):
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*"))
        try:
            done = run_confined(
                [_CHILD, str(folder / entry), str(work)],
                read=[folder],
                write=[work],
                timeout_s=_TIMEOUT_S,
                memory_bytes=_MEMORY_BYTES + _MEMORY_TIMES * size_bytes,
                env={"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "4"},
                module_folders=list_module_folders("msgspec", "onnx", "google"),
                # A graph is data: a machine that cannot confine takes what the limits leave.
                is_required=False,
                title=f"The process that reads {entry}",
                folder=folder,
            )
        except ModelError as error:
            raise ValueError(error.message) from error
        if done.returncode == errno.ENOSPC:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = work / WEIGHTS_FILE
        if done.returncode or path.is_symlink() or not path.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"the process that reads it ended with code {done.returncode}"]
            raise ValueError(f"{entry} cannot be read: {said[0][:_MAX_TOLD]}")
        yield path
