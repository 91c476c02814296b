"""What compressing a version came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from argosy.compress.examples import Example
from argosy.compress.judge import Guard, Score
from argosy.compress.measure import Cost, Gain
from argosy.compress.recipe import Recipe, describe_recipe
from argosy.store.manifest import Version

__all__ = ["CompressResult", "Sensitivity", "Tried", "name_recipe"]

_DIGEST: Final = len("sha256:") + 8
"""Characters of a digest that tell one from another."""


@dataclass(frozen=True)
class Tried:
    """One recipe, tried."""

    recipe: Recipe
    score: Score | None = None
    before: Cost | None = None
    """Of the original, measured in turn with this one."""
    after: Cost | None = None
    problem: str = ""
    """Why it is no answer: it cannot be made or run, or loses too much; "" where it could be one."""
    seconds: float = 0.0
    """That making and judging it took."""
    examples: tuple[Example, ...] = ()
    """Rows whose answers moved most."""

    @property
    def title(self) -> str:
        """Names and parameters that are not the defaults."""
        return name_recipe(self.recipe)

    def describe(self) -> dict[str, Any]:
        """Give all of it as JSON data."""
        return {
            "recipe": describe_recipe(self.recipe),
            "score": None if self.score is None else dataclasses.asdict(self.score),
            "before": None if self.before is None else dataclasses.asdict(self.before),
            "after": None if self.after is None else dataclasses.asdict(self.after),
            "problem": self.problem,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Sensitivity:
    """How much the answers move if one group of layers is compressed, and nothing else."""

    layers: tuple[str, ...]
    distance: float
    """Mean squared difference of all outputs, each relative to its variance; infinite where the group alone cannot be made."""


def name_recipe(recipe: Recipe) -> str:
    """Name a recipe's steps, and their parameters that are not the defaults."""
    parts: list[str] = []
    for step, described in zip(recipe, describe_recipe(recipe), strict=True):
        default = describe_recipe((type(step)(),))[0]
        other = [f"{name}={_shorten(value)}" for name, value in described.items() if value != default[name]]
        parts.append(f"{step.name}({', '.join(other)})" if other else step.name)
    return " + ".join(parts)


def _shorten(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} nodes"  # pyright: ignore[reportUnknownArgumentType]
    return str(value)[:_DIGEST] if str(value).startswith("sha256:") else str(value)


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What compressing a version came to."""

    parent: Version
    version: Version | None
    """What was published, None if that was not wanted."""
    recipe: Recipe
    guard: Guard
    """As it was given, with the metric that was chosen."""
    score: Score
    before: Cost
    after: Cost
    objective: str = ""
    """What the recipe was chosen for; "" where it was given."""
    tried: tuple[Tried, ...] = ()
    """All recipes that were tried, in order."""
    examples: tuple[Example, ...] = ()
    """Rows whose answers moved most, of those that it was judged on."""
    unserved: str = ""
    """Why it was not measured as served, although that was wanted."""
    sensitivity: tuple[Sensitivity, ...] = ()
    """How far the answers move if one group of layers is compressed and nothing else, the most sensitive first; empty where no
    recipe was refined."""
    search: str = ""
    """How it was looked for; "" where it was given."""

    @property
    def title(self) -> str:
        """Names the recipe."""
        return name_recipe(self.recipe)

    @property
    def gain(self) -> Gain:
        """What became smaller or larger, faster or slower."""
        return Gain(self.before, self.after)

    def describe(self) -> dict[str, Any]:
        """Give everything but the versions and what else was tried, as JSON data."""
        return {
            "recipe": describe_recipe(self.recipe),
            "guard": dataclasses.asdict(self.guard),
            "score": dataclasses.asdict(self.score),
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "gains": self.gain.gains,
            "losses": self.gain.losses,
            "objective": self.objective,
            "search": self.search,
        }
