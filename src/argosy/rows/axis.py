"""Settle what the first axes of an ONNX graph are: rows that requests may share a batch with, or whole requests."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from argosy.rows.proof import judge_rows
from argosy.signature import JoinVerdict, Signature

__all__ = ["judge_file", "settle_rows"]

_MADE_UP: Final = re.compile(r"(unk__|unk_|unknown_|dynamic_axes_|DynamicDimension\.|s|-?)\d*|\?|None", re.IGNORECASE)
"""Names that exporters give to each axis anew: that they differ says nothing."""


def judge_file(source: Path | bytes, signature: Signature) -> tuple[Signature, JoinVerdict]:
    """Settle it of an ONNX file that was made here, as `settle_rows` does.

    Args:
        source: the file, or its content; weights beside it are not read.
        signature: of the model.
    """
    onnx: Any = importlib.import_module("onnx")
    is_path = isinstance(source, Path)
    model = onnx.load(str(source), load_external_data=False) if is_path else onnx.load_model_from_string(source)
    return settle_rows(model, signature)


def settle_rows(model: Any, signature: Signature) -> tuple[Signature, JoinVerdict]:
    """Give the signature with what its first axes are, and whether rows of several requests may be joined.

    First axes of any length count rows, unless the graph does not treat them as rows and the file names them differently, or they
    are the steps of a sequence.

    Args:
        model: an `onnx.ModelProto`.
        signature: of the model.
    """
    if not signature.is_batched:
        return signature, JoinVerdict("unknown", "the signature has no axis of rows")
    verdict, is_ordered = judge_rows(model, signature)
    if verdict.kind == "independent":
        return signature, verdict
    is_vector = verdict.kind == "dependent" and all(len(spec.shape) == 1 for spec in signature.inputs)
    if is_ordered or is_vector or _are_named_differently(model):
        reason = f"its first axes do not count rows: {verdict.reason}"
        return msgspec.structs.replace(signature, has_rows=False), JoinVerdict(verdict.kind, reason, verdict.edition)
    return signature, verdict


def _are_named_differently(model: Any) -> bool:
    weights = {tensor.name for tensor in model.graph.initializer}
    tensors = [*(info for info in model.graph.input if info.name not in weights), *model.graph.output]
    shapes = [[dim.dim_param for dim in info.type.tensor_type.shape.dim] for info in tensors]
    names = {shape[0] for shape in shapes if shape and not _MADE_UP.fullmatch(shape[0])}
    others = {name for shape in shapes for name in shape[1:]}
    return len(names) > 1 or bool(names & others)
