"""Ways to compress, one file each, with its card beside it. They know nothing of the store, of accuracy or of guards.

base.py       ONNX files: read, named, written (no step of its own)
facts.py      what is asked of an ONNX file before a step is chosen (no step either)
simplify.py   the same graph with fewer operators
half.py       float16 weights
dynamic.py    int8 weights, activations quantised as they come
int8.py       int8 weights and activations, scales fixed beforehand
weights.py    weights alone in 8 or 4 bits
low_rank.py   matrices as products of two thinner ones
merge_lora.py adapters as part of their matrices
prune.py      fewer channels, or single weights, with training afterwards
distill.py    a smaller student, taught by the original
trees.py      ensembles of fewer or of shallower trees
openvino.py   for the runtime OpenVINO, as it is or in bfloat16
nncf.py       int8, and weights alone, by NNCF for OpenVINO
native.py     int8 by the framework that serves a version: Keras, torch
native_child.py    the process in which that is done
"""
