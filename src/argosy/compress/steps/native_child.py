"""What `native.py` has done in a confined process: python -m argosy.compress.steps.native_child RUNTIME JOB.

The last line of standard output is JSON: `count` of what was changed, or `error`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Do a job, and tell what came of it."""
    runtime, file = sys.argv[1:]
    job: dict[str, Any] = json.loads(Path(file).read_text())
    warnings.simplefilter("ignore")
    try:
        told: dict[str, Any] = {"count": {"keras": _quantize_keras, "torch": _quantize_torch}[runtime](job)}
    except Exception as error:  # the edge of the process: frameworks raise anything
        told = {"error": f"{type(error).__name__}: {error}"[:1000]}
    sys.stdout.write(f"\n{json.dumps(told)}\n")
    sys.stdout.flush()
    # Frameworks may crash when they are torn down.
    os._exit(0)


def _quantize_keras(job: dict[str, Any]) -> int:
    runtime: Any = importlib.import_module("argosy.runtimes.keras")
    model = runtime.read_model(Path(job["folder"]), job["entry"])
    model.quantize("int8")
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]
    if layers:
        model.save(Path(job["out"], job["entry"]))
    return len(layers)


def _quantize_torch(job: dict[str, Any]) -> int:
    torch: Any = importlib.import_module("torch")
    path = Path(job["folder"], job["entry"])
    if importlib.import_module("argosy.runtimes.torch_files").check_file(path) != "program":
        raise ValueError("TorchScript has its weights in its code; publish the model as a program of torch.export")
    with path.open("rb") as file:
        module: Any = torch.export.load(file).module()
    count = _replace_linear(torch, module, int(job["options"]["least_weights"]))
    if not count:
        return 0
    # Two rows: of a single one, torch.export takes the 1 for a constant.
    shapes = [[2 if size == -1 else size for size in spec["shape"]] for spec in job["inputs"]]
    examples = tuple(torch.zeros(shape, dtype=_find_type(torch, spec)) for shape, spec in zip(shapes, job["inputs"], strict=True))
    auto = torch.export.Dim.AUTO
    free = tuple({axis: auto for axis, size in enumerate(spec["shape"]) if size == -1} for spec in job["inputs"])
    program = torch.export.export(module, examples, dynamic_shapes=(free,) if _takes_many(module) else free)
    with Path(job["out"], job["entry"]).open("wb") as file:
        torch.export.save(program, file)
    return count


def _takes_many(module: Any) -> bool:
    """Say whether its forward takes any arguments, which torch.export wants described together."""
    code = module.forward.__code__ if hasattr(module.forward, "__code__") else None
    return bool(code is not None and code.co_flags & 0x04)


def _find_type(torch: Any, spec: dict[str, Any]) -> Any:
    names = {"FP64": "float64", "FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    kind = str(spec["datatype"])
    return getattr(torch, names.get(kind, kind.lower()))


def _replace_linear(torch: Any, module: Any, least: int) -> int:
    """Put in the place of each linear layer one whose weights are int8; returns how many there were."""
    base: Any = torch.nn.Module

    class Int8Linear(base):
        def __init__(self, weight: Any, bias: Any) -> None:
            base.__init__(self)
            scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127.0
            self.register_buffer("weight", (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8))
            self.register_buffer("scale", scale)
            self.register_buffer("bias", bias)

        def forward(self, x: Any) -> Any:
            flat = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
            made = flat.reshape(*x.shape[:-1], self.weight.shape[0])
            return made if self.bias is None else made + self.bias

    def read(node: Any) -> Any:
        """Give the weight that a node stands for."""
        value: Any = module
        for part in node.target.split("."):
            value = getattr(value, part)
        return value.detach()

    count, graph = 0, module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.linear.default:
            continue
        arguments: list[Any] = [*node.args, None]
        x, weight, bias = arguments[:3]
        is_constant = weight.op == "get_attr" and (bias is None or bias.op == "get_attr")
        if not is_constant or read(weight).dtype != torch.float32 or read(weight).numel() < least:
            continue
        name = f"int8_linear_{count}"
        module.add_submodule(name, Int8Linear(read(weight), None if bias is None else read(bias)))
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, (x,)))
        graph.erase_node(node)
        count += 1
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused(module, graph)
    module.recompile()
    return count


def _drop_unused(module: Any, graph: Any) -> None:
    """Remove weights that no node reads any more."""
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for holder, names in (("named_parameters", "_parameters"), ("named_buffers", "_buffers")):
        for name in [name for name, _ in getattr(module, holder)()]:
            if name in used or name.startswith("int8_linear_"):
                continue
            owner_name, _, last = name.rpartition(".")
            owner = module.get_submodule(owner_name) if owner_name else module
            getattr(owner, names).pop(last, None)


if __name__ == "__main__":
    main()
