"""The models of `argosy conformance` as a rival runs them: ONNX Runtime, and what its user would check.

What a server leaves to its models is done here with care, so that the suite finds the server's faults and not these.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(os.environ["CONFORMANCE_MODELS"])
PORT = int(os.environ["PORT"])
GRPC_PORT = int(os.environ["GRPC_PORT"])
METRICS_PORT = int(os.environ["METRICS_PORT"])

OCTETS = "conformance-octets"
_DATATYPES = {
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{sign}int{bits}": f"{sign}INT{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
    **{name: name.lower() for name in _DATATYPES.values() if "INT" in name},
}


class WrongInput(Exception):
    """A request that does not fit the model."""


class Graph:
    """One model; `inputs` and `outputs` are its V2 metadata."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = None
        if name == OCTETS:
            self.inputs = [{"name": "x", "datatype": "BYTES", "shape": [-1, 4]}]
            self.outputs = [{"name": "y", "datatype": "BYTES", "shape": [-1, 4]}]
            return
        path = str(FOLDER / name / "1" / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (_describe(tensors) for tensors in (self.session.get_inputs(), self.session.get_outputs()))

    def run(self, feed: dict, wanted: list) -> dict:
        """Output name -> array, for the outputs that are wanted, or all; BYTES are arrays of bytes objects."""
        self._check(feed, wanted)
        names = wanted or [output["name"] for output in self.outputs]
        if self.session is None:
            return {"y": feed["x"]}
        if any(tensor["datatype"] == "BYTES" for tensor in self.inputs):
            try:
                feed = {name: np.vectorize(bytes.decode, otypes=[object])(array) for name, array in feed.items()}
            except UnicodeDecodeError as error:
                raise WrongInput(str(error)) from error
        arrays = dict(zip(names, self.session.run(names, feed), strict=True))
        return {
            name: np.vectorize(str.encode, otypes=[object])(array) if array.dtype.kind == "O" else array
            for name, array in arrays.items()
        }

    def _check(self, feed: dict, wanted: list) -> None:
        specs = {spec["name"]: spec for spec in self.inputs}
        if feed.keys() != specs.keys():
            raise WrongInput(f"inputs {sorted(feed)}, expected {sorted(specs)}")
        if unknown := set(wanted) - {output["name"] for output in self.outputs}:
            raise WrongInput(f"no output {sorted(unknown)}")
        for name, array in feed.items():
            spec = specs[name]
            is_shape = len(array.shape) == len(spec["shape"]) and all(
                want in (-1, got) for want, got in zip(spec["shape"], array.shape, strict=True)
            )
            if array.dtype != DTYPES[spec["datatype"]] or not is_shape:
                raise WrongInput(f"input {name} is {array.dtype} {array.shape}")


def _describe(tensors: list) -> list:
    return [
        {
            "name": tensor.name,
            "datatype": _DATATYPES[tensor.type.removeprefix("tensor(").removesuffix(")")],
            "shape": [dim if isinstance(dim, int) else -1 for dim in tensor.shape],
        }
        for tensor in tensors
    ]


def list_names() -> list:
    """The models of the folder, without BF16, which NumPy does not have, and with the one that is no ONNX file."""
    names = sorted(path.name for path in FOLDER.glob("conformance-*") if path.name != "conformance-bf16")
    return [*names, OCTETS]
