"""Whatever bodies come one after another, what reads repeated ones says what the whole decoder says: arrays, rest and errors.

`REPEATS_SECONDS=600 pytest tests/serve/v2/test_repeats_fuzz.py` tries as long, from a seed that differs each time.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from argosy.errors import InputError
from argosy.serve.dispatch.call import Lane
from argosy.serve.v2.json_body import InferRequest, decode_request, prepare_front
from argosy.serve.v2.repeats import Repeats
from argosy.signature import Signature, TensorSpec

SECONDS = float(os.environ.get("REPEATS_SECONDS", "0"))
NUM_TEMPLATES = 6000
BODIES_PER_TEMPLATE = 6
NUMERIC = ("FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
DATATYPES = (*NUMERIC, *NUMERIC, "FP32", "FP32", "INT64", "BOOL", "BYTES", "BF16")

# A value that stands in a body where the numbers of an input may.
SLOT = "\0"
NUMBERS = (
    "0", "-0", "-0.0", "1", "-1", "7", "1.0", "1.5", "0.1", "1e2", "1E5", "1e+2", "1e-46", "1e39", "1e400", "-1e400", "65519",
    "65520", "3.4028235677973366e38", "1e308", "1.7976931348623159e308", "5e-324", "127", "128", "-128", "255", "256",
    "4294967296", "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "18446744073709551615", "18446744073709551616", "123456789012345678901234567890",
    "0.30000000000000004", "2.2250738585072011e-308", "16777217", "33554433", "1.00000017881393432617187499",
)  # fmt: skip
WORDS = (
    "true", "false", "null", "NaN", "Infinity", "-Infinity", '"1"', '"a]b"', '"[1"', '"\\"data\\":[1]"', "[]", "[1]", "{}",
    '{"data":[1]}', "01", "+1", ".5", "1.", "1e", "-", "0x1", "1_0", '"\\u005d"', "", '"true"', "nan", "u", "s",
)  # fmt: skip
DATA_KEYS = ('"data"', '"data"', '"d\\u0061ta"', '"\\u0064ata"', '"x\\"data"', '"Data"', '"data "', '"dat\\u0061"', '"\\\\data"')
NOISE = '[]{}",:\\ \t\n0123456789eE+-.tfnul'


def make_numbers(rng: random.Random, count: int) -> str:
    """Write a list: mostly of as many plain numbers, else of whatever a client may write."""
    pick = rng.random()
    if pick < 0.5:
        return json.dumps([rng.randint(0, 127) for _ in range(count)])
    if pick < 0.7:
        return json.dumps([rng.choice((rng.random(), rng.gauss(0, 1e3), float(rng.randint(0, 9)))) for _ in range(count)])
    length = count if rng.random() < 0.9 else rng.randint(0, 4)
    items = [rng.choice(NUMBERS if rng.random() < 0.95 else WORDS) for _ in range(length)]
    gap = rng.choice(("", "", " ", "\n", " \t", "\x0c"))
    text = "[" + f"{gap},{gap}".join(items) + gap + "]"
    return rng.choice((text,) * 12 + (f" {text}", f"{text} ", f"[{text}]", text[1:], text[:-1], f"{text},{text}", text + "]"))


def make_pairs(rng: random.Random, pairs: list[tuple[str, str]]) -> str:
    """Write an object with its keys in any order, some of them twice."""
    pairs = pairs + [rng.choice(pairs) for _ in range(rng.random() < 0.1)]
    if rng.random() < 0.5:
        rng.shuffle(pairs)
    colons = rng.choice(((":",), (": ",), (":", ":", " :"), (" :", ":\t", ":", ": ")))
    return "{" + rng.choice((",", ", ", ",\n")).join(f"{key}{rng.choice(colons)}{value}" for key, value in pairs) + "}"


def make_foreign(rng: random.Random) -> tuple[str, str]:
    """A pair that no request has, or that changes what one means."""
    return rng.choice(
        [
            (rng.choice(DATA_KEYS), SLOT),
            (rng.choice(DATA_KEYS), SLOT),
            ('"client"', '{"data":' + SLOT + "}"),
            ('"meta"', '[{"inputs":[{"data":[1]}]}]'),
            (
                '"note"',
                rng.choice(('"\\"data\\":[9]"', '"]"', '"["', '"}"', '"\\\\"', "[1,[2]]", "1", '"data"', '"\\u0022data"')),
            ),
            ('"parameters"', rng.choice(("null", "{}", '{"timeout":1000}', '{"priority":2}', '{"a":"data"}', '{"data":1}'))),
            ('"id"', rng.choice(('""', "null", '"a"', '"data"', '"\\"data\\":[3]"'))),
            ('"outputs"', rng.choice(("null", "[]", '[{"name":"y"}]', '[{"name":"y","data":' + SLOT + "}]"))),
        ]
    )


def make_template(rng: random.Random, datatype: str, names: list[str], shape: tuple[int, int]) -> str:
    """Write a request with `SLOT` wherever numbers may stand."""
    inputs: list[str] = []
    for name in names:
        pairs = [
            ('"name"', json.dumps(name)),
            ('"shape"', json.dumps(list(shape))),
            ('"datatype"', json.dumps(datatype)),
            (rng.choice(DATA_KEYS[:5]) if rng.random() < 0.3 else '"data"', SLOT),
        ]
        pairs += [make_foreign(rng) for _ in range(rng.randint(1, 2) * (rng.random() < 0.2))]
        inputs.append(make_pairs(rng, pairs))
    pairs = [('"inputs"', rng.choice(("[%s]", "[%s]", "[ %s ]")) % ",".join(inputs))]
    pairs += [make_foreign(rng) for _ in range(rng.randint(1, 2) * (rng.random() < 0.4))]
    return make_pairs(rng, pairs)


def spoil(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(NOISE) * (rng.random() < 0.7) + text[place + (rng.random() < 0.5) :]


def make_bodies(rng: random.Random, datatype: str, names: list[str]) -> Iterator[bytes]:
    shape = rng.choice(((1, 1), (1, 1), (1, 4), (1, 4), (2, 2), (1, 0), (0, 1)))
    template = make_template(rng, datatype, names, shape)
    if rng.random() < 0.1:
        template = spoil(rng, template)
    for _ in range(BODIES_PER_TEMPLATE):
        pieces = template.split(SLOT)
        text = pieces[0] + "".join(make_numbers(rng, shape[0] * shape[1]) + piece for piece in pieces[1:])
        if rng.random() < 0.03:
            text = spoil(rng, text)
        yield text.encode()
        if rng.random() < 0.1:
            yield text.encode()


def describe(read: Callable[[], tuple[list[Any], InferRequest]]) -> Any:
    """What a decoder says, in what `==` compares to the bit."""
    try:
        inputs, request = read()
    except InputError as error:
        return str(error)
    tensors = [(array.dtype, array.shape, array.tolist() if array.dtype.kind == "O" else array.tobytes()) for array in inputs]
    return tensors, request._replace(inputs=[])


def read_whole(lane: Lane, body: bytes) -> tuple[list[Any], InferRequest]:
    request = decode_request(lane, body, None)
    return request.inputs, request


class CountingRepeats(Repeats):
    """Knows how often the whole decoder was not asked."""

    __slots__ = ("num_hits",)

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane)
        self.num_hits = 0

    def decode(self, body: bytes | memoryview) -> tuple[list[Any], InferRequest]:
        inputs, request = super().decode(body)
        self.num_hits += not request.inputs
        return inputs, request


@pytest.fixture(autouse=True)
def numpy_as_in_a_front() -> Iterator[None]:
    with np.errstate():
        prepare_front()
        yield


def make_lane(datatype: str, names: list[str]) -> Lane:
    inputs = tuple(TensorSpec(name, datatype, (-1, -1)) for name in names)
    series: Any = None
    return Lane(Signature(inputs, (TensorSpec("y", "FP32", (-1, -1)),)), "m", "m", "1", series)


@pytest.mark.timeout(60 + 2 * SECONDS)
def test_repeated_bodies_are_read_as_the_whole_decoder_reads_them() -> None:
    seed = time.time_ns() if SECONDS else 0
    rng = random.Random(seed)
    lanes: dict[tuple[str, int], tuple[list[str], CountingRepeats, Lane]] = {}
    for datatype in dict.fromkeys(DATATYPES):
        for names in (["x"], ["x", "z"], ["data"]):
            lane = make_lane(datatype, names)
            lanes[datatype, len(lanes) % 3] = (names, CountingRepeats(lane), lane)
    end_s = time.monotonic() + SECONDS
    num_bodies = 0
    while time.monotonic() < end_s if SECONDS else num_bodies < NUM_TEMPLATES * BODIES_PER_TEMPLATE:
        datatype = rng.choice(DATATYPES)
        names, repeats, lane = lanes[datatype, rng.choice((0, 0, 0, 1, 2))]
        for body in make_bodies(rng, datatype, names):
            num_bodies += 1
            assert describe(lambda: repeats.decode(body)) == describe(lambda: read_whole(lane, body)), (seed, datatype, body)  # noqa: B023
    # The cache is worth its tests only if they reach it.
    assert sum(repeats.num_hits for _, repeats, _ in lanes.values()) > num_bodies / 20
