"""How the processes of a node talk to their supervisor: JSON messages that may carry file descriptors.

Standard library only: the supervisor and foreign interpreters import this module.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

__all__ = [
    "CHANNEL_VARIABLE",
    "MAX_MESSAGE_BYTES",
    "Channel",
    "die_with_parent",
    "make_channel_pair",
    "open_channel",
    "read_message",
    "write_message",
]

CHANNEL_VARIABLE: Final = "ARGOSY_CHANNEL"
"""Environment variable that holds the number of a child's end of its channel."""

MAX_MESSAGE_BYTES: Final = 128 * 1024
MAX_FDS: Final = 16
_PR_SET_PDEATHSIG: Final = 1

Message = dict[str, Any]


class Channel:
    """One end of a SOCK_SEQPACKET pair: a message is one JSON object and up to 16 descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        """Descriptor to poll."""
        return self.sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message; the peer gets copies of `fds`.

        Raises:
            OSError: the peer is gone, or does not read and the socket does not block.
            ValueError: the message is longer than MAX_MESSAGE_BYTES.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise ValueError(f"message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES} fit")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Message, list[int]] | None:
        """Receive one message and its descriptors; None when the peer is gone.

        Raises:
            BlockingIOError: nothing there, and the socket does not block.
        """
        arguments = (MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        try:
            data, ancillary, _, _ = self.sock.recvmsg(*arguments)
        except ConnectionResetError:
            # The peer ended without reading all that we sent. The kernel says so once; what it sent last comes after that.
            data, ancillary, _, _ = self.sock.recvmsg(*arguments)
        if not data:
            return None
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % 4])
        return json.loads(data), list(fds)

    def close(self) -> None:
        """Close this end; the peer then receives None."""
        self.sock.close()


def make_channel_pair() -> tuple[Channel, Channel]:
    """Make two connected channels."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(left), Channel(right)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, also by kill -9."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above took effect.
    if os.getppid() != parent:
        os._exit(1)


def open_channel() -> Channel:
    """Open the channel that the supervisor gave this process, and tie its life to the supervisor's."""
    die_with_parent(int(os.environ["ARGOSY_SUPERVISOR"]))
    return Channel(socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE))))


async def read_message(reader: StreamReader) -> Message | None:
    """Read one JSON message from the stream between control process and front; None when the peer is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "little")
        return json.loads(await reader.readexactly(length))
    except (EOFError, ConnectionError):
        return None


def write_message(writer: StreamWriter, message: Message) -> None:
    """Write one JSON message to that stream; the stream buffers it."""
    data = json.dumps(message, separators=(",", ":")).encode()
    writer.write(len(data).to_bytes(4, "little") + data)
