"""A text classifier with embeddings: which library a sentence of documentation comes from.

The labels are names, and the served version says them. Whole numbers go to the embedding as they are.
"""

from __future__ import annotations

import functools
import inspect
import random
import re
from typing import Any

import numpy as np
import scipy.stats
import sklearn.metrics
import torch
from torch import nn

import argosy

NAME = "which-library"
EPOCHS, BATCH_SIZE, RATE = 8, 32, 0.01
NUM_WORDS, LENGTH = 2000, 20
LIBRARIES = {"numpy": np, "scipy": scipy.stats, "sklearn": sklearn.metrics}


class Bag(nn.Module):
    """The mean of the words' embeddings, and a layer on it; word 0 fills short sentences up."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, 32, padding_idx=0)
        self.head = nn.Linear(32, len(LIBRARIES))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        known = (words != 0).unsqueeze(2)
        return self.head((self.embedding(words) * known).sum(1) / known.sum(1).clamp(min=1))


def make_model(seed: int) -> Bag:
    torch.manual_seed(seed)
    return Bag()


def read_sentences() -> list[tuple[str, str]]:
    """Sentences of at least six words from the docstrings of three libraries, each with its library."""
    found: dict[str, str] = {}
    for library, module in LIBRARIES.items():
        for name in sorted(module.__all__):
            text = re.sub(r"\s+", " ", re.sub(r">>>.*", "", inspect.getdoc(getattr(module, name)) or ""))
            found |= {sentence: library for sentence in re.split(r"(?<=[.]) ", text) if len(split_words(sentence)) >= 6}
    sentences = sorted(found.items())
    random.Random(0).shuffle(sentences)
    return sentences[:4000]


def split_words(sentence: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", sentence.lower())


@functools.cache
def make_data() -> tuple[Any, Any]:
    """Rows of word numbers and names of libraries, to train on and to test; the words are those of the first."""
    sentences = read_sentences()
    split = len(sentences) * 4 // 5
    counts: dict[str, int] = {}
    for sentence, _ in sentences[:split]:
        for word in split_words(sentence):
            if word not in LIBRARIES:
                counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))[: NUM_WORDS - 2]
    places = {word: place for place, word in enumerate(words, 2)}
    x = np.zeros((len(sentences), LENGTH), np.int64)
    for row, (sentence, _) in enumerate(sentences):
        numbers = [places.get(word, 1) for word in split_words(sentence)[:LENGTH]]
        x[row, : len(numbers)] = numbers
    y = np.array([library for _, library in sentences])
    return (x[:split], y[:split]), (x[split:], y[split:])


def fit(seed: int = 0, epochs: int = EPOCHS) -> argosy.TrainResult:
    training, _ = make_data()
    return argosy.train(
        make_model(seed),
        training,
        optimizer=argosy.optim.Adam(learning_rate=RATE),
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        num_threads=1,
        progress=False,
    )


def measure(model: Bag) -> float:
    """How often the library is right, of new sentences."""
    _, (x, y) = make_data()
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(x)).argmax(1).numpy()
    return float((np.array([*LIBRARIES])[found] == y).mean())


def publish(result: argosy.TrainResult) -> argosy.Version:
    return result.publish(NAME, input_name="words")


def ask(client: argosy.Client, result: argosy.TrainResult) -> tuple[Any, Any]:
    """What the server answers to new sentences, and what the model itself answers."""
    _, (x, _) = make_data()
    return client.predict(NAME, {"words": x[:20]}), {"output": result.predict(x[:20])}


def main() -> None:
    result = fit()
    print(f"right on new sentences: {measure(result.model):.3f}")
    version = publish(result)
    with argosy.serve(NAME) as server, server.client() as client:
        served, expected = ask(client, result)
    print(f"{version.manifest.signature.outputs[0].labels}: served {served['output'][0]}, in PyTorch {expected['output'][0]}")


if __name__ == "__main__":
    main()
