"""Run `argosy conformance` against our server, MLServer, KServe's and Triton; write what it finds into docs/conformance.md.

    python benchmarks/conformance_rivals.py [NAME ...]

The rivals' environments are those of the other benchmarks; their models are in `rivals/conformance_*.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import argosy
from argosy.conformance import Finding, Result, Target, run_clauses, write_models
from argosy.conformance.model import OCTETS
from argosy.conformance.report import describe_finding
from argosy.conformance.run import load_clauses
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.signature import Signature, TensorSpec
from machine import describe_machine
from rivals.catalogue import RIVALS
from rivals.environment import make_environment

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "conformance.md"
BEGIN, END = "<!-- findings: written by benchmarks/conformance_rivals.py -->", "<!-- end of findings -->"
RIVAL_PROGRAMS = {
    "mlserver": "conformance_mlserver.py",
    "kserve": "conformance_kserve.py",
    "triton": "conformance_triton.py",
}
# What they have and do not announce.
UNANNOUNCED = {"mlserver": ("model_repository",), "kserve": ("binary_tensor_data",)}
START_TIMEOUT_S = 90.0
MAX_DETAIL = 200
# Characters of an answer that make two failures one way to fail.
ALIKE = 14
# What differs from run to run.
CHANGING = {
    r"127\.0\.0\.1:\d+": "127.0.0.1:...",
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "...",
    r"date: .*? GMT": "date: ...",
}
_OCTETS_MODEL = (
    "class Model:\n    def load(self, folder):\n        pass\n\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def start_rival(name: str, models: Path) -> Iterator[tuple[str, str, str]]:
    """URL, gRPC address and admin token of a rival that serves the models."""
    ports = {key: free_port() for key in ("PORT", "GRPC_PORT", "METRICS_PORT")}
    variables = os.environ | {key: str(port) for key, port in ports.items()} | {"CONFORMANCE_MODELS": str(models)}
    url = f"http://127.0.0.1:{ports['PORT']}"
    python = make_environment(RIVALS[name])
    with (models / "server.log").open("wb") as log:
        command = [str(python), str(HERE / "rivals" / RIVAL_PROGRAMS[name])]
        process = subprocess.Popen(command, env=variables, cwd=models, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready(f"{url}/v2/models/{OCTETS}/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start: {(models / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield url, f"127.0.0.1:{ports['GRPC_PORT']}", ""
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def start_argosy(models: Path) -> Iterator[tuple[str, str, str]]:
    """URL, gRPC address and admin token of our server with the models."""
    from argosy.home import find_server

    home = models / "home"
    store = argosy.Store(home)
    names = sorted(path.parent.parent.name for path in models.glob("*/1/model.onnx"))
    for name in names:
        import_onnx(store, models / name / "1" / "model.onnx", name)
    program = models / "octets.py"
    program.write_text(_OCTETS_MODEL)
    x, y = (TensorSpec(name, "BYTES", (-1, 4)) for name in "xy")
    publish_python(store, program, OCTETS, signature=Signature((x,), (y,)), repeatable=True)
    with argosy.serve(*names, home=home) as server:
        server.deploy(OCTETS, allow_code=True)
        state = find_server(home)
        assert state is not None
        yield server.url, server.grpc_address, state["token"]


def run(name: str) -> Result:
    """Check a server; one that a clause has ended is started anew for those that are left."""
    left = list(load_clauses())
    results: list[Result] = []
    while left:
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder) / "models"
            write_models(models)
            with start_argosy(models) if name == "argosy" else start_rival(name, models) as (url, address, token):
                extensions = UNANNOUNCED.get(name, ())
                target = Target(url, grpc_address=address, admin_token=token, extensions=extensions, timeout_s=10.0)
                is_alive = True
                while left and is_alive:
                    results.append(run_clauses(target, [left.pop(0)]))
                    is_alive = results[-1].is_conforming or is_ready(f"{url}/v2/health/live")
                target.close()
    findings = tuple(finding for result in results for finding in result.findings)
    return Result(results[0].url, results[0].server, results[0].models, findings)


def describe(name: str) -> str:
    if name == "argosy":
        return "Argosy"
    package = RIVALS[name].packages[0].replace("==", " ")
    return package if package.startswith(name) else f"{name.capitalize()} ({package})"


def render(results: dict[str, Result]) -> str:
    names = [describe(name) for name in results]
    lines = [f"{describe_machine()}.", "", *render_counts(results), "", "Clauses that one of them fails:", ""]
    lines += ["| clause | level | what it says | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for row in zip(*(result.findings for result in results.values()), strict=True):
        if any(finding.outcome == "fail" for finding in row):
            head = f"| `{row[0].id}` | {row[0].level} | {escape(row[0].title)} | "
            lines.append(head + " | ".join(mark(finding) for finding in row) + " |")
    for name, result in results.items():
        found = [*render_failures(result), *render_others(result)]
        lines += ["", f"### {describe(name)}", "", *(found or ["Every clause passes."])]
    return "\n".join(lines)


def render_failures(result: Result) -> list[str]:
    """A line for each way to fail, with one example; failures that begin alike are one way."""
    ways: dict[tuple[str, str], list[Finding]] = {}
    for finding in result.findings:
        if finding.outcome == "fail":
            ways.setdefault((finding.expected, finding.got[:ALIKE]), []).append(finding)
    return [f"- {', '.join(f'`{finding.id}`' for finding in way)}: {code(way[0])}" for way in ways.values()]


def render_others(result: Result) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for finding in result.findings:
        if finding.outcome in ("not offered", "skipped"):
            reasons.setdefault((finding.outcome, finding.reason), []).append(f"`{finding.id}`")
    return [f"- {outcome}, because {reason}: {', '.join(ids)}" for (outcome, reason), ids in reasons.items()]


def render_counts(results: dict[str, Result]) -> list[str]:
    lines = ["| | pass | fail (MUST) | fail (SHOULD, MAY) | not offered | skipped |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        must = sum(finding.outcome == "fail" and finding.level == "MUST" for finding in result.findings)
        counts = (result.count("pass"), must, result.count("fail") - must, result.count("not offered"), result.count("skipped"))
        lines.append(f"| {describe(name)} | " + " | ".join(map(str, counts)) + " |")
    return lines


def escape(text: str) -> str:
    return re.sub(r"([<>|*_\[\]{}])", r"\\\1", text)


def mark(finding: Finding) -> str:
    return "**fail**" if finding.outcome == "fail" else finding.outcome


def code(finding: Finding) -> str:
    text = describe_finding(finding).replace("`", "'")
    for pattern, instead in CHANGING.items():
        text = re.sub(pattern, instead, text)
    expected = text.find("expected ")
    text = text[expected:] if expected > 0 else text
    return f"`` {text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + '...'} ``"


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"argosy, {', '.join(RIVAL_PROGRAMS)}; all, which are written down"
    )
    names = parser.parse_args(words).names
    results = {name: run(name) for name in names or ("argosy", *RIVAL_PROGRAMS)}
    text = render(results)
    if names:
        print(text)
        return
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
