"""What `step_process.py` starts, confined: python -m argosy.compress.step_child.

Each line of standard input is a JSON object with `op`, the name of a function below, and `file`, which has its arguments. Each
line of standard output is one with `say`, while work goes on, then one with the `answer`, or why it is `refused`. What libraries
print goes to standard error.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from argosy.bench.artifact import Artifact
from argosy.bench.rows import RowFiles, Rows, read_rows
from argosy.compress.kind import Meaning
from argosy.compress.recipe import read_recipe
from argosy.compress.steps import facts
from argosy.compress.steps.base import LayerStep, Workshop
from argosy.errors import ArgosyError
from argosy.importers.answer import Refusal, refuse_error
from argosy.runtimes.base import lacks_memory
from argosy.serve.worker.bounds import end_first, limit_memory
from argosy.signature import Signature

__all__ = ["Child", "main"]

_ANY: Final = 1 << 60
_MAX_TOLD: Final = 400


class Child:
    """Each public method is what a line may ask for.

    Args:
        output: for lines.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._rows: dict[str, Rows] = {}
        self._folder = Path.cwd()

    def apply(self, job: dict[str, Any]) -> Any:
        """Carry out a step, and say what it made."""
        (step,) = read_recipe([job["step"]])
        workshop = Workshop(self._folder, say=self._say)
        for name in ("calibration", "training", "answers"):
            if name in job:
                setattr(workshop, name, self._read(job[name]))
        if "targets" in job:
            (workshop.targets,) = self._read(job["targets"])
        if "meaning" in job:
            workshop.meaning = msgspec.convert(job["meaning"], Meaning)
        if job.get("deadline") is not None:
            workshop.deadline = job["deadline"]
        made = step.apply(_open(job), workshop)
        # What steps made on the way would stay as long as the search lasts.
        for folder in self._folder.glob("made-*"):
            if folder != made.folder:
                shutil.rmtree(folder)
        return {"folder": made.folder.name, "entry": made.entry, "runtime": made.runtime, "options": made.options}

    def list_layers(self, job: dict[str, Any]) -> Any:
        """Name the layers that a step would change."""
        (step,) = read_recipe([job["step"]])
        assert isinstance(step, LayerStep)
        names = step.list_layers(_open(job), Workshop(self._folder))
        for folder in self._folder.glob("made-*"):
            shutil.rmtree(folder)
        return names

    def look(self, job: dict[str, Any]) -> Any:
        """Count the operators of a file, and say whether it has adapters."""
        return facts.look(_open(job))

    def weigh(self, job: dict[str, Any]) -> Any:
        """Say what each layer of a file costs."""
        return facts.weigh_layers(_open(job))

    def _read(self, given: dict[str, Any]) -> Rows:
        key = str(given["paths"])
        if key not in self._rows:
            files = RowFiles(tuple(map(Path, given["paths"])), tuple(map(tuple, given["places"])))
            self._rows[key] = read_rows(files)
        return self._rows[key]

    def _say(self, text: str) -> None:
        self._output.write(f"{json.dumps({'say': text})}\n")


def _open(job: dict[str, Any]) -> Artifact:
    given: dict[str, Any] = job["artifact"]
    signature = msgspec.convert(given["signature"], Signature)
    return Artifact(Path(given["folder"]), given["entry"], given["runtime"], signature, given["options"])


def _carry_out(child: Child, line: str) -> dict[str, Any]:
    asked: dict[str, str] = json.loads(line)
    try:
        # Each time: what is free changes.
        limit_memory(_ANY, must_be_free=True)
        return {"answer": getattr(child, asked["op"])(json.loads(Path(asked["file"]).read_bytes()))}
    except ArgosyError as error:
        return {"refused": msgspec.to_builtins(refuse_error(error))}
    except Exception as error:  # the edge of the process: libraries raise anything on a hostile file
        told = Refusal(f"{type(error).__name__}: {error}"[:_MAX_TOLD], is_out_of_memory=lacks_memory(error))
        return {"refused": msgspec.to_builtins(told)}


def main() -> None:
    """Do what the lines of standard input say, until it ends."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    end_first()
    child = Child(output)
    for line in sys.stdin:
        output.write(f"{json.dumps(_carry_out(child, line))}\n")
    # Libraries may crash when they are torn down.
    output.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
