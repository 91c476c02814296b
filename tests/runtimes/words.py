"""A tokenizer of whole words, and a model that answers the mean of its tokens' rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from onnx import TensorProto, helper

import argosy
from argosy.importers.onnx import import_onnx
from argosy.signature import Ragged, RaggedInput
from tests.graphs import Tensor, write_graph
from tests.home import Home

# One product and one difference in float32 against float64: a few roundings of values up to about 3.
TOLERANCE = 2e-6
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (*SPECIAL, "the", "ship", "carries", "rich", "cargo", "over", "sea", "and", "land", "red", "green", "blue")
CLS, SEP, UNK = 2, 3, 1
TEXTS = (
    "the ship",
    "rich cargo over the sea",
    "red",
    "the SHIP carries rich cargo over sea and land red green blue",
    "unheard of",
)
TABLE = np.random.default_rng(0).standard_normal((len(WORDS), 4)).astype(np.float32)


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer.json of whole words, which adds [CLS] and [SEP]."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def list_ids(text: str) -> list[int]:
    """What that tokenizer makes of a text."""
    found = {word: index for index, word in enumerate(WORDS)}
    return [CLS, *(found.get(word, UNK) for word in text.lower().split()), SEP]


def embed(ids: list[int]) -> np.ndarray:
    """What the model `words` makes of one row."""
    return TABLE[ids].astype(np.float64).mean(axis=0)


def make_words(home: Home, name: str, length: Any = "L") -> Path:
    """Write the mean of the tokens' rows of a table, with a mask; and the ids themselves."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["embedding"]),
        helper.make_node("Add", ["input_ids", "token_type_ids"], ["ids"]),
    ]
    inputs: list[Tensor] = [(each, "INT64", ("N", length)) for each in ("input_ids", "attention_mask", "token_type_ids")]
    weights = {"table": TABLE, "last": np.array([2]), "middle": np.array([1])}
    return write_graph(
        home.files / f"{name}.onnx", nodes, inputs, [("embedding", "FP32", ("N", 4)), ("ids", "INT64", ("N", length))], weights
    )


RAGGED = Ragged({each: RaggedInput(1) for each in ("input_ids", "attention_mask", "token_type_ids")}, {"ids": 1})
GOLDEN = {each: np.ones((4, 6), np.int64) for each in RAGGED.inputs}


def publish_words(home: Home, name: str = "words", **more: Any) -> argosy.Version:
    step = {"kind": "text", "file": str(write_tokenizer(home.files)), "max_length": 16, **more.pop("options", {})}
    settings = {"golden_inputs": GOLDEN, "ragged": RAGGED, "preprocess": [step], **more}
    return import_onnx(home.store, make_words(home, name), name, **settings)
