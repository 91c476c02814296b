"""What is measured side by side: a model, who serves it, how many clients ask, and the limits that must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from clients import run_open_loop
from models import Case
from ratios import Limit
from raw_ort import start_raw
from rivals.catalogue import PADDING, RIVALS
from servers import Server, plan_argosy, plan_rival, run_server

# An OpenVINO answer in bfloat16 beside float32's.
TUNED_COSINE = 0.9999
AGAIN = "argosy (again)"


class Running(Protocol):
    """What can be measured: a server, or bare ONNX Runtime."""

    start_s: float

    def load(self, connections: int, seconds: float) -> dict[str, float]: ...

    def measure(self, connections: int, seconds: float) -> dict[str, float]: ...


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Attributes:
        name: in the table.
        start: runs it for a case, with a folder for its files.
        factor: its connections are the scenario's times this.
        setting: what the table says of it.
        is_restless: it uses the processor while nobody asks it, and must not run while others are measured.
    """

    name: str
    start: Callable[[Case, Path], AbstractContextManager[Running]]
    factor: int = 1
    setting: str = ""
    is_restless: bool = False


@dataclass(frozen=True)
class Scenario:
    """What is measured side by side.

    Attributes:
        title: head of its tables.
        case: name of its model and rows (`models.py`).
        entrants: in the table's order.
        connections: how many clients ask at once, one after the other.
        limits: what must hold.
        unit: what an answer is called.
    """

    title: str
    case: str
    entrants: Sequence[Entrant]
    connections: Sequence[int]
    limits: Sequence[Limit]
    unit: str = "requests"


def parse_flags(text: str) -> list[str]:
    """Turn `replicas=2,threads=1` into flags of `argosy deploy`."""
    pairs = [item.split("=", 1) for item in text.split(",") if item]
    return [part for name, value in pairs for part in (f"--{name.replace('_', '-')}", value)]


@contextmanager
def _run_argosy(case: Case, folder: Path, **options: object) -> Iterator[Server]:
    with run_server(plan_argosy(case, folder, **options), case, folder) as server:
        yield server


@contextmanager
def _run_rival(name: str, case_name: str, case: Case, folder: Path) -> Iterator[Server]:
    with run_server(plan_rival(name, case_name, case, folder), case, folder) as server:
        yield server


def _argosy(name: str = "argosy", factor: int = 1, **options: object) -> Entrant:
    shown = " ".join(options.get("deploy", ()))
    return Entrant(name, partial(_run_argosy, **options), factor, shown.replace("--", ""))


def _rivals(case_name: str, names: Sequence[str]) -> list[Entrant]:
    return [
        Entrant(
            name,
            partial(_run_rival, name, case_name),
            setting=str(RIVALS[name].settings[case_name]),
            is_restless=RIVALS[name].is_restless,
        )
        for name in names
    ]


def _choose(case_name: str, chosen: Sequence[str], kinds: str) -> tuple[str, ...]:
    """The chosen rivals that have a setting for a model and take bodies of one of these kinds."""
    return tuple(name for name in chosen if case_name in RIVALS[name].settings and RIVALS[name].kind in kinds.split())


def _make_mlp(chosen: Sequence[str]) -> Scenario:
    rivals = _choose("mlp", chosen, "v2 plain stacked")
    limits = (
        Limit("rps", 64, "argosy", rivals, at_least=1.4),
        Limit("cpu_us", 64, "argosy", rivals, at_most=0.6),
        Limit("p50_ms", 1, "argosy", rivals, at_most=1.0),
    )
    entrants = [_argosy(), *_rivals("mlp", rivals), _argosy(AGAIN)]
    return Scenario("Small requests: a perceptron 64-256-256-10, V2 JSON", "mlp", entrants, (64, 1), limits)


def _make_binary(chosen: Sequence[str]) -> Scenario:
    rivals = _choose("pixels", chosen, "binary raw")
    entrants = [_argosy(kind="binary"), *_rivals("pixels", rivals), _argosy(AGAIN, kind="binary")]
    limits = (Limit("rps", 64, "argosy", rivals, at_least=1.5),)
    return Scenario("Binary tensors: 1 x 3 x 224 x 224 float32, the mean of each channel", "pixels", entrants, (64, 1), limits)


def _make_grpc(chosen: Sequence[str]) -> Scenario:
    rivals = _choose("mlp", chosen, "grpc")
    triton = tuple(name for name in rivals if name.startswith("triton"))
    others = tuple(name for name in rivals if name not in triton)
    limits = (Limit("rps", 64, "argosy", triton, at_least=1.0), Limit("rps", 64, "argosy", others, at_least=4.0))
    entrants = [_argosy(kind="grpc"), *_rivals("mlp", rivals), _argosy(AGAIN, kind="grpc")]
    return Scenario("gRPC: the perceptron, h2load", "mlp", entrants, (64, 1), limits)


def _make_minilm(chosen: Sequence[str], plain: str, tuned: str) -> Scenario:
    rivals = _choose("minilm", chosen, "v2 plain stacked")
    deploy = parse_flags(plain)
    entrants = [
        _argosy(deploy=deploy),
        Entrant("onnxruntime alone", start_raw),
        _argosy("argosy tuned", deploy=parse_flags(tuned), min_cosine=TUNED_COSINE),
        *_rivals("minilm", rivals),
        _argosy(AGAIN, deploy=deploy),
    ]
    limits = (
        Limit("rps", 64, "argosy", ("onnxruntime alone",), at_least=0.95),
        Limit("rps", 64, "argosy tuned", rivals, at_least=1.7),
        Limit("p99_ms", 64, "argosy", rivals, at_most=1.0),
        Limit("p99_ms", 64, "argosy tuned", rivals, at_most=1.0),
    )
    return Scenario("Sentences of 32 tokens: MiniLM-L6, V2 JSON", "minilm", entrants, (64,), limits, "rows")


def _make_lengths(chosen: Sequence[str], plain: str) -> Scenario:
    rivals = _choose("lengths", chosen, "v2 plain")
    padding = tuple(name for name in rivals if name in PADDING)
    deploy = parse_flags(plain)
    entrants = [_argosy(deploy=deploy), *_rivals("lengths", rivals), _argosy(AGAIN, deploy=deploy)]
    limits = (Limit("rps", 64, "argosy", padding, at_least=2.0), Limit("p99_ms", 64, "argosy", rivals, at_most=1.0))
    return Scenario("Sentences of 8 to 128 tokens: MiniLM-L6, V2 JSON", "lengths", entrants, (64,), limits, "rows")


def _make_fronts() -> Scenario:
    one, two = "1 front, 1 worker", "2 fronts, 2 workers"
    entrants = [_argosy(one), _argosy(two, 2, num_fronts=2, deploy=("--replicas", "2")), _argosy(f"{one} (again)")]
    limits = (Limit("cpu_us", 64, two, (one,), at_most=1.1),)
    return Scenario("Fronts: 64 connections and one worker for each", "mlp", entrants, (64,), limits)


@contextmanager
def _load_at(rate: float, entrant: Entrant, case: Case, folder: Path) -> Iterator[Running]:
    with entrant.start(case, folder) as server:
        server.client = partial(run_open_loop, rate)
        yield server


def _make_open(chosen: Sequence[str], rate: float) -> Scenario:
    closed = _make_mlp(chosen)
    entrants = [replace(entrant, start=partial(_load_at, rate, entrant)) for entrant in closed.entrants]
    limits = (Limit("p99_ms", 64, "argosy", closed.limits[0].against, at_most=1.0),)
    return Scenario(f"A constant rate of {rate:g} requests/s: the perceptron, V2 JSON", "mlp", entrants, (64,), limits)


def make_tree_scenarios(trees: Mapping[str, Path]) -> Mapping[str, Scenario]:
    """The small scenarios with Argosys of several checkouts, by name.

    Each lives for its own windows alone: what a server's processes happen to get of the machine is drawn anew in every round.

    Args:
        trees: the checkouts, by what the table calls them.
    """

    def enter(kind: str) -> list[Entrant]:
        return [replace(_argosy(name, kind=kind, tree=tree), is_restless=True) for name, tree in trees.items()]

    return {
        "mlp": replace(_make_mlp(()), entrants=enter("v2"), limits=()),
        "binary": replace(_make_binary(()), entrants=enter("binary"), limits=()),
        "grpc": replace(_make_grpc(()), entrants=enter("grpc"), limits=()),
    }


def make_scenarios(chosen: Sequence[str], minilm: str, tuned: str, rate: float) -> Mapping[str, Scenario]:
    """All scenarios, by name.

    Args:
        chosen: names of rivals that take part.
        minilm: flags of `argosy deploy` for MiniLM on ONNX Runtime, such as `replicas=2,threads=1`.
        tuned: the same for the tuned deployment.
        rate: requests/s of the open loop.
    """
    return {
        "mlp": _make_mlp(chosen),
        "binary": _make_binary(chosen),
        "grpc": _make_grpc(chosen),
        "minilm": _make_minilm(chosen, minilm, tuned),
        "lengths": _make_lengths(chosen, minilm),
        "fronts": _make_fronts(),
        "open": _make_open(chosen, rate),
    }
