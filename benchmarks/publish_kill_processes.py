"""Kill whoever publishes, as users publish: `argosy import`, and a server through its admin API.

    python benchmarks/publish_kill_processes.py [--kills 100] [--seed 0]

Half of the kills hit one of two `argosy import` commands that run at once, the others the control process of a server to
which two clients upload without pause. The promises are those of publish_kill.py. Exits 1 on any broken one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

import argosy
from models import make_mlp
from publish_kill import MODEL, Checker

KILLS_PER_SERVER = 4


def import_command(home: Path, model: Path) -> subprocess.Popen[str]:
    program = Path(sys.executable).parent / "argosy"
    command = [str(program), "import", str(model), "--name", MODEL, "--home", str(home), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def take_command(checker: Checker, process: subprocess.Popen[str], *, was_killed: bool) -> None:
    output, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        answer = json.loads(output)
        checker.take([(answer["version"], answer["digest"])])
    elif not was_killed:
        checker.broken.append(f"an import failed by itself: {errors}")


def kill_commands(folder: Path, model: Path, num_kills: int, rng: random.Random) -> Checker:
    checker = Checker(folder / "home")
    lasts_s = 1.0
    for _ in range(num_kills):
        start = time.monotonic()
        pair = [import_command(checker.home, model) for _ in range(2)]
        time.sleep(rng.uniform(0.3, 1.0) * lasts_s)
        pair[0].send_signal(signal.SIGKILL)
        take_command(checker, pair[0], was_killed=True)
        take_command(checker, pair[1], was_killed=False)
        lasts_s = time.monotonic() - start
        checker.check()
    checker.check_at_rest()
    return checker


def kill_servers(folder: Path, model: Path, num_kills: int, rng: random.Random) -> Checker:
    """A few kills a server: it waits longer and longer before it starts a process again that dies again and again."""
    checker = Checker(folder / "home")
    argosy.Store(checker.home)
    for done in range(0, num_kills, KILLS_PER_SERVER):
        kill_server(checker, model, min(KILLS_PER_SERVER, num_kills - done), rng)
    checker.check_at_rest()
    return checker


def kill_server(checker: Checker, model: Path, num_kills: int, rng: random.Random) -> None:
    acks: list[tuple[int, str]] = []
    stop = threading.Event()

    def upload(server: argosy.Server) -> None:
        while not stop.is_set():
            try:
                with server.admin() as admin:
                    answer = admin.publish(MODEL, model)
                acks.append((answer["version"], answer["digest"]))
            except argosy.ArgosyError:
                # Its server was killed meanwhile: whether it published is what the check finds out.
                time.sleep(0.02)

    with argosy.serve(home=checker.home) as server:
        threads = [threading.Thread(target=upload, args=(server,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(num_kills):
            count = len(acks)
            while len(acks) == count:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            for child in psutil.Process(server.pid).children():
                if "argosy.deploy.control" in child.cmdline():
                    os.kill(child.pid, signal.SIGKILL)
            checker.check()
        stop.set()
        for thread in threads:
            thread.join()
    checker.take(acks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    broken: list[str] = []
    for name, run in (("argosy import", kill_commands), ("admin API", kill_servers)):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as path:
            model = make_mlp(Path(path) / "model.onnx")
            checker = run(Path(path), model, arguments.kills // 2, rng)
        broken += checker.broken
        print(
            f"{name}: {arguments.kills // 2} kills, {len(checker.acks)} versions acknowledged, {len(checker.verified)} listed "
            f"and verified, {len(checker.broken)} broken promises, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
