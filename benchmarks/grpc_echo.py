"""Requests/s of the gRPC front alone: one process serves a fake engine that doubles its input, h2load asks it.

    PYTHONPATH=src .venv/bin/python benchmarks/grpc_echo.py [--connections 64] [--streams 1] [--seconds 5] [--runs 3]

All checks of the real front are on; the engine answers in the next turn of the event loop, as a worker's replies
would come (`tests/serve/grpc/echo.py`). h2load runs beside the server, so two cores are needed for a figure of one. With
--profile the server runs under cProfile and its heaviest functions are printed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from argosy.serve.grpc.messages import ModelInferRequest

ROOT = Path(__file__).parents[1]


def make_body(num_floats: int) -> bytes:
    request = ModelInferRequest(model_name="mlp" if num_floats == 64 else "any")
    request.inputs.add(name="x", datatype="FP32", shape=[1, num_floats])
    request.raw_input_contents.append(np.ones((1, num_floats), np.float32).tobytes())
    data = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def check_answer(port: int, num_floats: int) -> None:
    """Refuse to measure a server whose answer is wrong."""
    import tritonclient.grpc as triton

    x = np.ones((1, num_floats), np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert np.array_equal(client.infer("mlp" if num_floats == 64 else "any", [tensor]).as_numpy("y"), x * 2)


def run_load(args: argparse.Namespace, port: int, body: str, server_pid: int) -> None:
    url = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    for _ in range(args.runs):
        log = Path(body).with_suffix(".log")
        log.unlink(missing_ok=True)
        load = ["h2load", "-t1", f"-c{args.connections}", f"-m{args.streams}", f"-D{args.seconds}", "--warm-up-time=1"]
        before = cpu_s(server_pid)
        started = time.monotonic()
        out = subprocess.run([*load, f"--log-file={log}", "-d", body, *headers, url], capture_output=True, text=True, check=True)
        cores = (cpu_s(server_pid) - before) / (time.monotonic() - started)
        rate = float(re.search(r"([\d.]+) req/s", out.stdout)[1])
        failed = re.search(r"(\d+) failed, (\d+) errored", out.stdout)
        times = np.array([int(line.split()[2]) for line in log.read_text().splitlines()]) / 1000
        p50, p99 = np.percentile(times, [50, 99])
        cost = cores / rate * 1e6
        print(
            f"{rate:9.0f} req/s  p50 {p50:.2f} ms  p99 {p99:.2f} ms  failed {failed[1]}  cores {cores:.2f}  {cost:.1f} us/request"
        )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--floats", type=int, default=64, help="values in a request")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.serve.grpc.echo", str(port), *(["--profile"] if args.profile else [])]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        body = Path(folder) / "body.bin"
        body.write_bytes(make_body(args.floats))
        try:
            server.stdout.readline()
            check_answer(port, args.floats)
            run_load(args, port, str(body), server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


if __name__ == "__main__":
    main()
