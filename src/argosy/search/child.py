"""The process of one trial: it imports the program, trains what it gives for some parameters, and exports the model.

    python -m argosy.search.child

Lines of JSON go both ways. The child says what it found of the program, and gets the trial; it says what each epoch came to, and
is told whether to go on; it says what came of the trial. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TextIO, cast

from argosy.errors import ArgosyError, InputError
from argosy.store.local import Store
from argosy.train.checkpoint import Checkpoints
from argosy.train.program import call_program, check_parameters, find_function
from argosy.train.result import Epoch, TrainResult
from argosy.train.run import train

__all__ = ["CANDIDATE", "main"]

CANDIDATE: Final = "candidate"
"""The name of the model in a trial's own store."""
_REFUSING: Final = ("bad_program", "trial_refused")
"""Errors that say that no trial can work."""
_MAX_TOLD: Final = 200


class _Pipe:
    """The parent, line by line. Once it is gone, so is this process: nobody would take what it computes."""

    def __init__(self) -> None:
        self._input, self._output = _divert_streams()
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, event: str, **values: object) -> None:
        self._output.write(f"{json.dumps({'event': event, **values})}\n")
        self._output.flush()

    def listen(self) -> dict[str, Any]:
        return json.loads(self._lines.get())

    def _read(self) -> None:
        for line in self._input:
            self._lines.put(line)
        if os.getpgrp() == os.getpid():  # With all that the program has started.
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def main() -> None:
    """Carry out what the parent asks for."""
    pipe = _Pipe()
    job, is_ready = pipe.listen(), False
    pipe.say("importing")
    try:
        function = find_function(job["target"])
        check_parameters(job["target"], function, job["names"])
        pipe.say("ready")
        is_ready = True
        _run(pipe, job["target"], function, pipe.listen())
    except ArgosyError as error:
        # What ends its process by `sys.exit` for one point need not do so for others.
        is_of_point = is_ready and isinstance(error.__cause__, SystemExit)
        if error.key in _REFUSING and not is_of_point:
            pipe.say("refused", key=error.key, fields={name: str(value) for name, value in error.fields.items()})
        else:
            pipe.say("failed", reason=error.message)
    except BaseException as error:  # the edge of the process: a program raises anything
        traceback.print_exc()
        pipe.say("failed", reason=_describe(error))
    # Frameworks may crash when they are torn down.
    sys.stderr.flush()
    os._exit(0)


def _run(pipe: _Pipe, target: str, function: Callable[..., Any], trial: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {**call_program(target, function, trial["parameters"]), **trial["options"], "progress": False}
    own = arguments.pop("on_epoch", None)
    metric, is_stopped = trial["metric"], False

    def tell(epoch: Epoch) -> bool:
        nonlocal is_stopped
        is_ended = own is not None and own(epoch) is True
        pipe.say("epoch", step=epoch.number, value=_read_metric(epoch, metric))
        is_stopped = bool(pipe.listen()["stop"])
        return is_stopped or is_ended

    result = _train({**arguments, "on_epoch": tell}, trial["interval"], trial["parameters"])
    if is_stopped:
        pipe.say("stopped", epochs=len(result.history), steps=result.num_steps)
        return
    score = _read_metric(_find_kept(result), metric)
    result.publish(CANDIDATE, Store(trial["home"]))
    seconds = sum(epoch.duration_s for epoch in result.history)
    pipe.say("done", score=score, epochs=len(result.history), steps=result.num_steps, train_s=seconds)


def _train(arguments: dict[str, Any], interval: dict[str, Any] | None, parameters: dict[str, Any]) -> TrainResult:
    """Train to the end, or an interval of a population: then the search says how long, and keeps the state.

    Raises:
        InputError: `trial_refused`, the weights that it is to go on from are not there, or are those of another model.
    """
    if interval is None:
        return train(arguments.pop("model"), arguments.pop("data"), **arguments)
    arguments |= {"epochs": interval["epochs"], "tolerance": None, "patience": None, "resume": False}
    arguments["checkpoints"] = Checkpoints(folder=interval["folder"], every_s=None, keep=1, parent=interval["parent_folder"])
    try:
        return train(arguments.pop("model"), arguments.pop("data"), **arguments)
    except InputError as error:
        if error.key != "bad_checkpoint":
            raise
        shown = ", ".join(f"{name}={value}" for name, value in parameters.items())
        detail = f"trial {interval['parent']} left no weights that go on with {shown}: {error.message}"
        detail += "; population-based training is for parameters that leave a model's layers as they are"
        raise InputError("trial_refused", detail=detail) from error


def _read_metric(epoch: Epoch, metric: str) -> float:
    """Give a metric of the validation rows.

    Raises:
        InputError: `trial_refused`, there are none, or no such metric.
    """
    if epoch.validation_loss is None:
        detail = "it trains without validation rows; give `validation_split` or `validation_data` beside `model` and `data`"
        raise InputError("trial_refused", detail=detail)
    known = {"loss": epoch.validation_loss, **epoch.validation_metrics}
    if metric not in known:
        raise InputError("trial_refused", detail=f"it measures no {metric!r}; it does: {', '.join(sorted(known))}")
    return known[metric]


def _find_kept(result: TrainResult) -> Epoch:
    """Give the epoch whose weights the model has."""
    if result.settings.patience is None:
        return result.history[-1]
    return min(result.history, key=lambda epoch: cast("float", epoch.validation_loss))


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:_MAX_TOLD]}{where}"


def _divert_streams() -> tuple[TextIO, TextIO]:
    """Give standard input and output to this program alone.

    What libraries print goes to standard error; what reads, such as a command that the program starts, finds nothing.
    """
    own = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    main()
