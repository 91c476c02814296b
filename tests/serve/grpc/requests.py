"""Requests as tritonclient and grpcio make them."""

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

NEEDS_BFLOAT16 = pytest.mark.skipif(
    np_to_triton_dtype(np.dtype(ml_dtypes.bfloat16)) is None, reason="tritonclient before 2.70 takes no arrays of bfloat16"
)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def make_input(array, name="x"):
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def make_request(array, model="any", name="x", **fields):
    request = service_pb2.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request
