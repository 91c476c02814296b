"""Where a run starts from, if not from the weights that the model has: a version of the store."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, list_choices
from argosy.frameworks.adapters import name_plainly
from argosy.frameworks.base import Framework, name_kind
from argosy.optim.groups import match_names
from argosy.signature import Arrays
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.kept import KeptWeights, open_kept

__all__ = ["Beginning", "Start", "read_start"]

_NUM_TOLD: Final = 5


@dataclass(frozen=True)
class Start:
    """A version of the store whose weights a model has when its training begins.

    >>> Start("digits@3", parts=["body"]).parts
    ('body',)
    """

    version: str
    """NAME (the newest), NAME@3 or NAME@alias."""
    parts: Sequence[str] = ()
    """Parts of the model, or patterns of names of weights, that take theirs from the version; the others keep what they have.
    None named: all of them."""
    store: Store | None = None
    """Default: that of ARGOSY_HOME."""

    def __post_init__(self) -> None:
        if not isinstance(self.version, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError("bad_option", option="start", got=name_kind(self.version), expected="a version, NAME@NUMBER")
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))


@dataclass(frozen=True)
class Beginning:
    """Weights that were read and fit the model."""

    version: Version
    parts: Sequence[str]
    weights: Arrays

    @contextmanager
    def give(self, framework: Framework, model: Any) -> Generator[None]:
        """Give the model the weights; where the block fails, it gets back those that it had."""
        before = framework.get_weights(model)
        framework.set_weights(model, self.weights)
        try:
            yield
        except BaseException:
            framework.set_weights(model, before)
            raise

    def describe(self) -> dict[str, Any]:
        """Give it as JSON data, for the lineage."""
        described = {"version": f"{self.version.name}@{self.version.number}", "digest": self.version.digest}
        return {**described, **({"parts": list(self.parts)} if self.parts else {}), "weights": len(self.weights)}


def read_start(framework: Framework, model: Any, start: Start | str) -> Beginning:
    """Read the weights of a version for a model, by name; the model stays as it is.

    Args:
        framework: the model's.
        model: whose weights have the names of the version's; of one with adapters of PEFT, its base has.
        start: a version, or with parts.

    Raises:
        InputError: `bad_start`, the version keeps no weights by name, or names, shapes or types differ; `bad_option`, a part;
            `bad_reference`.
        NotFoundError: there is no such version.
        StoreError: its files are damaged; `temp_full`.
    """
    if isinstance(start, str):
        start = Start(start)
    if not isinstance(start, Start):  # pyright: ignore[reportUnnecessaryIsInstance]
        expected = "a version, NAME@NUMBER, or argosy.Start(version, parts=[...])"
        raise InputError("bad_option", option="start", got=name_kind(start), expected=expected)
    store = start.store or Store()
    version = store.get_version(start.version)
    reference = f"{version.name}@{version.number}"
    try:
        folder, entry = store.open_artifact(version), version.manifest.entry
        with open_kept(folder, entry, is_onnx=version.manifest.runtime == "onnx") as kept:
            own = framework.get_weights(model)
            plain = name_plainly(model, own)
            wanted = _find_wanted(plain, start.parts)
            _check(kept, own, {name: plain[name] for name in wanted}, reference, is_whole=not start.parts)
            weights = {name: kept.read(plain[name], own[name]) for name in wanted}
    except (ValueError, OSError) as error:
        raise InputError("bad_start", version=reference, detail=str(error)) from error
    return Beginning(version, start.parts, weights)


def _find_wanted(plain: Mapping[str, str], parts: Sequence[str]) -> list[str]:
    if not parts:
        return [*plain]
    found: set[str] = set()
    for part in parts:
        matched = match_names(part, plain.values())
        if not matched:
            expected = f"parts of the model: {list_choices(plain.values())}"
            raise InputError("bad_option", option="start.parts", got=part, expected=expected)
        found.update(matched)
    return [name for name, known in plain.items() if known in found]


def _check(kept: KeptWeights, own: Arrays, wanted: Mapping[str, str], reference: str, *, is_whole: bool) -> None:
    """See that a version has what is wanted and, if that is all of the model, no more.

    Raises:
        InputError: `bad_start`.
    """
    faults = [f"it has no {list_choices(missing, limit=_NUM_TOLD)}"] if (missing := {*wanted.values()} - {*kept.found}) else []
    spare = {*kept.found} - {*wanted.values()}
    if is_whole and spare and kept.is_whole:
        faults.append(f"it has {list_choices(spare, limit=_NUM_TOLD)}, which the model has not")
    for name, known in wanted.items():
        if known in kept.found and not kept.fits(known, own[name]):
            faults.append(f"{known} is {kept.show(known)} there, {_show(own[name])} here")
    if faults:
        raise InputError("bad_start", version=reference, detail="; ".join(faults[:_NUM_TOLD]))


def _show(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {list(array.shape)}"
