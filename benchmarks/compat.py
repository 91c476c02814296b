"""Public clients that need environments of their own, unmodified, against a running Argosy; prints what each answered.

    python benchmarks/compat.py [kserve] [mlserver] [perf_analyzer] [--seconds 3]

- kserve: the REST and gRPC clients of the KServe SDK (`compat/kserve_client.py`);
- mlserver: `mlserver infer`, JSON and binary;
- perf_analyzer: Triton's load generator over HTTP, gRPC and a gRPC stream. Its wheel needs a newer C library than Debian 12's,
  so it is unpacked and run in a Debian 13 folder that debootstrap makes (needs root, and the package debootstrap).

What they need is made below `~/.cache/argosy-bench` when it is first asked for. tritonclient is a part of the test suite:
`tests/serve/test_clients.py`, `tests/serve/grpc/test_stream.py` and `tests/serve/test_repository.py`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import argosy
from argosy.importers.onnx import import_onnx
from models import make_mlp

HERE = Path(__file__).resolve().parent
CACHE = Path.home() / ".cache" / "argosy-bench"
PACKAGES = {"kserve": "kserve==0.21.0", "mlserver": "mlserver==1.7.1"}
PERF_ANALYZER = "perf_analyzer==2.60.0"
DEBIAN = CACHE / "debian13"
MODEL = "mlp"
INSTALL_TIMEOUT_S = 1200
RUN_TIMEOUT_S = 180


def run(command: list[str], timeout_s: float = RUN_TIMEOUT_S) -> str:
    """Run a program; its output. Ends this one if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def make_environment(name: str) -> Path:
    """The Python of an environment that holds the package of this name."""
    folder = CACHE / "venvs" / f"compat-{PACKAGES[name].replace('==', '-')}"
    mark = folder / "installed.txt"
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(folder)])
        run([str(folder / "bin" / "pip"), "install", "-q", PACKAGES[name]], INSTALL_TIMEOUT_S)
        mark.write_text(run([str(folder / "bin" / "pip"), "freeze"]))
    return folder / "bin" / "python"


def make_perf_analyzer() -> list[str]:
    """The command that runs perf_analyzer in a Debian 13 folder."""
    program = DEBIAN / "opt" / "perf_analyzer" / "bin" / "perf_analyzer"
    if not (DEBIAN / "etc" / "debian_version").exists():
        if shutil.which("debootstrap") is None:
            sys.exit("perf_analyzer needs debootstrap: apt-get install debootstrap")
        run(["debootstrap", "--variant=minbase", "trixie", str(DEBIAN)], INSTALL_TIMEOUT_S)
    if not program.exists():
        with tempfile.TemporaryDirectory() as folder:
            platform = ["--platform", "manylinux_2_38_x86_64", "--only-binary", ":all:", "--no-deps"]
            run([sys.executable, "-m", "pip", "download", "-q", *platform, "-d", folder, PERF_ANALYZER], INSTALL_TIMEOUT_S)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            shutil.copytree(Path(folder) / "perf_analyzer", DEBIAN / "opt" / "perf_analyzer")
        program.chmod(0o755)
    return ["chroot", str(DEBIAN), "/" + str(program.relative_to(DEBIAN))]


def ask_kserve(server: argosy.Server, seconds: float) -> None:
    print(
        run([str(make_environment("kserve")), str(HERE / "compat" / "kserve_client.py"), server.url, server.grpc_address, MODEL])
    )


def ask_mlserver(server: argosy.Server, seconds: float) -> None:
    """One file of ten requests, each with rows of its own; the answers are compared with those of our client."""
    program = make_environment("mlserver").parent / "mlserver"
    rows = np.random.default_rng(0).standard_normal((10, 1, 64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, server.client() as client:
        source, target = Path(folder) / "requests", Path(folder) / "answers"
        inputs = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row.ravel().tolist()} for row in rows]
        source.write_text("".join(json.dumps({"id": str(i), "inputs": [each]}) + "\n" for i, each in enumerate(inputs)))
        for options in ((), ("-b",)):
            command = [str(program), "infer", "-u", server.url.removeprefix("http://"), "-m", MODEL, "-i", str(source)]
            run([*command, "-o", str(target), "-w", "2", *options])
            answers = {answer["id"]: answer for answer in map(json.loads, target.read_text().splitlines())}
            worst = 0.0
            for index, row in enumerate(rows):
                (output,) = answers[str(index)]["outputs"]
                expected = next(iter(client.predict(MODEL, {"x": row}).values()))
                worst = max(worst, float(np.abs(np.ravel(output["data"]) - expected.ravel()).max()))
            print(f"mlserver infer {'binary' if options else 'JSON'}: {len(answers)} answers, largest difference {worst:.2g}")


def ask_perf_analyzer(server: argosy.Server, seconds: float) -> None:
    command = [
        *make_perf_analyzer(),
        "-m",
        MODEL,
        "--measurement-interval",
        str(int(seconds * 1000)),
        "--concurrency-range",
        "4:8:4",
    ]
    # On a shared machine three windows are seldom within its 10 %: what counts here is that it can read what it asks for.
    command += ["--stability-percentage", "100"]
    for name, options in (
        ("HTTP", ["-i", "http", "-u", server.url.removeprefix("http://")]),
        ("gRPC", ["-i", "grpc", "-u", server.grpc_address]),
        ("gRPC stream", ["-i", "grpc", "-u", server.grpc_address, "--streaming"]),
        ("HTTP, 8 rows", ["-i", "http", "-u", server.url.removeprefix("http://"), "-b", "8"]),
    ):
        text = run([*command, *options])
        print(f"perf_analyzer over {name}\n{text.strip()}\n", flush=True)
        if not re.search(r"Concurrency: 8, throughput: [1-9]", text):
            sys.exit("perf_analyzer printed no throughput")


CLIENTS = {"kserve": ask_kserve, "mlserver": ask_mlserver, "perf_analyzer": ask_perf_analyzer}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clients", nargs="*", choices=[*CLIENTS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = argosy.Store(Path(folder) / "home")
        import_onnx(store, make_mlp(Path(folder) / "mlp.onnx"), MODEL)
        with argosy.serve(MODEL, home=store.home) as server:
            for name in arguments.clients or CLIENTS:
                CLIENTS[name](server, arguments.seconds)


if __name__ == "__main__":
    main()
