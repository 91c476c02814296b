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

__all__ = ["COLUMNS", "KINDS", "is_close", "main"]

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
        self.unknown: list[tuple[int, int, str, NDArray[Any]]] = []
        """Of answers of versions whose right ones are not known: row, image, version, answer."""
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
        if answer.shape != (1, *next(iter(self._expected.values())).shape[1:]):
            return False
        if expected is None:
            self.unknown.append((len(self.rows), index, version, answer[0]))
            return True
        return is_close(answer[0], expected[index], self._job["tolerances"][version])


def is_close(answer: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    """Say whether an answer is right: as far from what is expected as the tolerance at most, relative to its largest value."""
    scale = max(1.0, float(np.abs(expected).max()))
    return bool(np.abs(answer - expected).max() <= tolerance * scale)


def _write_unknown(path: Path, clients: list[_Client]) -> None:
    starts = np.cumsum([0, *(len(client.rows) for client in clients)])
    found = [(int(start) + one[0], *one[1:]) for start, client in zip(starts, clients, strict=False) for one in client.unknown]
    columns: dict[str, Any] = {
        "rows": np.array([row for row, _, _, _ in found], np.int64),
        "images": np.array([image for _, image, _, _ in found], np.int64),
        "versions": np.array([version for _, _, version, _ in found], np.str_),
        "answers": np.array([answer for _, _, _, answer in found]),
    }
    np.savez(path, **columns)


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
    _write_unknown(Path(job["unknown"]), clients)
    np.save(job["result"], np.array(rows, np.float64).reshape(-1, len(COLUMNS)), allow_pickle=False)
    print(json.dumps(problems[:10]), flush=True)


if __name__ == "__main__":
    main()
