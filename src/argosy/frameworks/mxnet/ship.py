"""Gluon's blocks for other processes: what they cannot say of themselves."""

from __future__ import annotations

import copyreg
from typing import Any

from argosy.frameworks.mxnet.library import mx

__all__ = ["reduce_part"]


def reduce_part(part: Any) -> Any:
    """Give what `__reduce__` would: of what a block compiled, nothing; of a parameter, that it has a gradient."""
    if isinstance(part, mx.nd.CachedOp):
        return _give_nothing, ()
    if isinstance(part, mx.gluon.Parameter):
        newobj: Any = copyreg.__newobj__  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        return newobj, (type(part),), {**vars(part), "_trainer": None}, None, None, _set_parameter
    return None


def _give_nothing() -> None:
    """It is compiled anew."""


def _set_parameter(parameter: Any, state: dict[str, Any]) -> None:
    parameter.__dict__.update(state)
    if parameter._grad is not None:
        parameter._init_grad()
