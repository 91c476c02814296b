"""What a run gives to its other workers, and what each of them does with it."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from argosy.errors import ArgosyError, FaultError
from argosy.group.exchange import Ended, Follower
from argosy.group.ship import unpack
from argosy.group.wire import open_wire
from argosy.store.temporary import remove_dead
from argosy.train.listening import Hooks
from argosy.train.opening import Opened
from argosy.train.result import Settings
from argosy.train.source import keep_numbers
from argosy.train.task import Task

__all__ = ["Shipment"]


@dataclass(frozen=True)
class Shipment:
    """A run, for another process."""

    task: Task
    opened: Opened
    settings: Settings
    is_led: bool

    @classmethod
    def of(cls, task: Task, opened: Opened, settings: Settings) -> Shipment:
        """Leave out what belongs to the leader alone: files, what is shown, functions that are told, validation."""
        shared = replace(
            task,
            beginning=None,
            average=None,
            plan=None,
            resume=False,
            tensorboard=None,
            is_shown=False,
            hooks=Hooks(),
            callbacks=(),
        )
        return cls(shared, opened.share(), settings, task.is_led)


def work(follower: Follower, path: Path) -> None:
    """Be one worker of a run, until it is over or its leader is gone."""
    shipment: Shipment = unpack(path)
    task, settings = shipment.task, shipment.settings
    follower.set_threads = task.framework.set_threads
    with keep_numbers(), task.framework.session(settings.seed, settings.num_threads):
        task.follow(shipment.opened, settings, follower, is_led=shipment.is_led)


def main() -> None:
    """Run in a process of its own: `python -m argosy.train.member FILE`."""
    wire, run = open_wire(), Path(sys.argv[1])
    follower = Follower(wire)
    try:
        sys.path[:] = follower.fetch()
        work(follower, run)
    except Ended:
        remove_dead(run.parent.parent)  # If the leader is gone, nobody else does.
        sys.exit(1)
    except BaseException as error:
        traceback.print_exc()
        told = FaultError("worker_failed", detail=f"{type(error).__name__}: {error}")
        follower.report(error if isinstance(error, ArgosyError) else told)
        sys.exit(1)


if __name__ == "__main__":
    main()
