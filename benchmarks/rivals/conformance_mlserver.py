"""MLServer with the models of `argosy conformance`; run as a program it starts the server."""

import json
import os
import sys
from pathlib import Path

import numpy as np
from conformance_graph import FOLDER, GRPC_PORT, METRICS_PORT, PORT, Graph, WrongInput, list_names
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

SERVER = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": PORT,
    "grpc_port": GRPC_PORT,
    "metrics_port": METRICS_PORT,
    "metrics_endpoint": None,
    "parallel_workers": 0,
}


def decode(item: object) -> np.ndarray:
    """An input as an array; what does not fit its own shape or datatype is the client's fault."""
    try:
        if item.datatype != "BYTES":
            return NumpyCodec.decode_input(item)
        values = [value.encode() if isinstance(value, str) else bytes(memoryview(value)) for value in flatten(item.data.root)]
        return np.array([*values, None], object)[:-1].reshape(item.shape)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise InferenceError(f"input {item.name}: {error}") from error


def flatten(data: list) -> list:
    """Nested data as a flat list."""
    return [leaf for item in data for leaf in (flatten(item) if isinstance(item, list) else [item])]


def encode(name: str, array: np.ndarray) -> ResponseOutput:
    if array.dtype.kind != "O":
        output = NumpyCodec.encode_output(name, array)
        # The codec makes a column of a vector.
        output.shape = list(array.shape)
        return output
    return ResponseOutput(name=name, datatype="BYTES", shape=list(array.shape), data=array.ravel().tolist())


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self.graph = Graph(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {item.name: decode(item) for item in payload.inputs}
        if len(feed) < len(payload.inputs):
            raise InferenceError("an input stands twice")
        wanted = [output.name for output in payload.outputs or ()]
        try:
            outputs = self.graph.run(feed, wanted)
        except WrongInput as error:
            raise InferenceError(str(error)) from error
        return InferenceResponse(
            model_name=self.name, model_version=self.version, outputs=[encode(name, array) for name, array in outputs.items()]
        )


def main() -> None:
    root = FOLDER / "mlserver"
    root.mkdir()
    (root / "settings.json").write_text(json.dumps(SERVER))
    for name in list_names():
        graph = Graph(name)
        (root / name).mkdir()
        settings = {
            "name": name,
            "implementation": "conformance_mlserver.OnnxModel",
            "parameters": {"version": "1"},
            "versions": ["1"],
            "platform": "onnx_onnxv1",
            "inputs": graph.inputs,
            "outputs": graph.outputs,
        }
        (root / name / "model-settings.json").write_text(json.dumps(settings))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    program = str(Path(sys.executable).parent / "mlserver")
    os.execve(program, [program, "start", str(root)], environment)


if __name__ == "__main__":
    main()
