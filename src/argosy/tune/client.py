"""Send requests to a server as clients do: bodies in a file, and a process that sends them and times the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from argosy.client.wire import HEADER_LENGTH, encode_request
from argosy.errors import FaultError
from argosy.signature import Arrays, Signature
from argosy.tune.load import Job

__all__ = ["run_client", "write_requests"]


def write_requests(path: Path, requests: Sequence[Arrays], signature: Signature, name: str) -> list[int]:
    """Write requests as clients send them, with binary tensors; returns their sizes.

    Args:
        path: of the file.
        requests: the inputs of each by name.
        signature: of the version.
        name: of the deployment.
    """
    sizes: list[int] = []
    with path.open("wb") as file:
        for arrays in requests:
            body, json_bytes = encode_request(arrays, signature.inputs, None, None, None)
            head = (
                f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                f"{HEADER_LENGTH}: {json_bytes}\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            sizes.append(file.write(head) + file.write(body))
    return sizes


def run_client(job: Job) -> dict[str, Any]:
    """Have a process carry out a job; returns what `Load.report` says.

    Raises:
        FaultError: `load_failed`, it did not do its work.
    """
    command = [sys.executable, "-P", "-m", "argosy.tune.load"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        raise FaultError("load_failed", detail=done.stderr.strip()[-600:])
    return json.loads(done.stdout)
