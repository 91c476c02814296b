"""Two servers behind nginx are restarted in turn while 16 clients ask: how many requests are lost.

    python benchmarks/soak_restart.py [--count 20] [--clients 16] [--drain-s 5] [--keepalive]

Each of `--count` rounds restarts one server by SIGTERM and a new `argosy serve`, and the other by `argosy restart`; the next
round the other way round. nginx asks the other server where one refuses (`proxy_next_upstream error timeout`, its default); it
does not send a POST again that it has sent already. Every answer is checked. Needs nginx (Debian: apt-get install nginx-light).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import argosy
from argosy.importers.python import publish_python
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from machine import describe_machine

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
MODEL = """
class Model:
    def load(self, folder):
        pass

    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""
CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream argosy {{
        # A server that refused is asked again soon: by then the other one may be on its way.
        server 127.0.0.1:{first} fail_timeout=1s;
        server 127.0.0.1:{second} fail_timeout=1s;
        {keepalive}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://argosy;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Node:
    """A server with a home and ports of its own."""

    def __init__(self, folder: Path, drain_s: float) -> None:
        self.port = free_port()
        names = {"HTTP": self.port, "GRPC": free_port(), "METRICS": free_port(), "ADMIN": free_port()}
        self._environment = {**os.environ, "ARGOSY_HOME": str(folder / "home"), "ARGOSY_DRAIN_S": str(drain_s)}
        self._environment |= {f"ARGOSY_{name}_PORT": str(port) for name, port in names.items()}
        self._log = folder / "serve.log"
        source = folder / "model.py"
        source.write_text(MODEL)
        x = np.ones((1, 4), np.float32)
        golden = Golden({"x": x}, {"y": 2 * x})
        publish_python(argosy.Store(folder / "home"), source, "double", signature=SIGNATURE, golden=golden, repeatable=True)
        self.start()
        self._run("deploy", "double", "--allow-code")

    def _run(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "argosy", *arguments], env=self._environment, check=True, capture_output=True)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "argosy", "serve"], env=self._environment, stdout=log, stderr=log
            )
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)

    def end(self) -> None:
        """End it as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def restart(self) -> None:
        """Have it succeeded by itself."""
        self._run("restart")


class Clients:
    """Clients that ask without pause, over connections that nginx may keep."""

    def __init__(self, port: int, num_clients: int) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(float(index),)) for index in range(num_clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, value: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            value += 1.0
            body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}]})
            start = time.monotonic()
            try:
                connection.request("POST", "/v2/models/double/infer", body)
                answer = connection.getresponse()
                text = answer.read()
                is_right = answer.status == 200 and json.loads(text)["outputs"][0]["data"] == [2 * value] * 4
                self.counts["answered" if is_right else f"status {answer.status}: {text[:80]!r}"] += 1
            except (OSError, http.client.HTTPException) as error:
                self.counts[repr(error)] += 1
                connection.close()
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
            time.sleep(0.005)


@contextmanager
def run_nginx(folder: Path, first: int, second: int, *, is_kept: bool) -> Iterator[int]:
    """nginx before two servers; its port."""
    port = free_port()
    path = folder / "nginx.conf"
    keepalive = "keepalive 16;" if is_kept else ""
    path.write_text(CONFIG.format(folder=folder, first=first, second=second, port=port, keepalive=keepalive))
    process = subprocess.Popen(["nginx", "-c", str(path), "-p", str(folder)], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Soak, and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20, help="restarts of each kind")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--drain-s", type=float, default=5.0)
    parser.add_argument("--keepalive", action="store_true", help="nginx keeps its connections to the servers")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin"
    if shutil.which("nginx") is None:
        sys.exit("nginx is not installed, and this soak needs it; on Debian: apt-get install nginx-light")
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nodes: list[Node] = []
        try:
            for place in ("first", "second"):
                (folder / place).mkdir()
                nodes.append(Node(folder / place, options.drain_s))
            with run_nginx(folder, nodes[0].port, nodes[1].port, is_kept=options.keepalive) as port:
                with Clients(port, options.clients) as clients:
                    time.sleep(2.0)
                    for index in range(options.count):
                        one, other = nodes if index % 2 == 0 else nodes[::-1]
                        one.end()
                        one.start()
                        other.restart()
                    time.sleep(2.0)
                log = (folder / "error.log").read_text()
        finally:
            for node in nodes:
                node.process.kill()
                node.process.wait()
    lost = sum(clients.counts.values()) - clients.counts["answered"]
    print(f"restarts: {options.count} by SIGTERM, {options.count} by argosy restart; clients {options.clients}")
    print(f"answered {clients.counts['answered']}, lost {lost}, slowest {clients.slowest_s:.2f} s")
    print(f"connections that nginx was refused, and asked the other server: {log.count('Connection refused')}")
    for problem, count in clients.counts.items():
        if problem != "answered":
            print(f"problem: {count} x {problem}")
    print("PASS" if not lost else "FAIL")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
