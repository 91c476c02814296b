"""The ports of a server, opened by the supervisor and held as long as it takes connections. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import Any, Final, NoReturn

__all__ = ["LISTENERS", "SETTLE_S", "fail", "inherit_listeners", "open_listeners", "refuse_connects"]

LISTENERS: Final = ("http", "grpc", "metrics")
"""What fronts listen on; the control process has `admin`."""
SETTLE_S: Final = 0.5
"""For a connection that has begun to be made when the server ends: to be completed, and to bring its first request."""
_BACKLOG: Final = 1024
_EXIT_USAGE: Final = 2
_OF_A_PORT: Final = (errno.EADDRINUSE, errno.EACCES)
"""Refused for the port, and not for the address."""
_SO_ATTACH_FILTER: Final = 26
_FLAGS_OFFSET: Final = 13
_SYN: Final = 2
# A filter of the kernel (BPF): code, jumps and operand of each step.
_NO_SYN: Final = (
    (0x30, 0, 0, _FLAGS_OFFSET),  # load the flags of the TCP header,
    (0x45, 0, 1, _SYN),  # and where they hold SYN,
    (0x06, 0, 0, 0),  # drop the packet;
    (0x06, 0, 0, 0xFFFFFFFF),  # take any other
)


def open_listeners(config: dict[str, Any]) -> dict[str, list[socket.socket]]:
    """Open every port; several fronts have a socket each on the same port, among which the kernel divides connections."""
    listeners: dict[str, list[socket.socket]] = {}
    for name in LISTENERS:
        count = config["num_fronts"] if name != "metrics" else 1
        sockets = [_listen(name, config["host"], config[f"{name}_port"], is_shared=count > 1)]
        for _ in range(count - 1):
            sockets.append(_listen(name, config["host"], sockets[0].getsockname()[1], is_shared=True))
        listeners[name] = sockets
    listeners["admin"] = [_listen("admin", "127.0.0.1", config["admin_port"], is_shared=False)]
    return listeners


def _listen(name: str, host: str, port: int, *, is_shared: bool) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        setting = f"{name}_port" if error.errno in _OF_A_PORT else "host"
        fail(f"Port {port} of {host} cannot be used: {error.strerror or error}\nhint: {_name_setting(setting)}")
    return sock


def _name_setting(setting: str) -> str:
    option, variable = f"--{setting.replace('_', '-')}", f"ARGOSY_{setting.upper()}"
    free = "; 0 takes a free one" if setting != "host" else ""
    return f"{option} names another (or {variable}, or {setting} in [serve] of config.toml){free}"


def inherit_listeners(descriptors: dict[str, list[int]]) -> dict[str, list[socket.socket]]:
    """Take the listeners over that this process held before it became the program that it is now."""
    for fds in descriptors.values():
        for fd in fds:
            os.set_inheritable(fd, False)
    return {name: [socket.socket(fileno=fd) for fd in fds] for name, fds in descriptors.items()}


def refuse_connects(listener: socket.socket) -> None:
    """Let no connection begin any more; those that have begun are completed, and can be accepted.

    A listener that is closed resets what it has not accepted, and a connection may complete between the last accept and the
    close. After this call none does: who connects is heard once the listener is closed, and refused before it has sent
    anything.
    """
    steps = b"".join(struct.pack("=HBBI", *step) for step in _NO_SYN)
    code = ctypes.create_string_buffer(steps)
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_NO_SYN), ctypes.addressof(code)))


def fail(text: str) -> NoReturn:
    """End the process with a line for the person who started it."""
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(_EXIT_USAGE)
