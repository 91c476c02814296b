"""`argosy record`: write down when requests arrive, so that `argosy tune` can replay them."""

from __future__ import annotations

import signal
import time
from itertools import chain
from pathlib import Path
from typing import NoReturn

import click

from argosy.cli.shell import Shell, command, overwrite_option

__all__ = ["record"]


@command("record")
@click.argument("name")
@click.argument("trace", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--for-s", type=click.FloatRange(min=0, min_open=True), default=60.0, help="How long.  [default: 60]")
@overwrite_option
def record(shell: Shell, name: str, trace: Path, for_s: float, overwrite: bool) -> None:
    """Record when the requests of a deployment arrive, their rows and their lengths, as TRACE for `argosy tune --trace`.

    Nothing of what they say is recorded. Ctrl-C and SIGTERM end it earlier; what has arrived by then is in the file.
    """
    from argosy.client import AdminClient
    from argosy.output_file import OutputFile
    from argosy.tune.trace import MAX_ARRIVALS, TraceFile

    signal.signal(signal.SIGTERM, _stop)
    OutputFile(trace, overwrite=overwrite)
    with AdminClient(shell.home) as admin:
        recording = admin.record(name)
        # What cannot be recorded leaves a file of an earlier recording as it is.
        first, begun_s = next(recording), time.monotonic()
        end_s = begun_s + for_s
        file = TraceFile(trace, overwrite=overwrite)
        try:
            for arrivals in chain([first], recording):
                file.add(arrivals)
                if time.monotonic() > end_s or file.num_arrivals >= MAX_ARRIVALS:
                    break
        except KeyboardInterrupt:
            shell.say("ended early")
        finally:
            file.close()
    rate = file.num_arrivals / file.seconds if file.seconds else 0.0
    shell.show(
        {"trace": str(trace), "num_arrivals": file.num_arrivals, "seconds": file.seconds, "requests_per_s": rate},
        f"{file.num_arrivals} requests in {file.seconds:.1f} s, {rate:.4g} by the second, are in {trace}"
        if file.num_arrivals
        else f"no requests came within {time.monotonic() - begun_s:.1f} s: {trace} is empty",
    )


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
