"""The model as MLServer runs it."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from ort_model import OrtModel


class OnnxModel(MLModel):
    async def load(self) -> bool:
        self.model = OrtModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {
            item.name: np.ascontiguousarray(NumpyCodec.decode_input(item), self.model.inputs[item.name])
            for item in payload.inputs
        }
        return InferenceResponse(model_name="m", outputs=[NumpyCodec.encode_output(self.model.output, self.model.run(feed))])
