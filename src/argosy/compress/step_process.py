"""The confined process in which steps read files that may be a stranger's, seen from outside.

A graph of a few bytes can have a simplifier fold a constant of gigabytes, a converter crash, a calibration never end. Whatever
reads the files of a version to compress them does so there, and what comes of it is a folder of plain files, or an error.

One process serves one command, whose files all come from one version: so it imports its libraries once for all steps of a search.
It is started at the first question, and anew after one that killed it, took too long or lacked memory, which costs that question
alone. What it has made is taken out of its reach before it is asked again.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.dialogue import Dialogue, list_module_folders, list_settings
from argosy.bench.rows import Rows, write_rows
from argosy.confine.confine import open_confined, remove_hostile_folder
from argosy.errors import ArgosyError, FaultError, InputError
from argosy.importers.answer import Refusal, find_refusal

__all__ = ["Made", "StepProcess"]

_Answer = TypeVar("_Answer")

_CHILD: Final = "argosy.compress.step_child"
_LIBRARIES: Final = ("onnx", "onnxruntime", "onnxslim", "onnx_ir", "openvino", "nncf", "sympy", "torch")
_MADE: Final = re.compile(r"made-\w{1,32}")
"""Names of folders, as `Workshop.make_folder` gives them."""
_RUNTIMES: Final = ("onnx", "openvino")
"""Of what steps make."""
_PRECISIONS: Final = ("float32", "bfloat16")
_KEYS: Final[dict[str, type[ArgosyError]]] = {
    **dict.fromkeys(("bad_option", "missing_extra", "nothing_to_compress", "step_failed", "step_unfit"), InputError),
    "too_few_training_rows": InputError,
}
"""What it may say by key; anything else is no more than a detail."""


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process says that it has made."""

    folder: str
    entry: str
    runtime: str
    options: dict[str, Any]


class StepProcess:
    """Started when something is asked, and ended by `close` or with its last user."""

    def __init__(self) -> None:
        self._dialogue: Dialogue | None = None
        self._end: Callable[[], object] | None = None
        self._given = self._made = Path()
        self._folders: list[Path] = []
        self._num_files = 0
        self._rows: dict[int, tuple[Rows, dict[str, Any]]] = {}

    def close(self) -> None:
        """End the process. It is started anew if something is asked."""
        if self._end is not None:
            self._end()
        self._dialogue = self._end = None
        self._rows.clear()

    def ask(
        self,
        op: str,
        artifact: Artifact,
        folder: Path,
        kind: type[_Answer],
        *,
        method: str,
        limit_s: float,
        rows: Mapping[str, Rows] = {},
        job: Mapping[str, object] = {},
        say: Callable[[str], None] = lambda text: None,
    ) -> _Answer:
        """Ask for something about an artifact.

        Args:
            op: a name of a function of `step_child.Child`.
            artifact: what it is about.
            folder: for files, the workshop's; what is in it may be read there.
            kind: of the answer.
            method: for messages.
            limit_s: that the answer may take.
            rows: that are needed there, by the name of the argument.
            job: further arguments, JSON data.
            say: is told how long work goes on.

        Raises:
            InputError: as the child says; `step_failed`, it was killed, took too long or lacked memory.
        """
        dialogue = self._open(artifact, folder)
        described = {
            "folder": str(artifact.folder),
            "entry": artifact.entry,
            "runtime": artifact.runtime,
            "signature": artifact.signature,
            "options": artifact.options,
        }
        given = {name: self._give(part) for name, part in rows.items()}
        self._num_files += 1
        # In a file: a pipe takes no more than 64 kB from one who is not read, and layers may be many.
        file = self._given / f"job{self._num_files}.json"
        file.write_bytes(msgspec.json.encode({"artifact": described, **given, **job}))
        try:
            found = dialogue.ask({"op": op, "file": str(file)}, limit_s, say)
            if "refused" not in found:
                return msgspec.convert(found.get("answer"), kind)
            refusal = msgspec.convert(found["refused"], Refusal)
        except (FaultError, msgspec.ValidationError) as error:
            self.close()
            detail = error.fields["detail"] if isinstance(error, FaultError) else f"its process said nonsense: {error}"
            raise InputError("step_failed", method=method, detail=detail) from error
        if refusal.is_out_of_memory:
            # Whatever was half done there is gone with it.
            self.close()
            detail = f"it needs more memory than is free: {refusal.fields.get('detail', refusal.detail)}"
            raise InputError("step_failed", method=method, detail=detail)
        raise find_refusal(refusal, _KEYS) or InputError("step_failed", method=method, detail=refusal.detail)

    def take(self, made: Made, artifact: Artifact, folder: Path, method: str) -> Artifact:
        """Give what the process made of an artifact, moved to where it cannot change it any more.

        Args:
            made: what it says of that, as hostile as the file.
            artifact: that it was made of.
            folder: to move it to, new and empty.
            method: for messages.

        Raises:
            InputError: `step_failed`, it is no such thing.
        """
        try:
            source = self._made / made.folder
            entries = list(os.scandir(source)) if _MADE.fullmatch(made.folder) and not source.is_symlink() else []
            # A file of two names could be changed by the other one.
            is_plain = all(entry.is_file(follow_symlinks=False) and entry.stat().st_nlink == 1 for entry in entries)
            if not is_plain or made.entry not in {entry.name for entry in entries} or not _suits(made, artifact):
                raise ValueError("what its process made is no artifact")
            source.rename(folder)
        except (OSError, ValueError) as error:
            self.close()
            raise InputError("step_failed", method=method, detail=str(error)) from error
        return replace(artifact, folder=folder, entry=made.entry, runtime=made.runtime, options=made.options)

    def _open(self, artifact: Artifact, folder: Path) -> Dialogue:
        folder.mkdir(parents=True, exist_ok=True)
        needed = [path.resolve() for path in (folder, artifact.folder)]
        is_reached = all(any(path.is_relative_to(known) for known in self._folders) for path in needed)
        if self._dialogue is not None and is_reached:
            return self._dialogue
        self.close()
        self._folders = list(dict.fromkeys([*self._folders, *needed]))
        place = Path(tempfile.mkdtemp(prefix="process-", dir=folder)).resolve()
        self._given, self._made = place / "given", place / "made"
        for part in (self._given, self._made):
            part.mkdir()
        with (place / "log").open("wb") as log:
            process = open_confined(
                [_CHILD],
                read=[path for path in self._folders if path.exists()],
                home=self._made,
                log=log,
                env=list_settings(),
                module_folders=list_module_folders(*_LIBRARIES),
                # A graph is data: a machine that cannot confine takes what the limits of memory and time leave.
                is_required=False,
            )
        dialogue = self._dialogue = Dialogue(process, place / "log", "a process that compresses")
        self._end = weakref.finalize(self, _end, dialogue, place)
        return dialogue

    def _give(self, rows: Rows) -> dict[str, Any]:
        """Write rows once for all that need them, and say where they are."""
        known = self._rows.get(id(rows))
        if known is None or known[0] is not rows:
            self._num_files += 1
            files = write_rows(rows, self._given / f"rows{self._num_files}")
            known = self._rows[id(rows)] = rows, {"paths": [str(path) for path in files.paths], "places": files.places}
        return known[1]


def _suits(made: Made, artifact: Artifact) -> bool:
    """Say whether a runtime may be told what the process says: nothing but the original's options, names and a precision."""
    signature = artifact.signature
    names = {"inputs": [spec.name for spec in signature.inputs], "outputs": [spec.name for spec in signature.outputs]}
    own: dict[str, Any] = msgspec.to_builtins(artifact.options)
    known = own | names
    options = {name: value for name, value in made.options.items() if name != "precision"}
    is_known = all(name in known and value in (known[name], own.get(name)) for name, value in options.items())
    precision = made.options.get("precision", _PRECISIONS[0])
    is_precision = precision in _PRECISIONS or precision == own.get("precision")
    return made.runtime in {*_RUNTIMES, artifact.runtime} and is_known and is_precision and set(own) <= set(made.options)


def _end(dialogue: Dialogue, place: Path) -> None:
    dialogue.close()
    # It may be gone with the folder that it was in.
    with suppress(OSError):
        remove_hostile_folder(place)
