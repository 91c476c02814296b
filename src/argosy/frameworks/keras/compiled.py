"""What a Keras model was compiled with, in the forms that `train` takes: losses, their factors and metrics by output."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from argosy.errors import InputError, list_choices
from argosy.frameworks.keras.losses import CompiledLoss
from argosy.frameworks.trees import Tree

__all__ = ["list_metrics", "read_factors", "read_loss"]

keras: Any = importlib.import_module("keras")


def read_loss(model: Any) -> Tree:
    """Give the loss, or losses in the form of the outputs; None if it has none.

    Raises:
        InputError: `bad_option`, the name of a loss that targets must tell, or no loss for one output of several in order.
    """
    loss: Any = model.loss if model.compiled else None
    return None if loss is None else _arrange(model, loss, _resolve, has_all=True)


def read_factors(model: Any) -> Tree:
    """Give the factors of the losses in their form; None if there are none."""
    if not model.compiled:
        return None
    config: dict[str, Any] = model.get_compile_config() or {}
    if config.get("loss_weights") is None:
        return None
    arranged = _arrange(model, config["loss_weights"], float, has_all=False)
    if isinstance(arranged, tuple):
        return tuple(1.0 if part is None else part for part in cast("tuple[Any, ...]", arranged))
    return arranged


def list_metrics(model: Any) -> tuple[object, ...] | dict[str, list[object]]:
    """Give the metrics: names, functions and metrics of Keras; of several outputs by these."""
    compiled: Any = getattr(model, "_compile_metrics", None)
    if compiled is None:
        return ()
    given: list[Any] = [part for part in (compiled._user_metrics, compiled._user_weighted_metrics) if part]
    form = _find_form(model)
    if not isinstance(form, list | tuple | dict) or len(cast("Sequence[Any]", form)) < 2:
        return tuple(_flatten(given))
    by_output: dict[str, list[object]] = {}
    for part in given:
        arranged: Any = _arrange(model, part, lambda leaf: [*_flatten([leaf])], has_all=False)
        names: list[Any] = [*arranged] if isinstance(arranged, dict) else [*range(len(arranged))]
        for name in names:
            by_output.setdefault(str(name), []).extend(cast("Sequence[object]", arranged[name] or ()))
    return {name: listed for name, listed in by_output.items() if listed}


def _flatten(given: Sequence[Any]) -> list[object]:
    listed: list[object] = []
    waiting = list(given)
    while waiting:
        part: Any = waiting.pop(0)
        if isinstance(part, list | tuple):
            waiting = [*cast("Any", part), *waiting]
        elif isinstance(part, dict):
            waiting = [*cast("dict[str, Any]", part).values(), *waiting]
        elif part is not None:
            # Which accuracy it is, the targets tell.
            listed.append("accuracy" if part in ("acc", "accuracy") else part)
    return listed


def _resolve(loss: Any) -> Any:
    if isinstance(loss, str) and loss.lower() in ("ce", "crossentropy"):
        expected = "the full name, such as sparse_categorical_crossentropy"
        raise InputError("bad_option", option="loss of the compiled model", got=loss, expected=expected)
    found: Any = keras.losses.get(loss)
    is_own = not isinstance(found, keras.losses.Loss) and not (getattr(found, "__module__", None) or "").startswith("keras.")
    return CompiledLoss(found) if is_own else found


def _find_form(model: Any) -> Any:
    """Give the outputs of a functional model as it gives them; None of another."""
    return getattr(model, "_outputs_struct", None)


def _arrange(model: Any, given: Any, read: Callable[[Any], Any], *, has_all: bool) -> Any:
    """Give what was compiled for each output in the form of the outputs: a dict, or a tuple in order."""
    form = _find_form(model)
    if isinstance(form, list | tuple) and len(cast("Sequence[Any]", form)) == 1:
        form = None
    if isinstance(given, Mapping):
        named = {str(name): part for name, part in cast("Mapping[Any, Any]", given).items()}
        if isinstance(form, dict | None):
            if form is None and len(named) == 1 and len(getattr(model, "output_names", ())) == 1:
                return read(next(iter(named.values())))
            return {name: read(part) for name, part in named.items() if part is not None}
        parts = [named.get(name) for name in model.output_names]
    elif isinstance(given, list | tuple):
        parts = [*cast("Sequence[Any]", given)]
        if form is None and len(parts) == 1:
            return read(parts[0])
    elif isinstance(form, dict | list | tuple):
        parts = [given] * len(cast("Sequence[Any]", form))
    else:
        return read(given)
    if isinstance(form, dict):  # Keras flattens it in the order of its names.
        names = sorted(cast("dict[str, Any]", form))
        return {name: read(part) for name, part in zip(names, parts, strict=False) if part is not None}
    if has_all and any(part is None for part in parts):
        expected = f"a loss for each of {list_choices(model.output_names)}"
        raise InputError("bad_option", option="loss of the compiled model", got=str(parts), expected=expected)
    return tuple(None if part is None else read(part) for part in parts)
