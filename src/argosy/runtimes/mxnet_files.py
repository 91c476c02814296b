"""The two files of an MXNet model, read without MXNet: what a hostile one could do there, it cannot do here.

MXNet's own loader makes any operator that the graph names. Among them are some that call an address which stands in
the file (`_Native`), run a Python class (`Custom`), open a file (`_cvimread`), write to where a tensor says
(`_scatter_set_nd`) or change the weights (`sgd_update`), so only those of `OPERATORS` are let through. The numbers of
nodes and outputs are checked, which its loader trusts. The parameters' file is no pickle but of MXNet's own format:
here every length is held against the file's, and sparse tensors, whose indices point into memory, are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRAPH_FILE", "OPERATORS", "PARAMETERS_FILE", "Graph", "Node", "read_graph", "read_parameters"]

GRAPH_FILE: Final = "model-symbol.json"
PARAMETERS_FILE: Final = "model-0000.params"

_NAMES: Final = """
    Activation BatchNorm BilinearSampler BlockGrad Cast Concat Convolution Crop Deconvolution Dropout Embedding Flatten
    FullyConnected GridGenerator GroupNorm InstanceNorm L2Normalization LRN LayerNorm LeakyReLU Pad Pooling RNN ROIPooling
    Reshape SequenceLast SequenceMask SequenceReverse SliceChannel SoftmaxActivation SpatialTransformer SwapAxis UpSampling
    _contrib_AdaptiveAvgPooling2D _contrib_BatchNormWithReLU _contrib_BilinearResize2D _contrib_DeformableConvolution
    _contrib_MultiBoxDetection _contrib_MultiBoxPrior _contrib_ROIAlign _contrib_arange_like _contrib_box_decode
    _contrib_box_iou _contrib_box_nms _contrib_div_sqrt_dim _contrib_index_array
    _contrib_interleaved_matmul_encdec_qk _contrib_interleaved_matmul_encdec_valatt
    _contrib_interleaved_matmul_selfatt_qk _contrib_interleaved_matmul_selfatt_valatt
    _contrib_quadratic _rnn_param_concat
    _arange _copy _eye _full _histogram _linspace _ones _zeros _split_v2 add_n amp_cast amp_multicast argmax
    argmax_channel argmin argsort batch_dot batch_take broadcast_axis broadcast_like broadcast_to cast_storage clip
    cumsum depth_to_space diag dot expand_dims gather_nd im2col col2im khatri_rao log_softmax max mean min moments nanprod
    nansum norm one_hot ones_like pick prod ravel_multi_index _ravel_multi_index repeat reshape_like reverse shape_array
    size_array slice slice_axis slice_like smooth_l1 softmax softmin softsign sort space_to_depth squeeze stack sum take tile
    topk transpose _unravel_index where zeros_like
    _linalg_det _linalg_extractdiag _linalg_extracttrian _linalg_gemm _linalg_gemm2 _linalg_inverse _linalg_makediag
    _linalg_maketrian _linalg_potrf _linalg_potri _linalg_slogdet _linalg_sumlogdiag _linalg_syrk _linalg_trmm _linalg_trsm
    abs arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh degrees erf erfinv exp expm1 fix floor gamma gammaln
    hard_sigmoid log log10 log1p log2 logical_not negative radians rcbrt reciprocal relu rint round rsqrt sigmoid sign sin
    sinh sqrt square tan tanh trunc
    elemwise_add elemwise_div elemwise_mul elemwise_sub _grad_add
    _equal _greater _greater_equal _hypot _lesser _lesser_equal _logical_and _logical_or _logical_xor _maximum _minimum
    _mod _not_equal _power
    broadcast_add broadcast_div broadcast_equal broadcast_greater broadcast_greater_equal broadcast_hypot broadcast_lesser
    broadcast_lesser_equal broadcast_logical_and broadcast_logical_or broadcast_logical_xor broadcast_maximum
    broadcast_minimum broadcast_mod broadcast_mul broadcast_not_equal broadcast_power broadcast_sub
    _div_scalar _equal_scalar _greater_equal_scalar _greater_scalar _hypot_scalar _lesser_equal_scalar _lesser_scalar
    _logical_and_scalar _logical_or_scalar _logical_xor_scalar _maximum_scalar _minimum_scalar _minus_scalar _mod_scalar
    _mul_scalar _not_equal_scalar _plus_scalar _power_scalar _rdiv_scalar _rminus_scalar _rmod_scalar _rpower_scalar
"""
OPERATORS: Final = frozenset(_NAMES.split())
"""Operators that compute their outputs from their inputs, and do nothing else."""

_VARIABLE: Final = "null"

_LIST_MAGIC: Final = 0x112
_TENSOR_MAGICS: Final = (0xF993FAC9, 0xF993FACA)
_DENSE: Final = 0
_TYPES: Final = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_MAX_RANK: Final = 32


class Node(NamedTuple):
    """One operator of a graph, or a variable."""

    operator: str | None
    """None: it is a variable."""
    name: str
    attributes: dict[str, str]
    inputs: list[tuple[int, int]]
    """Each the number of an earlier node, and which of its outputs."""


class Graph(NamedTuple):
    """The nodes, each after those that it takes from, and which outputs are the model's."""

    nodes: list[Node]
    heads: list[tuple[int, int]]


def read_graph(path: Path) -> Graph:
    """Read a graph.

    Raises:
        ValueError: it is none, or has an operator that is not let through; the text says which.
    """
    try:
        content: Any = json.loads(path.read_bytes())
        described = [*content["nodes"]], [*content["heads"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a graph of MXNet: {type(error).__name__}: {error}") from error
    nodes = [_read_node(node, number) for number, node in enumerate(described[0])]
    heads = [_read_entry(entry, len(nodes)) for entry in described[1]]
    names = [node.name for node in nodes if node.operator is None]
    if not heads or len(names) != len({*names}):
        raise ValueError(f"{path.name} is not a graph of MXNet: it has no outputs, or two variables of one name")
    return Graph(nodes, heads)


def _read_node(node: Any, number: int) -> Node:
    try:
        operator, name, inputs = node["op"], node["name"], [*node["inputs"]]
        # Files from before MXNet 1.0 call attributes by other names.
        attributes: dict[str, str] = {**node.get("attrs", node.get("attr", node.get("param", {})))}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Node {number} of the graph is not one of MXNet: {type(error).__name__}: {error}") from error
    if not all(isinstance(text, str) for text in (operator, name, *attributes.values())):
        raise ValueError(f"Node {number} of the graph has a name or an attribute that is not text")
    if operator == _VARIABLE:
        return Node(None, name, {}, [])
    if operator not in OPERATORS or node.get("subgraphs"):
        raise ValueError(f"Operator {operator!r} of node {name!r} is not served: only those that compute and do nothing else are")
    # What stands between underscores is for training and for other devices.
    own = {key: value for key, value in attributes.items() if not key.startswith("__")}
    return Node(operator, name, own, [_read_entry(entry, number) for entry in inputs])


def _read_entry(entry: Any, num_nodes: int) -> tuple[int, int]:
    parts = cast("list[object]", entry) if isinstance(entry, list) else []
    if len(parts) < 2 or not all(type(part) is int and part >= 0 for part in parts):
        raise ValueError(f"The graph takes {entry!r}, expected the number of a node and of its output")
    source, output = cast("list[int]", parts[:2])
    if source >= num_nodes:
        raise ValueError(f"The graph takes node {source} where only {num_nodes} come before it")
    return source, output


def read_parameters(path: Path) -> dict[str, NDArray[Any]]:
    """Read the parameters of a model; the arrays are views of the file.

    Raises:
        ValueError: it is no such file, or holds what a model cannot need; the text says what.
    """
    reader = _Reader(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8), path.name)
    if reader.take_number("<u8") != _LIST_MAGIC:
        raise ValueError(f"{path.name} does not hold parameters of MXNet")
    reader.take_number("<u8")
    arrays = [reader.take_tensor() for _ in range(reader.take_count())]
    names = [reader.take_text() for _ in range(reader.take_count())]
    if len(names) != len(arrays) or len({*names}) != len(names) or reader.num_left:
        raise ValueError(f"{path.name} holds {len(arrays)} tensors and {len({*names})} names, and {reader.num_left} bytes more")
    return {name.partition(":")[2] or name: array for name, array in zip(names, arrays, strict=True)}


class _Reader:
    """Takes one thing after another from a file, and never more than there is."""

    def __init__(self, content: NDArray[np.uint8], file: str) -> None:
        self._content = content
        self._file = file
        self._position = 0

    @property
    def num_left(self) -> int:
        return len(self._content) - self._position

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        if num_bytes > self.num_left:
            raise ValueError(f"{self._file} is cut off: {num_bytes} bytes should follow byte {self._position}")
        start, self._position = self._position, self._position + num_bytes
        return self._content[start : self._position]

    def take_number(self, dtype: str) -> int:
        return int(np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0])

    def take_count(self) -> int:
        """Each thing that is counted has a byte at least."""
        count = self.take_number("<u8")
        if count > self.num_left:
            raise ValueError(f"{self._file} is cut off: {count} entries should follow byte {self._position}")
        return count

    def take_text(self) -> str:
        return self.take(self.take_count()).tobytes().decode()

    def take_tensor(self) -> NDArray[Any]:
        magic, storage = self.take_number("<u4"), self.take_number("<i4")
        if magic not in _TENSOR_MAGICS or storage != _DENSE:
            raise ValueError(
                f"{self._file} holds a tensor that is sparse or of another version of MXNet, at byte {self._position}"
            )
        rank = self.take_number("<i4")
        if not 0 < rank <= _MAX_RANK:
            raise ValueError(f"{self._file} holds a tensor of {rank} axes, expected 1 to {_MAX_RANK}")
        shape = [self.take_number("<i8") for _ in range(rank)]
        self.take(8)  # The device.
        kind = self.take_number("<i4")
        if kind not in _TYPES or min(shape) < 0:
            raise ValueError(f"{self._file} holds a tensor of type {kind} and shape {shape}; known types: {[*_TYPES]}")
        dtype = np.dtype(_TYPES[kind])
        return np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
