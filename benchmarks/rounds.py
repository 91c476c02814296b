"""Rounds in which all entrants of a scenario are measured in turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from models import make_case
from ratios import Window, is_dirty
from rivals.environment import EntrantError
from scenarios import Entrant, Running, Scenario
from servers import Server
from tables import Outcome

WARM_S = 2.0
Say = Callable[..., None]


class Rounds:
    """The rounds of one scenario.

    Args:
        scenario: what is measured.
        seconds: of one window.
        folder: for the model and the servers' files.
        say: tells of progress.
    """

    def __init__(self, scenario: Scenario, seconds: float, folder: Path, say: Say) -> None:
        self.scenario, self.seconds, self.folder, self.say = scenario, seconds, folder, say
        self.case = make_case(scenario.case, folder / "case")
        self.outcome = Outcome(scenario)
        self._num_started = 0

    def run(self, count: int) -> Outcome:
        """Start all that rest while others are asked, measure all in turn, end them."""
        restless = [entrant for entrant in self.scenario.entrants if entrant.is_restless]
        with ExitStack() as stack:
            resting = [(entrant, self._start(stack, entrant)) for entrant in self.scenario.entrants if entrant not in restless]
            minutes = len(self.scenario.entrants) * len(self.scenario.connections) * count * self.seconds / 60
            self.say(f"{self.scenario.title}: at least {minutes:.1f} min")
            for number in range(count):
                turn = number % max(1, len(resting))
                for connections in self.scenario.connections:
                    for entrant, server in resting[turn:] + resting[:turn]:
                        self._measure(entrant, server, connections, number)
                turn = number % max(1, len(restless))
                for entrant in restless[turn:] + restless[:turn]:
                    self._measure_alone(entrant, number)
            for entrant, server in resting:
                self._note(entrant, server)
        return self.outcome

    def _measure_alone(self, entrant: Entrant, number: int) -> None:
        """One that uses the processor while nobody asks it lives for its own windows only."""
        if entrant.name in self.outcome.refused:
            return
        with ExitStack() as stack:
            server = self._start(stack, entrant)
            for connections in self.scenario.connections:
                self._measure(entrant, server, connections, number)
            self._note(entrant, server)

    def _start(self, stack: ExitStack, entrant: Entrant) -> Running | None:
        """Start and warm it; one that cannot take part is noted with the reason."""
        self._num_started += 1
        folder = self.folder / str(self._num_started)
        folder.mkdir()
        self.say(f"starting {entrant.name}")
        try:
            server = stack.enter_context(entrant.start(self.case, folder))
            for connections in self.scenario.connections:
                server.load(connections * entrant.factor, WARM_S)
        except EntrantError as error:
            self._refuse(entrant, error)
            return None
        return server

    def _measure(self, entrant: Entrant, server: Running | None, connections: int, number: int) -> None:
        """One window; one that fails takes no further part, and its windows do not count."""
        if server is None or entrant.name in self.outcome.refused:
            return
        try:
            window = server.measure(connections * entrant.factor, self.seconds)
        except EntrantError as error:
            self._refuse(entrant, error)
            return
        self.outcome.windows.setdefault((entrant.name, connections), []).append(window)
        self.say(describe_window(number, entrant.name, connections, window))

    def _refuse(self, entrant: Entrant, error: EntrantError) -> None:
        self.outcome.refuse(entrant.name, str(error))
        self.say(f"{entrant.name} takes no (further) part: {error}")

    def _note(self, entrant: Entrant, server: Running | None) -> None:
        if isinstance(server, Server):
            self.outcome.starts_s.setdefault(entrant.name, []).append(server.start_s)
            self.outcome.pss_bytes.setdefault(entrant.name, []).append(server.family.pss_bytes())
        elif server is not None:
            self.outcome.settings[entrant.name] = server.label


def describe_window(number: int, name: str, connections: int, window: Window) -> str:
    """One line of progress."""
    dirty = " DIRTY" if is_dirty(window) else ""
    speed = f"{window['rps']:>10,.1f}/s {window['cpu_us']:>9.1f} us"
    latency = f"p50 {window['p50_ms']:.3f} ms  p99 {window['p99_ms']:.3f} ms"
    work = f"client {window['client_cores']:.2f}, others {window['other_cores']:.2f} cores{dirty}"
    return (
        f"round {number + 1}  {name:<20} {connections:>3} connections {speed}  {latency}  errors {window['errors']:.0f}  {work}"
    )
