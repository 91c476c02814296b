"""What a version's outputs are: classes, yes or no, values. Its lineage says so; no number that it gives does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from argosy.store.manifest import Version

__all__ = ["Kind", "Meaning", "find_meaning"]

Kind = Literal["classes", "labels", "yes_no", "values", "unknown"]

_VALUE_WORDS: Final = (
    "mse",
    "meansquared",
    "squarederror",
    "mae",
    "meanabsolute",
    "absoluteerror",
    "l1",
    "l2",
    "huber",
    "logcosh",
    "poisson",
    "gaussiannll",
)
"""Parts of the names of the frameworks' own losses of values, underscores aside."""


@dataclass(frozen=True)
class Meaning:
    """What the output that a version was trained on is."""

    kind: Kind
    source: str
    """Who says so, in words."""
    class_axis: int = -1
    """Of outputs that are classes."""
    threshold: float = 0.0
    """Above which an output that is yes or no means yes: 0 for logits, 0.5 for probabilities."""


def find_meaning(version: Version) -> Meaning:
    """Say what a version's first output is, by the loss that it was trained with."""
    lineage: dict[str, Any] = version.manifest.lineage
    loss: object = lineage.get("training", {}).get("loss")
    # Ours by its name; of a framework's own it has the parameters, too.
    parameters = cast("dict[str, Any]", loss) if isinstance(loss, dict) else dict[str, Any]()
    name: object = parameters.get("name") if parameters else cast("object", loss)
    if not isinstance(name, str):
        return Meaning("unknown", "its lineage names no loss")
    source = f"it was trained with {name}"
    folded = name.lower().replace("_", "")
    if folded.startswith("bce") or ("crossentropy" in folded and ("binary" in folded or "sigmoid" in folded)):
        return Meaning("yes_no", source, threshold=0.0 if not parameters or _takes_logits(folded, parameters) else 0.5)
    if "crossentropy" in folded or folded in ("nllloss", "softmaxceloss"):
        axis = parameters.get("axis", 1 if lineage.get("framework") == "torch" else -1)
        return Meaning("classes", source, class_axis=axis if isinstance(axis, int) else -1)
    if any(word in folded for word in _VALUE_WORDS):
        return Meaning("values", source)
    return Meaning("unknown", f"{source}, which is not known here")


def _takes_logits(folded: str, parameters: dict[str, Any]) -> bool:
    if "from_sigmoid" in parameters:
        return not parameters["from_sigmoid"]
    return bool(parameters.get("from_logits")) or "logits" in folded or "sigmoid" in folded
