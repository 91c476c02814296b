"""A model of `argosy conformance` as Triton's Python backend runs it; Triton has checked names, datatypes and shapes by then."""

import triton_python_backend_utils as backend
from conformance_graph import Graph, WrongInput


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.graph = Graph(args["model_name"])

    def execute(self, requests: list) -> list:
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        try:
            answers = self.graph.run({t.name(): t.as_numpy() for t in request.inputs()}, list(request.requested_output_names()))
        except WrongInput as error:
            return backend.InferenceResponse(error=backend.TritonError(str(error), backend.TritonError.INVALID_ARG))
        return backend.InferenceResponse([backend.Tensor(name, array) for name, array in answers.items()])
