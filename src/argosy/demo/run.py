"""The demo's acts, one after the other: train, compress, deploy; and while 32 clients send requests, update and roll back."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.compress.find import Budget
from argosy.compress.result import CompressResult
from argosy.compress.run import compress
from argosy.demo.crowd import Crowd, Seen
from argosy.demo.timeline import Phase
from argosy.errors import FaultError
from argosy.server import Server, serve
from argosy.store.local import Store
from argosy.store.manifest import Version
from argosy.train.recipes import RecipeRun, get_recipe, load_data_for, run_recipe

__all__ = [
    "NUM_CLIENTS",
    "OBJECTIVE",
    "DemoResult",
    "Prepared",
    "answer_alone",
    "choose_tolerances",
    "prepare_versions",
    "run_demo",
]

NUM_CLIENTS: Final = 32
STEADY_S: Final = 5.0
TORCH_TOLERANCE: Final = 1e-4
TOLERANCE: Final = 1e-4
"""Largest difference to the bare runtime, relative to the largest value of the answer (at least 1)."""
BFLOAT16_TOLERANCE: Final = 2e-2
"""The same for what is computed in bfloat16, whose 8 bits round otherwise in a batch; another digit's answer is far from that."""
NAME: Final = "digits"
OBJECTIVE: Final = "size"
SEARCH_S: Final = 15.0
"""After which no new recipe is begun."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A model in two versions, and rows that neither was trained on."""

    run: RecipeRun
    original: Version
    compressed: Version
    compression: CompressResult
    images: NDArray[np.float32]
    labels: NDArray[Any]


@dataclass(frozen=True)
class DemoResult:
    """What the demo saw."""

    prepared: Prepared
    seen: Seen
    phases: tuple[Phase, ...]
    torch_difference: float
    """Largest difference between version 1's artifact and the trained model in its framework."""
    deploy_s: float
    """From the request to deploy version 1 to its first replica that takes requests."""

    @property
    def is_good(self) -> bool:
        """True when no request failed and no answer was wrong."""
        return (
            not (self.seen.num_failed or self.seen.num_wrong or self.seen.problems) and self.torch_difference <= TORCH_TOLERANCE
        )


def prepare_versions(store: Store, name: str, *, seed: int = 0, say: Say = lambda text: None) -> Prepared:
    """Train the digits network and publish it; find the recipe that makes it smallest within a point of accuracy, publish that.

    Raises:
        ConflictError: no recipe makes it smaller within that.
    """
    rows, kept = (len(data.x) for data in get_recipe(NAME).load())
    say(f"training a convolutional network on {rows:,} handwritten digits ({kept} are kept for the test)")
    run = run_recipe(NAME, publish_as=name, store=store, seed=seed)
    original = run.version
    data = load_data_for(original) if original is not None else None
    if original is None or data is None:
        raise FaultError("internal", detail="the recipe published nothing")
    training, testing = data
    say(f"version {original.number}: test accuracy {run.test['accuracy']:.2%}; looking for the recipe that makes it smallest")
    # The size is the same on every machine; what is fastest depends on the processor's kernels for integers.
    result = compress(
        original,
        objective=OBJECTIVE,
        calibration=training.x[:512],
        evaluation=(testing.x, testing.y),
        budget=Budget(max_s=SEARCH_S),
        served=False,
        store=store,
        say=lambda text: say(f"  {text}"),
    )
    if result.version is None:
        raise FaultError("internal", detail="compression published nothing")
    say(f"version {result.version.number}: {result.title}, the best of {len(result.tried)}")
    return Prepared(run, original, result.version, result, testing.x, testing.y)


def answer_alone(store: Store, version: Version, images: NDArray[Any]) -> NDArray[np.float32]:
    """What the version's bare runtime, ONNX Runtime or OpenVINO, answers to each image alone, on its artifact."""
    manifest = version.manifest
    path = str(store.open_artifact(version) / manifest.entry)
    name = manifest.signature.inputs[0].name
    if manifest.runtime == "openvino":
        openvino: Any = importlib.import_module("openvino")
        hint = "bf16" if manifest.options.get("precision") == "bfloat16" else "f32"
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": hint})
        return np.concatenate([np.array(compiled(images[i : i + 1])[0]) for i in range(len(images))])
    ort: Any = importlib.import_module("onnxruntime")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))])


def choose_tolerances(versions: Iterable[Version]) -> dict[str, float]:
    """Say how far an answer in a batch may be from the bare runtime's to the row alone, by the version's number."""
    return {
        str(version.number): BFLOAT16_TOLERANCE if version.manifest.options.get("precision") == "bfloat16" else TOLERANCE
        for version in versions
    }


def run_demo(home: Path, *, seed: int = 0, say: Say = lambda text: None) -> DemoResult:
    """Run the whole way in `home`, which holds the versions afterwards.

    Args:
        home: ARGOSY_HOME of the demo.
        seed: of the training.
        say: called with a line for the reader at every step.

    Raises:
        ArgosyError: a step failed.
    """
    store = Store(home)
    prepared = prepare_versions(store, NAME, seed=seed, say=say)
    versions = {str(version.number): version for version in (prepared.original, prepared.compressed)}
    expected = {number: answer_alone(store, version, prepared.images) for number, version in versions.items()}
    trained = prepared.run.result.predict(prepared.images)
    torch_difference = float(np.abs(trained - expected[str(prepared.original.number)]).max())
    say(f"version 1 exported: largest difference to PyTorch {torch_difference:.1e}; starting a server")
    with tempfile.TemporaryDirectory() as folder, serve(home=home) as server:
        start = time.monotonic()
        server.deploy(f"{NAME}@{prepared.original.number}")
        deploy_s = time.monotonic() - start
        say(f"{NUM_CLIENTS} clients (half HTTP, half gRPC) send single images without pause to {server.url}")
        tolerances = choose_tolerances(versions.values())
        crowd = Crowd(server, NAME, Path(folder), prepared.images, expected, ("image", "logits"), tolerances)
        with crowd:
            phases = _change_versions(server, prepared, say)
    if crowd.seen is None:
        raise FaultError("internal", detail="the clients left no result")
    return DemoResult(prepared, crowd.seen, tuple(phases), torch_difference, deploy_s)


def _change_versions(server: Server, prepared: Prepared, say: Say) -> list[Phase]:
    """Update and roll back, with steady stretches around them."""
    phases: list[Phase] = []

    def note(name: str, work: Callable[[], None], *, is_change: bool = False) -> None:
        start = time.monotonic()
        work()
        phases.append(Phase(name, start, time.monotonic(), is_change))

    def steady() -> None:
        time.sleep(STEADY_S)

    def update() -> None:
        server.deploy(f"{NAME}@{prepared.compressed.number}")

    def roll_back() -> None:
        with server.admin() as admin:
            events = list(admin.follow(admin.rollback(NAME).id))
        if events[-1].step != "done":
            raise FaultError("rollout_failed", name=NAME, version=1, step="rollback", detail=events[-1].detail)

    note("before", steady)
    for name, change in (("update", update), ("roll back", roll_back)):
        say(f"{name} under load")
        note(name, change, is_change=True)
        note(f"after {name}", steady)
    return phases
