"""Bring models that were made elsewhere into the store: ONNX files, Python code, files of other frameworks."""
