"""Many public clients that send requests without pause and check every answer; a process of its own.

    python -m argosy.demo.clients JOB.json

The job names the servers, the model, the kinds of clients, and a file with the inputs and the right answers
of each version. The process prints `ready` once every client has had an answer, sends until its standard
input closes, and then writes what it saw: one row a request.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "KINDS", "main"]

COLUMNS: Final = ("sent_s", "latency_s", "version", "is_failed", "is_wrong", "kind")
"""Of a row: `time.monotonic()` when sent, seconds, number or 0, 0 or 1, 0 or 1, index in KINDS."""

Answer = tuple[NDArray[Any], str]
Ask = Callable[[NDArray[Any]], Answer]


def _make_httpx(job: dict[str, Any]) -> Ask:
    """httpx, plain JSON."""
    httpx: Any = importlib.import_module("httpx")
    client = httpx.Client(timeout=job["timeout_s"])
    url = f"http://{job['http']}/v2/models/{job['model']}/infer"

    def ask(image: NDArray[Any]) -> Answer:
        tensor = {"name": job["input"], "shape": list(image.shape), "datatype": "FP32", "data": image.ravel().tolist()}
        answer = client.post(url, json={"inputs": [tensor]})
        answer.raise_for_status()
        body = answer.json()
        output = body["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"]), body["model_version"]

    return ask


def _make_argosy(job: dict[str, Any]) -> Ask:
    """Argosy's own client, binary tensors over HTTP."""
    from argosy.client import Client

    client = Client(f"http://{job['http']}", timeout_s=job["timeout_s"])

    def ask(image: NDArray[Any]) -> Answer:
        answer = client.predict(job["model"], {job["input"]: image})
        return answer[job["output"]], answer.version

    return ask


def _make_triton(job: dict[str, Any], module: str, address: str) -> Ask:
    triton: Any = importlib.import_module(module)
    client = triton.InferenceServerClient(address)

    def ask(image: NDArray[Any]) -> Answer:
        tensor = triton.InferInput(job["input"], list(image.shape), "FP32")
        tensor.set_data_from_numpy(image)
        answer = client.infer(job["model"], [tensor])
        response: Any = answer.get_response()
        # Over HTTP it is the JSON, over gRPC the message.
        version: str = response["model_version"] if module.endswith("http") else response.model_version
        return answer.as_numpy(job["output"]), version

    return ask


def _make_triton_http(job: dict[str, Any]) -> Ask:
    """Tritonclient over HTTP, binary tensors."""
    return _make_triton(job, "tritonclient.http", job["http"])


def _make_triton_grpc(job: dict[str, Any]) -> Ask:
    """Tritonclient over gRPC."""
    return _make_triton(job, "tritonclient.grpc", job["grpc"])


KINDS: Final[dict[str, Callable[[dict[str, Any]], Ask]]] = {
    "httpx": _make_httpx,
    "argosy": _make_argosy,
    "tritonclient.http": _make_triton_http,
    "tritonclient.grpc": _make_triton_grpc,
}


class _Client(threading.Thread):
    """One client: sends, waits, checks, notes."""

    def __init__(
        self, kind: str, job: dict[str, Any], seed: int, images: NDArray[Any], expected: dict[str, NDArray[Any]]
    ) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, ...]] = []
        self.problems: list[str] = []
        self.is_ready = threading.Event()
        self.stop = threading.Event()
        self._kind, self._job = kind, job
        self._images, self._expected = images, expected
        self._random = np.random.default_rng(seed)

    def run(self) -> None:
        ask = KINDS[self._kind](self._job)
        kind = list(KINDS).index(self._kind)
        while not self.stop.is_set():
            index = int(self._random.integers(len(self._images)))
            sent_s = time.monotonic()
            version, is_failed, is_wrong = "0", False, False
            try:
                answer, version = ask(self._images[index : index + 1])
                is_wrong = not self._is_right(answer, version, index)
                if is_wrong:
                    self.problems.append(f"image {index}: {answer.tolist()} from version {version}")
            except Exception as error:  # whatever a client library raises is a failed request
                is_failed = True
                self.problems.append(f"{type(error).__name__}: {error}")
            self.rows.append((sent_s, time.monotonic() - sent_s, float(version or 0), is_failed, is_wrong, kind))
            self.is_ready.set()

    def _is_right(self, answer: NDArray[Any], version: str, index: int) -> bool:
        expected = self._expected.get(version)
        if expected is None or answer.shape != (1, *expected.shape[1:]):
            return False
        scale = max(1.0, float(np.abs(expected[index]).max()))
        return bool(np.abs(answer[0] - expected[index]).max() <= self._job["tolerances"][version] * scale)


def main() -> None:
    """Run the job that the first argument names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    with np.load(job["data"], allow_pickle=False) as file:
        images = file["images"]
        expected = {name.removeprefix("version_"): file[name] for name in file.files if name.startswith("version_")}
    clients = [_Client(kind, job, job["seed"] + i, images, expected) for i, kind in enumerate(job["clients"])]
    for client in clients:
        client.start()
    for client in clients:
        client.is_ready.wait()
    print("ready", flush=True)
    sys.stdin.read()
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join(job["timeout_s"] + 1.0)
    rows = [row for client in clients for row in client.rows]
    problems = [problem for client in clients for problem in client.problems]
    np.save(job["result"], np.array(rows, np.float64).reshape(-1, len(COLUMNS)), allow_pickle=False)
    print(json.dumps(problems[:10]), flush=True)


if __name__ == "__main__":
    main()
