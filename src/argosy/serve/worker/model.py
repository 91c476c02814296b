"""A model in a worker: load, verify, try and measure it, and run rows by it. NumPy and the standard library only."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from numpy.typing import NDArray

from argosy.datatypes import learn_bfloat16
from argosy.runtimes.base import Runtime, load_runtime_class
from argosy.serve.wire.control_messages import Ready, fit_text
from argosy.serve.wire.frames import FORM_COUNTED
from argosy.serve.worker import cores, made_up, padding_proof, row_trials, runtime_trials, warmup
from argosy.serve.worker.agreement import Measure, choose_measure
from argosy.serve.worker.answers import Answers
from argosy.serve.worker.watch import PERIOD_ROWS, Watch

if TYPE_CHECKING:
    from argosy.runtimes.preprocess import Preprocessor

__all__ = ["MAX_REFUSAL", "LoadedModel", "own_memory_bytes"]

MAX_REFUSAL: Final = 600
_EXAMPLE_S: Final = 30.0
"""For a copy of the process to answer an example: it may wait for threads that it has not."""
_TRIALS_S: Final = 60.0
_NUM_TRIALS: Final = 100
"""Rows are tried for so long, and as long as so many examples take, before a copy is given up."""

Arrays = dict[str, NDArray[Any]]
Times = tuple[tuple[int, float], ...]
LengthTimes = tuple[tuple[int, int, float], ...]
Message = dict[str, Any]


class LoadedModel:
    """The model of a worker.

    Args:
        spec: what to load, as the control process wrote it.

    Attributes:
        inputs: the tensors that it takes, as the signature has them.
        outputs: those that it gives.
        raw_names: what a client sends where the worker preprocesses, as `Signature.raw_inputs`.
        answers: checks and converts what the runtime gives.
        watch: of rows that are joined, where nothing proves that they may be.
    """

    def __init__(self, spec: Message) -> None:
        self.spec = spec
        self.inputs: list[Message] = spec["signature"]["inputs"]
        self.outputs: list[Message] = spec["signature"]["outputs"]
        shapes = [tensor["shape"] for tensor in self.inputs + self.outputs]
        self.is_batched = spec["signature"].get("has_rows", True) and all(shape and shape[0] == -1 for shape in shapes)
        if "BF16" in {tensor["datatype"] for tensor in self.inputs + self.outputs}:
            learn_bfloat16()
        self.names: list[str] = [tensor["name"] for tensor in self.inputs]
        self.answers = Answers(self.outputs, is_batched=self.is_batched)
        steps: list[Message] = spec["signature"].get("preprocess", [])
        made = [name for step in steps for name in step["inputs"]]
        self.raw_names = [step["name"] for step in steps] + [name for name in self.names if name not in made]
        self.ragged: Message | None = spec["signature"].get("ragged")
        self.preprocessor: Preprocessor | None = None
        self.runtime: Runtime | None = None
        self.watch: Watch | None = None

    def load(self) -> Ready:
        """Load, verify and measure the model; returns the report."""
        started = time.perf_counter()
        folder = Path(self.spec["folder"])
        golden = self.spec.get("golden")
        inputs, outputs = warmup.load_golden(folder / golden) if golden else ({}, {})
        believed = self._ask_own_runtime(folder, inputs)
        threads = self._open(folder, inputs)
        load_s = time.perf_counter() - started
        measure = choose_measure(self.spec["precision"])
        # Before it has answered anything: threads and connections that a first answer makes would be none in a copy. Nor would
        # those that its load has made, such as a library's pool: rows are tried in this process then, each to its end.
        is_apart = self.spec["runtime"] == "python" and bool(inputs) and cores.count_threads() == 1 and not self._find_obstacle()
        found = self._judge_apart(inputs, measure) if is_apart else None
        difference = None
        if inputs:
            difference = warmup.verify_golden(self.infer, inputs, outputs, is_batched=self.is_batched, measure=measure)
        takes_nan = runtime_trials.check_answers(self.infer, believed, self.spec["own_runtime"], measure)
        if takes_nan and self.spec["own_runtime"] != self.spec["runtime"] and self.runtime is not None:
            self.runtime = cast("Runtime", runtime_trials.RefusesNan(self.runtime))
        join_refusal, pad_refusal = found or self._judge_rows(inputs, measure)
        by_rows: Times = ()
        by_length: LengthTimes = ()
        self._open_preprocessor(can_pad=pad_refusal == "")
        if self.is_batched:
            # No graph shows that padding, which is not refused, moves no answer.
            is_shown = self.spec["joining"]["kind"] == "independent" and pad_refusal != ""
            if not join_refusal and not is_shown and self.spec["repeatable"]:
                self.watch = Watch(self.infer_form, measure, self.ragged)
            if inputs:
                by_rows, by_length = self._measure(inputs, is_joined=not join_refusal)
        return Ready(
            load_s=load_s,
            warm_s=time.perf_counter() - started - load_s,
            threads=threads,
            memory_bytes=own_memory_bytes(),
            golden_difference=difference,
            join_refusal=fit_text(join_refusal, MAX_REFUSAL),
            joining=fit_text(self._describe_joining(), MAX_REFUSAL),
            pad_refusal=None if pad_refusal is None else fit_text(pad_refusal, MAX_REFUSAL),
            service_s=by_rows,
            service=by_length,
            trial=fit_text(self._try_request(), MAX_REFUSAL) if difference is None else "",
        )

    def _try_request(self) -> str:
        """Say what came of a made-up request, of a version that nothing else has asked yet; "" where it takes no tensors."""

        def answer(inputs: Arrays) -> None:
            assert self.runtime is not None
            self.answers.check(self.answers.order(self.runtime.infer(inputs)), 1)

        is_code = self.spec["runtime"] == "python"
        return made_up.try_request(answer, self.inputs, is_apart=is_code) if self.outputs else ""

    def _judge_rows(self, inputs: Arrays, measure: Measure) -> tuple[str, str | None]:
        """Say why rows of several requests are not joined, and why not those of different lengths.

        Returns:
            Both "" where they are; for the lengths None, where all have one.
        """
        is_shown = self.spec["joining"]["kind"] == "independent"
        refusal = self._find_obstacle() or row_trials.find_influence(self.infer, inputs, measure, is_brief=is_shown)
        if not self.is_batched or not self.ragged:
            return refusal, None
        return refusal, refusal or padding_proof.prove_padding(self.infer, inputs, self.ragged, measure)

    def _find_obstacle(self) -> str:
        """Say why rows are not joined whatever trials would show; "" where it is for them to tell."""
        if not self.is_batched:
            return "the signature has no axis of rows"
        if self.spec["exact"]:
            return "answers are to be exact, and kernels for many rows round otherwise than those for one"
        if self.spec["joining"]["kind"] == "dependent":
            return f"rows depend on one another: {self.spec['joining']['reason']}"
        return ""

    def _judge_apart(self, inputs: Arrays, measure: Measure) -> tuple[str, str | None]:
        """The same of a model's own code, in copies of this process: what made-up rows do to the model, they do to those."""
        example = warmup.pick(inputs, 0)
        found = cores.run_apart(lambda: str(row_trials.time_row(self.infer, example)).encode(), _EXAMPLE_S)
        limit_s = _TRIALS_S + _NUM_TRIALS * float(found or 0.0)
        if found:
            found = cores.run_apart(lambda: json.dumps(self._judge_rows(inputs, measure)).encode(), limit_s)
        if found:
            refusal, pad_refusal = json.loads(found)
            return refusal, pad_refusal
        refusal = "a copy of the process, in which rows are tried, ended or did not answer in time"
        return refusal, refusal if self.ragged else None

    def _describe_joining(self) -> str:
        kind, reason = self.spec["joining"]["kind"], self.spec["joining"]["reason"]
        tried = "; trials found no difference" if kind == "unknown" else ""
        watched = f", and one row in {PERIOD_ROWS} is run again alone" if self.watch is not None else ""
        return f"{kind}: {reason}{tried}{watched}"

    def _open_preprocessor(self, *, can_pad: bool) -> None:
        """Load what makes tensors of texts and pictures, where the version has that."""
        signature = self.spec["signature"]
        if not self.is_batched or not signature.get("preprocess"):
            return
        from argosy.runtimes.preprocess import Preprocessor

        # Threads of the package tokenizers would take the cores that the runtime and the fronts work on.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.preprocessor = Preprocessor(signature, Path(self.spec["folder"]))
        self.preprocessor.can_pad = can_pad

    def _measure(self, inputs: Arrays, *, is_joined: bool) -> tuple[Times, LengthTimes]:
        """Measure batches: seconds by rows, and by rows and length."""
        limit = self.spec["max_batch_rows"] if is_joined else 1
        budget_s = warmup.MEASURE_S / 2 if self.ragged else warmup.MEASURE_S
        times = tuple(warmup.measure_service(self.infer, inputs, limit, budget_s).items())
        if not self.ragged:
            return times, tuple((rows, 0, seconds) for rows, seconds in times)
        lengths = padding_proof.measure_lengths(self.infer, inputs, self.ragged, budget_s)
        own = next(iter(padding_proof.list_lengths(inputs, self.ragged)), 0)
        by_length = [
            *((rows, own, seconds) for rows, seconds in times),
            *((1, length, seconds) for length, seconds in lengths.items()),
        ]
        return times, tuple(by_length)

    def _open(self, folder: Path, inputs: Arrays) -> int:
        """Load the artifact; returns the threads of one operator, which are found out where the deployment leaves them open."""
        options = self.spec["options"]
        kind = load_runtime_class(self.spec["runtime"])

        def load(threads: int) -> None:
            self.runtime = None  # what is replaced gives its memory back first
            runtime = kind()
            runtime.load(folder, self.spec["entry"], {**options, "threads": threads})
            self.runtime = runtime

        def choose() -> int:
            measure = partial(warmup.measure_row, self.infer, inputs, is_batched=self.is_batched)
            return cores.choose_threads(load, measure, options["max_threads"])

        is_open = not options["threads"] and options["max_threads"] > 1 and bool(inputs)
        if is_open and not kind.fixes_threads(folder):
            return choose()
        threads = int(cores.run_apart(lambda: str(choose()).encode()) or 1) if is_open else options["threads"] or 1
        load(threads)
        return threads

    def _ask_own_runtime(self, folder: Path, inputs: Arrays) -> list[row_trials.TrialRow]:
        """Have rows at the extremes of their datatypes answered by the version's own runtime, where another one is to run it."""
        own = self.spec["own_runtime"]
        if own == self.spec["runtime"] or not inputs:
            return []

        def answer() -> bytes:
            runtime = load_runtime_class(own)()
            runtime.load(folder, self.spec["entry"], {**self.spec["options"], "threads": 1})
            example = warmup.pick(inputs, 0, is_batched=self.is_batched)
            return runtime_trials.write_answers(runtime.infer, example)

        return runtime_trials.read_answers(cores.run_apart(answer))

    def infer(self, inputs: Arrays) -> Arrays:
        """Run a batch, once the model is loaded."""
        assert self.runtime is not None
        return self.answers.convert(self.runtime.infer(inputs))

    def infer_form(self, inputs: Arrays, form: int) -> Arrays:
        """Run a batch of tensors (form 0), or of what tensors are made of first."""
        if not form:
            return self.infer(inputs)
        assert self.preprocessor is not None
        return self.preprocessor.apply(inputs, self.infer, counts=form == FORM_COUNTED)


def own_memory_bytes() -> int:
    """Memory that would be given back if this process ended: its private pages."""
    kinds = ("Private_Clean:", "Private_Dirty:")
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123 - procfs, and pathlib is not imported for it elsewhere
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(kinds))
