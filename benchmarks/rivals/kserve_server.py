"""KServe's Python server (HTTP and gRPC): V2, no batches."""

import os

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from ort_model import GRPC_PORT, PORT, WORKERS, OrtModel


class OnnxModel(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        # Made by the first request: with several workers this object is pickled, which a session cannot be.
        self.model: OrtModel | None = None
        self.ready = True

    def load(self) -> bool:
        return True

    async def predict(
        self, payload: InferRequest, headers: dict | None = None, response_headers: dict | None = None
    ) -> InferResponse:
        self.model = self.model or OrtModel()
        feed = {item.name: np.ascontiguousarray(item.as_numpy(), self.model.inputs[item.name]) for item in payload.inputs}
        y = self.model.run(feed)
        output = InferOutput(name=self.model.output, shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y, binary_data=False)
        return InferResponse(response_id=payload.id or "", model_name="m", infer_outputs=[output])


if __name__ == "__main__":
    is_grpc = os.environ["KIND"] == "grpc"
    server = ModelServer(http_port=PORT, grpc_port=GRPC_PORT, workers=WORKERS, enable_grpc=is_grpc, access_log_format=None)
    server.start([OnnxModel("m")])
