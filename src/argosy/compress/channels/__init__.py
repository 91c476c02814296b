"""Channels of an ONNX graph: which must go together, which matter least, and the graph without some of them. No framework.

labels.py      which entries of which axes are one channel
rules.py       what each operator says of that
cut.py         a graph with fewer of them
"""
