"""Clients that ask a server without pause."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable

import numpy as np

import argosy
from argosy.server import Server
from tests.home import row
from tests.processes import wait_until


class Load:
    """Clients that send requests without pause and check every answer.

    Args:
        server: where to.
        name: of the deployment.
        check: called with the row's value, the answer and the version; says whether the answer is right.
        num_clients: threads.
    """

    def __init__(self, server: Server, name: str, check: Callable[[float, np.ndarray, str], bool], num_clients: int = 8) -> None:
        self.answered = [0] * num_clients
        self.failures: list[str] = []
        self.versions: set[str] = set()
        self._server, self._name, self._check = server, name, check
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self) -> int:
        """Requests that have been answered."""
        return sum(self.answered)

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests have been answered, and two of each client: what it had sent before is then, too."""
        start = list(self.answered)
        least = [then + 2 for then in start]
        wait_until(lambda: self.sent >= sum(start) + count and all(map(operator.ge, self.answered, least)))

    def _run(self, index: int) -> None:
        value = float(index)
        with self._server.client() as client:
            while not self._stop.is_set():
                value += 1.0
                try:
                    answer = client.predict(self._name, {"x": row(value)})
                    problem = "" if self._check(value, answer["y"], answer.version) else f"wrong answer {answer['y']} for {value}"
                    version = answer.version
                except argosy.ArgosyError as error:
                    problem, version = str(error), ""
                with self._lock:
                    self.answered[index] += 1
                    if problem:
                        self.failures.append(problem)
                    else:
                        self.versions.add(version)
