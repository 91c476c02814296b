"""Header blocks (RFC 7541; RFC 9113, section 8): put together, decoded once for all requests that have the same, checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import hpack

from argosy.serve.http2.frames import ErrorCode, Fault
from argosy.serve.http2.limits import Budget, Limits
from argosy.serve.http2.streams import Head

__all__ = ["HeaderBlocks", "check_request", "encode_field"]

_MAX_CACHED_BLOCKS: Final = 64
_MAX_CACHED_BLOCK_BYTES: Final = 1024

_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_FORBIDDEN: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")


class HeaderBlocks:
    """The header blocks of one client, whose meaning depends on all that came before.

    Attributes:
        heads: blocks that were seen before and what they mean; only those that decoding cannot change the table by.
    """

    __slots__ = ("_begun", "_begun_flags", "_budget", "_decoder", "_limits", "_num_continuations", "heads")

    def __init__(self, limits: Limits, budget: Budget) -> None:
        self._limits = limits
        self._budget = budget
        self._decoder = hpack.Decoder(max_header_list_size=limits.max_header_bytes)
        self._begun = bytearray()
        self._begun_flags = 0
        self._num_continuations = 0
        self.heads: dict[bytes, Head] = {}

    def begin(self, flags: int, part: bytes) -> None:
        """Keep the begin of a block that CONTINUATION frames go on with, and the flags of its HEADERS."""
        self._begun = bytearray(part)
        self._begun_flags = flags
        self._num_continuations = 0

    def extend(self, part: bytes) -> None:
        """Add what came in a CONTINUATION."""
        self._num_continuations += 1
        self._begun += part
        limits = self._limits
        if self._num_continuations > limits.max_continuations or len(self._begun) > limits.max_header_bytes:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block over {limits.max_header_bytes} bytes or in too many frames")

    def finish(self) -> tuple[int, bytes]:
        """Return the flags of the HEADERS that began a block, and all of the block."""
        return self._begun_flags, bytes(self._begun)

    def read_request(self, block: bytes, read_head: Callable[[dict[bytes, bytes]], Head]) -> Head | None:
        """Decode the headers of a request; None when they are malformed."""
        fields, keeps_table = self._decode(block)
        headers = check_request(fields)
        if headers is None:
            return None
        head = read_head(headers)
        length = headers.get(b"content-length")
        head.content_length = None if length is None else int(length)
        if keeps_table and len(block) <= _MAX_CACHED_BLOCK_BYTES:
            if len(self.heads) >= _MAX_CACHED_BLOCKS:
                self.heads.clear()
            self.heads[block] = head
        return head

    def read_trailers(self, block: bytes) -> bool:
        """Decode the trailers of a request; say whether they are well-formed."""
        return all(_is_regular(name, value) for name, value in self._decode(block)[0])

    def _decode(self, block: bytes) -> tuple[Iterable[tuple[bytes, bytes]], bool]:
        """Return the fields of a block, and whether it left the dynamic table as it was."""
        # Decoding costs more than receiving: a flood of large blocks is a flood.
        self._budget.charge(len(block) >> 6)
        max_bytes = self._limits.max_header_bytes
        if len(block) > max_bytes:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block over {max_bytes} bytes")
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, f"headers over {max_bytes} bytes") from None
        except (hpack.HPACKError, IndexError, ValueError) as error:
            raise Fault(ErrorCode.COMPRESSION_ERROR, f"a header block that cannot be decoded: {type(error).__name__}") from None
        keeps_table = _keeps_table(block)
        if not keeps_table:
            # Indexes into the dynamic table have moved: blocks that held one now say something else.
            self.heads.clear()
        return fields, keeps_table


def check_request(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes] | None:
    """Return a request's headers by name; None when RFC 9113, section 8, calls them malformed.

    A name that stands several times has its values joined with commas, cookies with semicolons.
    """
    headers: dict[bytes, bytes] = {}
    is_regular = False
    for name, value in fields:
        if name[:1] == b":":
            if is_regular or name not in _PSEUDO or name in headers or not _VALUE.fullmatch(value):
                return None
            headers[name] = value
        else:
            is_regular = True
            if not _is_regular(name, value):
                return None
            headers[name] = headers[name] + (b"; " if name == b"cookie" else b",") + value if name in headers else value
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18:
        return None
    return headers if headers.get(b":method") and headers.get(b":scheme") and headers.get(b":path") else None


def _is_regular(name: bytes, value: bytes) -> bool:
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        return False
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


def _keeps_table(block: bytes) -> bool:
    """Say whether a valid block leaves the dynamic table alone: no literal to be indexed, no change of the size."""
    pos, end = 0, len(block)
    while pos < end:
        first = block[pos]
        if first & 0x80:
            pos = _read_integer(block, pos, 0x7F)[1]
        elif first & 0x60:
            return False
        else:
            index, pos = _read_integer(block, pos, 0x0F)
            for _ in range(1 if index else 2):
                length, pos = _read_integer(block, pos, 0x7F)
                pos += length
    return True


def _read_integer(block: bytes, pos: int, mask: int) -> tuple[int, int]:
    """Return the integer at `pos`, whose first byte has the bits of `mask` for it, and where it ends."""
    value = block[pos] & mask
    pos += 1
    if value == mask:
        shift = 0
        while True:
            value += (block[pos] & 0x7F) << shift
            shift += 7
            pos += 1
            if block[pos - 1] < 0x80:
                break
    return value, pos


def encode_field(name: bytes, value: bytes) -> bytes:
    """Write a header field as a literal that enters no table."""
    return b"\x00" + _encode_length(len(name)) + name + _encode_length(len(value)) + value


def _encode_length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    size -= 127
    out = bytearray((127,))
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)
