"""The load generators: wrk for HTTP, h2load for gRPC, which both keep every connection busy with one request at a time; and
a client with a constant rate."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rivals.environment import EntrantError

HERE = Path(__file__).resolve().parent
REQUEST_TIMEOUT_S = 10
# Of one thread of wrk, so that a scenario with more fronts has as many more threads to load them.
THREAD_CONNECTIONS = 64
# What a client may take longer than it was told to.
SLACK_S = 60


@dataclass(frozen=True)
class Load:
    """What to send: the requests of a file, over this many connections, for this many seconds."""

    url: str
    requests: Path
    headers: Mapping[str, str]
    connections: int
    seconds: float


def run_wrk(load: Load) -> dict[str, float]:
    """Requests, seconds, requests/s, p50_ms, p99_ms and errors (also answers that are not 2xx)."""
    headers = [text for name, value in load.headers.items() for text in ("-H", f"{name}: {value}")]
    threads = -(-load.connections // THREAD_CONNECTIONS)
    options = [f"-t{threads}", f"-c{load.connections}", f"-d{max(1, round(load.seconds))}s", "--timeout", f"{REQUEST_TIMEOUT_S}s"]
    command = ["wrk", *options, "-s", str(HERE / "post.lua"), *headers, load.url, "--", str(load.requests)]
    result = json.loads(_find(r"JSON (.*)", _run_client(command, load.seconds))[0])
    if not result["requests"]:
        # The first answer would have taken at least as long as was waited.
        result["p50_ms"] = result["p99_ms"] = result["seconds"] * 1000
    return {**result, "rps": result["requests"] / result["seconds"]}


def run_h2load(load: Load, count: int, reply_bytes: int) -> dict[str, float]:
    """The same over HTTP/2; a request counts as an error unless its answer brought `reply_bytes` of data.

    h2load writes each request's time only where their number is given, as `count`.
    """
    log = load.requests.with_name("h2load.log")
    log.unlink(missing_ok=True)
    headers = [text for name, value in load.headers.items() for text in ("-H", f"{name}: {value}")]
    options = ["-t1", f"-c{load.connections}", "-m1", f"-n{count}", "-d", str(load.requests), f"--log-file={log}"]
    command = ["h2load", *options, *headers, load.url]
    output = _run_client(command, load.seconds)
    seconds, unit = _find(r"finished in ([\d.]+)(us|ms|s)", output)
    elapsed = float(seconds) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    data_bytes = int(_find(r"\((\d+)\) data", output)[0])
    # Columns: start, status, time until the end of the answer in us.
    times_ms = np.loadtxt(log, usecols=2, ndmin=1) / 1000
    p50_ms, p99_ms = np.percentile(times_ms, (50, 99))
    good = data_bytes // reply_bytes
    return {
        "requests": len(times_ms),
        "seconds": elapsed,
        "rps": good / elapsed,
        "p50_ms": float(p50_ms),
        "p99_ms": float(p99_ms),
        "errors": max(0, count - good),
    }


def run_open_loop(rate: float, load: Load) -> dict[str, float]:
    """The same over HTTP at a constant rate in requests/s; latency counts from when a request was due (`open_loop.py`)."""
    job = {**dataclasses.asdict(load), "requests": str(load.requests), "headers": dict(load.headers), "rate": rate}
    command = [sys.executable, str(HERE / "open_loop.py"), json.dumps(job)]
    return json.loads(_run_client(command, load.seconds))


def _run_client(command: list[str], seconds: float) -> str:
    """What a client printed.

    Raises:
        EntrantError: it failed, as it does when the server is gone, or did not end in time.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 3 + SLACK_S)
    except subprocess.TimeoutExpired as error:
        raise EntrantError(f"{command[0]} did not end within {error.timeout:.0f} s") from error
    if done.returncode:
        raise EntrantError(f"{command[0]} ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _find(pattern: str, output: str) -> tuple[str, ...]:
    found = re.search(pattern, output)
    if found is None:
        raise EntrantError(f"no `{pattern}` in the client's output: {output.strip()[-300:]}")
    return found.groups()
