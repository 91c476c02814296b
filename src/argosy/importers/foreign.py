"""Import a file of another framework: copy it, have a confined process turn it into an artifact, check and publish that.

The file is never opened by a library in this process. What the confined process gives back is as hostile as the file:
its answer is checked field by field, its arrays are no pickles, its artifact is looked at as any user's file is.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from argosy.confine.confine import hostile_folder, run_confined
from argosy.environment import find_interpreter, is_importable, lives_apart
from argosy.errors import InputError, NotAllowedError
from argosy.importers.answer import clean, read_answer
from argosy.importers.convert import ANSWER_FILE, ONNX_FILE, ConvertAnswer, ConvertRequest
from argosy.importers.formats.answer import Made, explain, hold_answers, look_at
from argosy.importers.formats.base import FORMATS, Format
from argosy.importers.formats.copy import Copied, copy_file, copy_folder, copy_parameters, copy_weights
from argosy.importers.formats.detect import detect_format
from argosy.importers.golden_run import to_array
from argosy.importers.look import Limits, Question
from argosy.importers.onnx import add_labels, look_at_staged, publish_looked
from argosy.signature import Ragged, check_name
from argosy.store.golden import Golden, encode_golden
from argosy.store.local import Store, Version
from argosy.store.preprocess import Steps, add_steps

__all__ = ["import_foreign"]

_MEMORY_BYTES: Final = 16 << 30
"""Address space of the confined process beside the file's: frameworks reserve more than they use, TensorFlow most."""
_MEMORY_TIMES: Final = 8
"""The file's size so many times: weights as they are, traced, exported and loaded again, each with room to move."""


class _Code(NamedTuple):
    path: Path
    function: str


class _Given(NamedTuple):
    """What is published beside the file; the names are those of `import_foreign`."""

    known: dict[str, object]
    """Of the file and what was made of it, for the lineage."""
    lineage: Mapping[str, object]
    measurements: Mapping[str, float]
    labels: Sequence[str] | None
    ragged: Ragged | None
    preprocess: Steps
    has_rows: bool | None
    limits: Limits
    """Of a process that opens an ONNX file."""


def import_foreign(
    store: Store,
    path: Path | str,
    name: str,
    *,
    format: str | None = None,
    sample: Mapping[str, ArrayLike] | ArrayLike | None = None,
    code: str | None = None,
    allow_pickle: bool = False,
    labels: Sequence[str] | None = None,
    dynamic: Mapping[str, Sequence[int]] = {},
    ragged: Ragged | None = None,
    preprocess: Steps = (),
    has_rows: bool | None = None,
    lineage: Mapping[str, object] = {},
    measurements: Mapping[str, float] = {},
    timeout_s: float = 600.0,
    memory_bytes: int | None = None,
) -> Version:
    """Publish a model that another framework saved: as ONNX, or where that has no words for it in the framework's own form.

    What is published answers as the framework does, to 1e-5 of the largest magnitude of each output: this is checked in
    batches of 1, 2 and 7 rows, and once more on each sample row; `lineage["export"]` has the difference.

    Args:
        store: where to.
        path: of the file; of a SavedModel the folder, of MXNet the symbol, with its parameters beside it.
        name: the model's.
        format: a key of `FORMATS`; None tells it by content and suffix.
        sample: a few real rows: an array, or arrays by input name; the first 8 become golden examples. None draws random
            ones, where the file tells the shapes of its inputs, and the version says so. Lists of fractions become float32.
        code: `FILE.py:FUNCTION` that builds the model, for a file that holds weights alone. It runs in the confined process.
        allow_pickle: open a file that runs code of its maker's choice, in the confined process.
        labels: names of the entries of the last axis, for each output whose last axis is as long.
        dynamic: axes of any length, by input, such as `{"input": [1]}`, of a model whose file does not tell shapes.
        ragged: which axes may differ between the requests of a batch; they are dynamic without being named there.
        preprocess: what makes tensors of pictures and text in the worker, see `argosy.store.preprocess.add_steps`.
        has_rows: first axes of any length count rows; None tells it by the graph, or by the framework.
        lineage: added to what is known of the file.
        measurements: as in `Store.publish`.
        timeout_s: how long a confined process may take: one converts, another opens the ONNX file that was made.
        memory_bytes: how much address space each may take. None: the one that converts 16 GiB, and 8 times the size of the file.

    Raises:
        InputError: `missing_file`; `unknown_choice`, `unknown_format`, `format_mismatch`, `bad_archive`; `bad_model_file`, the
            framework cannot load it, or nothing can serve it; `not_convertible`; `needs_sample`, `bad_sample`; `needs_code`,
            `bad_code`; `missing_extra`, the framework is not installed; `bad_preprocess`; `bad_name` and more from
            the store.
        TooLargeError: `model_file_too_large`; `confined_memory`.
        NotAllowedError: `pickle_not_allowed`; `not_confined`, this machine cannot confine a process.
        ModelError: `export_differs`, `save_failed`; `confined_timeout`, `confined_output`.
        StoreError: as `Store.publish`. Nothing was published, whichever is raised.
    """
    check_name(name)
    store.check_writable()
    path = Path(path)
    limits = Limits(timeout_s, memory_bytes)
    with hostile_folder("argosy-import-") as work:
        copied = _copy(path, work / "source")
        chosen = detect_format(copied.path, path.name, format)
        program = _check_options(path, chosen, code, allow_pickle)
        copied = _complete(path, copied, chosen)
        request = _write_request(work, copied, chosen, sample, program, _join_axes(dynamic, ragged))
        answer = _convert(path, request, copied, chosen, program, limits)
        made = look_at(work / "out", answer)
        known = _describe(path, copied, chosen, answer, program)
        publish = _publish_onnx if answer.runtime == "onnx" else _publish_native
        return publish(store, name, made, _Given(known, lineage, measurements, labels, ragged, preprocess, has_rows, limits))


def _copy(path: Path, folder: Path) -> Copied:
    if path.is_dir():
        return copy_folder(path, folder)
    folder.mkdir()
    return copy_file(path, folder / "model")


def _check_options(path: Path, name: str, code: str | None, allow_pickle: bool) -> _Code | None:
    """Hold what the user allows and gives against what the format needs; the code, if there is some."""
    chosen = FORMATS[name]
    if chosen.needs_code and code is None:
        raise InputError("needs_code", title=chosen.title)
    if code is not None and not chosen.takes_code:
        expected = f"nothing for {chosen.title}, which tells its model itself"
        raise InputError("bad_option", option="code", got=code, expected=expected)
    # With code, a file of torch.save is read for its tensors alone.
    if chosen.is_pickle and code is None and not allow_pickle:
        raise NotAllowedError("pickle_not_allowed", path=path.name, title=chosen.title, instead=chosen.instead)
    if code is None:
        return None
    file, colon, function = code.rpartition(":")
    if not colon or not function.isidentifier() or not file.endswith(".py"):
        raise InputError("bad_code", code=code, detail="it is not of that form")
    program = Path(file).absolute()
    if not program.is_file():
        raise InputError("missing_file", path=file, detail="it is no regular file")
    return _Code(program, function)


def _complete(path: Path, copied: Copied, name: str) -> Copied:
    """Give the copy the name that its library expects, and copy what belongs to it."""
    if copied.path.is_dir():
        return copied
    if name == "mxnet":
        return copy_parameters(path, copied)
    renamed = copied.path.with_suffix(FORMATS[name].suffixes[0])
    copied.path.rename(renamed)
    copied = copied._replace(path=renamed)
    return copy_weights(path, copied) if name == "openvino" else copied


def _join_axes(dynamic: Mapping[str, Sequence[int]], ragged: Ragged | None) -> dict[str, tuple[int, ...]]:
    named = {name: tuple(axes) for name, axes in dynamic.items()}
    for name, item in (ragged.inputs if ragged is not None else {}).items():
        named[name] = tuple(dict.fromkeys((*named.get(name, ()), item.axis)))
    return named


def _write_request(
    work: Path, copied: Copied, name: str, sample: Any, program: _Code | None, dynamic: dict[str, tuple[int, ...]]
) -> Path:
    """Write what the confined process is asked for; the request's file."""
    (work / "out").mkdir()
    file, sample_file = work / "request.json", work / "sample.npz"
    if sample is not None:
        arrays = cast("Mapping[str, Any]", sample) if isinstance(sample, Mapping) else {"sample": sample}
        inputs = {str(key): to_array(value) for key, value in arrays.items()}
        sample_file.write_bytes(encode_golden(Golden(inputs, {})))
    request = ConvertRequest(
        name,
        str(copied.path),
        str(work / "out"),
        sample="" if sample is None else str(sample_file),
        is_sample_named=isinstance(sample, Mapping),
        dynamic=dynamic,
        code=str(program.path) if program else "",
        function=program.function if program else "",
    )
    file.write_bytes(msgspec.json.encode(request))
    return file


def _convert(path: Path, request: Path, copied: Copied, name: str, program: _Code | None, limits: Limits) -> ConvertAnswer:
    """Have the confined process carry out a request.

    Raises:
        ArgosyError: what it says; `bad_model_file` if it died.
    """
    work = request.parent
    memory_bytes = limits.memory_bytes or _MEMORY_BYTES + _MEMORY_TIMES * copied.size_bytes
    title = f"The process that opens {path.name}"
    done = run_confined(
        ["argosy.importers.convert", str(request)],
        read=[work, *([program.path.parent] if program else [])],
        write=[work / "out"],
        timeout_s=limits.timeout_s,
        memory_bytes=memory_bytes,
        python=_find_python(FORMATS[name]),
        env=_choose_environment(),
        module_folders=[program.path.parent] if program else [],
        title=title,
    )
    answer = read_answer(work / "out" / ANSWER_FILE, (ConvertAnswer,))
    if isinstance(answer, ConvertAnswer) and answer.runtime in ("onnx", *FORMATS[name].runtimes):
        return answer
    raise explain(path, name, answer, done, title=title, memory_bytes=memory_bytes)


def _find_python(chosen: Format) -> Path:
    """Give the interpreter that has a format's packages.

    Raises:
        InputError: `missing_extra`; as `find_interpreter`.
    """
    for package in chosen.needs:
        if lives_apart(package):
            return find_interpreter(package)
        if not is_importable(package):
            raise InputError("missing_extra", feature=f"The import of {chosen.title}", package=package, extra=chosen.extra)
    return Path(sys.executable)


def _choose_environment() -> dict[str, str]:
    backend = os.environ.get("KERAS_BACKEND")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return quiet | ({"KERAS_BACKEND": backend} if backend else {})


def _describe(path: Path, copied: Copied, name: str, answer: ConvertAnswer, program: _Code | None) -> dict[str, object]:
    source: dict[str, object] = {"format": name, "digest": copied.digest, "size_bytes": copied.size_bytes}
    if program:
        source["code"] = {"name": f"{program.path.name}:{program.function}", "digest": f"sha256:{_digest(program.path)}"}
    export: dict[str, object] = {"format": answer.runtime, "difference": answer.difference}
    export |= {
        "far_difference": answer.far_difference,
        "rounding": answer.rounding,
        "rows": answer.num_rows,
        "kinds": [clean(kind) for kind in answer.kinds],
    }
    return {
        "kind": "imported model",
        "source_file": path.name,
        "source": source,
        "framework": clean(answer.framework),
        "environment": {clean(package): clean(version) for package, version in answer.versions.items()},
        "export": export | ({"reason": clean(answer.reason)} if answer.reason else {}),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _publish_onnx(store: Store, name: str, made: Made, given: _Given) -> Version:
    """Publish an ONNX file as any user's, once its answers were held against the framework's.

    Not the process that made it looks into it: that one ran what its maker wrote, and would say of the rows what he likes.
    """
    has_rows = made.answer.signature.is_batched
    with store.stage() as staged:
        question = Question(
            name,
            None if made.answer.is_synthetic else made.examples.inputs,
            given.has_rows,
            is_open=not (given.preprocess or given.ragged),
            trial=made.examples if has_rows else made.examples.example(0, is_batched=False),
            trial_has_rows=has_rows,
        )
        looked = look_at_staged(staged, made.folder / ONNX_FILE, question, given.limits)
        export = {**cast("dict[str, object]", given.known["export"]), "difference": hold_answers(made, looked.trial)}
        return publish_looked(
            store,
            name,
            staged,
            looked,
            entry=ONNX_FILE,
            golden_is_synthetic=made.answer.is_synthetic,
            lineage=given.known | {"export": export} | dict(given.lineage),
            measurements=given.measurements,
            labels=given.labels,
            ragged=given.ragged,
            preprocess=given.preprocess,
        )


def _publish_native(store: Store, name: str, made: Made, given: _Given) -> Version:
    """Publish a framework's own form. Its golden examples are what the runtime answered in the confined process."""
    signature = msgspec.structs.replace(add_labels(made.answer.signature, given.labels), ragged=given.ragged)
    examples = made.examples
    if signature.is_batched and given.has_rows is False:
        signature = msgspec.structs.replace(signature, has_rows=False)
        # Each row is a whole request from now on.
        inputs, outputs = (
            {name: array[:, np.newaxis] for name, array in side.items()} for side in (examples.inputs, examples.outputs)
        )
        examples = Golden(inputs, outputs)
    signature, step_files = add_steps(signature, given.preprocess)
    return store.publish(
        name,
        {file: made.folder / file for file in made.files} | step_files,
        signature=signature,
        runtime=made.answer.runtime,
        entry=made.answer.entry,
        golden=examples,
        golden_is_synthetic=made.answer.is_synthetic,
        lineage=given.known | dict(given.lineage),
        measurements=given.measurements,
        options={
            "inputs": [spec.name for spec in signature.inputs],
            "outputs": [spec.name for spec in signature.outputs],
            **({} if signature.is_batched else {"has_rows": False}),
        },
    )
