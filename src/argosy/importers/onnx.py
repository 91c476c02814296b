"""Import an ONNX file: copy it, have a confined process look into the copy, and publish the copy with what is told of it.

The file and its external data are copied first and looked at as copies: what is checked is what is published. Nothing of them is
parsed or opened in this process, see `look.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from numpy.typing import NDArray

from argosy.errors import InputError
from argosy.importers.look import Limits, Looked, Question, list_locations, look_into
from argosy.signature import JoinVerdict, Ragged, Signature, check_name
from argosy.store.local import Staged, Store, Version
from argosy.store.preprocess import Steps, add_steps

__all__ = ["add_labels", "check_graphs", "import_onnx", "look_at_staged", "publish_looked"]


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
    timeout_s: float = 600.0,
    memory_bytes: int | None = None,
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
        timeout_s: how long the confined process that opens the file may take.
        memory_bytes: how much address space it may take. None: 4 GiB, and 4 times the size of the file with its external data.

    Raises:
        InputError: `missing_file`; `bad_onnx`, it is no ONNX file or ONNX Runtime cannot load it;
            `bad_external_data`; `unsupported_type`; `bad_golden`; `bad_preprocess`; `bad_option`, no output fits the
            labels, or no input the ragged axes.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
        StoreError: as `Store.publish`. Nothing was published, whichever is raised.
    """
    check_name(name)
    path = Path(path)
    with store.stage() as staged:
        question = Question(name, golden_inputs, has_rows, is_open=not (preprocess or ragged))
        looked = look_at_staged(staged, path, question, Limits(timeout_s, memory_bytes))
        return publish_looked(
            store,
            name,
            staged,
            looked,
            entry=path.name,
            repeatable=repeatable,
            golden_is_synthetic=golden_inputs is None,
            lineage=lineage,
            measurements=measurements,
            labels=labels,
            ragged=ragged,
            preprocess=preprocess,
            options=options,
        )


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


def check_graphs(
    paths: Sequence[Path],
    folder: Path,
    names: Collection[str],
    *,
    judged: Path | None = None,
    signature: Signature | None = None,
) -> JoinVerdict:
    """Refuse ONNX files of an artifact whose weights would be read from a file that is none of the artifact's.

    Args:
        paths: of the ONNX files.
        folder: of the artifact.
        names: of the artifact's files, below `folder`.
        judged: the one of the files whose rows are judged; None for none.
        signature: of that one.

    Returns:
        Whether rows of the one that was judged may be joined.

    Raises:
        InputError: `bad_onnx`, `bad_external_data`.
        ModelError: `confined_timeout`.
        TooLargeError: `confined_memory`.
    """
    listed, verdict = list_locations(paths, folder, Limits(), judged=judged, signature=signature)
    for path, locations in zip(paths, listed, strict=True):
        place = PurePosixPath(path.relative_to(folder)).parent
        for location in locations:
            # An absolute one, and one with `..` in it, is no name of a file.
            if str(place / location) not in names:
                raise InputError("bad_external_data", path=path.name, location=location[:200])
    return verdict


def look_at_staged(staged: Staged, path: Path, question: Question, limits: Limits) -> Looked:
    """Copy an ONNX file with its external data, and look into the copy.

    Args:
        staged: to copy to.
        path: of the file; its external data must lie beside it.
        question: what is asked.
        limits: of the process that looks.

    Raises:
        InputError: as `look_into`; `missing_file`, `bad_file_name`.
        ModelError: as `look_into`.
        TooLargeError: as `look_into`.
        StoreError: `disk_full`, `write_failed`.
    """
    staged.add(path.name, path)
    looked = look_into(staged.folder / path.name, staged.names, question, limits)
    if isinstance(looked, Looked):
        return looked
    for location in looked:
        source = _find_beside(path, location)
        if location not in staged.names:
            staged.add(location, source)
    looked = look_into(staged.folder / path.name, staged.names, question, limits)
    if isinstance(looked, Looked):
        return looked
    raise InputError("bad_external_data", path=path.name, location=looked[0][:200])


def publish_looked(
    store: Store,
    name: str,
    staged: Staged,
    looked: Looked,
    *,
    labels: Sequence[str] | None,
    ragged: Ragged | None,
    preprocess: Steps,
    golden_is_synthetic: bool,
    lineage: Mapping[str, object],
    **more: Any,
) -> Version:
    """Publish an ONNX file that was looked into, with what the user says of it.

    Args:
        store: where to.
        name: the model's.
        staged: the files.
        looked: of `look_at_staged`.
        labels: as of `import_onnx`; so are all that follow.
        ragged: see there.
        preprocess: see there.
        golden_is_synthetic: the examples are random, if there are some.
        lineage: see there.
        more: as of `Store.publish`.

    Raises:
        InputError: `bad_option`, `bad_preprocess`.
        StoreError: as `Store.publish`.
    """
    signature = msgspec.structs.replace(add_labels(looked.signature, labels), ragged=ragged)
    signature, files = add_steps(signature, preprocess)
    for file_name, source in files.items():
        staged.add(file_name, source)
    return store.publish(
        name,
        staged,
        signature=signature,
        golden=looked.golden,
        golden_is_synthetic=golden_is_synthetic and looked.golden is not None,
        joining=looked.joining,
        lineage=looked.facts | dict(lineage),
        **more,
    )


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
