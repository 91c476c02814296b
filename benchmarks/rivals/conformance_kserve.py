"""KServe's Python server with the models of `argosy conformance`; a program."""

import numpy as np
from conformance_graph import GRPC_PORT, PORT, Graph, WrongInput, list_names
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput


def decode(item: object) -> np.ndarray:
    """An input as an array; what does not fit its own shape or datatype is the client's fault."""
    try:
        array = np.array(item.as_numpy())
        if item.datatype != "BYTES":
            return array
        values = [value.encode() if isinstance(value, str) else bytes(memoryview(value)) for value in array.ravel().tolist()]
        return np.array([*values, None], object)[:-1].reshape(array.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"input {item.name}: {error}") from error


class OnnxModel(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.graph = Graph(name)
        self.ready = True

    def get_input_types(self) -> list:
        return self.graph.inputs

    def get_output_types(self) -> list:
        return self.graph.outputs

    async def predict(
        self, payload: InferRequest, headers: dict | None = None, response_headers: dict | None = None
    ) -> InferResponse:
        feed = {item.name: decode(item) for item in payload.inputs}
        if len(feed) < len(payload.inputs):
            raise InvalidInput("an input stands twice")
        wanted = [output.name for output in payload.request_outputs or ()]
        try:
            outputs = self.graph.run(feed, wanted)
        except WrongInput as error:
            raise InvalidInput(str(error)) from error
        datatypes = {output["name"]: output["datatype"] for output in self.graph.outputs}
        tensors = []
        for name, array in outputs.items():
            tensor = InferOutput(name=name, shape=list(array.shape), datatype=datatypes[name])
            tensor.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            tensors.append(tensor)
        return InferResponse(
            response_id=payload.id or "",
            model_name=self.name,
            infer_outputs=tensors,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    server = ModelServer(http_port=PORT, grpc_port=GRPC_PORT, workers=1, enable_grpc=True, access_log_format=None)
    server.start([OnnxModel(name) for name in list_names()])
