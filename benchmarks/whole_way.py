"""The whole way under load: train and deploy; one command compresses and rolls out while 32 public clients ask without pause.

    python benchmarks/whole_way.py [--objective size] [--rounds 1] [--max-seconds 60]

The commands are those of a user: `argosy train recipe:digits --deploy`, and `argosy compress digits@1 --objective ... --deploy
digits` beside the clients, half over HTTP and half over gRPC. Afterwards every answer is held against the bare runtime on the
artifact of the version that the reply names. With more rounds, the next model is trained and compressed on the same server under
the same clients. Wanted: 0 failed and 0 wrong, and answers of the compressed version at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import argosy
from argosy.demo.crowd import Crowd
from argosy.demo.run import answer_alone, choose_tolerances
from argosy.train.recipes import load_data_for
from machine import describe_machine

SETTLE_S = 3.0


def run(home: Path, *arguments: object) -> tuple[dict[str, Any], float]:
    """Run a command of Argosy's; returns its JSON, and how long it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "argosy", *map(str, arguments), "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"argosy {' '.join(map(str, arguments))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="size")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of the search")
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="argosy-way-") as name:
        folder = Path(name)
        store = argosy.Store(folder / "home")
        trained, took = run(store.home, "train", "recipe:digits", "--deploy")
        print(f"argosy train recipe:digits --deploy: {trained['version']['name']}@{trained['version']['version']}, {took:.1f} s")
        first = store.get_version("digits@1")
        data = load_data_for(first)
        assert data is not None
        images = data[1].x
        answers, tolerances = {"1": answer_alone(store, first, images)}, choose_tolerances([first])
        with argosy.serve(home=store.home) as server:
            crowd = Crowd(server, "digits", folder, images, answers, ("image", "logits"), tolerances)
            with crowd:
                time.sleep(SETTLE_S)
                spans = [change(store, crowd, images, number, options) for number in range(options.rounds)]
                time.sleep(SETTLE_S)
        seen = crowd.seen
        assert seen is not None
    versions, counts = np.unique(seen.column("version").astype(int), return_counts=True)
    print(f"requests {len(seen.rows)}, failed {seen.num_failed}, wrong {seen.num_wrong}")
    print("answers by version: " + ", ".join(f"{version}: {count}" for version, count in zip(versions, counts, strict=True)))
    for start_s, end_s in spans:
        during = seen.between(start_s, end_s)
        p50, p99 = (f"{during.quantile_ms(share):.1f} ms" for share in (0.5, 0.99))
        counted = f"{len(during.rows)} requests, failed {during.num_failed}, wrong {during.num_wrong}"
        print(f"while it compressed and rolled out, {end_s - start_s:.1f} s: {counted}, p50 {p50}, p99 {p99}")
    for problem in seen.problems[:5]:
        print("problem:", problem)
    is_good = not seen.num_failed and not seen.num_wrong and not seen.problems and len(set(versions) - {0}) > options.rounds
    print("PASS" if is_good else "FAIL")
    sys.exit(0 if is_good else 1)


def change(
    store: argosy.Store, crowd: Crowd, images: np.ndarray, number: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Compress and roll out under the clients, by one command; of a further round, a newly trained version before that."""
    started = time.monotonic()
    if number:
        trained, took = run(store.home, "train", "recipe:digits", "--seed", number, "--deploy")
        expect(store, crowd, images, trained["version"]["version"])
        print(f"trained and rolled out {trained['version']['version']}, {took:.1f} s")
    base = max(version.number for version in store.list_versions("digits"))
    arguments = ["compress", f"digits@{base}", "--objective", options.objective, "--max-seconds", options.max_seconds]
    made, took = run(store.home, *arguments, "--deploy", "digits")
    version = made["version"]
    expect(store, crowd, images, version["version"])
    recipe = " + ".join(step["name"] for step in version["recipe"])
    size = version["after"]["size_bytes"] / version["before"]["size_bytes"]
    print(f"argosy {' '.join(map(str, arguments))} --deploy digits: {recipe}, {size:.1%} of the size, {took:.1f} s")
    return started, time.monotonic()


def expect(store: argosy.Store, crowd: Crowd, images: np.ndarray, number: int) -> None:
    """Tell the clients' judge what a version answers."""
    version = store.get_version(f"digits@{number}")
    crowd.expect(str(number), answer_alone(store, version, images), choose_tolerances([version])[str(number)])


if __name__ == "__main__":
    main()
