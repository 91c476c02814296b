"""Text to tokens, by the package `tokenizers`: a `tokenizer.json`, or a plain vocabulary of one token a line.

An element is UTF-8 text. One that begins with the byte FF, which UTF-8 never has, holds token ids instead (INT32,
little-endian), which are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import BadInput
from argosy.runtimes.preprocess import BadStep, Made, load_module

__all__ = ["IDS_MARK", "STEP", "TextStep", "encode_ids"]

IDS_MARK: Final = b"\xff"
MAX_TEXT_BYTES: Final = 256 * 1024
"""Of one row: its tokenizing takes 0.35 s, which the worker's other clients wait for."""
MAX_BATCH_BYTES: Final = 8 << 20
"""Of all rows of a batch."""

_PLACES: Final = {"ids": ("input_ids", "ids", "tokens"), "mask": ("attention_mask", "mask"), "types": ("token_type_ids", "types")}
_OPTIONS: Final = frozenset(
    ("file", "max_length", "truncate", "pad_id", "special", "split", "lowercase", "unknown", "dimensions", *_PLACES)
)
_VOCABULARY_OPTIONS: Final = frozenset(("split", "lowercase", "unknown"))


def encode_ids(ids: Sequence[int]) -> bytes:
    """Write token ids as an element of a text input."""
    return IDS_MARK + np.array(ids, "<i4").tobytes()


class TextStep:
    """A tokenizer and the tensors that it fills.

    Options:
        file: `tokenizer.json` (any name ending in .json), or a vocabulary: one token a line.
        max_length: tokens of a row, special ones included; by default the tensor's own length, else the tokenizer's.
        truncate: cut longer text, instead of refusing it; by default as the tokenizer's file says.
        special: have the tokenizer add its special tokens; by default true.
        pad_id: what fills rows up to a fixed length; by default the tokenizer's.
        ids, mask, types: which tensors get what; by default by their usual names.
        split: of a vocabulary: `wordpiece` (the default) or `whitespace`.
        lowercase, unknown: of a vocabulary: whether text is lowered (true), and the token of what it does not have ([UNK]).
        dimensions: lengths to which an embedding may be cut, for `/v1/embeddings`.
    """

    def __init__(self, inputs: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], folder: Path) -> None:
        _check_options(options)
        self._names = _place_tensors(inputs, options)
        self._dtypes = {name: np.dtype(spec["datatype"].lower()) for name, spec in inputs.items()}
        self._tokenizer = _load_tokenizer(folder, options)
        self.num_ids: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        lengths = {spec["shape"][1] for spec in inputs.values()}
        if len(lengths) > 1:
            raise BadStep(f"the tensors {', '.join(inputs)} have different lengths: {sorted(lengths)}")
        # Of rows that are padded here; ragged ones are padded when they are joined.
        self._fixed_length: int = max(0, lengths.pop())
        own: Mapping[str, Any] = self._tokenizer.truncation or {}
        self.max_length: int = options.get("max_length") or self._fixed_length or own.get("max_length", 0)
        if not self.max_length or 0 < self._fixed_length < self.max_length:
            got = self.max_length or "not given"
            raise BadStep(f"max_length is {got}, expected at most {self._fixed_length or 'what the model was trained for'}")
        self._pad_id = self._find_pad(options, inputs[self._names["ids"]]["pad"])
        self._truncates: bool = options.get("truncate", bool(own))
        self._special: bool = options.get("special", True)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self._truncates:
            _guard(lambda: self._tokenizer.enable_truncation(self.max_length))

    def _find_pad(self, options: Mapping[str, Any], ragged: float | None) -> int:
        own: Mapping[str, Any] = self._tokenizer.padding or {}
        known = [found for word in ("[PAD]", "<pad>") if (found := self._tokenizer.token_to_id(word)) is not None]
        pad: int | None = options.get("pad_id", own.get("pad_id", known[0] if known else None))
        if ragged is not None and "pad_id" in options and ragged != pad:
            raise BadStep(f"pad_id is {pad}, but the ragged axis is filled with {ragged:g}")
        if self._fixed_length and pad is None:
            raise BadStep("the tokenizer has no padding token: give pad_id")
        return pad or 0

    def convert(self, name: str, rows: Sequence[bytes]) -> Made:
        """Tokenize all rows together.

        Raises:
            BadInput: a row is no UTF-8, too long, has no tokens, or ids that the vocabulary does not have.
        """
        if (size_bytes := sum(map(len, rows))) > MAX_BATCH_BYTES:
            limit = MAX_BATCH_BYTES
            raise BadInput(f"input {name!r} has {size_bytes} bytes in all, at most {limit} are taken: send fewer rows a request")
        ids: list[Any] = [self._read_ids(name, place, row) if row[:1] == IDS_MARK else None for place, row in enumerate(rows)]
        texts = [_decode(name, place, row) for place, row in enumerate(rows) if ids[place] is None]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special) if texts else ())
        types: list[Any] = []
        for place, known in enumerate(ids):
            found = next(encoded) if known is None else None
            if found is not None:
                ids[place] = found.ids
            count = len(ids[place])
            types.append(np.zeros(count) if found is None else found.type_ids)
            if not 0 < count <= self.max_length:
                raise BadInput(f"row {place} of input {name!r} has {count} tokens, expected 1 to {self.max_length}")
        counts = [len(row) for row in ids]
        values = {"ids": ids, "mask": [np.ones(count) for count in counts], "types": types}
        tensors = {
            tensor: [self._fill(tensor, row, self._pad_id if role == "ids" else 0) for row in values[role]]
            for role, tensor in self._names.items()
        }
        return Made(tensors, counts)

    def _read_ids(self, name: str, place: int, row: bytes) -> NDArray[Any]:
        if len(row) % 4 != 1:
            raise BadInput(f"row {place} of input {name!r} has {len(row) - 1} bytes of token ids, expected four for each")
        ids = np.frombuffer(row, "<i4", offset=1)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_ids:
            raise BadInput(f"row {place} of input {name!r} has a token id that is not among 0 to {self.num_ids - 1}")
        return ids

    def _fill(self, tensor: str, row: Any, pad: int) -> NDArray[Any]:
        """One row's tensor: as long as it is, or padded to the length that the signature has."""
        if not self._fixed_length:
            return np.asarray(row, self._dtypes[tensor])
        filled = np.full(self._fixed_length, pad, self._dtypes[tensor])
        filled[: len(row)] = row
        return filled


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := options.keys() - _OPTIONS:
        raise BadStep(f"unknown options {', '.join(sorted(unknown))}; known: {', '.join(sorted(_OPTIONS))}")
    file = options.get("file")
    if not isinstance(file, str) or not file:
        raise BadStep("option file is missing: a tokenizer.json, or a vocabulary of one token a line")
    for option in ("max_length", "pad_id"):
        value = options.get(option, 1)
        if type(value) is not int or value < (option == "max_length"):
            raise BadStep(f"option {option} is {value!r}, expected a whole number")
    for option in ("truncate", "special", "lowercase"):
        if type(options.get(option, True)) is not bool:
            raise BadStep(f"option {option} is {options[option]!r}, expected true or false")
    sizes: Any = options.get("dimensions", [])
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in cast("list[Any]", sizes)):
        raise BadStep(f"option dimensions is {sizes!r}, expected a list of whole numbers")
    if file.endswith(".json") and (given := options.keys() & _VOCABULARY_OPTIONS):
        raise BadStep(f"options {', '.join(sorted(given))} are those of a vocabulary; {file} says it itself")


def _place_tensors(inputs: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, str]:
    """Say which tensor gets the ids, the mask and the types."""
    names: dict[str, str] = {}
    for role, usual in _PLACES.items():
        found = [options[role]] if role in options else [name for name in usual if name in inputs]
        if found:
            names[role] = found[0]
    if "ids" not in names and len(inputs) == 1:
        names["ids"] = next(iter(inputs))
    if "ids" not in names or sorted(names.values()) != sorted(inputs):
        raise BadStep(f"it fills {names}, expected each of {', '.join(inputs)} once: name them with ids, mask and types")
    for name, spec in inputs.items():
        if len(spec["shape"]) != 2 or not spec["datatype"].removeprefix("U").startswith("INT"):
            raise BadStep(f"tensor {name!r} is {spec['datatype']} {tuple(spec['shape'])}, expected integers (rows, tokens)")
    return names


def _load_tokenizer(folder: Path, options: Mapping[str, Any]) -> Any:
    tokenizers = load_module("tokenizers", "tokenizers", "text")
    path = folder / options["file"]
    if ".." in path.parts or not path.is_relative_to(folder) or not path.is_file():
        raise BadStep(f"file {options['file']} is not among the artifact's")
    if path.name.endswith(".json"):
        return _guard(lambda: tokenizers.Tokenizer.from_str(path.read_text("utf-8")))
    return _guard(lambda: _build_tokenizer(tokenizers, path, options))


def _build_tokenizer(tokenizers: Any, path: Path, options: Mapping[str, Any]) -> Any:
    # Not `splitlines`: the characters that Unicode calls ends of lines are tokens of some vocabularies.
    tokens = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(tokens) if token}
    if len(vocabulary) != len(tokens):
        raise BadStep(f"{path.name} has {len(tokens)} lines and {len(vocabulary)} different tokens, expected one token a line")
    unknown: str = options.get("unknown", "[UNK]")
    if unknown not in vocabulary:
        raise BadStep(f"the vocabulary has no token {unknown!r} for what it does not know; name it with unknown")
    split: str = options.get("split", "wordpiece")
    if split not in ("wordpiece", "whitespace"):
        raise BadStep(f"option split is {split!r}, expected wordpiece or whitespace")
    models, lowers = tokenizers.models, options.get("lowercase", True)
    if split == "whitespace":
        tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        if lowers:
            tokenizer.normalizer = tokenizers.normalizers.Lowercase()
        return tokenizer
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowers)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        ends = ((word, vocabulary[word]) for word in ("[SEP]", "[CLS]"))
        tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    return tokenizer


def _guard(load: Any) -> Any:
    try:
        return load()
    except BadStep:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust side's panics are no Exception
        raise BadStep(f"the tokenizer cannot be used: {type(error).__name__}: {str(error)[:300]}") from error


def _decode(name: str, place: int, row: bytes) -> str:
    if len(row) > MAX_TEXT_BYTES:
        raise BadInput(f"row {place} of input {name!r} has {len(row)} bytes of text, at most {MAX_TEXT_BYTES} are taken")
    try:
        return row.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"row {place} of input {name!r} is not UTF-8: {error.reason} at byte {error.start}") from error


STEP: Final = TextStep
