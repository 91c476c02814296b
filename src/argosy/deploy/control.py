"""The control process: deployments, rollouts and the admin API. No request of a client passes through it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

# Before what stands on it: below too many imports its own take 10 ms longer, as CPython 3.11 then takes and gives back a page
# of its stack at each call.
import numpy  # noqa: F401  # pyright: ignore[reportUnusedImport]
import uvicorn

from argosy.config import ServeConfig
from argosy.deploy.admin import Admin, build_admin
from argosy.deploy.lanes import Lanes
from argosy.deploy.ledger import Ledger
from argosy.deploy.local_node import LocalNode
from argosy.deploy.reconcile import Reconciler
from argosy.deploy.repository import Repository, describe_failure
from argosy.errors import ArgosyError, UnavailableError
from argosy.serve.wire.channel import Channel, follow, open_channel
from argosy.serve.wire.control_messages import (
    Alive,
    Beat,
    EndOfWorkers,
    ErrandDone,
    LoadModel,
    Message,
    NewLink,
    StartControl,
    UnloadModel,
)
from argosy.serve.wire.counters import Counters
from argosy.store.local import Store
from argosy.store.temporary import explain_write

__all__ = ["Control", "main"]

_RETRY_S: Final = 1.0


class Control:
    """Wires the reconcile loop to the supervisor's channel, the fronts and the admin API.

    Args:
        loop: this process' event loop.
        channel: to the supervisor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        self.loop = loop
        self.channel = channel
        self.done = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._linking: set[asyncio.Task[Any]] = set()
        # What there is once the store is open, and why it is not there yet.
        self._lanes: Lanes | None = None
        self._admin: Admin | None = None
        self._repository: Repository | None = None
        self._fault: ArgosyError = UnavailableError("starting", retry_after_s=_RETRY_S)
        self._is_tried = asyncio.Event()
        """It was tried to open the store: callers wait for that, and no longer."""
        # What the supervisor has no room for yet waits here, and holds nothing else up.
        channel.sock.setblocking(False)
        loop.add_reader(channel.fileno(), follow, channel, self._take_message)

    def _take_message(self, message: Message, fds: list[int]) -> None:
        match message:
            case StartControl():
                self._prepare(message, fds)
            case Beat():
                self.node.say(Alive())
            case NewLink():
                self._linking.add(self._spawn(self.node.add_front(message.peer, message.pid, socket.socket(fileno=fds[0]))))
            case EndOfWorkers():
                self._spawn(self._reconcile(set(self._linking)))
                self._spawn(self._serve_admin())
            case _:
                self.node.take_supervisor_message(message)
                if self._lanes is not None:
                    self._lanes.wake.set()

    async def _reconcile(self, linking: set[asyncio.Task[Any]]) -> None:
        # Of a front that is not linked yet, nobody knows what it holds.
        await asyncio.gather(*linking)
        ledger = await self._open_ledger()
        lanes = self._lanes = Lanes(ledger, self.node, self.counters.name_series, self._config.num_fronts)
        self._admin = Admin(lanes, self.counters, Path(self._config.home))
        self._repository = Repository(lanes, self._token)
        self._is_tried.set()
        await Reconciler(lanes).run_forever()

    async def _open_ledger(self) -> Ledger:
        """Open the store, as soon as it can be: until then all that runs goes on, and callers are told why they must wait."""
        home = Path(self._config.home)
        while True:
            try:
                return await asyncio.to_thread(lambda: Ledger(Store(home)))
            except ArgosyError as error:
                self._note_fault(error)
            except OSError as error:
                self._note_fault(explain_write(home, error))
            await asyncio.sleep(_RETRY_S)

    def _note_fault(self, fault: ArgosyError) -> None:
        if str(fault) != str(self._fault):
            print(f"the store cannot be opened, and is tried again: {fault}", file=sys.stderr, flush=True)
        self._fault = fault
        self._is_tried.set()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._linking.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The supervisor starts this process again, with the table of its workers.
            task.print_stack()
            sys.stderr.flush()
            os._exit(1)

    def _prepare(self, message: StartControl, fds: list[int]) -> None:
        self._config = msgspec.convert(message.config, ServeConfig)
        self._token = message.token
        counters_fd, admin_fd = fds
        self.counters = Counters(counters_fd)
        self.node = LocalNode(self.channel, self._config.memory_limit_bytes, self._on_errand)
        self._admin_socket = socket.socket(fileno=admin_fd)

    async def _on_errand(self, message: LoadModel | UnloadModel) -> ErrandDone:
        await self._is_tried.wait()
        if self._repository is None:
            return describe_failure(message, self._fault)
        return await self._repository.answer(message)

    async def _find_admin(self) -> Admin:
        await self._is_tried.wait()
        if self._admin is None:
            raise self._fault
        return self._admin

    async def _serve_admin(self) -> None:
        application = build_admin(self._find_admin, self._token)
        settings = uvicorn.Config(application, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(settings)
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
        await server.serve(sockets=[self._admin_socket])

    async def run(self) -> None:
        """Work until told to stop."""
        self.loop.add_signal_handler(signal.SIGTERM, self.done.set)
        await self.done.wait()
        for task in self._tasks:
            task.remove_done_callback(self._finish)


async def _run() -> None:
    await Control(asyncio.get_running_loop(), open_channel("control")).run()


def main() -> None:
    """Run as `python -m argosy.deploy.control`, started by the supervisor."""
    asyncio.run(_run())
    os._exit(0)


if __name__ == "__main__":
    main()
