"""The ports of a server, opened by the supervisor and held as long as it lives. Standard library only."""

from __future__ import annotations

import socket
import sys
from typing import Any, Final, NoReturn

__all__ = ["LISTENERS", "fail", "open_listeners"]

LISTENERS: Final = ("http", "grpc", "metrics")
"""What fronts listen on; the control process has `admin`."""
_BACKLOG: Final = 1024
_EXIT_USAGE: Final = 2


def open_listeners(config: dict[str, Any]) -> dict[str, list[socket.socket]]:
    """Open every port; several fronts have a socket each on the same port, among which the kernel divides connections."""
    listeners: dict[str, list[socket.socket]] = {}
    for name in LISTENERS:
        count = config["num_fronts"] if name != "metrics" else 1
        sockets = [_listen(config["host"], config[f"{name}_port"], is_shared=count > 1)]
        for _ in range(count - 1):
            sockets.append(_listen(config["host"], sockets[0].getsockname()[1], is_shared=True))
        listeners[name] = sockets
    listeners["admin"] = [_listen("127.0.0.1", config["admin_port"], is_shared=False)]
    return listeners


def _listen(host: str, port: int, *, is_shared: bool) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        fail(f"Port {port} of {host} cannot be used: {error.strerror or error}")
    return sock


def fail(text: str) -> NoReturn:
    """End the process with a line for the person who started it."""
    print(f"argosy: {text}", file=sys.stderr, flush=True)
    sys.exit(_EXIT_USAGE)
