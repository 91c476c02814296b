"""The model as Triton's Python backend runs it: the requests of a batch are joined, one session run, the rows divided."""

import numpy as np
import triton_python_backend_utils as backend
from ort_model import PAD, OrtModel


def join(tensors: list[np.ndarray]) -> np.ndarray:
    if len(tensors) == 1:
        return tensors[0]
    if not PAD:
        return np.concatenate(tensors)
    joined = np.zeros((sum(map(len, tensors)), max(tensor.shape[1] for tensor in tensors)), tensors[0].dtype)
    start = 0
    for tensor in tensors:
        joined[start : start + len(tensor), : tensor.shape[1]] = tensor
        start += len(tensor)
    return joined


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.model = OrtModel()

    def execute(self, requests: list) -> list:
        columns = {
            name: [backend.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.model.inputs
        }
        y = self.model.run({name: join(column) for name, column in columns.items()})
        replies, start = [], 0
        for column in next(iter(columns.values())):
            rows = y[start : start + len(column)]
            replies.append(backend.InferenceResponse([backend.Tensor(self.model.output, rows)]))
            start += len(column)
        return replies
