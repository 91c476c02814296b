"""What is said of deployments: what a user asks for, how it stands, its rollouts, and when requests arrived at it."""

from __future__ import annotations

from typing import Final

import msgspec

from argosy.errors import InputError, list_choices
from argosy.runtimes.base import ALSO_RUNS, PRECISIONS
from argosy.signature import check_name

__all__ = ["MAX_LENGTH", "MAX_ROWS", "Arrival", "Deployment", "DeploymentSpec", "Rollout", "RolloutEvent", "choose_runtime"]

MAX_LENGTH: Final = 1 << 20
MAX_ROWS: Final = 1 << 16


class DeploymentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Desired state of one deployment. Its name is the `{m}` of a URL."""

    name: str
    model: str
    version: int
    replicas: int = 1
    """Loaded copies, each in a worker of its own; 0 stands for as many as the cores and the memory are good for by the time that
    a row was measured to take, each with `threads`, or one."""
    max_batch_rows: int = 64
    """Rows that are joined at most."""
    timeout_s: float = 30.0
    """Deadline of a request that names none."""
    max_queue_rows: int = 4096
    """Rows that may wait, in all fronts together."""
    max_queue_bytes: int = 256 << 20
    """Bytes that may wait in one front."""
    threads: int = 0
    """Threads of one operator; 0 stands for one where a row takes less than 2 ms, else for as many as were measured to pay, up to
    a replica's part of the cores."""
    share_weights: bool | None = None
    """Replicas share the pages of weights that stand in files beside the graph: loads faster, but batches of tens of rows take
    1.1 to 2 times as long (`make bench-large`). None stands for yes where there are such files."""
    allow_code: bool = False
    """Allow a version whose runtime may run code of its maker: python, tensorflow, torch."""
    runtime: str | None = None
    """What runs the version in place of its own runtime: `openvino` for one of `onnx`."""
    max_streams: int = 16
    """Raw requests that a replica answers at once, each in a thread; further ones wait."""
    exact: bool = False
    """Answers are equal to the bit to those of the request alone: rows of several requests are not joined."""
    precision: str | None = None
    """What the runtime computes in: `float32` or `bfloat16` with `openvino`. None stands for float32, or what the file says."""

    def __post_init__(self) -> None:
        check_name(self.name, "Deployment")
        check_name(self.model)
        for option, value, low, high in (
            ("version", self.version, 1, 1 << 53),
            ("replicas", self.replicas, 0, 256),
            ("max_batch_rows", self.max_batch_rows, 1, 1 << 16),
            ("timeout_s", self.timeout_s, 0.001, 3600.0),
            ("max_queue_rows", self.max_queue_rows, 1, 1 << 24),
            ("max_queue_bytes", self.max_queue_bytes, 1024, 1 << 40),
            ("threads", self.threads, 0, 1024),
            ("max_streams", self.max_streams, 1, 256),
        ):
            if not low <= value <= high:
                raise InputError("bad_option", option=option, got=value, expected=f"{low} to {high}")


class Deployment(msgspec.Struct, frozen=True):
    """A deployment as it stands."""

    spec: DeploymentSpec
    is_live: bool
    """A version has taken its traffic."""
    created: str


class Rollout(msgspec.Struct, frozen=True):
    """One change of a deployment."""

    id: int
    spec: DeploymentSpec
    """What the deployment becomes."""
    from_version: int | None
    state: str
    """pending, running, done or failed."""
    created: str
    ended: str | None

    @property
    def is_over(self) -> bool:
        """True when nothing more will happen."""
        return self.state in ("done", "failed")


class RolloutEvent(msgspec.Struct, frozen=True):
    """One step of a rollout, as it happened."""

    number: int
    at: str
    step: str
    detail: str


class Arrival(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a trace."""

    at_s: float
    rows: int = 1
    length: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.at_s < 1e12 and 1 <= self.rows <= MAX_ROWS and 1 <= (self.length or 1) <= MAX_LENGTH):
            raise ValueError(f"at_s, rows or length is out of range: {self.at_s}, {self.rows}, {self.length}")


def choose_runtime(spec: DeploymentSpec, own: str) -> str:
    """Give the runtime of a deployment's workers.

    Args:
        spec: the deployment.
        own: runtime of its version.

    Raises:
        InputError: `bad_option`, that runtime cannot run such a version, or has no such precision.
    """
    runtimes = (own, *ALSO_RUNS.get(own, ()))
    runtime = spec.runtime or own
    if runtime not in runtimes:
        expected = f"for this version one of {list_choices(runtimes)}"
        raise InputError("bad_option", option="runtime", got=runtime, expected=expected)
    precisions = PRECISIONS.get(runtime, ())
    if spec.precision is not None and spec.precision not in precisions:
        expected = f"with runtime {runtime} one of {list_choices(precisions)}" if precisions else f"none with runtime {runtime}"
        raise InputError("bad_option", option="precision", got=spec.precision, expected=expected)
    return runtime
