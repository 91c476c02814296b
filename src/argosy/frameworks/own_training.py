"""Models that say themselves how they are trained, which `train` does not call."""

from __future__ import annotations

from collections.abc import Sequence

from argosy.errors import InputError
from argosy.frameworks.base import FRAMEWORKS, Framework, name_kind

__all__ = ["check_training"]


def check_training(framework: Framework, model: object) -> None:
    """Refuse a model that says itself how it is trained: it would be trained otherwise.

    Raises:
        InputError: `own_training`.
    """
    packages = FRAMEWORKS[framework.name].packages
    own = [name for name in framework.training_methods if _is_own(model, name, packages)]
    if own:
        methods = ", ".join(f"`{name}`" for name in own)
        raise InputError("own_training", model=name_kind(model), methods=methods, framework=framework.name)


def _is_own(model: object, name: str, packages: Sequence[str]) -> bool:
    """Whether a method is the model's, or of a class of its that the framework does not bring."""
    if name in getattr(model, "__dict__", {}):
        return callable(getattr(model, name))
    for base in type(model).__mro__:
        if name in vars(base):
            return callable(getattr(model, name, None)) and base.__module__.partition(".")[0] not in packages
    return False
