"""What the client asks, and when."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from argosy.deploy.spec import Arrival
from argosy.errors import InputError
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from argosy.tune.trace import read_trace
from argosy.tune.traffic import Traffic, build_requests, build_schedule
from tests.home import SIGNATURE, golden_scale

RAGGED = Signature(
    (TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))), (TensorSpec("y", "FP32", (-1, 2)),)
)
EXAMPLES = Golden({"ids": np.arange(12).reshape(3, 4), "mask": np.ones((3, 4), np.int64)}, {"y": np.zeros((3, 2), np.float32)})


def test_requests_have_the_lengths_and_rows_that_were_asked_for() -> None:
    made = build_requests(RAGGED, EXAMPLES, Traffic(rows=2, lengths=(3, 9)), "m")
    shapes = {array.shape for arrays in made.arrays for array in arrays.values()}
    assert shapes == {(2, length) for length in range(3, 10)}
    assert all(arrays["ids"].shape == arrays["mask"].shape for arrays in made.arrays)
    first = made.arrays[0]["ids"][0]
    assert first.tolist() == [first[0] + n % 4 for n in range(len(first))], "an example is repeated, not invented"


def test_requests_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="no free axis"):
        build_requests(SIGNATURE, golden_scale(), Traffic(lengths=(1, 2)), "m")
    for options in ({"rows": 0}, {"lengths": (5, 2)}, {"connections": 0}, {"rate_per_s": -1.0}):
        with pytest.raises(InputError, match="expected"):
            Traffic(**options)


def test_trace_is_read_and_its_busiest_stretch_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    moments = [0.0, 5.0, 5.1, 5.2, 5.3, 9.0]
    path.write_text("\n".join(json.dumps({"at_s": at, "length": 3 + n % 2}) for n, at in enumerate(moments)))
    traffic = Traffic(trace=read_trace(path))
    made = build_requests(RAGGED, EXAMPLES, traffic, "m")
    schedule = build_schedule(traffic, made, 1.0)
    assert [at for at, _ in schedule] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [made.arrays[index]["ids"].shape for _, index in schedule] == [(1, 4), (1, 3), (1, 4), (1, 3)]
    longer = build_schedule(traffic, made, 40.0)
    assert len(longer) > 20, "a short trace is begun again"
    assert [at for at, _ in longer] == sorted(at for at, _ in longer)


def test_trace_of_more_kinds_than_are_made_is_replayed_by_those_next_in_order() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(1, 3001)).tolist()
    traffic = Traffic(trace=tuple(Arrival(at_s=index * 0.001, length=length) for index, length in enumerate(lengths)))
    made = build_requests(RAGGED, EXAMPLES, traffic, "m")
    assert len(made.arrays) == 1024
    schedule = build_schedule(traffic, made, 2.9)
    sent = [made.arrays[index]["ids"].shape[1] for _, index in schedule]
    first = next(index for index, length in enumerate(lengths) if 0 <= sent[0] - length <= 3)
    assert all(0 <= got - length <= 3 for got, length in zip(sent, lengths[first:], strict=False))


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "0 arrivals"),
        ('{"at_s": 0}\n{"at_s": 1, "rows": "2"}', "Line 2 of trace t.jsonl"),
        ('{"at_s": 0}\n{"at_s": 1, "row": 2}', "unknown field"),
        ('{"at_s": 2}\n{"at_s": 1}', "arrives before"),
        ('{"at_s": 0}\n{"at_s": 0}', "different moments"),
        ('{"at_s": 0}\n{"at_s": 1, "rows": 0}', "out of range"),
        ('{"at_s": 0}\n\xff', "Line 2"),
    ],
    ids=["empty", "text", "unknown", "order", "moment", "zero", "binary"],
)
def test_line_that_is_no_arrival_is_refused(text: str, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=detail):
        read_trace(path)
