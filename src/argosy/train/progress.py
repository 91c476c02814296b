"""What a person sees of a running training: a bar on a terminal, a line an epoch elsewhere. All on stderr."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from argosy.train.result import Epoch

__all__ = ["Progress", "Watcher", "describe_epoch", "open_progress"]


class Watcher(Protocol):
    """Told by the training loop how far it is."""

    def end_step(self, step: int, loss: float) -> None:
        """Count a mini-batch: the number of the step, from 1, and the loss of the epoch so far."""
        ...

    def end_epoch(self, epoch: Epoch) -> None:
        """Show what an epoch came to."""
        ...


class Progress(Watcher, Protocol):
    """Shows it to a person."""

    def say(self, text: str) -> None:
        """Show a line."""
        ...


@contextmanager
def open_progress(is_wanted: bool, num_epochs: int | None, num_steps: int | None) -> Generator[Progress]:
    """Show progress within the block.

    Args:
        is_wanted: False shows nothing.
        num_epochs: of the run; None if it ends by itself.
        num_steps: mini-batches of the run; None if nobody knows.
    """
    if not is_wanted:
        yield _Silence()
    elif not sys.stderr.isatty():
        yield _Lines(num_epochs)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bar:
            yield _Bar(bar, num_epochs, num_steps)


def describe_epoch(epoch: Epoch, num_epochs: int | None) -> str:
    """Give an epoch in one line."""
    values = {"loss": epoch.loss, **epoch.metrics}
    if epoch.validation_loss is not None:
        values["validation loss"] = epoch.validation_loss
    values |= {f"validation {name}": value for name, value in epoch.validation_metrics.items()}
    shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    number = f"{epoch.number:>{len(str(num_epochs))}}/{num_epochs}" if num_epochs else str(epoch.number)
    return f"epoch {number}  {shown}  {epoch.duration_s:.1f} s"


class _Silence:
    def end_step(self, step: int, loss: float) -> None:
        pass

    def end_epoch(self, epoch: Epoch) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Lines(_Silence):
    def __init__(self, num_epochs: int | None) -> None:
        self._num_epochs = num_epochs

    def end_epoch(self, epoch: Epoch) -> None:
        self.say(describe_epoch(epoch, self._num_epochs))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar(_Silence):
    def __init__(self, bar: RichProgress, num_epochs: int | None, num_steps: int | None) -> None:
        self._bar = bar
        self._num_epochs = num_epochs
        self._epoch = 1
        self._task = bar.add_task("", total=num_steps)

    def end_step(self, step: int, loss: float) -> None:
        of_all = f"/{self._num_epochs}" if self._num_epochs else ""
        self._bar.update(self._task, completed=step, description=f"epoch {self._epoch}{of_all}  loss {loss:.4f}")

    def end_epoch(self, epoch: Epoch) -> None:
        self.say(describe_epoch(epoch, self._num_epochs))
        self._epoch = epoch.number + 1

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)
