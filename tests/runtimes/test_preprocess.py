"""Pictures and sentences instead of tensors: what the model gets is what Pillow, a tokenizer and NumPy make of them.

The models answer what they were given, so that the pixels and tokens themselves are compared.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image
from tritonclient.utils import InferenceServerException

import argosy
from argosy.cli.main import main
from argosy.compress import Guard, compress
from argosy.errors import InputError
from argosy.importers.onnx import import_onnx
from argosy.importers.python import publish_python
from argosy.runtimes.preprocess import group_lengths
from argosy.runtimes.preprocess_text import encode_ids
from argosy.serve.grpc import messages
from argosy.server import Server
from argosy.signature import Ragged, RaggedInput, Signature, TensorSpec
from tests.graphs import write_graph
from tests.home import Home
from tests.runtimes.words import (
    CLS,
    GOLDEN,
    RAGGED,
    SEP,
    TEXTS,
    TOLERANCE,
    WORDS,
    embed,
    list_ids,
    make_words,
    publish_words,
    write_tokenizer,
)


def publish_same(
    home: Home, name: str, datatype: str, shape: tuple[Any, ...], step: Mapping[str, object], **more: Any
) -> argosy.Version:
    """Publish y = x with a step that makes x."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = write_graph(home.files / f"{name}.onnx", nodes, [("x", datatype, shape)], [("y", datatype, shape)])
    return import_onnx(home.store, path, name, preprocess=[step], **more)


def publish_images(home: Home) -> None:
    wide = Ragged({"x": RaggedInput(3, -1.0)}, {"y": 3})
    scaled = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    publish_same(home, "crop", "FP32", ("N", 3, 6, 8), {"kind": "image", "resize": "crop", "filter": "bicubic", **scaled})
    publish_same(home, "shorter", "FP32", ("N", 3, 8, 8), {"kind": "image", "resize": "crop", "shorter": 10})
    publish_same(home, "bgr", "UINT8", ("N", 6, 8, 3), {"kind": "image", "channels": "BGR"})
    publish_same(
        home, "grey", "FP32", ("N", 7, 9), {"kind": "image", "resize": "pad", "fill": 128, "scale": 1 / 127.5, "mean": 1}
    )
    size = {"kind": "image", "size": [8, -1], "layout": "NCHW", "channels": "grey", "scale": 1 / 255}
    publish_same(home, "wide", "FP32", ("N", 1, 8, "W"), size, ragged=wide)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = write_graph(home.files / "free.onnx", nodes, [("x", "FP32", ("N", 1, 8, "W"))], [("y", "FP32", ("N", 1, 8, "W"))])
    import_onnx(home.store, path, "free", preprocess=[size])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("preprocess"))
    publish_images(home)
    publish_words(home)
    publish_words(home, "cut", options={"truncate": True, "max_length": 5, "name": "sentence"})
    step = {"kind": "text", "file": str(write_tokenizer(home.files)), "pad_id": 0}
    import_onnx(
        home.store,
        make_words(home, "fixed", 8),
        "fixed",
        golden_inputs={n: np.ones((4, 8), np.int64) for n in GOLDEN},
        preprocess=[step],
    )
    names = ("crop", "shorter", "bgr", "grey", "wide", "free", "words", "cut", "fixed")
    with home.serve(*names) as running:
        yield running


def make_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colours with a little noise: neither flat nor beyond what JPEG keeps."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 5 + seed + c) * np.cos(y / 4 - c) for c in range(channels)], axis=-1)
    return Image.fromarray((127 + 120 * waves).astype(np.uint8).squeeze(), mode)


def encode(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **more)
    return out.getvalue()


def to_elements(rows: list[bytes]) -> np.ndarray:
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def ask_json(server: Server, model: str, inputs: list[dict[str, Any]]) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/models/{model}/infer", json={"inputs": inputs})


def ask_grpc_metadata(server: Server, model: str) -> Any:
    """As MLServer's messages have it; those of tritonclient pass over what they do not know."""
    request = messages.ModelMetadataRequest(name=model).SerializeToString()
    with grpc.insecure_channel(server.grpc_address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelMetadata", None, messages.ModelMetadataResponse.FromString
        )
        return call(request, timeout=10)


def ask(server: Server, model: str, name: str, rows: list[bytes]) -> argosy.Prediction:
    with server.client() as client:
        return client.predict(model, {name: to_elements(rows)})


# references


def as_nchw(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float64).transpose(2, 0, 1)


def crop_box(picture: Image.Image, height: int, width: int, scale: float) -> tuple[float, float, float, float]:
    left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
    return left, top, picture.width - left, picture.height - top


def expect_crop(picture: Image.Image) -> np.ndarray:
    box = crop_box(picture, 6, 8, max(6 / picture.height, 8 / picture.width))
    pixels = as_nchw(picture.convert("RGB").resize((8, 6), Image.Resampling.BICUBIC, box))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


def expect_shorter(picture: Image.Image) -> np.ndarray:
    box = crop_box(picture, 8, 8, 10 / min(picture.size))
    return as_nchw(picture.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR, box))


def expect_bgr(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((8, 6), Image.Resampling.BILINEAR))[..., ::-1]


def expect_grey(picture: Image.Image) -> np.ndarray:
    scale = min(7 / picture.height, 9 / picture.width)
    inner = picture.convert("L").resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
    whole = Image.new("L", (9, 7), 128)
    whole.paste(inner, ((9 - inner.width) // 2, (7 - inner.height) // 2))
    return np.asarray(whole, np.float64) / 127.5 - 1


def expect_wide(picture: Image.Image) -> np.ndarray:
    width = round(picture.width * 8 / picture.height)
    return np.asarray(picture.convert("L").resize((width, 8), Image.Resampling.BILINEAR), np.float64)[None] / 255


EXPECT: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "crop": expect_crop,
    "shorter": expect_shorter,
    "bgr": expect_bgr,
    "grey": expect_grey,
    "wide": expect_wide,
}


# pictures


@pytest.mark.parametrize("model", EXPECT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_picture_becomes_the_pixels_that_the_options_say(server: Server, model: str, kind: str) -> None:
    rows = [encode(make_picture(*size, seed=seed), kind) for seed, size in enumerate([(40, 30), (16, 50), (8, 6)])]
    got = ask(server, model, "image", rows)["y"]
    for row, answer in zip(rows, got, strict=True):
        expected = EXPECT[model](Image.open(io.BytesIO(row)))
        np.testing.assert_allclose(answer[..., : expected.shape[-1]], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_picture_of_any_channels_is_taken(server: Server, mode: str) -> None:
    row = encode(make_picture(20, 20, mode))
    np.testing.assert_allclose(
        ask(server, "crop", "image", [row])["y"][0], expect_crop(Image.open(io.BytesIO(row))), rtol=0, atol=TOLERANCE
    )


def test_picture_that_a_camera_held_sideways_is_turned_upright(server: Server) -> None:
    turned = make_picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on the right
    row = encode(turned.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_allclose(ask(server, "bgr", "image", [row])["y"][0], expect_bgr(turned), rtol=0, atol=0)


def test_pictures_of_other_widths_are_padded_together_and_cut_apart(server: Server) -> None:
    pictures = [make_picture(width, 16, seed=width) for width in (20, 64, 20, 200)]
    got = ask(server, "wide", "image", [encode(picture) for picture in pictures])["y"]
    assert got.shape == (4, 1, 8, 100)
    for picture, answer in zip(pictures, got, strict=True):
        expected = expect_wide(picture)
        np.testing.assert_allclose(answer[..., : expected.shape[-1]], expected, rtol=0, atol=TOLERANCE)
        assert not answer[..., expected.shape[-1] :].any()


def test_pictures_that_cannot_be_padded_are_answered_if_alike_else_refused(server: Server) -> None:
    alike = [encode(make_picture(20, 16, seed=seed)) for seed in range(3)]
    assert ask(server, "free", "image", alike)["y"].shape == (3, 1, 8, 10)
    with pytest.raises(InputError, match="different shapes") as refused:
        ask(server, "free", "image", [*alike, encode(make_picture(40, 16))])
    assert refused.value.status == 400


PNG = encode(make_picture(20, 20))
HOSTILE = {
    "text": b"not a picture",
    "empty": b"",
    "cut": PNG[: len(PNG) // 2],
    "broken": PNG[:60] + bytes(20) + PNG[80:],
    "bomb": PNG[:16] + (60000).to_bytes(4, "big") * 2 + PNG[24:],
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "tiff": encode(make_picture(9, 9), "TIFF"),
    "deep": encode(Image.fromarray(np.full((9, 9), 40000, np.uint16)), "PNG"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=list(HOSTILE))
def test_row_that_is_no_picture_is_refused_and_named(server: Server, row: bytes) -> None:
    with pytest.raises(InputError, match=r"row 1 of input 'image'") as refused:
        ask(server, "crop", "image", [PNG, row])
    assert refused.value.status == 400


def test_long_thin_picture_is_bounded(server: Server) -> None:
    with pytest.raises(InputError, match="at most 4000000"):
        ask(server, "wide", "image", [encode(Image.new("L", (1_000_000, 1)))])
    assert ask(server, "crop", "image", [encode(Image.new("L", (1_000_000, 1)))])["y"].shape == (1, 3, 6, 8)


def test_many_large_pictures_are_refused_before_they_are_decoded(server: Server) -> None:
    large = encode(Image.new("L", (7000, 7000)))
    with pytest.raises(InputError, match="send fewer rows"):
        ask(server, "crop", "image", [large] * 9)


def test_bad_picture_fails_alone_beside_others(server: Server) -> None:
    async def run() -> list[Any]:
        async with server.async_client() as client:
            rows = [HOSTILE["text"] if number % 8 == 3 else PNG for number in range(48)]
            asked = (client.predict("bgr", {"image": to_elements([row])}) for row in rows)
            return await asyncio.gather(*asked, return_exceptions=True)

    for number, got in enumerate(asyncio.run(run())):
        if number % 8 == 3:
            assert isinstance(got, InputError) and "row 0" in got.message
        else:
            np.testing.assert_array_equal(got["y"][0], expect_bgr(make_picture(20, 20)))


# forms of requests


def test_json_takes_a_picture_as_base64(server: Server) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PNG).decode()]}
    answer = ask_json(server, "bgr", [{**tensor, "parameters": {"content_type": "base64"}}])
    assert answer.status_code == 200
    np.testing.assert_array_equal(
        np.array(answer.json()["outputs"][0]["data"]).reshape(6, 8, 3), expect_bgr(make_picture(20, 20))
    )
    refused = ask_json(server, "bgr", [tensor])
    assert refused.status_code == 400 and "no picture" in refused.json()["error"]


def test_body_may_be_the_picture_alone(server: Server) -> None:
    url, header = f"{server.url}/v2/models/bgr/infer", "Inference-Header-Content-Length"
    answer = httpx.post(url, content=PNG, headers={header: "0"})
    assert answer.status_code == 200, answer.text
    pixels = np.frombuffer(answer.content[int(answer.headers[header]) :], np.uint8)
    np.testing.assert_array_equal(pixels.reshape(6, 8, 3), expect_bgr(make_picture(20, 20)))
    refused = httpx.post(url, content=b"GIF", headers={header: "0"})
    assert refused.status_code == 400 and "no picture" in refused.json()["error"]


@pytest.mark.parametrize("text", ["a", "ab=c", "YWI", "YWI=\n", "Y W I=", "é"], ids=repr)
def test_base64_is_not_guessed(server: Server, text: str) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], "parameters": {"content_type": "base64"}}
    answer = ask_json(server, "bgr", [tensor])
    assert answer.status_code == 400
    assert "BYTES cannot" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_triton_clients_send_pictures_and_sentences(server: Server, kind: str) -> None:
    module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[kind]
    url = server.url.removeprefix("http://") if kind == "http" else server.grpc_address
    with module.InferenceServerClient(url) as client:
        picture = module.InferInput("image", [2], "BYTES")
        picture.set_data_from_numpy(to_elements([PNG, PNG]))
        got = client.infer("bgr", [picture]).as_numpy("y")
        np.testing.assert_array_equal(got, np.stack([expect_bgr(make_picture(20, 20))] * 2))
        text = module.InferInput("text", [len(TEXTS)], "BYTES")
        text.set_data_from_numpy(np.array(TEXTS, object))
        got = client.infer("words", [text]).as_numpy("embedding")
        np.testing.assert_allclose(got, [embed(list_ids(text)) for text in TEXTS], rtol=0, atol=TOLERANCE)
        picture.set_data_from_numpy(to_elements([PNG, b"no picture"]))
        with pytest.raises(InferenceServerException, match="row 1 of input 'image'") as refused:
            client.infer("bgr", [picture])
        assert "INVALID_ARGUMENT" in refused.value.status() if kind == "grpc" else refused.value.status() == "400"


def test_tensors_are_taken_as_before(server: Server) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    with server.client() as client:
        np.testing.assert_array_equal(client.predict("bgr", {"x": pixels})["y"], pixels)


def test_both_forms_in_one_request_are_refused(server: Server) -> None:
    ids = {name: {"name": name, "datatype": "INT64", "shape": [1, 2], "data": [2, 3]} for name in RAGGED.inputs}
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the ship"]}
    for inputs in ([*ids.values(), text], [ids["input_ids"], text]):
        answer = ask_json(server, "words", inputs)
        assert answer.status_code == 400
        assert "beside what they are made of" in answer.json()["error"]
    for inputs, missing in (([], "input_ids"), ([ids["input_ids"]], "attention_mask")):
        answer = ask_json(server, "words", inputs)
        assert answer.status_code == 400
        assert f"needs the input '{missing}'" in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"datatype": "UINT8", "data": [1]}, "expected BYTES"),
        ({"shape": [1, 1]}, r"expected (-1,)"),
        ({"shape": [2]}, "expected 2"),
        ({"shape": [0], "data": []}, "no rows"),
    ],
    ids=["datatype", "shape", "count", "no-rows"],
)
def test_raw_input_is_checked_as_every_input(server: Server, change: dict[str, Any], says: str) -> None:
    answer = ask_json(server, "words", [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the ship"], **change}])
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_metadata_says_what_may_be_sent_instead(server: Server) -> None:
    body = httpx.get(f"{server.url}/v2/models/words").json()
    assert [tensor["name"] for tensor in body["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert body["parameters"]["raw_inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        told = client.get_model_metadata("words")
    assert [tensor.name for tensor in told.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    with server.client() as client:
        assert client.metadata("words").raw_inputs == (TensorSpec("text", "BYTES", (-1,)),)


# sentences


def test_sentences_of_all_lengths_are_answered_as_each_alone(server: Server) -> None:
    texts = [" ".join(WORDS[4 + (start + place) % 12] for place in range(1 + start % 14)) for start in range(60)]
    got = ask(server, "words", "text", [text.encode() for text in texts])
    ids = [list_ids(text) for text in texts]
    np.testing.assert_allclose(got["embedding"], [embed(row) for row in ids], rtol=0, atol=TOLERANCE)
    for row, answer in zip(ids, got["ids"], strict=True):
        assert answer.tolist() == row + [0] * (max(map(len, ids)) - len(row))


def test_clients_with_sentences_of_other_lengths_get_their_own_rows(server: Server) -> None:
    texts = [TEXTS[number % len(TEXTS)] for number in range(64)]

    async def run() -> list[Any]:
        async with server.async_client() as client:
            return await asyncio.gather(*(client.predict("words", {"text": [text]}) for text in texts))

    for text, got in zip(texts, asyncio.run(run()), strict=True):
        np.testing.assert_allclose(got["embedding"][0], embed(list_ids(text)), rtol=0, atol=TOLERANCE)
        assert got["ids"][0].tolist() == list_ids(text)


def test_sentence_is_padded_to_a_fixed_length(server: Server) -> None:
    got = ask(server, "fixed", "text", [text.encode() for text in TEXTS[:3]])
    np.testing.assert_allclose(got["embedding"], [embed(list_ids(text)) for text in TEXTS[:3]], rtol=0, atol=TOLERANCE)
    assert got["ids"][2].tolist() == [CLS, WORDS.index("red"), SEP, 0, 0, 0, 0, 0]


def test_long_sentence_is_cut_or_refused_as_published(server: Server) -> None:
    long = TEXTS[3]
    assert ask(server, "cut", "sentence", [long.encode()])["ids"][0].tolist() == [*list_ids(long)[:4], SEP]
    with pytest.raises(InputError, match="has 14 tokens, expected 1 to 8"):
        ask(server, "fixed", "text", [long.encode()])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"\xc3\x28", "is not UTF-8"),
        (b"a " * 200_000, "bytes of text"),
        (b"the ship " * 8, "has 18 tokens, expected 1 to 16"),
        (b"\xff\x01\x00", "four for each"),
        (encode_ids([4, 400]), "token id that is not among"),
        (encode_ids([4, -1]), "token id that is not among"),
        (encode_ids([4] * 17), "has 17 tokens"),
        (b"\xff", "has 0 tokens"),
    ],
    ids=["not-utf-8", "huge", "long", "cut-ids", "unknown-id", "negative-id", "many-ids", "no-ids"],
)
def test_row_that_is_no_sentence_is_refused_and_named(server: Server, row: bytes, says: str) -> None:
    with pytest.raises(InputError, match="row 1 of input 'text'") as refused:
        ask(server, "words", "text", [b"the ship", row])
    assert says in refused.value.message
    assert refused.value.status == 400


def test_token_ids_may_be_sent_instead_of_text(server: Server) -> None:
    got = ask(server, "words", "text", [encode_ids([4, 5]), b"the ship", encode_ids([9])])
    assert got["ids"].tolist() == [[4, 5, 0, 0], list_ids("the ship"), [9, 0, 0, 0]]
    np.testing.assert_allclose(got["embedding"][0], embed([4, 5]), rtol=0, atol=TOLERANCE)


# grouping


def test_groups_compute_little_padding_in_few_calls() -> None:
    lengths = np.random.default_rng(0).integers(8, 129, 200).tolist()
    groups = group_lengths(lengths)
    assert sorted(row for group in groups for row in group) == list(range(200))
    padded = sum(len(group) * max(lengths[row] for row in group) for group in groups)
    assert len(groups) <= 16
    assert padded < 1.1 * sum(lengths)


def test_groups_are_the_cheapest_there_are() -> None:
    lengths = [3, 50, 50, 4, 90, 5, 90, 10]

    def cost(groups: list[list[int]]) -> int:
        return sum(20 + len(group) * max(lengths[row] for row in group) for group in groups)

    order = sorted(range(8), key=lambda row: -lengths[row])
    every = []
    for cuts in range(1 << 7):
        ends = [place + 1 for place in range(7) if cuts >> place & 1] + [8]
        every.append([order[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    assert cost(group_lengths(lengths, 20)) == min(map(cost, every))
    assert group_lengths([7, 7, 7]) == [[0, 1, 2]]


# publishing


IMAGE_MISTAKES = {
    "size": ({"kind": "image", "size": [9, 9]}, "height and width [6, 8]"),
    "option": ({"kind": "image", "sizes": [6, 8]}, "unknown options sizes"),
    "channels": ({"kind": "image", "channels": "grey"}, "has 3 channels, grey has 1"),
    "layout": ({"kind": "image", "layout": "NHWC", "channels": "RGB"}, "has 8 channels"),
    "mean": ({"kind": "image", "mean": [1, 2]}, "or 3 of them"),
    "std": ({"kind": "image", "std": 0}, "std holds 0"),
    "resize": ({"kind": "image", "resize": "squeeze"}, "stretch, crop, pad"),
    "fill": ({"kind": "image", "fill": 3}, "with pad"),
    "shorter": ({"kind": "image", "resize": "crop", "shorter": 7}, "at least 8"),
    "tokens": ({"kind": "text", "file": "tokenizer.json"}, "expected integers (rows, tokens)"),
}


@pytest.mark.parametrize(("step", "says"), IMAGE_MISTAKES.values(), ids=list(IMAGE_MISTAKES))
def test_step_that_does_not_fit_a_picture_is_refused(home: Home, step: dict[str, Any], says: str) -> None:
    step = {**step, "file": str(write_tokenizer(home.files))} if "file" in step else step
    with pytest.raises(InputError) as refused:
        publish_same(home, "m", "FP32", ("N", 3, 6, 8), step)
    assert refused.value.key == "bad_preprocess"
    assert says in refused.value.message
    assert home.store.list_models() == []


TEXT_MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-file": ({"file": "missing.json"}, "missing_file", "missing.json"),
    "no-option": ({"file": None}, "bad_preprocess", "file is missing"),
    "no-tokenizer": ({"file": "empty.json"}, "bad_preprocess", "cannot be used"),
    "no-vocabulary": ({"file": "twice.txt"}, "bad_preprocess", "one token a line"),
    "no-unknown": ({"file": "plain.txt"}, "bad_preprocess", "no token '[UNK]'"),
    "no-length": ({"max_length": None}, "bad_preprocess", "max_length is not given"),
    "tensors": ({"ids": "attention_mask"}, "bad_preprocess", "name them with ids, mask and types"),
    "pad": ({"pad_id": 9}, "bad_preprocess", "filled with 0"),
    "kind": ({"kind": "sound"}, "unknown_choice", "image, row, text"),
    "inputs": ({"inputs": ["pixels"]}, "bad_option", "pixels"),
    "name": ({"name": "input_ids"}, "bad_option", "different names"),
    "ragged": ({"inputs": ["input_ids", "attention_mask"]}, "bad_preprocess", "no single step makes all ragged inputs"),
}


@pytest.mark.parametrize(("change", "key", "says"), TEXT_MISTAKES.values(), ids=list(TEXT_MISTAKES))
def test_step_that_does_not_fit_text_is_refused(home: Home, change: dict[str, Any], key: str, says: str) -> None:
    (home.files / "empty.json").write_text("{}")
    (home.files / "twice.txt").write_text("a\nb\na\n")
    (home.files / "plain.txt").write_text("a\nb\n")
    step = {"kind": "text", "file": "", "max_length": 16, **change}
    step["file"] = (
        str(home.files / step["file"]) if step.get("file") else (None if "file" in change else str(write_tokenizer(home.files)))
    )
    step = {name: value for name, value in step.items() if value is not None}
    with pytest.raises(InputError) as refused:
        publish_words(home, preprocess=[step])
    assert refused.value.key == key
    assert says in refused.value.message
    assert home.store.list_models() == []


def test_file_of_a_step_becomes_the_artifacts(home: Home) -> None:
    version = publish_words(home)
    (step,) = version.manifest.signature.preprocess
    assert step.options["file"] == "tokenizer.json"
    assert (home.store.open_artifact(version) / "tokenizer.json").read_bytes() == (home.files / "tokenizer.json").read_bytes()


def test_step_cannot_reach_beyond_its_artifact(home: Home) -> None:
    from argosy.signature import Preprocess

    outside = write_tokenizer(home.path)
    for file in (str(outside), "../tokenizer.json"):
        signature = Signature(
            (TensorSpec("ids", "INT64", (-1, -1)),),
            (TensorSpec("y", "FP32", (-1, 2)),),
            preprocess=(Preprocess("text", "text", ("ids",), {"file": file, "max_length": 8}),),
        )
        with pytest.raises(InputError, match="not among the artifact's"):
            home.publish_code("return {}", signature=signature)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_command_line_publishes_steps_and_labels(home: Home, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(home.files)
    file = home.files / f"steps.{suffix}"
    step = {"kind": "text", "file": "tokenizer.json", "max_length": 16}
    lines = ["[[preprocess]]", *(f"{key} = {json.dumps(value)}" for key, value in step.items())]
    file.write_text(json.dumps([step]) if suffix == "json" else "\n".join(lines))
    labels = home.files / "labels.txt"
    labels.write_text("up\ndown\nleft\nright\n")
    words = [
        "import",
        str(make_words(home, "words")),
        "--name",
        "words",
        "--preprocess",
        str(file),
        "--labels",
        str(labels),
        "--json",
    ]
    monkeypatch.setenv("ARGOSY_HOME", str(home.store.home))
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    signature = home.store.get_version("words").manifest.signature
    assert signature.outputs[0].labels == ("up", "down", "left", "right")
    assert [(step.kind, step.name, step.inputs) for step in signature.preprocess] == [("text", "text", tuple(RAGGED.inputs))]
    with home.serve("words") as server:
        body = httpx.get(f"{server.url}/v2/models/words").json()
        assert body["outputs"][0]["parameters"] == {"labels": ["up", "down", "left", "right"]}
        assert (
            ask_grpc_metadata(server, "words").outputs[0].parameters["labels"].string_param == '["up", "down", "left", "right"]'
        )
        with server.client() as client:
            assert client.metadata("words").outputs[0].labels == ("up", "down", "left", "right")
            np.testing.assert_allclose(
                client.predict("words", {"text": [TEXTS[0]]})["embedding"][0], embed(list_ids(TEXTS[0])), rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"preprocess": 3}', "[3]", "kind = ", "\xff"], ids=repr)
def test_file_without_steps_is_refused(home: Home, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home.files / "steps.json"
    file.write_bytes(content.encode("latin-1"))
    monkeypatch.setenv("ARGOSY_HOME", str(home.store.home))
    done = CliRunner().invoke(main, ["import", str(make_words(home, "words")), "--name", "words", "--preprocess", str(file)])
    assert done.exit_code == 1
    assert "Configuration of preprocessing" in done.output


def test_live_model_is_published_with_steps(home: Home) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    sample = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    argosy.publish(
        model, "live", home.store, sample=sample, labels=["no", "yes"], preprocess=[{"kind": "image", "scale": 1 / 255}]
    )
    picture = make_picture(4, 4)
    with home.serve("live") as server:
        got = ask(server, "live", "image", [encode(picture)])["output"][0]
    with torch.no_grad():
        expected = model(torch.tensor(as_nchw(picture)[None] / 255, dtype=torch.float32))[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_python_model_and_two_steps_side_by_side(home: Home) -> None:
    """A picture and a caption in, and a number that is sent as it is."""
    signature = Signature(
        (TensorSpec("pixels", "UINT8", (-1, 2, 2)), TensorSpec("ids", "INT32", (-1, -1)), TensorSpec("factor", "FP32", (-1,))),
        (TensorSpec("y", "FP32", (-1,)),),
    )
    path = home.files / "model.py"
    path.write_text(
        "import numpy as np\n\n\nclass Model:\n    def load(self, folder):\n        pass\n\n    def infer(self, inputs):\n"
        "        total = inputs['pixels'].sum(axis=(1, 2)) + inputs['ids'].sum(axis=1)\n"
        "        return {'y': (total * inputs['factor']).astype(np.float32)}\n"
    )
    steps = [
        {"kind": "image", "inputs": ["pixels"], "channels": "grey"},
        {"kind": "text", "inputs": ["ids"], "name": "caption", "file": str(write_tokenizer(home.files)), "max_length": 9},
    ]
    publish_python(home.store, path, "two", signature=signature, preprocess=steps)
    with home.serve() as server, server.client() as client:
        server.deploy("two", allow_code=True)
        rows = to_elements([encode(Image.new("L", (2, 2), value)) for value in (1, 2, 3)])
        texts = ["red", "red green", "red"]
        factor = np.array([1, 10, 100], np.float32)
        got = client.predict("two", {"image": rows, "caption": texts, "factor": factor})["y"]
    assert got.tolist() == [f * (4 * v + sum(list_ids(t))) for f, v, t in zip((1, 10, 100), (1, 2, 3), texts, strict=True)]


def test_vocabulary_is_enough_for_text(home: Home) -> None:
    file = home.files / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nship\n##s\nthe\n")
    for name, more in {"pieces": {}, "whole": {"split": "whitespace", "lowercase": False}}.items():
        publish_words(home, name, preprocess=[{"kind": "text", "file": str(file), "max_length": 8, **more}])
    with home.serve("pieces", "whole") as server:
        assert ask(server, "pieces", "text", [b"The ships"])["ids"][0].tolist() == [2, 6, 4, 5, 3]
        assert ask(server, "whole", "text", [b"The ship"])["ids"][0].tolist() == [1, 4]


def test_compressed_version_keeps_its_tokenizer(home: Home) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["rows", "weight"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    tensors = [("ids", "INT64", ("N", 64))], [("y", "FP32", ("N", 64))]
    path = write_graph(home.files / "dense.onnx", nodes, *tensors, {"weight": weight})
    step = {"kind": "text", "file": str(write_tokenizer(home.files)), "pad_id": 0}
    import_onnx(home.store, path, "dense", preprocess=[step])
    rows = {"ids": np.arange(256).reshape(4, 64) % 16}
    child = compress(
        "dense", method="weights", calibration=rows, guard=Guard("mse", 1e6), needs_gain=False, store=home.store
    ).version
    assert child is not None
    assert child.manifest.signature.preprocess == home.store.get_version("dense@1").manifest.signature.preprocess
    assert (home.store.open_artifact(child) / "tokenizer.json").exists()
