"""What a user may ask of a home that cannot be written to, run as a program of its own: `HOME PROGRAM ONNX-FILE REPOSITORY`.

Prints what came of each call, as JSON: nothing for one that worked, else the error; `raw` before one that is none of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing

import argosy
from argosy.cli.main import main
from argosy.compress import compress
from argosy.deploy.ledger import Ledger


def run(home: Path, program: str, file: str, repository: str) -> dict[str, str]:
    def call(*arguments: str) -> str:
        result = click.testing.CliRunner().invoke(main, [*arguments, "--home", str(home)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return f"raw {result.exception!r}"
        return "" if result.exit_code == 0 else f"{result.exit_code} {result.output.strip() or result.stderr.strip()}"

    def attempt(work: Callable[[], Any]) -> str:
        try:
            work()
        except argosy.ArgosyError as error:
            return str(error)
        except Exception as error:
            return f"raw {error!r}"
        return ""

    store = argosy.Store(home)
    version = store.get_version("scale@1")
    commands = {
        "models": ("models",),
        "models scale": ("models", "scale"),
        "config show": ("config", "show"),
        "logs": ("logs",),
        "push": ("push", "scale@1", repository),
        "alias": ("models", "scale", "--alias", "best=1"),
        "import": ("import", file, "--name", "other"),
        "pull": ("pull", repository, "--name", "other"),
        "deploy": ("deploy", "scale@2"),
        "undeploy": ("undeploy", "scale"),
        "compress": ("compress", "scale"),
        "train": ("train", program),
        "tune": ("tune", "scale", "--p99-ms", "5"),
    }
    calls = {
        "list": store.list_models,
        "history": lambda: store.list_history("scale"),
        "verify": lambda: store.verify(version),
        "golden": lambda: store.load_golden(version),
        "open": lambda: store.open_artifact(version),
        "ledger": lambda: Ledger(store).list_deployments(),
        "publish": lambda: store.publish("scale", {"a": b"1"}, signature=version.manifest.signature, entry="a"),
        "measure": lambda: store.add_measurements(version, {"quality": 1.0}),
        "compressing": lambda: compress(version, store=store),
        "serve": lambda: argosy.serve(home=home).__enter__(),
    }
    return {name: call(*arguments) for name, arguments in commands.items()} | {
        name: attempt(work) for name, work in calls.items()
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), *sys.argv[2:])))
