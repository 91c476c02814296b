"""Write what was chosen: settings of a deployment, and the number of fronts into config.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from argosy.config import load_serve_config
from argosy.deploy.ledger import Ledger
from argosy.deploy.spec import DeploymentSpec
from argosy.output_file import OutputFile
from argosy.tune.candidate import Candidate

__all__ = ["plan_choice", "write_num_fronts"]

_TABLE: Final = re.compile(r"^[ \t]*\[[ \t]*serve[ \t]*\][ \t]*(#.*)?$", re.MULTILINE)
_LINE: Final = re.compile(r"^[ \t]*num_fronts[ \t]*=[ \t]*[0-9_]+", re.MULTILINE)


def plan_choice(ledger: Ledger, reference: str, name: str | None, candidate: Candidate, *, allow_code: bool) -> DeploymentSpec:
    """The deployment with the settings of a candidate; what it has beside them stays.

    Args:
        ledger: of the home.
        reference: NAME@VERSION.
        name: of the deployment; None stands for the model's.
        candidate: what was chosen.
        allow_code: the user has allowed the version's code.

    Raises:
        InputError: as `Ledger.plan`.
    """
    return ledger.plan(reference, name=name, **candidate.settings, allow_code=allow_code or None)


def write_num_fronts(home: Path, num_fronts: int) -> str:
    """Set `num_fronts` in the table [serve] of config.toml, and leave everything else there as it is.

    Returns:
        What was done, and what wins over it; "" where the setting is the same already.

    Raises:
        InputError: `bad_config`, the file cannot be read; `unwritable`.
    """
    config, sources = load_serve_config(home=home)
    if config.num_fronts == num_fronts:
        return ""
    path = home / "config.toml"
    if sources["num_fronts"] == "environment":
        return f"ARGOSY_NUM_FRONTS is {config.num_fronts} and wins over {path.name}: set it to {num_fronts} yourself"
    text = path.read_text() if path.exists() else ""
    OutputFile(path, overwrite=True).write(_set_line(text, f"num_fronts = {num_fronts}"))
    # Read as the server will read it: a file that is written otherwise than this knows is found out now.
    load_serve_config(home=home)
    return f"{path.name} has num_fronts = {num_fronts} now (was {config.num_fronts}): for all deployments, from the next start on"


def _set_line(text: str, line: str) -> str:
    table = _TABLE.search(text)
    if table is None:
        return f"{text.rstrip()}\n\n[serve]\n{line}\n".lstrip()
    # `serve` is the only table that the file may have, so that every such line is its own.
    if _LINE.search(text):
        return _LINE.sub(line, text, count=1)
    return f"{text[: table.end()]}\n{line}{text[table.end() :]}"
