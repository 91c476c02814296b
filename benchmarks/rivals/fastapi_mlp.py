"""FastAPI stripped bare: raw body, orjson, the session called in the handler; V2 JSON."""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])


@app.post("/v2/models/mlp/infer")
async def infer(request: Request) -> Response:
    body = orjson.loads(await request.body())
    feed = {item["name"]: np.array(item["data"], np.float32).reshape(item["shape"]) for item in body["inputs"]}
    y = session.run(None, feed)[0]
    outputs = [{"name": "y", "shape": y.shape, "datatype": "FP32", "data": y.ravel()}]
    return Response(
        orjson.dumps({"model_name": "mlp", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )
