"""Files of lines: a block is a range of bytes, and holds the lines that begin in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from argosy.data.block import BadRow, Block
from argosy.data.files import File, open_file, read_range
from argosy.errors import InputError

__all__ = ["Lines", "find_first_line", "list_ranges", "parse_lines", "read_head", "read_lines"]

T = TypeVar("T")

MAX_LINE: Final = 16 << 20
"""Bytes of a line: one without an end would fill the memory."""
_PIECE: Final = 64 << 10
_MARK: Final = b"\xef\xbb\xbf"
"""With which some programs begin a file in UTF-8."""


class Lines:
    """Lines that follow one another, without their ends and without empty ones."""

    def __init__(self, data: bytes) -> None:
        lines = data.split(b"\n")
        self.places = [place for place, line in enumerate(lines) if line and not line.isspace()]
        """Of each among all lines of the block."""
        self.lines = lines if len(self.places) == len(lines) else [lines[place] for place in self.places]


def read_head(file: File, size: int) -> tuple[bytes, int]:
    """Give the whole lines of a file's beginning, and how many bytes stand before the first.

    Args:
        file: any.
        size: of the beginning; if it holds no whole line, as many bytes as the first one has.

    Raises:
        InputError: `bad_file`, the file is empty, is no text in UTF-8, or its first line is too long.
    """
    with open_file(file) as descriptor:
        data = read_range(file, descriptor, 0, min(size, file.size))
        if not data.strip():
            raise InputError("bad_file", path=repr(str(file.path)), detail="it is empty")
        if b"\0" in data:
            raise InputError("bad_file", path=repr(str(file.path)), detail="it is no text in UTF-8")
        if b"\n" not in data:
            data += _read_to_end(file, descriptor, len(data), 1)
        elif len(data) < file.size:
            data = data[: data.rindex(b"\n") + 1]
    start = len(_MARK) if data.startswith(_MARK) else 0
    return data[start:], start


def list_ranges(number: int, file: File, start: int, step: int) -> list[Block]:
    """Cut a file into blocks."""
    return [Block(number, place, None, min(step, file.size - place)) for place in range(start, file.size, step)]


def read_lines(file: File, block: Block, start: int) -> bytes:
    """Give the lines that begin in a block; the last one's end may be left out.

    Args:
        file: the block's.
        block: one of `list_ranges`.
        start: the byte at which the first line of the file begins.

    Raises:
        InputError: `bad_file`, a line is too long; `data_changed`.
    """
    with open_file(file) as descriptor:
        before = 1 if block.place > start else 0
        data = read_range(file, descriptor, block.place - before, block.size + before)
        if before:
            # A line that began before belongs to the block before; one begins here if that has just ended.
            end = data.find(b"\n")
            if end == -1:
                return b""
            data = data[end + 1 :]
        if data and not data.endswith(b"\n"):
            place = block.place + block.size
            data += _read_to_end(file, descriptor, place, block.place)
        return data


def _read_to_end(file: File, descriptor: int, place: int, begin: int) -> bytes:
    """Give the rest of a line."""
    parts: list[bytes] = []
    first = place
    while place < file.size:
        part = read_range(file, descriptor, place, min(_PIECE, file.size - place))
        end = part.find(b"\n")
        if end != -1:
            parts.append(part[: end + 1])
            break
        parts.append(part)
        place += len(part)
        if place - first > MAX_LINE:
            detail = f"a line that begins after byte {begin} has more than {MAX_LINE >> 20} MiB"
            raise InputError("bad_file", path=repr(str(file.path)), detail=detail)
    return b"".join(parts)


def count_lines(file: File, end: int) -> int:
    """Count the lines that end before a byte."""
    count, place = 0, 0
    with open_file(file) as descriptor:
        while place < end:
            part = read_range(file, descriptor, place, min(1 << 20, end - place))
            count += part.count(b"\n")
            place += len(part)
    return count


def find_first_line(file: File, block: Block, start: int) -> int:
    """Give the number of the first line that begins in a block, counted from 1."""
    if block.place <= start:
        return count_lines(file, block.place) + 1
    # A line that the range begins within is the block's before.
    whole = count_lines(file, block.place)
    with open_file(file) as descriptor:
        is_first = read_range(file, descriptor, block.place - 1, 1) == b"\n"
    return whole + (1 if is_first else 2)


def parse_lines(
    lines: Sequence[bytes], parse: Callable[[Sequence[bytes]], T], explain: Callable[[bytes], str | None], limit: int
) -> Iterator[tuple[int, T | BadRow]]:
    """Parse many lines at once, and where that fails, fewer, until it is known which are bad.

    Args:
        lines: of text.
        parse: raises ValueError where one of the lines is bad.
        explain: says what is wrong with a line; None if nothing is.
        limit: bad lines, after which the rest is left.

    Yields:
        Where in `lines` the part begins, and what was parsed, or which line is bad and why.
    """
    pending, num_bad = [(0, len(lines))], 0
    while pending and num_bad <= limit:
        start, end = pending.pop()
        part = lines[start:end]
        detail = explain(part[0]) if len(part) == 1 else None
        if detail is None:
            try:
                yield start, parse(part)
            except ValueError as error:
                detail = str(error)[:200]
            else:
                continue
            if len(part) > 1:
                middle = (start + end) // 2
                pending += [(middle, end), (start, middle)]
                continue
        num_bad += 1
        yield start, BadRow(start, detail)
