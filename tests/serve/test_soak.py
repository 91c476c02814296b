"""The soak of `make soak-faults`, in short: what a server bears one after the other, and not only from a fresh start."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scripts import ROOT, load_script

pytestmark = pytest.mark.alone

FAULTS = (
    "kill worker",
    "kill front",
    "kill control",
    "logs removed",
    "serve.json removed",
    "rollout that cannot load",
    "rollout, kill control",
)

soak = load_script("benchmarks/soak_faults.py")
clients = load_script("benchmarks/soak_clients.py")


def test_server_bears_one_fault_after_the_other() -> None:
    script = ROOT / "benchmarks" / "soak_faults.py"
    command = [sys.executable, str(script), "--seconds", "15", "--seed", "7", "--faults", ";".join(FAULTS)]
    # The rule is of correctness: a machine that is busy may take longer to answer again.
    done = subprocess.run([*command, "--recover-s", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for fault in FAULTS:
        assert f"| {fault} |" in done.stdout


@pytest.mark.parametrize(
    ("version", "got_id", "answer"),
    [
        pytest.param("1", "a", [6.0] * 3 + [9.0], id="one number"),
        pytest.param("2", "a", [6.0] * 4, id="of another version"),
        pytest.param("1", "b", [6.0] * 4, id="of another request"),
        pytest.param("9", "a", [6.0] * 4, id="of no version"),
        pytest.param("1", "a", [6.0] * 5, id="too long"),
    ],
)
def test_soak_sees_a_wrong_answer(version: str, got_id: str, answer: list[float]) -> None:
    clients.check("scale", "1", "a", "a", 3.0, [6.0] * 4)
    with pytest.raises(clients.WrongError):
        clients.check("scale", version, "a", got_id, 3.0, answer)


class Played:
    """A fault at the end of which clients have met something, and a server that answers at once."""

    def __init__(self, *kinds: str) -> None:
        self.server = SimpleNamespace(url="")
        self.num_answered: list[int] = []
        self.incidents: list[Any] = []
        self._kinds = kinds

    def begin(self, subject: object, rng: object) -> None:
        self.incidents += [clients.Incident(0.0, kind, "") for kind in self._kinds]

    def measure(self) -> dict[str, float]:
        return {"zombies": 0.0}


@pytest.mark.parametrize(
    ("kinds", "num_fronts", "num_broken"),
    [
        pytest.param(["failed"], 1, 1, id="failed"),
        pytest.param(["wrong"], 1, 1, id="wrong"),
        pytest.param(["lost"], 0, 1, id="lost without a front that ended"),
        pytest.param(["lost"] * 10, 1, 0, id="each client's one in flight"),
        pytest.param(["lost"] * 11, 1, 1, id="more than were in flight"),
    ],
)
def test_soak_allows_what_was_in_flight_in_a_front_alone(
    monkeypatch: pytest.MonkeyPatch, kinds: list[str], num_fronts: int, num_broken: int
) -> None:
    monkeypatch.setattr(soak, "QUIET_S", 0.0)
    monkeypatch.setattr(soak.Soak, "_find_problem", lambda self: "")
    played = Played(*kinds)
    made = soak.Soak(played, played, None, 10.0)
    made.do("fault", soak.Fault(played.begin, num_fronts=num_fronts))
    assert len(made.broken) == num_broken


@pytest.mark.parametrize(
    ("what", "last", "is_flat"),
    [
        ("memory", 119e6, True),
        ("memory", 130e6, False),
        ("descriptors of front", 100e6 + 4, True),
        ("descriptors of front", 100e6 + 5, False),
        ("zombies", 100e6 + 1, False),
    ],
)
def test_soak_sees_what_a_server_holds_on_to(what: str, last: float, is_flat: bool) -> None:
    made = soak.Soak(None, None, None, 10.0)
    made.held = [{what: 100e6}] * 8 + [{what: last}] * 2
    made.judge_held()
    assert (made.broken == []) == is_flat
