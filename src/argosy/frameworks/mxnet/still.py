"""Layers of a Gluon model that are frozen as a whole: they run as they are served, so that their statistics stay, too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from argosy.frameworks.mxnet.library import mx

__all__ = ["Still"]


class Still:
    """The layers with statistics all of whose own weights are frozen. Compiled blocks are compiled anew when it changes."""

    def __init__(self, model: Any, frozen: Collection[Any]) -> None:
        """Find them; `frozen` are parameters."""
        known = {id(own) for own in frozen}
        self._blocks: list[Any] = []
        model.apply(self._blocks.append)
        self._layers = [
            (block, block._kwargs["use_global_stats"])
            for block in self._blocks
            if "use_global_stats" in (getattr(block, "_kwargs", None) or {}) and _is_frozen(block, known)
        ]
        self._is_held = False

    def hold(self) -> None:
        """Let them use the statistics that they have."""
        if self._layers and not self._is_held:
            self._set(dict.fromkeys(range(len(self._layers)), True))
            self._is_held = True

    def release(self) -> None:
        """Let them be as they were."""
        if self._is_held:
            self._set({index: own for index, (_, own) in enumerate(self._layers)})
            self._is_held = False

    def _set(self, values: dict[int, bool]) -> None:
        for index, value in values.items():
            self._layers[index][0]._kwargs["use_global_stats"] = value
        for block in self._blocks:
            if isinstance(block, mx.gluon.HybridBlock):
                block._clear_cached_op()


def _is_frozen(block: Any, known: set[int]) -> bool:
    own = [parameter for parameter in block._reg_params.values() if parameter.grad_req != "null"]
    return bool(own) and all(id(parameter) in known for parameter in own)
