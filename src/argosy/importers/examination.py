"""What is asked of the confined process that looks into an ONNX file, and what it may answer."""

from __future__ import annotations

from typing import Final

import msgspec

from argosy.signature import JoinVerdict, Signature

__all__ = [
    "ANSWER_FILE",
    "GOLDEN_FILE",
    "TRIAL_FILE",
    "ExamineRequest",
    "Examined",
    "Facts",
    "ListRequest",
    "Locations",
]

ANSWER_FILE: Final = "answer.json"
GOLDEN_FILE: Final = "golden.npz"
"""Of examples that were given the answers alone; of random ones the inputs, too."""
TRIAL_FILE: Final = "trial.npz"


class ListRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Ask which files the weights of graphs lie in."""

    paths: tuple[str, ...]
    """Of the graphs, in the folder that the process works in."""
    folder: str
    """To write to; empty."""
    judged: str = ""
    """Which of them is to be judged by its rows, too; "" for none."""
    signature: Signature | None = None
    """Of that one."""


class Locations(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The files that weights lie in, as the graphs name them."""

    locations: tuple[tuple[str, ...], ...]
    """Of each graph."""
    joining: JoinVerdict = JoinVerdict()
    """Of the graph that was judged."""


class ExamineRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Ask for all that is published of a graph."""

    path: str
    """Of the graph, in the folder that the process works in; its external data lies beside it."""
    folder: str
    """To write to; empty."""
    names: tuple[str, ...]
    """Of the files that lie there. Where the weights lie in others, these are told and no more is done."""
    model: str
    """Its name, for messages."""
    has_rows: bool | None
    """First axes of any length count rows. None tells it by the graph."""
    is_open: bool
    """Its outputs may have other rows than its inputs."""
    examples: str = ""
    """File of golden examples' form, without answers; "" stands for random ones."""
    trial: str = ""
    """The same: more rows to answer, each alone; "" for none."""
    trial_has_rows: bool = True
    """False: the trial is one request."""


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file tells of itself, for the lineage."""

    producer: str
    opsets: dict[str, int]
    num_weights: int
    precision: str = ""
    """The type that most weights have; "" without weights."""


class Examined(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """What a graph is."""

    signature: Signature
    """Without what the user adds to it."""
    joining: JoinVerdict
    facts: Facts
    has_golden: bool
    kept: tuple[int, ...]
    """Which of the examples that were given have golden answers."""
    golden_error: str = ""
    """Why random examples have no golden answers."""
    example_error: str = ""
    """Why no random example runs."""
