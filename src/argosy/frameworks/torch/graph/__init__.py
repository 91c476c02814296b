"""ONNX graphs in torch, so that their weights can be trained and written back; the graph itself stays as it is.

network.py     a graph as a module: its weights are parameters
operators.py   what each operator computes; shapes.py: those of shapes and places
lesson.py      training to give what another model gives
"""
