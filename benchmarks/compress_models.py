"""Compress public models: ONNX files that packages carry, each on rows of its own kind, by one call with nothing made by hand.

    python benchmarks/compress_models.py [PART OF A PATH ...]

For each model `argosy.compress` looks for what answers soonest (`objective="latency"`) within a stated loss. It either publishes
something faster, or refuses and says why; an exception of another kind, or a version slower than its parent, is a failure.
Readers of text and detectors of voice are held to their own way of reading afterwards, which compression knows nothing of: boxes
by the package's own code, texts, and probabilities over a sound with the state carried from frame to frame.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import argosy
from argosy.bench.artifact import open_version
from argosy.bench.probe import Probe
from argosy.bench.rows import write_rows
from argosy.importers.onnx import import_onnx
from machine import describe_machine
from public_models import MODELS, PublicModel, download
from public_rows import Rows, run_frames
from tables import format_table

FOLDER = Path(os.environ.get("ARGOSY_BENCH", ".bench")) / "models"
TOOLS = ("opencv-python-headless", "pyclipper", "shapely", "pyyaml", "six", "tqdm")
"""What RapidOCR's own reading of its detector takes."""
BUDGET_S = 90.0


def main() -> None:
    """Compress all, and print a line for each as it is done."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    download(FOLDER)
    wanted = [model for model in MODELS if not sys.argv[1:] or any(part in model.path for part in sys.argv[1:])]
    found: list[dict[str, Any]] = []
    for model in wanted:
        started = time.monotonic()
        try:
            one = compress_one(model)
        except Exception as error:  # whatever it is: it is counted
            traceback.print_exc()
            one = {"result": "FAILED", "why": f"{type(error).__name__}: {error}"[:300]}
        one |= {"model": model.path.replace("/models/", "/"), "seconds": time.monotonic() - started}
        print(json.dumps(one), flush=True)
        found.append(one)
    show(found)


def compress_one(model: PublicModel) -> dict[str, Any]:
    """Import, compress, and hold what came of it against the original."""
    path = FOLDER / model.path
    rows = model.make_rows(FOLDER)
    store = argosy.Store(FOLDER / "home" / re.sub(r"\W+", "-", f"{model.path}-{time.time_ns()}"))
    parent = import_onnx(store, path, "model")
    one: dict[str, Any] = {"opset": parent.manifest.lineage.get("opsets", {}).get("ai.onnx", "?"), "rows": len(rows)}
    guard, budget = argosy.Guard(model.metric, model.max_loss), argosy.compress.Budget(max_s=BUDGET_S)
    try:
        result = argosy.compress(parent, data=rows, guard=guard, budget=budget, store=store)
    except (argosy.errors.ConflictError, argosy.errors.InputError, argosy.errors.FaultError) as error:
        return one | {"result": "refused", "why": error.message}
    assert result.version is not None
    before, after, score = result.before, result.after, result.score
    return one | {
        "result": "FAILED" if after.latency_s > before.latency_s else "compressed",
        "recipe": result.title,
        "metric": score.metric,
        "value": score.after,
        "loss": score.loss,
        "size": after.size_bytes / before.size_bytes,
        "before_ms": before.latency_s * 1e3,
        "after_ms": after.latency_s * 1e3,
        "own": read_own_way(model, rows, store, parent, result.version),
    }


def read_own_way(model: PublicModel, rows: Rows, store: argosy.Store, parent: Any, child: Any) -> str:
    """Say what users of such a model would notice; "" for those that have no reading of their own."""
    if "_det" in model.path and "ocr" in model.path and "dddd" not in model.path:
        old, new = (_answer(store, version, rows[-16:]) for version in (parent, child))
        return _compare_boxes([next(iter(found.values())) for found in old], [next(iter(found.values())) for found in new])
    if "_rec" in model.path:
        old, new = (_answer(store, version, rows) for version in (parent, child))
        texts = [[_read_symbols(next(iter(found.values()))[0]) for found in answers] for answers in (old, new)]
        same = sum(one == other for one, other in zip(*texts, strict=True))
        return f"{same} of {len(rows)} texts are the same"
    if "silero" in model.path and "sequence" not in model.path:
        probabilities = [_run_detector(store, version, set(rows[0])) for version in (parent, child)]
        worst = float(np.abs(probabilities[0] - probabilities[1]).max())
        sides = float(np.mean((probabilities[0] > 0.5) == (probabilities[1] > 0.5)))
        return f"12 s with its own state: probabilities differ by up to {worst:.3f}, {sides:.1%} on the same side of 0.5"
    return ""


def _answer(store: argosy.Store, version: Any, rows: Rows) -> list[dict[str, NDArray[Any]]]:
    with Probe(open_version(store, version)) as probe:
        return probe.answer(write_rows(rows, probe.work / "rows"))


def _run_detector(store: argosy.Store, version: Any, names: set[str]) -> NDArray[Any]:
    with Probe(open_version(store, version)) as probe:
        number = iter(range(10**6))
        return run_frames(lambda row: probe.answer(write_rows([row], probe.work / f"rows{next(number)}"))[0], names)[1]


def _read_symbols(steps: NDArray[Any]) -> list[int]:
    best = steps.argmax(axis=-1).tolist()
    return [symbol for place, symbol in enumerate(best) if symbol and (place == 0 or best[place - 1] != symbol)]


def _compare_boxes(old: list[NDArray[Any]], new: list[NDArray[Any]]) -> str:
    """Find boxes as RapidOCR does, and pair them."""
    tools = FOLDER / "tools"
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), *TOOLS], check=True)
    sys.path.append(str(tools))
    sys.path.append(str(FOLDER / "rapidocr_onnxruntime" / "ch_ppocr_det"))
    read = importlib.import_module("utils").DBPostProcess(
        thresh=0.3, box_thresh=0.5, max_candidates=1000, unclip_ratio=1.6, use_dilation=True, score_mode="fast"
    )
    num_boxes, overlaps = 0, list[float]()
    for maps in zip(old, new, strict=True):
        first, second = (np.asarray(read(one, one.shape[2:])[0]).reshape(-1, 4, 2) for one in maps)
        num_boxes += max(len(first), len(second))
        overlaps += [max((_overlap(box, other) for other in second), default=0.0) for box in first]
    found = sum(overlap > 0.5 for overlap in overlaps)
    return f"{found} of {num_boxes} boxes are found again, mean IoU {np.mean(overlaps):.3f}"


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> float:
    corners = [(box.min(axis=0), box.max(axis=0)) for box in (one, other)]
    low, high = np.maximum(corners[0][0], corners[1][0]), np.minimum(corners[0][1], corners[1][1])
    both = float(np.prod(np.maximum(0, high - low)))
    return both / (sum(float(np.prod(last - first)) for first, last in corners) - both)


def show(found: list[dict[str, Any]]) -> None:
    """Print the table."""
    lines: list[list[str]] = []
    for one in found:
        if one["result"] == "compressed":
            told = [one["recipe"], f"{one['metric']} {one['value']:.4f}", f"{one['size']:.0%}"]
            times = f"{one['before_ms'] / one['after_ms']:.2f} ({one['before_ms']:.2f} to {one['after_ms']:.2f} ms)"
            lines.append([one["model"], str(one["opset"]), *told, times, one["own"]])
        else:
            lines.append([one["model"], str(one.get("opset", "?")), f"{one['result']}: {one['why'][:200]}", "", "", "", ""])
    print(describe_machine())
    print(format_table(["model", "opset", "recipe", "fidelity", "size", "times faster", "in its own way"], lines))
    counts = {kind: sum(one["result"] == kind for one in found) for kind in ("compressed", "refused", "FAILED")}
    print(f"{len(found)} models: {counts}")


if __name__ == "__main__":
    main()
