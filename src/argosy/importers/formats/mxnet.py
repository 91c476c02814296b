"""MXNet's files: a symbol as JSON with its parameters beside it, as Gluon's `export` and `save_checkpoint` write them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from argosy.errors import InputError
from argosy.frameworks.base import get_framework
from argosy.frameworks.mxnet.library import FAILURES, explain, mx, to_tensor
from argosy.frameworks.ports import Ports
from argosy.importers.formats.base import FORMATS, ForeignModel, Source, refuse
from argosy.runtimes.mxnet_files import GRAPH_FILE, PARAMETERS_FILE, read_graph, read_parameters
from argosy.signature import Arrays

__all__ = ["MxnetFile", "load"]

_LOSSES: Final = {
    "SoftmaxOutput": "softmax",
    "Softmax": "softmax",
    "LogisticRegressionOutput": "sigmoid",
    "LinearRegressionOutput": "_copy",
    "MAERegressionOutput": "_copy",
}
"""Last operators of the module API, which hold the loss: what each answers when it is not trained."""

_OUTPUT: Final = "output"


class MxnetFile(ForeignModel):
    """A symbol with its parameters. See `base.ForeignModel`."""

    framework = "mxnet"
    packages = ("mxnet",)
    runtime = "mxnet"

    def __init__(
        self, block: Any, graph: bytes, parameters: Path, input_names: tuple[str, ...], output_names: tuple[str, ...]
    ) -> None:
        """Take what was loaded.

        Args:
            block: Gluon's, of tensors in the order of `input_names`.
            graph: the symbol.
            parameters: file of the parameters.
            input_names: what the symbol takes beside its parameters.
            output_names: of what it gives.
        """
        self.input_names = input_names
        self._block, self._graph, self._parameters, self._output_names = block, graph, parameters, output_names

    def arrange(self, inputs: Arrays) -> Arrays:
        # A float64 model would say so in its parameters, and MXNet takes no other type then.
        dtype = get_framework("mxnet").float_dtype(self._block)
        return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in inputs.items()}

    def predict(self, inputs: Arrays) -> Arrays:
        try:
            with mx.autograd.pause(train_mode=False):
                answers = self._block(*(to_tensor(array) for array in inputs.values()))
            tensors: list[Any] = [*answers] if isinstance(answers, list | tuple) else [answers]
            return {name: tensor.asnumpy() for name, tensor in zip(self._output_names, tensors, strict=True)}
        except FAILURES as error:
            raise InputError("bad_sample", detail=f"the model fails on them: {explain(error)}") from error

    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        ports = Ports(inputs=tuple(inputs), outputs=self._output_names, free=self.free_axes)
        get_framework("mxnet").export_onnx(self._block, inputs, path, ports)

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        (folder / GRAPH_FILE).write_bytes(self._graph)
        shutil.copyfile(self._parameters, folder / PARAMETERS_FILE)
        return GRAPH_FILE


def load(source: Source) -> MxnetFile:
    """Load a symbol; neither file reaches MXNet's own loader before every operator and length in it has been looked at.

    Raises:
        InputError: `bad_model_file`.
    """
    title = FORMATS["mxnet"].title
    parameters = source.path.with_name(PARAMETERS_FILE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, GRAPH_FILE)
        try:
            file.write_bytes(_replace_losses(source.path))
            read_graph(file)
            known = read_parameters(parameters)
            symbol = mx.sym.load(str(file))
            names = tuple(name for name in symbol.list_inputs() if name not in known)
            block = mx.gluon.SymbolBlock.imports(str(file), list(names), str(parameters))
        except (*FAILURES, RecursionError) as error:
            raise refuse(title, explain(error)) from error
        outputs = tuple(symbol.list_outputs())
        return MxnetFile(block, file.read_bytes(), parameters, names, (_OUTPUT,) if len(outputs) == 1 else outputs)


def _replace_losses(path: Path) -> bytes:
    content: Any = json.loads(path.read_bytes())
    for node in content["nodes"]:
        if node["op"] in _LOSSES:
            attributes = node.get("attrs", node.get("attr", node.get("param", {})))
            is_channelwise = str(attributes.get("multi_output", "")).lower() in ("1", "true")
            node["op"] = _LOSSES[node["op"]]
            node["attrs"] = {"axis": "1" if is_channelwise else "-1"} if node["op"] == "softmax" else {}
            # The label is left out.
            node["inputs"] = node["inputs"][:1]
    return json.dumps(content).encode()
