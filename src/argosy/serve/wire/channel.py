"""How the processes of a node talk to their supervisor: messages that may carry file descriptors. And control process and fronts.

`argosy.serve.wire.control_messages` says which messages there are.

Standard library only: the supervisor and foreign interpreters import this module.
"""

from __future__ import annotations

import array
import ctypes
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from argosy.serve.wire.checked import refuse
from argosy.serve.wire.control_messages import MAX_MESSAGE_BYTES, Message, Process, decode, encode, longest
from argosy.serve.wire.output import guard_output

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

__all__ = [
    "CHANNEL_VARIABLE",
    "RUNTIME_VARIABLE",
    "SUPERVISOR_VARIABLE",
    "Channel",
    "Received",
    "die_with_parent",
    "follow",
    "open_channel",
    "read_message",
    "write_message",
]

CHANNEL_VARIABLE: Final = "ARGOSY_CHANNEL"
"""Environment variable that holds the number of a child's end of its channel."""
SUPERVISOR_VARIABLE: Final = "ARGOSY_SUPERVISOR"
"""And the supervisor's process id."""
RUNTIME_VARIABLE: Final = "ARGOSY_RUNTIME"
"""And what a template imports."""

MAX_FDS: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # process, user, group
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(4 * MAX_FDS) + socket.CMSG_SPACE(_CREDENTIALS.size)
_PR_SET_PDEATHSIG: Final = 1


class Received(NamedTuple):
    """A message, and what came with it."""

    message: Message
    fds: list[int]
    """The receiver's to close; none where it has no room for them."""
    pid: int
    """Of the sender, as the kernel says; 0 where it was not asked (SO_PASSCRED)."""


class Channel:
    """One end of a SOCK_SEQPACKET pair: a datagram is one message and up to 16 descriptors.

    Args:
        sock: this end.
        own: what kind of process this is.
        peer: what kind the other is.
    """

    def __init__(self, sock: socket.socket, own: Process, peer: Process) -> None:
        self.sock = sock
        self._own: Process = own
        self._peer: Process = peer

    def fileno(self) -> int:
        """Descriptor to poll."""
        return self.sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message; the peer gets copies of `fds`.

        Raises:
            OSError: the peer is gone, or does not read and the socket does not block.
            MessageError: the message is too large.
        """
        self.send_bytes(encode(message), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int]) -> None:
        """Send an encoded message; as `send`."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)

    def receive(self, flags: int = 0) -> Received | None:
        """Receive one message and its descriptors; None when the peer is gone, or has sent a datagram of nothing.

        Args:
            flags: of the system call, such as MSG_DONTWAIT.

        Raises:
            BlockingIOError: nothing there, and this does not wait.
            MessageError: `bad_message`, it is none that the peer may send. Its descriptors are closed.
        """
        arguments = (MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | flags)
        try:
            data, ancillary, found, _ = self.sock.recvmsg(*arguments)
        except ConnectionResetError:
            # The peer ended without reading all that we sent. The kernel says so once; what it sent last comes after that.
            data, ancillary, found, _ = self.sock.recvmsg(*arguments)
        fds, pid = _read_ancillary(ancillary)
        message: Message | None = None
        try:
            if found & socket.MSG_TRUNC:
                refuse(f"it is longer than {MAX_MESSAGE_BYTES} bytes")
            if data:
                message = decode(data, self._peer, self._own, len(fds))
        finally:
            if message is None:
                for fd in fds:
                    os.close(fd)
        return None if message is None else Received(message, fds, pid)

    def close(self) -> None:
        """Close this end; the peer then receives None."""
        self.sock.close()


def _read_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """The descriptors, and the sender's process id."""
    fds, pid = array.array("i"), 0
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, _, _ = _CREDENTIALS.unpack(payload)
    return fds.tolist(), pid


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, also by kill -9."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above took effect.
    if os.getppid() != parent:
        os._exit(1)


def open_channel(own: Process) -> Channel:
    """Open the channel that the supervisor gave this process, and tie its life to the supervisor's.

    What the process prints fails nothing from now on: its log may stand on a disk that is full.
    """
    guard_output()
    die_with_parent(int(os.environ[SUPERVISOR_VARIABLE]))
    return Channel(socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE))), own, "supervisor")


def follow(channel: Channel, take: Callable[[Message, list[int]], None]) -> None:
    """Hand on what the supervisor says next, if it says something.

    Where it is gone, or says what cannot be followed, this process ends: without the supervisor the kernel ends it as well, and
    else it is started again.
    """
    try:
        received = channel.receive(socket.MSG_DONTWAIT)
        if received is not None:
            take(received.message, received.fds)
            return
    except BlockingIOError:
        return
    except Exception:  # the edge of the process
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


async def read_message(reader: StreamReader, own: Process, peer: Process) -> Message | None:
    """Read one message from the stream between control process and front; None when the peer is gone.

    Raises:
        MessageError: `bad_message`, it is none that the peer may send.
    """
    try:
        length = int.from_bytes(await reader.readexactly(4), "little")
        if length > longest(peer, own):
            refuse(f"{length} bytes are announced, at most {longest(peer, own)} may be")
        data = await reader.readexactly(length)
    except (EOFError, ConnectionError):
        return None
    return decode(data, peer, own)


def write_message(writer: StreamWriter, message: Message) -> None:
    """Write one message to that stream, which buffers it.

    Raises:
        MessageError: it is too large.
    """
    data = encode(message)
    writer.write(len(data).to_bytes(4, "little") + data)
