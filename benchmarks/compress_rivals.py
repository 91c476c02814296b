"""MiniLM compressed by hand with Intel Neural Compressor and with Olive, for `compress_minilm.py --rivals`.

Each runs in an environment of its own, by the flow of its documentation: Neural Compressor's tuning that is aware of accuracy
(`rivals/minilm_neural_compressor.py`), and Olive's search over its passes for BERT on a CPU (`rivals/minilm_olive.py`). They get
the same sentences to calibrate, and others to judge by; goals are tried one after the other until one is reached. What they make
is judged and timed by the same code as Argosy's versions. One that does not install or finds nothing is told with its reason.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rivals.environment import EntrantError, install

__all__ = ["Made", "make_rivals"]

SCRIPTS = Path(__file__).resolve().parent / "rivals"
TRIALS = {"neural-compressor": 100, "olive": 30}
TIMEOUT_S = 3600.0
PACKAGES = {
    # six, which pycocotools' dependencies no longer bring.
    "neural-compressor": ("neural-compressor==2.6", "onnx==1.16.2", "onnxruntime==1.19.2", "numpy==1.26.4", "six==1.17.0"),
    # 0.12.0 to 0.13.0 cannot write a metric of the user's own to their cache (`Metric.serialize_backend`).
    "olive": ("olive-ai==0.11.0", "onnx==1.23.2", "onnxruntime==1.32.0", "numpy==2.4.6", "pydantic==2.14.4", "requests"),
}


@dataclass(frozen=True)
class Made:
    """What came of a rival."""

    name: str
    path: Path | None
    """Its ONNX file."""
    seconds: float
    """That finding it took, with all goals that were tried, without the installation."""
    told: str
    """What came of each goal that was tried, up to the one that was reached; or why there is no file."""


def make_rivals(
    model: Path, calibration: Path, validation: Path, folder: Path, goals: Sequence[str], trials: int | None = None
) -> list[Made]:
    """Compress a model with each rival.

    Args:
        model: ONNX file.
        calibration: rows, as `compress_minilm.write_batches` writes them.
        validation: other rows, by which they choose.
        folder: for what they make.
        goals: losses of cosine, the strictest first.
        trials: at most so many for each goal; None: `TRIALS`.
    """
    return [_make(name, model, calibration, validation, folder, goals, trials or TRIALS[name]) for name in PACKAGES]


def _make(name: str, model: Path, calibration: Path, validation: Path, folder: Path, goals: Sequence[str], trials: int) -> Made:
    packages = list(PACKAGES[name])
    if name == "olive":
        # The one of this environment: what an index gives untold brings gigabytes of CUDA's libraries along.
        packages.append(f"torch=={version('torch')}")
    try:
        python = install(f"compress-{name}", packages)
    except EntrantError as error:
        return Made(name, None, 0.0, str(error))
    output, started, reasons = folder / f"{name}.onnx", time.perf_counter(), list[str]()
    script = SCRIPTS / f"minilm_{name.replace('-', '_')}.py"
    for goal in goals:
        command = [python, script, model, calibration, validation, output, goal, str(trials)]
        reason = _run([str(part) for part in command], folder)
        if not reason and output.exists():
            return Made(name, output, time.perf_counter() - started, "; ".join([*reasons, f"{goal}: reached"]))
        reasons.append(f"{goal}: {reason or 'it wrote no file'}")
    return Made(name, None, time.perf_counter() - started, "; ".join(reasons))


def _run(command: list[str], folder: Path) -> str:
    """Run a program; gives the last line of what it said if it failed."""
    # Its own packages alone; and what Olive would tell its makers stays here.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OLIVE_DISABLE_TELEMETRY": "1"}
    log = folder / "log.txt"
    with log.open("w") as file:
        try:
            done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"not done within {TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1][-300:]
