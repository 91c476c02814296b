"""The model as TorchServe's workers run it."""

import orjson
from ort_model import OrtModel
from ts.torch_handler.base_handler import BaseHandler


class Handler(BaseHandler):
    def initialize(self, context: object) -> None:
        self.model = OrtModel()
        self.initialized = True

    def handle(self, data: list[dict], context: object) -> list[str]:
        bodies = [item.get("body") or item.get("data") for item in data]
        rows = [body if isinstance(body, dict) else orjson.loads(bytes(body)) for body in bodies]
        return [orjson.dumps({"y": y}, option=orjson.OPT_SERIALIZE_NUMPY).decode() for y in self.model.run_rows(rows)]
