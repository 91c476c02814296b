"""Whether the clients of a deployment can go on when it is rolled out to another version."""

from __future__ import annotations

from collections.abc import Sequence

from argosy.errors import NotAllowedError
from argosy.signature import Signature, TensorSpec
from argosy.store.manifest import Version

__all__ = ["check_signatures", "list_differences"]


def check_signatures(name: str, live: Version, version: Version) -> None:
    """See that a version takes and gives what the live one does.

    Args:
        name: of the deployment.
        live: what its clients know.
        version: what it would become.

    Raises:
        NotAllowedError: `signature_changes`, with what differs.
    """
    differences = list_differences(live.manifest.signature, version.manifest.signature)
    offers = [bool(each.manifest.options.get("raw")) for each in (live, version)]
    if offers[0] != offers[1]:
        differences.append("the raw endpoint is new" if offers[1] else "the raw endpoint is gone")
    if differences:
        raise NotAllowedError(
            "signature_changes",
            name=name,
            version=f"{version.name}@{version.number}",
            live=f"{live.name}@{live.number}",
            differences="; ".join(differences),
        )


def list_differences(old: Signature, new: Signature) -> list[str]:
    """Say in what one signature differs from another for those who send and read tensors."""
    found = _compare("input", old.inputs, new.inputs) + _compare("output", old.outputs, new.outputs)
    if not found and old.raw_inputs != new.raw_inputs:
        found += _compare(
            "input that is preprocessed", old.raw_inputs[: len(old.preprocess)], new.raw_inputs[: len(new.preprocess)]
        )
    if not found and (old.ragged is None) != (new.ragged is None):
        found.append("lengths may differ within a batch" if new.ragged is not None else "lengths may not differ within a batch")
    return found


def _compare(kind: str, old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> list[str]:
    before, after = {spec.name: spec for spec in old}, {spec.name: spec for spec in new}
    found = [f"{kind} `{name}` is gone" for name in before if name not in after]
    found += [f"{kind} `{name}` is new, {_show(spec)}" for name, spec in after.items() if name not in before]
    found += [
        f"{kind} `{name}` is {_show(after[name])}, was {_show(spec)}"
        for name, spec in before.items()
        if name in after and _show(spec) != _show(after[name])
    ]
    if not found and list(before) != list(after):
        found.append(f"{kind}s stand in the order {', '.join(after)}, stood in {', '.join(before)}")
    return found


def _show(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
