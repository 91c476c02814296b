"""Torch's losses, optimizers and modules as JSON data."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from argosy.frameworks.base import LossPart, name_kind
from argosy.frameworks.describe import Describer, list_attributes

__all__ = ["describe_loss", "describe_optimizer", "describe_program"]

torch: Any = importlib.import_module("torch")

_TAKE_LOGITS: Final = ("logits", "crossentropy", "softmargin")
"""Parts of the names of torch's own losses that take logits, underscores aside; BCELoss takes probabilities."""

_KEPT: Final = ("_forward_hooks", "_forward_pre_hooks")
"""What every module has and users fill."""


def describe_loss(loss: object) -> LossPart | None:
    """See `base.Framework.describe_loss`."""
    if not callable(loss):
        return None
    is_module = isinstance(loss, torch.nn.Module)
    function = getattr(loss, "func", loss)  # That of a partial.
    name = type(loss).__name__ if is_module else getattr(function, "__name__", type(function).__name__)
    folded = name.lower().replace("_", "")
    is_binary = folded in ("bceloss", "binarycrossentropy")
    takes_logits = not is_binary and any(part in folded for part in _TAKE_LOGITS)
    # Its tensors, such as the weights of the classes, are no weights of a model.
    return LossPart(name, _DESCRIBER.describe_named(loss), takes_logits)


def describe_optimizer(optimizer: object) -> dict[str, Any] | None:
    """See `base.Framework.describe_optimizer`; the settings of the first group, and of others what differs."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return None
    own: Any = optimizer
    groups = [_describe_group(group) for group in own.param_groups]
    described = {"name": name_kind(own), **_DESCRIBER.describe_code(own), **groups[0]}
    if len(groups) == 1:
        del described["weights"]
        return described
    others = [{key: value for key, value in group.items() if groups[0].get(key) != value} for group in groups[1:]]
    return {**described, "groups": others}


def describe_program(model: Any) -> Any:
    """See `base.Framework.describe_program`."""
    return _DESCRIBER.describe(model, is_program=True)


def _describe_group(group: dict[str, Any]) -> dict[str, Any]:
    shapes = [list(weight.shape) for weight in group["params"]]
    return _DESCRIBER.describe_settings({key: value for key, value in group.items() if key != "params"}) | {"weights": shapes}


@dataclass(frozen=True)
class _Buffer:
    """A buffer: a tensor that a module keeps, which training may change; any other tensor it does not."""

    tensor: Any

    @property
    def dtype(self) -> Any:
        return self.tensor.dtype

    @property
    def shape(self) -> Any:
        return self.tensor.shape


def _is_weight(value: object) -> bool:
    return isinstance(value, torch.nn.Parameter | _Buffer)


def _to_array(value: object) -> NDArray[Any] | None:
    tensor: Any = value.tensor if isinstance(value, _Buffer) else value
    if not torch.is_tensor(tensor):
        return None
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _list_parts(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, torch.nn.Module):
        return None
    own: Any = value
    hooks = {name: list(list_attributes(own)[name].values()) for name in _KEPT if list_attributes(own).get(name)}
    given = {name: part for name, part in list_attributes(own).items() if name not in _BLANK}
    if type(own).__module__.startswith("torch."):
        given = {name: part for name, part in given.items() if not name.startswith("_")}
    buffers = {name: None if tensor is None else _Buffer(tensor) for name, tensor in own._buffers.items()}
    return {**given, **hooks, **own._parameters, **buffers, **own._modules}


_BLANK: Final = frozenset(list_attributes(torch.nn.Module()))

_DESCRIBER: Final = Describer(("torch", "torchvision"), _to_array, _list_parts, _is_weight)
