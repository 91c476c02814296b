"""Data that no memory holds: files opened as streams of rows, in a seeded order."""

from argosy.data.opening import open_stream as open
from argosy.data.prepare import learn_row
from argosy.data.split import split
from argosy.data.stream import Rows, Stream

__all__ = ["Rows", "Stream", "learn_row", "open", "split"]
