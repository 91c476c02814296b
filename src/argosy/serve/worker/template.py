"""A template: imports a runtime once, and forks workers at the supervisor's word.

Run as `python -m argosy.serve.worker.template`. A worker starts in the time of a fork, and shares what was imported.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback

from argosy.runtimes.base import load_runtime_class
from argosy.serve.wire.channel import RUNTIME_VARIABLE, Channel, die_with_parent, open_channel
from argosy.serve.wire.control_messages import ForkWorker
from argosy.serve.worker.worker import run_worker

__all__ = ["main", "run_template"]


def run_template(channel: Channel) -> None:
    """Import the runtime that this template stands for, and fork a worker at each word of the supervisor."""
    runtime = os.environ.get(RUNTIME_VARIABLE, "")
    if runtime:
        # A failure is found again by the worker, which can report it.
        with contextlib.suppress(Exception):
            if hasattr(load_runtime_class(runtime), "raw"):
                importlib.import_module("argosy.serve.worker.streams")
    # A collection in a worker would write to every object that it shares with this process, and so copy its page.
    gc.collect()
    gc.freeze()
    while (received := channel.receive()) is not None:
        if isinstance(received.message, ForkWorker):
            _fork_worker(channel, received.message, received.fds)


def _fork_worker(channel: Channel, message: ForkWorker, fds: list[int]) -> None:
    child_fd, log_fd = fds
    middle = os.fork()
    if middle:
        os.close(child_fd)
        os.close(log_fd)
        os.waitpid(middle, 0)
        return
    # Forked twice: the kernel gives an orphan to the supervisor, which then sees it die.
    if os.fork():
        os._exit(0)
    code = 1
    try:
        channel.close()
        # The kernel divides the processors among sessions: in the template's, all its workers would share one part.
        os.setsid()
        _wait_for_parent(message.supervisor)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = run_worker(Channel(socket.socket(fileno=child_fd), "worker", "supervisor"), message.spec)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait_for_parent(supervisor: int) -> None:
    for _ in range(2000):
        if os.getppid() == supervisor:
            break
        time.sleep(0.0005)
    die_with_parent(supervisor)


def main() -> None:
    """Become a template."""
    run_template(open_channel("template"))


if __name__ == "__main__":
    main()
