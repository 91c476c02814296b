"""The number of the proof: a version keeps the verdict of the one that judged it, which may have believed too much."""

from __future__ import annotations

from typing import Final

__all__ = ["EDITION"]

EDITION: Final = 1
"""Raised whenever a graph may get another verdict than before: "independent" of another edition is tried and watched. Verdicts
that tell none are of edition 0."""
