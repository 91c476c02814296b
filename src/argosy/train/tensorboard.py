"""Curves of a run as TensorBoard reads them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from argosy.frameworks.base import import_extra
from argosy.train.result import Epoch

__all__ = ["TensorBoard", "open_tensorboard"]

_EVERY_STEPS: Final = 10
"""A point for every so many steps: enough to see, and a tiny model's steps are not slowed by writing."""


class TensorBoard:
    """Writes an event file; told by the training loop how far it is, as `progress.Progress` is."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def end_step(self, step: int, loss: float) -> None:
        if step % _EVERY_STEPS == 0:
            self._writer.add_scalar("step/loss", loss, step)

    def end_epoch(self, epoch: Epoch) -> None:
        values = {**epoch.list_values(), "duration_s": epoch.duration_s}
        for name, value in values.items():
            self._writer.add_scalar(f"epoch/{name}", value, epoch.number)
        self._writer.flush()


@contextmanager
def open_tensorboard(folder: Path | None) -> Generator[TensorBoard | None]:
    """Write curves to a folder within the block; None for no folder.

    Raises:
        InputError: `missing_extra`, tensorboardX is not installed.
    """
    if folder is None:
        yield None
        return
    library = import_extra("tensorboardX", feature="A TensorBoard log", extra="tensorboard")
    with library.SummaryWriter(str(folder)) as writer:
        yield TensorBoard(writer)
