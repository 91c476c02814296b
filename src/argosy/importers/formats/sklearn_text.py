"""Estimators of scikit-learn that take texts: which these are, and how skl2onnx has to be told to write them as they compute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from argosy.errors import ModelError

__all__ = ["choose_text_options", "find_vectorizers", "list_words", "takes_text"]

_TEXT_CLASSES: Final = ("CountVectorizer", "HashingVectorizer", "TfidfVectorizer")
_WORD_LETTERS: Final = r"\p{L}\p{N}_"
"""What Python's `\\w` matches, in the words of ONNX Runtime's regular expressions, whose own `\\w` is ASCII."""
_RUN_OF_LETTERS: Final = re.compile(r"\\b((?:\\w)+(?:\+|\{\d+,\}))\\b")
"""Where a run of letters is as long as it can be, that it ends at a word's end is said already; ONNX Runtime's `\\b` is ASCII."""
_NUM_WORDS: Final = 100

_ASCII_LOCALE: Final = "C"
"""On every system; changes the case of ASCII letters alone."""
_UNICODE_LOCALE: Final = "C.UTF-8"
"""Part of glibc's own files, which slim images have, too; en_US.UTF-8, ONNX's default, has to be installed."""


def takes_text(estimator: Any) -> bool:
    """Say whether an estimator takes one text a row: a vectorizer, a pipeline that begins with one, a union of such."""
    if steps := getattr(estimator, "steps", None):
        return takes_text(steps[0][1])
    if hasattr(estimator, "transformer_list"):
        return any(takes_text(part) for _, part in estimator.transformer_list)
    return any(base.__name__ in _TEXT_CLASSES and base.__module__.startswith("sklearn.") for base in type(estimator).__mro__)


def find_vectorizers(estimator: Any) -> Iterator[Any]:
    """Give every vectorizer of words in an estimator, wherever in pipelines, unions and transformers of columns it is."""
    if hasattr(estimator, "vocabulary_") and hasattr(estimator, "token_pattern"):
        yield estimator
    parts = [*getattr(estimator, "steps", ()), *getattr(estimator, "transformer_list", ())]
    parts += getattr(estimator, "transformers_", ())
    for part in parts:
        yield from find_vectorizers(part[1])


def list_words(estimator: Any) -> tuple[str, ...]:
    """Give some of the words that an estimator knows, for random texts."""
    words = sorted({str(word) for vectorizer in find_vectorizers(estimator) for word in vectorizer.vocabulary_})
    return tuple(words[:: len(words) // _NUM_WORDS + 1])


def choose_text_options(estimator: Any) -> dict[int, dict[str, object]]:
    """Give the options by which skl2onnx writes each vectorizer as it computes.

    Raises:
        ModelError: `export_failed`, ONNX computes otherwise than a vectorizer.
    """
    return {id(vectorizer): _choose(vectorizer) for vectorizer in find_vectorizers(estimator)}


def _choose(vectorizer: Any) -> dict[str, object]:
    name, words = type(vectorizer).__name__, [str(word) for word in vectorizer.vocabulary_]
    is_of_words = vectorizer.analyzer == "word"
    if vectorizer.analyzer == "char":
        raise _fail(name, "analyzer='char', which joins runs of white space; ONNX does not")
    if is_of_words and vectorizer.ngram_range[1] > 1 and vectorizer.get_stop_words():
        raise _fail(name, "stop_words with an ngram_range: ONNX does not take them out before words are joined")
    if vectorizer.lowercase:
        # ONNX changes letter by letter; Python knows of letters whose small form depends on their place, or is two.
        changed = next((word for word in words if "".join(map(str.lower, word.upper())) != word.upper().lower()), None)
        if changed is not None:
            raise _fail(name, f"lowercase=True with words such as {changed!r}, which ONNX lower-cases otherwise")
    # What is not ASCII has no small form that is, so that it is in no word of an ASCII vocabulary, whatever its case.
    options: dict[str, object] = {"locale": _ASCII_LOCALE if all(map(str.isascii, words)) else _UNICODE_LOCALE}
    # A tokenizer of the user's own has no pattern, and the converter refuses it.
    if is_of_words and vectorizer.token_pattern is not None:
        options["tokenexp"] = _translate(vectorizer.token_pattern)
    return options


def _fail(name: str, detail: str) -> ModelError:
    return ModelError("export_failed", detail=f"{name} has {detail}")


def _translate(pattern: str) -> str:
    """Write a regular expression of Python as ONNX Runtime (RE2) reads it."""
    pattern = _RUN_OF_LETTERS.sub(r"\1", pattern.removeprefix("(?u)"))
    out, is_in_set, place = "", False, 0
    while place < len(pattern):
        piece = pattern[place : place + 2] if pattern[place] == "\\" else pattern[place]
        place += len(piece)
        if piece == "\\w":
            out += _WORD_LETTERS if is_in_set else f"[{_WORD_LETTERS}]"
            continue
        is_in_set = (piece == "[") if not is_in_set else piece != "]"
        out += {"\\d": r"\p{Nd}"}.get(piece, piece)
    return out
