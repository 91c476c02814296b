"""The `argosy` command. Each command's module is imported when it is asked for, and imports what it runs when it runs."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

__all__ = ["main"]

_COMMANDS: Final = {
    "train": "argosy.cli.train:train",
    "search": "argosy.cli.search:search",
    "compress": "argosy.cli.compress:compress",
    "import": "argosy.cli.models:import_model",
    "models": "argosy.cli.models:models",
    "push": "argosy.cli.registry:push",
    "pull": "argosy.cli.registry:pull",
    "serve": "argosy.cli.serve:serve",
    "stop": "argosy.cli.serve:stop",
    "restart": "argosy.cli.serve:restart",
    "deploy": "argosy.cli.deploy:deploy",
    "undeploy": "argosy.cli.deploy:undeploy",
    "rollback": "argosy.cli.deploy:rollback",
    "record": "argosy.cli.record:record",
    "tune": "argosy.cli.tune:tune",
    "predict": "argosy.cli.predict:predict",
    "status": "argosy.cli.status:status",
    "stats": "argosy.cli.status:stats",
    "logs": "argosy.cli.logs:logs",
    "conformance": "argosy.cli.conformance:conformance",
    "config": "argosy.cli.serve:config",
    "environment": "argosy.cli.environment:environment",
    "demo": "argosy.cli.demo:demo",
}
"""Name -> where its click command lives, in the order of the walk of a model."""


# httpx would import its own command line, and rich and pygments with it, which takes longer than most commands do
# (0.3 s). It takes an ImportError here as a sign that it has none.
sys.modules.setdefault("httpx._main", None)  # pyright: ignore[reportArgumentType]


class _LateGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, name = target.split(":")
        return getattr(importlib.import_module(module), name)


@click.group(cls=_LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="argosy")
def main() -> None:
    """Train, compress, deploy and serve models.

    State is kept in ARGOSY_HOME (default ~/.argosy). Every command takes --home and --json.
    """
