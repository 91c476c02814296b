"""FastAPI stripped bare: raw body, orjson, the session called in the handler; V2 JSON, no batches."""

import os
import sys
from pathlib import Path

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from ort_model import PORT, WORKERS, OrtModel

app = FastAPI()
# uvicorn's workers import this module; the process that starts them does not load the model.
model = OrtModel() if __name__ != "__main__" else None


@app.post("/v2/models/m/infer")
async def infer(request: Request) -> Response:
    body = orjson.loads(await request.body())
    y = model.run(
        {item["name"]: np.array(item["data"], model.inputs[item["name"]]).reshape(item["shape"]) for item in body["inputs"]}
    )
    outputs = [{"name": model.output, "shape": y.shape, "datatype": "FP32", "data": y.ravel()}]
    reply = orjson.dumps({"model_name": "m", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(reply, media_type="application/json")


if __name__ == "__main__":
    options = f"--port {PORT} --workers {WORKERS} --no-access-log --loop uvloop --http httptools --log-level warning"
    command = [sys.executable, "-m", "uvicorn", "fastapi_server:app", "--app-dir", str(Path(__file__).parent), *options.split()]
    os.execv(sys.executable, command)
