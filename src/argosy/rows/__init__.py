"""Say of an ONNX graph, operator by operator, whether the rows of a batch influence one another."""
