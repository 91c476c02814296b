"""Import an ONNX file: read its graph, refuse what could reach outside, derive the signature, record golden examples.

The file and its external data are copied first and looked at as copies: what is checked is what is published.
Only the graph is read here; weights, of any size, are never loaded by `onnx`.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from argosy.datatypes import DATATYPES
from argosy.errors import InputError, list_choices
from argosy.importers.golden_run import counts_rows, open_session, record_golden, record_synthetic, shapes_of_outputs
from argosy.rows.axis import settle_rows
from argosy.rows.proof import judge_rows
from argosy.signature import JoinVerdict, Ragged, Signature, TensorSpec, check_name
from argosy.store.golden import Golden
from argosy.store.local import Staged, Store, Version
from argosy.store.preprocess import Steps, add_steps

__all__ = ["add_labels", "check_external_data", "import_onnx"]

_DATATYPES: Final = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
    "BOOL": "BOOL",
    **{name: name for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
}
_EXTERNAL: Final = 1  # TensorProto.EXTERNAL


def import_onnx(
    store: Store,
    path: Path | str,
    name: str,
    *,
    lineage: Mapping[str, object] = {},
    measurements: Mapping[str, float] = {},
    golden_inputs: Mapping[str, NDArray[Any]] | None = None,
    labels: Sequence[str] | None = None,
    ragged: Ragged | None = None,
    preprocess: Steps = (),
    repeatable: bool = True,
    options: Mapping[str, object] = {},
    has_rows: bool | None = None,
) -> Version:
    """Publish an ONNX file, byte for byte, with its external data, as a new version.

    Args:
        store: where to.
        path: the `.onnx` file; its external data must lie beside it.
        name: the model's.
        lineage: added to what the file says of itself (producer, opsets, number of weights).
        measurements: as in `Store.publish`.
        golden_inputs: examples of the inputs, first axis examples, see `Golden`; each is run alone, and the
            file's own answers become the golden outputs. Default: random ones, and the version says so. Where
            random ones have no answers to keep, the version has none, and `lineage["golden_error"]` says why;
            where none of them runs, `lineage["example_error"]`, and it cannot be deployed.
        labels: names of the entries of the last axis, for each output whose last axis is as long.
        ragged: which axes may differ between the requests of a batch.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        repeatable: as in `Store.publish`.
        options: as in `Store.publish`.
        has_rows: first axes of any length count rows; False where they do not. None tells it by the graph.

    Raises:
        InputError: `missing_file`; `bad_onnx`, it is no ONNX file or ONNX Runtime cannot load it;
            `bad_external_data`; `unsupported_type`; `bad_golden`; `bad_preprocess`; `bad_option`, no output fits the
            labels, or no input the ragged axes.
        StoreError: as `Store.publish`.
    """
    check_name(name)
    path = Path(path)
    with store.stage() as staged:
        staged.add(path.name, path)
        model = _read_graph(staged.folder / path.name)
        _add_external_data(staged, path, model)
        session = open_session(staged.folder / path.name)
        signature = add_labels(_derive_signature(model, path, shapes_of_outputs(session)), labels)
        signature, verdict = _settle_rows(model, signature, has_rows)
        signature, files = add_steps(msgspec.structs.replace(signature, ragged=ragged), preprocess)
        for file_name, source in files.items():
            staged.add(file_name, source)
        facts = _describe(model, path)
        is_open = has_rows is None and verdict.kind != "independent" and not (preprocess or ragged)
        golden, errors = None, dict[str, str]()
        if is_open and (other := _find_other_rows(session, golden_inputs, signature, name)) is not None:
            signature, golden = other
            verdict = JoinVerdict(verdict.kind, "its outputs have other rows than its inputs")
        else:
            golden, errors = _record(session, golden_inputs, signature, name)
        facts |= errors
        return store.publish(
            name,
            staged,
            signature=signature,
            entry=path.name,
            repeatable=repeatable,
            golden=golden,
            golden_is_synthetic=golden_inputs is None and golden is not None,
            joining=verdict,
            lineage=facts | dict(lineage),
            measurements=measurements,
            options=options,
        )


def _settle_rows(model: Any, signature: Signature, has_rows: bool | None) -> tuple[Signature, JoinVerdict]:
    if has_rows is None:
        return settle_rows(model, signature)
    signature = msgspec.structs.replace(signature, has_rows=has_rows)
    if signature.is_batched:
        return signature, judge_rows(model, signature)[0]
    return signature, JoinVerdict("unknown", "the signature has no axis of rows")


def _record(
    session: Any, inputs: Mapping[str, NDArray[Any]] | None, signature: Signature, name: str
) -> tuple[Golden | None, dict[str, str]]:
    return record_synthetic(session, signature) if inputs is None else (record_golden(session, inputs, signature, name), {})


def _find_other_rows(
    session: Any, inputs: Mapping[str, NDArray[Any]] | None, signature: Signature, name: str
) -> tuple[Signature, Golden] | None:
    """Give the signature and golden examples of a model whose outputs have other rows than its inputs; None of any other."""
    if not signature.is_batched:
        return None
    other = msgspec.structs.replace(signature, has_rows=False)
    try:
        golden, _ = _record(session, inputs, other, name)
    except InputError:
        return None
    # Each example of these is a request of several rows.
    is_other = golden is not None and not counts_rows(session, golden.example(0, is_batched=False).inputs, signature)
    return (other, golden) if is_other and golden is not None else None


def _read_graph(path: Path) -> Any:
    onnx = importlib.import_module("onnx")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, of whichever of its implementations
        raise InputError("bad_onnx", path=path.name, detail=f"it cannot be parsed ({error})") from error
    # Nearly any short text parses as a message without fields.
    if model.ir_version < 1 or not model.graph.output or not model.graph.node:
        raise InputError("bad_onnx", path=path.name, detail="it holds no graph with nodes and outputs")
    return model


def _iterate_graphs(model: Any) -> Iterator[Any]:
    yield model.graph
    for training in model.training_info:
        yield training.initialization
        yield training.algorithm


def _iterate_tensors(graph: Any) -> Iterator[Any]:
    """Give every tensor of a graph or function: weights, and constants of nodes in any depth."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            # By what is there, not by `attribute.type`, which may lie.
            yield from (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors)
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _iterate_tensors(inner)


def check_external_data(path: Path, folder: Path, names: Collection[str]) -> None:
    """Refuse an ONNX file of an artifact whose weights would be read from a file that is none of the artifact's.

    Args:
        path: of the file.
        folder: of the artifact.
        names: of the artifact's files, below `folder`.

    Raises:
        InputError: `bad_onnx`, `bad_external_data`.
    """
    place = PurePosixPath(path.relative_to(folder)).parent
    for location in _list_locations(path, _read_graph(path)):
        # An absolute one, and one with `..` in it, is no name of a file.
        if str(place / location) not in names:
            raise InputError("bad_external_data", path=path.name, location=location[:200])


def _list_locations(path: Path, model: Any) -> list[str]:
    locations: set[str] = set()
    for graph in (*_iterate_graphs(model), *model.functions):
        for tensor in _iterate_tensors(graph):
            if tensor.data_location == _EXTERNAL or tensor.external_data:
                # Without a location, or with two, a reader may choose: refuse both.
                found = [entry.value for entry in tensor.external_data if entry.key == "location"]
                if len(found) != 1:
                    raise InputError("bad_external_data", path=path, location=", ".join(found)[:200])
                locations.add(found[0])
    return sorted(locations)


def _add_external_data(staged: Staged, path: Path, model: Any) -> None:
    for location in _list_locations(path, model):
        source = _find_beside(path, location)
        if location not in staged.names:
            staged.add(location, source)


def _find_beside(path: Path, location: str) -> Path:
    """Return the real file of a location, which must be a plain name of a file in the model's own folder."""
    is_plain = location.isprintable() and not {"/", "\\"} & set(location) and location not in ("", ".", "..")
    if not is_plain:
        raise InputError("bad_external_data", path=path, location=location[:200])
    try:
        folder = path.parent.resolve(strict=True)
        source = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError("missing_file", path=path.parent / location, detail=f"external data of {path.name}: {error}") from error
    if source.parent != folder:
        raise InputError("bad_external_data", path=path, location=f"{location} -> {source}")
    return source


def _derive_signature(model: Any, path: Path, inferred: Mapping[str, tuple[int, ...]]) -> Signature:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = tuple(_derive_spec(info, path, {}) for info in graph.input if info.name not in weights)
    if not inputs:
        raise InputError("bad_onnx", path=path.name, detail="its graph has no inputs")
    return Signature(inputs, tuple(_derive_spec(info, path, inferred) for info in graph.output))


def _derive_spec(info: Any, path: Path, inferred: Mapping[str, tuple[int, ...]]) -> TensorSpec:
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        got = f"{str(kind).removesuffix('_type')} (export scikit-learn classifiers with zipmap=False)"
        raise InputError("unsupported_type", tensor=info.name, got=got, known=list_choices(_DATATYPES))
    tensor = info.type.tensor_type
    names = importlib.import_module("onnx").TensorProto.DataType
    element = names.Name(tensor.elem_type) if tensor.elem_type in names.values() else str(tensor.elem_type)
    if element not in _DATATYPES:
        raise InputError("unsupported_type", tensor=info.name, got=element, known=list_choices(DATATYPES))
    if tensor.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1 for dim in tensor.shape.dim)
    elif not (shape := inferred.get(info.name, ())):
        raise InputError("bad_onnx", path=path.name, detail=f"the number of axes of {info.name!r} is not declared")
    return TensorSpec(info.name, _DATATYPES[element], shape)


def add_labels(signature: Signature, labels: Sequence[str] | None) -> Signature:
    """Give the signature with names for the entries of the last axis, on each output whose last axis is as long.

    Raises:
        InputError: `bad_option`, no output fits.
    """
    if labels is None:
        return signature
    fits = [spec.shape[-1:] == (len(labels),) for spec in signature.outputs]
    if not any(fits):
        shapes = {spec.name: spec.shape for spec in signature.outputs}
        expected = f"as many as the last axis of an output; the outputs are {shapes}"
        raise InputError("bad_option", option="labels", got=f"{len(labels)} labels", expected=expected)
    outputs = tuple(
        msgspec.structs.replace(spec, labels=tuple(labels)) if is_fit else spec
        for spec, is_fit in zip(signature.outputs, fits, strict=True)
    )
    return msgspec.structs.replace(signature, outputs=outputs)


def _describe(model: Any, path: Path) -> dict[str, object]:
    """Say what the file tells of itself. `precision` is the type that most weights have."""
    names = importlib.import_module("onnx").TensorProto.DataType
    counts: Counter[str] = Counter()
    for graph in _iterate_graphs(model):
        for tensor in _iterate_tensors(graph):
            num_elements = 1
            for dim in tensor.dims:
                num_elements *= dim
            if tensor.data_type in names.values() and tensor.data_type:
                counts[names.Name(tensor.data_type)] += num_elements
    facts: dict[str, object] = {
        "source_file": path.name,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "num_weights": sum(counts.values()),
    }
    if counts:
        element = counts.most_common(1)[0][0]
        facts["precision"] = _DATATYPES.get(element, element).lower()
    return facts
