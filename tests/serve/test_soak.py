"""The soak of `make soak-faults`, in short: what a server bears one after the other, and not only from a fresh start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.scripts import ROOT

FAULTS = (
    "kill worker",
    "kill front",
    "kill control",
    "logs removed",
    "serve.json removed",
    "rollout that cannot load",
    "rollout, kill control",
)


@pytest.mark.alone
@pytest.mark.slow
def test_server_bears_one_fault_after_the_other() -> None:
    script = ROOT / "benchmarks" / "soak_faults.py"
    command = [sys.executable, str(script), "--seconds", "20", "--seed", "7", "--faults", ";".join(FAULTS)]
    # The rule is of correctness: a machine that is busy may take longer to answer again.
    done = subprocess.run([*command, "--recover-s", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in FAULTS:
        assert f"| {fault} |" in done.stdout
