"""Push an artifact to a registry on this machine, push it again, pull it into an empty store, pull it again.

    python benchmarks/registry_transfer.py [--megabytes 500]

Prints bytes moved, seconds and peak memory of each command, each a process of its own. The registry is Debian's
docker-registry, with its files in the same temporary folder as the stores: the disk is a part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import argosy

REGISTRY = Path("/usr/bin/docker-registry")
SIGNATURE = argosy.Signature((argosy.TensorSpec("x", "FP32", (-1, 4)),), (argosy.TensorSpec("y", "FP32", (-1, 4)),))


def start_registry(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the registry on a free port, and wait until it answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen([REGISTRY, "serve", config])
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, f"127.0.0.1:{port}"
        except ConnectionRefusedError:
            time.sleep(0.02)
    sys.exit("docker-registry did not start")


def publish(home: Path, num_bytes: int) -> None:
    """Make a version with one file of random bytes, which nothing compresses."""
    path = home.with_name("weights.bin")
    with path.open("wb") as file:
        for start in range(0, num_bytes, 1 << 20):
            file.write(os.urandom(min(1 << 20, num_bytes - start)))
    files = {"model.py": b"class Model: ...", "weights.bin": path}
    argosy.Store(home).publish("random", files, signature=SIGNATURE, runtime="python", entry="model.py")
    path.unlink()


def run(label: str, *arguments: object) -> None:
    """Run a command, and print what it took."""
    before = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "argosy", *map(str, arguments), "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        moved = json.loads(output.read())["moved_bytes"]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    took_s = time.perf_counter() - before
    print(f"{label:<12}{moved / 1e6:>10.1f} MB{took_s:>8.2f} s{cpu_s:>8.2f} s CPU{usage.ru_maxrss / 1024:>8.0f} MiB")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    megabytes = parser.parse_args().megabytes
    if not REGISTRY.exists():
        sys.exit("needs Debian's package docker-registry")
    with tempfile.TemporaryDirectory(prefix="argosy-registry-") as name:
        folder = Path(name)
        publish(folder / "one", megabytes * 10**6)
        process, address = start_registry(folder)
        try:
            target = f"{address}/team/random:1"
            run("push", "push", "random", target, "--home", folder / "one")
            run("push again", "push", "random", target, "--home", folder / "one")
            run("pull", "pull", target, "--home", folder / "two")
            run("pull again", "pull", target, "--home", folder / "two")
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
