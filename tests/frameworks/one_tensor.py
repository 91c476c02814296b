"""Write models of one input and one output, and hold them against what they were written from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from argosy.frameworks.agreement import Evidence, Saved
from argosy.frameworks.base import Framework
from argosy.frameworks.onnx import OnnxModel, check_export
from argosy.frameworks.ports import Ports

__all__ = ["check_one", "export_one", "save_one"]


def export_one(
    framework: Framework,
    model: Any,
    rows: Any,
    path: Path,
    *,
    input_name: str = "x",
    output_name: str = "y",
    free: Sequence[int] = (),
) -> None:
    """Write an ONNX file."""
    ports = Ports(inputs=input_name, outputs=output_name, free={input_name: free})
    framework.export_onnx(model, {input_name: rows}, path, ports)


def save_one(framework: Framework, model: Any, rows: Any, folder: Path, free: Sequence[int] = ()) -> Saved:
    """Write it as its framework does."""
    return framework.save_native(model, {"x": rows}, folder, Ports(inputs="x", outputs="y", free={"x": free}))


def check_one(model: OnnxModel, predict: Callable[[Any], Any], rows: Any, free: Sequence[int] = ()) -> Evidence:
    """Hold an ONNX file against answers."""
    (given,), (made,) = model.input_names, model.output_names
    ports = Ports(inputs=given, outputs=made, free={given: free})
    return check_export(model, ports.run(predict), {given: rows}, ports)
