"""Requests/s, CPU per request and latency of small V2 JSON requests, beside rivals in the same run.

    python benchmarks/serve.py [--rounds 5] [--seconds 5] [--rivals mosec,fastapi]

Every round measures each server once at 64 connections and once at 1, in turn, so that a change of the
machine's speed meets all of them. CPU is that of all processes of the server, from the kernel's accounts.
Needs `wrk` (Debian: wrk). Rivals get environments of their own below `.bench/`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

import argosy
from argosy.store.onnx_file import import_onnx
from machine import cpu_seconds, describe_machine, pss_bytes
from models import make_bodies, make_mlp

HERE = Path(__file__).parent
ROOT = HERE.parent / ".bench"
RIVALS = {
    "mosec": (
        ["mosec==0.9.8", "orjson==3.13.0"],
        [
            "{python}",
            "{here}/rivals/mosec_mlp.py",
            "--address",
            "127.0.0.1",
            "--port",
            "{port}",
            "--log-level",
            "warning",
            "--timeout",
            "30000",
        ],
    ),
    "fastapi": (
        ["fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.22.1", "httptools==0.9.0", "orjson==3.13.0"],
        [
            "{python}",
            "-m",
            "uvicorn",
            "--app-dir",
            "{here}/rivals",
            "fastapi_mlp:app",
            "--port",
            "{port}",
            "--workers",
            "2",
            "--no-access-log",
            "--loop",
            "uvloop",
            "--http",
            "httptools",
            "--log-level",
            "warning",
        ],
    ),
}


def make_environment(name: str, packages: list[str]) -> Path:
    """A virtual environment for a rival, with the ONNX Runtime and NumPy that Argosy uses here."""
    python = ROOT / name / "bin" / "python"
    mark = ROOT / name / "packages.txt"
    wanted = "\n".join([*packages, f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"])
    if not mark.exists() or mark.read_text() != wanted:
        shutil.rmtree(ROOT / name, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(ROOT / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted.split("\n")], check=True)
        mark.write_text(wanted)
    return python


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def run_rival(name: str, model: Path):
    packages, command = RIVALS[name]
    python, port = make_environment(name, packages), free_port()
    filled = [part.format(python=python, here=HERE, port=port) for part in command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")} | {
        "MODEL": str(model),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        filled, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process.pid, f"http://127.0.0.1:{port}" + ("/inference" if name == "mosec" else "/v2/models/mlp/infer")
    finally:
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        for pid in family:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def run_argosy(model: Path, folder: Path):
    store = argosy.Store(folder / "home")
    import_onnx(store, model, "mlp")
    with argosy.serve("mlp", home=store.home) as server:
        yield server.pid, f"{server.url}/v2/models/mlp/infer"


def check_answers(url: str, bodies: Path, rows: np.ndarray, model: Path) -> None:
    """Every body's answer against bare ONNX Runtime: a fast server that answers wrongly is no rival."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for line, row in zip(bodies.read_bytes().splitlines(), rows, strict=True):
        for attempt in range(200):
            try:
                request = urllib.request.Request(url, line, {"Content-Type": "application/json"})
                answer = json.loads(urllib.request.urlopen(request, timeout=10).read())
                break
            except OSError:
                if attempt == 199:
                    raise
                time.sleep(0.1)
        got = answer["outputs"][0]["data"] if "outputs" in answer else answer["y"]
        np.testing.assert_allclose(np.ravel(got), session.run(None, {"x": row[None]})[0][0], atol=1e-5)


def load(pid: int, url: str, bodies: Path, connections: int, seconds: float) -> dict:
    before = cpu_seconds(pid)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{round(seconds)}s",
        "--timeout",
        "10s",
        "-s",
        str(HERE / "post.lua"),
        url,
        "--",
        str(bodies),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(next(line for line in output.splitlines() if line.startswith("JSON"))[5:])
    result["rps"] = result["requests"] / result["seconds"]
    result["cpu_us"] = (cpu_seconds(pid) - before) / result["requests"] * 1e6
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rivals", default="mosec,fastapi")
    options = parser.parse_args()
    rivals = [name for name in options.rivals.split(",") if name]
    print(f"{describe_machine()}, onnxruntime {onnxruntime.__version__}; {options.rounds} rounds of {options.seconds} s; medians")
    with tempfile.TemporaryDirectory() as path, ExitStack() as stack:
        folder = Path(path)
        model, rows = make_mlp(folder / "mlp.onnx"), make_bodies(folder)
        servers = {"argosy": (*stack.enter_context(run_argosy(model, folder)), folder / "v2.txt")}
        for rival in rivals:
            bodies = folder / ("plain.txt" if rival == "mosec" else "v2.txt")
            servers[rival] = (*stack.enter_context(run_rival(rival, model)), bodies)
        results: dict[tuple[str, int], list[dict]] = {}
        for pid, url, bodies in servers.values():
            check_answers(url, bodies, rows, model)
            load(pid, url, bodies, 64, 1)
        for _ in range(options.rounds):
            for connections in (64, 1):
                for name, (pid, url, bodies) in servers.items():
                    results.setdefault((name, connections), []).append(load(pid, url, bodies, connections, options.seconds))
        memory = {server: pss_bytes(pid) for server, (pid, _, _) in servers.items()}
    print_table(results, memory)


def print_table(results: dict[tuple[str, int], list[dict]], memory: dict[str, float]) -> None:
    def median(server: str, connections: int, key: str) -> float:
        return statistics.median(result[key] for result in results[server, connections])

    print(f"{'server':<10}{'conns':>6}{'requests/s':>12}{'CPU us':>8}{'p50 ms':>8}{'p99 ms':>8}{'errors':>8}{'PSS MB':>8}")
    for server, connections in results:
        errors = sum(result["errors"] for result in results[server, connections])
        figures = [median(server, connections, key) for key in ("rps", "cpu_us", "p50_ms", "p99_ms")]
        shown = f"{figures[0]:>12,.0f}{figures[1]:>8.1f}{figures[2]:>8.3f}{figures[3]:>8.3f}"
        print(f"{server:<10}{connections:>6}{shown}{errors:>8}{memory[server] / 2**20:>8.0f}")
    for rival in [server for server in memory if server != "argosy"]:
        pairs = list(zip(results["argosy", 64], results[rival, 64], strict=True))
        speed = statistics.median(a["rps"] / b["rps"] for a, b in pairs)
        cpu = statistics.median(a["cpu_us"] / b["cpu_us"] for a, b in pairs)
        head = f"argosy / {rival} at 64 connections, median of {len(pairs)} pairs"
        print(f"{head}: {speed:.2f} of its requests/s, {cpu:.2f} of its CPU per request")


if __name__ == "__main__":
    main()
