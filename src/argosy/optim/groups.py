"""Groups of weights that are moved otherwise than the rest, found by their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from argosy.errors import InputError
from argosy.optim.schedules import check_number

__all__ = ["Group", "match_names"]


@dataclass(frozen=True)
class Group:
    """How some weights are moved otherwise than an optimizer says.

    >>> from argosy.optim import Adam
    >>> fine = Adam(learning_rate=1e-3, weight_decay=0.01, groups=(Group("*.bias", weight_decay=0.0), Group("encoder", 0.1)))
    >>> fine.for_weight("encoder.0.weight").rate_at(1)
    0.0001
    """

    pattern: str
    """Of `match_names`. Where several groups match, the first counts."""
    rate_factor: float = 1.0
    """By which the learning rate is multiplied."""
    weight_decay: float | None = None
    """Instead of the optimizer's; None: as there."""

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError("bad_option", option="group.pattern", got=self.pattern, expected="a name or pattern of weights")
        check_number("group.rate_factor", self.rate_factor, "a finite number above 0", lowest=0.0, is_open=True)
        if self.weight_decay is not None:
            check_number("group.weight_decay", self.weight_decay, "a finite number, at least 0, or None", lowest=0.0)


def match_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Give the weights that a pattern means: by their whole names as in a shell (`*`, `?`), or by a part of the model.

    >>> match_names("encoder", ["encoder.0.weight", "encoder_two.weight", "head.weight"])
    ['encoder.0.weight']
    >>> match_names("*.weight", ["head.weight", "head.bias"])
    ['head.weight']
    """
    return [name for name in names if fnmatchcase(name, pattern) or name.startswith((f"{pattern}.", f"{pattern}/"))]
