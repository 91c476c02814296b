"""Rows of the kind that each public model is for, made here.

Pictures of text, sounds like speech, notes, waves like those of a brain, sentences out of this machine's own docstrings, the
bytes of its own files.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Arrays = dict[str, NDArray[Any]]
Rows = list[Arrays]
RATE = 16_000


@cache
def read_sentences() -> list[str]:
    """First sentences of the docstrings of the standard library."""
    found: set[str] = set()
    for module in pkgutil.iter_modules():
        if module.name in sys.stdlib_module_names and not module.name.startswith(("_", "this", "antigravity", "idlelib")):
            try:
                members = inspect.getmembers(importlib.import_module(module.name))
            except Exception:  # what is not for this system
                continue
            for _, member in members:
                text = " ".join((inspect.getdoc(member) or "").split(".")[0].split())
                if 20 < len(text) < 200:
                    found.add(text)
    return sorted(found)


@cache
def read_words() -> list[str]:
    """Words of these sentences."""
    return sorted({word for text in read_sentences() for word in text.split() if 3 < len(word) < 14 and word.isalpha()})


def _font(size: int, index: int) -> Any:
    names = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
    try:
        return ImageFont.truetype(names[index % len(names)], size)
    except OSError:
        return ImageFont.load_default(size)


def draw_line(text: str, height: int, width: int, index: int, *, is_turned: bool = False) -> NDArray[np.uint8]:
    """A line of text in a picture (height, width, 3), with noise."""
    random = np.random.default_rng(index)
    paper, ink = int(random.integers(190, 256)), int(random.integers(0, 90))
    image = Image.new("RGB", (width, height), (paper,) * 3)
    ImageDraw.Draw(image).text((4, height * 0.12), text, fill=(ink,) * 3, font=_font(int(height * 0.62), index))
    pixels = np.asarray(image.rotate(180) if is_turned else image, np.float32) + random.normal(0, 6, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_page(side: int, index: int) -> NDArray[np.uint8]:
    """Lines of text at several places of a picture (side, side, 3)."""
    random = np.random.default_rng(index)
    image = Image.new("RGB", (side, side), (int(random.integers(180, 256)),) * 3)
    draw, top, sentences = ImageDraw.Draw(image), int(random.integers(5, 40)), read_sentences()
    while top < side - 40:
        size = int(random.integers(14, 30))
        text = sentences[int(random.integers(len(sentences)))][: int(random.integers(6, 26))]
        place = (int(random.integers(4, side // 3)), top)
        draw.text(place, text, fill=(int(random.integers(0, 100)),) * 3, font=_font(size, index))
        top += int(size * random.uniform(1.5, 3.0))
    return np.clip(np.asarray(image, np.float32) + random.normal(0, 5, (side, side, 3)), 0, 255).astype(np.uint8)


def _planes(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """-1 to 1, colours first, one row."""
    return ((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def make_lines(height: int, width: int | None, count: int, name: str = "x", *, turned: bool = False) -> Callable[[Path], Rows]:
    """Pictures of words; of several widths where none is given; every other one upside down where asked for."""

    def make(_: Path) -> Rows:
        words = read_words()
        texts = [" ".join(words[(7 * index + step) % len(words)] for step in range(1 + index % 2)) for index in range(count)]
        widths = [width or 32 * (5 + index % 3) * (1 + index % 2) for index in range(count)]
        lines = [
            draw_line(text, height, wide, index, is_turned=turned and index % 2 == 1)
            for index, (text, wide) in enumerate(zip(texts, widths, strict=True))
        ]
        return [{name: _planes(line)} for line in lines]

    return make


def make_pages(side: int, count: int, name: str = "x", *, is_raw: bool = False) -> Callable[[Path], Rows]:
    """Pictures of pages; raw ones from 0 to 255."""

    def make(_: Path) -> Rows:
        pages = [draw_page(side, index) for index in range(count)]
        return [{name: page.astype(np.float32).transpose(2, 0, 1)[None] if is_raw else _planes(page)} for page in pages]

    return make


def make_captchas(_: Path) -> Rows:
    """Grey words, 64 pixels high, in several widths."""
    rows: Rows = []
    for index, word in enumerate(read_words()[:: max(1, len(read_words()) // 120)][:120]):
        grey = draw_line(word[:6], 64, 32 * (5 + index % 3), index).mean(axis=2).astype(np.float32)
        rows.append({"input1": ((grey / 255 - 0.5) / 0.5)[None, None]})
    return rows


def make_puzzles(name: str, height: int, width: int, *, is_last: bool = False) -> Callable[[Path], Rows]:
    """Words of letters and digits in small pictures of 0 to 1, colours first or last."""

    def make(_: Path) -> Rows:
        random, rows = np.random.default_rng(0), Rows()
        for index in range(120):
            text = "".join(random.choice(list("0123456789ABCDEFGHJKMNPQRSTUVWXYZ"), 5))
            pixels = draw_line(text, height, width, index).astype(np.float32)[None] / 255
            rows.append({name: pixels if is_last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})
        return rows

    return make


def make_speech(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """A sound like speech: syllables of a buzz through two resonances, hisses, and silence with a little noise."""
    random = np.random.default_rng(seed)
    whole: list[NDArray[Any]] = []
    while sum(map(len, whole)) < seconds * RATE:
        if random.random() < 0.3:
            whole.append(np.zeros(int(random.uniform(0.2, 0.9) * RATE)))
            continue
        for _ in range(int(random.integers(2, 7))):
            length = int(random.uniform(0.12, 0.3) * RATE)
            time = np.arange(length) / RATE
            pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(1, 4) * time))
            phase, formants = 2 * np.pi * np.cumsum(pitch) / RATE, (random.uniform(300, 800), random.uniform(900, 2400))
            voice = np.zeros(length)
            for number in range(1, 30):
                gain = sum(1 / (1 + ((number * pitch - formant) / 120) ** 2) for formant in formants) + 0.02
                voice += gain * np.sin(number * phase) / number**0.3
            hiss = np.diff(random.normal(0, 1, length // 4 + 1)) * 0.1
            whole += [voice * np.hanning(length) * 0.12, hiss * np.hanning(len(hiss))]
    sound = np.concatenate(whole)[: int(seconds * RATE)]
    return (sound + random.normal(0, 0.002, len(sound))).astype(np.float32)


def cut_frames(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames of 512 samples, each behind the last 64 of the one before (frames, 576)."""
    padded = np.concatenate([np.zeros(64, np.float32), sound])
    count = len(sound) // 512
    return np.stack([padded[start * 512 : start * 512 + 576] for start in range(count)])


def run_frames(answer: Callable[[Arrays], Arrays], names: set[str]) -> tuple[Rows, NDArray[Any]]:
    """Run a voice detector over a sound with the state that it gives; returns its requests, and the probabilities."""
    rows: Rows = []
    probabilities: list[float] = []
    state = np.zeros((2, 1, 128), np.float32)
    for frame in cut_frames(make_speech(12.0)):
        row: dict[str, NDArray[Any]] = {"input": frame[None], "state": state}
        if "sr" in names:
            row["sr"] = np.array(RATE, np.int64)
        found = answer(row)
        rows.append(row)
        state = found["stateN"]
        probabilities.append(float(found["output"].ravel()[0]))
    return rows, np.array(probabilities)


def make_frames(path: str) -> Callable[[Path], Rows]:
    """Frames of a sound with the states that the model itself had before each."""

    def make(folder: Path) -> Rows:
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(str(folder / path), providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        names = {given.name for given in session.get_inputs()}
        return run_frames(lambda row: dict(zip(outputs, session.run(None, row), strict=True)), names)[0]

    return make


def make_sequences(_: Path) -> Rows:
    """Runs of 24 frames for the detector that takes many at once."""
    frames, zero = cut_frames(make_speech(40.0)), np.zeros((1, 1, 128), np.float32)
    return [{"input": frames[start : start + 24], "h": zero, "c": zero} for start in range(0, len(frames) - 24, 12)]


def make_features(_: Path) -> Rows:
    """Log energies of 80 bands, five frames together, with empty caches."""
    caches = {f"in_cache{index}": np.zeros((1, 128, 19, 1), np.float32) for index in range(4)}
    rows: Rows = []
    for seed in range(48):
        energies = log_bands(make_speech(1.2 + 0.2 * (seed % 3), seed), 80)
        energies = (energies - energies.mean()) / energies.std()
        joined = np.stack([energies[start : start + 5].ravel() for start in range(len(energies) - 5)])
        rows.append({"speech": joined[None].astype(np.float32), **caches})
    return rows


def log_bands(sound: NDArray[np.float32], bands: int) -> NDArray[np.float32]:
    """Log energies (frames, bands) every 10 ms."""
    frames = np.stack([sound[start : start + 400] for start in range(0, len(sound) - 400, 160)]) * np.hanning(400)
    power = np.square(np.abs(np.fft.rfft(frames, 512)))
    edges = np.unique(np.geomspace(2, 256, bands + 1 + bands // 2).astype(int))
    places = np.linspace(0, len(edges) - 2, bands).astype(int)
    return np.log(np.stack([power[:, edges[at] : edges[at + 1]].mean(axis=1) for at in places], axis=1) + 1e-6).astype(np.float32)


def make_mel_windows(_: Path) -> Rows:
    """Windows of 80 frames of 40 bands."""
    bands = log_bands(make_speech(60.0), 40)
    return [{"mel_window": bands[start : start + 80][None]} for start in range(0, len(bands) - 80, 60)]


def make_filter_rows(_: Path) -> Rows:
    """Stacked bands, a voice's vector, and states."""
    random, zero = np.random.default_rng(0), np.zeros((3, 1, 512), np.float32)
    rows: Rows = []
    for seed in range(48):
        bands = log_bands(make_speech(0.6 + 0.1 * (seed % 3), seed), 128)
        stacked = np.stack([bands[start : start + 4].ravel() for start in range(len(bands) - 4)])
        vector = random.normal(0, 1, 256)
        dvec = (vector / np.linalg.norm(vector)).astype(np.float32)[None]
        rows.append({"stacked_logmel": stacked[None], "dvec": dvec, "h0": zero, "c0": zero})
    return rows


def make_notes(_: Path) -> Rows:
    """Two seconds of notes, of which some sound together."""
    random, time, rows = np.random.default_rng(0), np.arange(43844) / 22050, Rows()
    for _ in range(40):
        sound = np.zeros(len(time))
        for _ in range(int(random.integers(2, 7))):
            start, pitch = random.uniform(0, 1.6), 440 * 2 ** (random.integers(-24, 18) / 12)
            gate = (time > start) * np.exp(-3 * np.maximum(0, time - start))
            sound += gate * sum(np.sin(2 * np.pi * pitch * part * time) / part**1.5 for part in range(1, 6))
        rows.append({"serving_default_input_2:0": (0.2 * sound)[None, :, None].astype(np.float32)})
    return rows


def _waves(random: Any, channels: int, length: int) -> NDArray[Any]:
    """Noise whose power falls with the frequency, as a brain's does."""
    spectrum = random.normal(size=(channels, length // 2 + 1)) + 1j * random.normal(size=(channels, length // 2 + 1))
    waves = np.fft.irfft(spectrum / np.maximum(1, np.arange(length // 2 + 1)) ** 0.8, length)
    return waves / waves.std(axis=1, keepdims=True)


def make_spindles(_: Path) -> Rows:
    """Thirty seconds of such waves at 250 Hz with a few bursts of 13 Hz, and their scalogram."""
    random, rows = np.random.default_rng(0), Rows()
    time = np.arange(7500) / 250
    for _ in range(24):
        wave = _waves(random, 1, 7500)[0]
        for _ in range(int(random.integers(1, 6))):
            wave += 1.5 * np.exp(-(((time - random.uniform(1, 29)) / 0.4) ** 2)) * np.sin(2 * np.pi * 13 * time)
        kernels = [np.exp(2j * np.pi * rate * time[:250]) / 60 for rate in np.linspace(8, 18, 15)]
        scales = [np.abs(np.convolve(wave, kernel, "same")) for kernel in kernels]
        rows.append({"raw_signal": wave[None, None].astype(np.float32), "spectrogram": np.stack(scales)[None].astype(np.float32)})
    return rows


def make_seizures(_: Path) -> Rows:
    """A spectrogram of 100 bands over time."""
    random, rows = np.random.default_rng(0), Rows()
    for index in range(48):
        wave = _waves(random, 1, 40_000)[0]
        frames = np.stack([wave[start : start + 400] for start in range(0, 39_000, 300 + 10 * (index % 3))]) * np.hanning(400)
        bands = np.log(np.square(np.abs(np.fft.rfft(frames)))[:, 1:101] + 1e-3).T
        rows.append({"x": ((bands - bands.mean()) / bands.std())[None].astype(np.float32)})
    return rows


@cache
def _list_files() -> list[Path]:
    roots = [Path(np.__file__).parent, Path(sys.base_prefix) / "lib", Path("/usr/share"), Path("/usr/lib")]
    kinds: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*"))[:20_000]:
            if path.is_file() and not path.is_symlink() and path.stat().st_size > 2048:
                kinds.setdefault(path.suffix, []).append(path)
    return [path for paths in kinds.values() for path in paths[:: max(1, len(paths) // 12)][:12]][:240]


def make_file_bytes(_: Path) -> Rows:
    """First and last 1024 bytes of files of many kinds."""
    rows: Rows = []
    for path in _list_files():
        data = path.read_bytes()
        both = [np.frombuffer(part.strip(), np.uint8).astype(np.int32) for part in (data[:1024], data[-1024:])]
        row = np.full(2048, 256, np.int32)
        row[: len(both[0])], row[2048 - len(both[1]) :] = both[0], both[1]
        rows.append({"bytes": row[None]})
    return rows


def make_file_pictures(_: Path) -> Rows:
    """Files as pictures of their bytes."""
    rows: Rows = []
    for path in _list_files()[:100]:
        data = np.frombuffer(path.read_bytes()[: 256 * 256], np.uint8)
        grey = Image.fromarray(data[: len(data) // 64 * 64].reshape(-1, 64)).resize((224, 224))
        planes = np.repeat(np.asarray(grey, np.float32)[None] / 255, 3, axis=0)
        rows.append({"input": ((planes - 0.45) / 0.225)[None]})
    return rows


def make_pixels(name: str, side: int) -> Callable[[Path], Rows]:
    """Pictures of pages for networks that know photographs."""
    return lambda folder: [{name: row["x"][:, :, :side, :side]} for row in make_pages(max(224, side), 24)(folder)]


def make_symbols(name: str, most: int, kind: type[Any]) -> Callable[[Path], Rows]:
    """Made-up texts: numbers of symbols, of which few are frequent, in several lengths."""

    def make(_: Path) -> Rows:
        random, rows = np.random.default_rng(0), Rows()
        for index in range(120):
            symbols = 2 + np.minimum(random.zipf(1.3, (1, 24 + 8 * (index % 4))), 10**6) % (most - 2)
            rows.append({name: symbols.astype(kind)})
        return rows

    return make


def _tokenize(folder: Path, count: int, longest: int) -> list[NDArray[np.int64]]:
    tokenizers: Any = importlib.import_module("tokenizers")
    found = tokenizers.Tokenizer.from_file(str(folder / "traceforge_title_model/data/span/tokenizer.json"))
    texts = read_sentences()
    return [np.array(found.encode(texts[index * len(texts) // count]).ids[:longest], np.int64)[None] for index in range(count)]


def make_titles(folder: Path) -> Rows:
    """Sentences as numbers of tokens."""
    return [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in _tokenize(folder, 64, 40)]


def make_title_steps(folder: Path) -> Rows:
    """What the encoder says of sentences, and how their titles begin."""
    import onnxruntime

    path = folder / "traceforge_title_model/data/span/encoder.onnx"
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows: Rows = []
    for row in make_titles(folder)[:40]:
        begun = np.concatenate([np.zeros((1, 1), np.int64), row["input_ids"][:, : 1 + len(rows) % 6]], axis=1)
        states = {"encoder_hidden_states": session.run(None, row)[0], "encoder_attention_mask": row["attention_mask"]}
        rows.append({"input_ids": begun, **states})
    return rows


def make_sentences(_: Path) -> Rows:
    """Sentences for a BERT, one number a word: the vocabulary is not in the package."""
    rows: Rows = []
    for text in read_sentences()[::7][:120]:
        words = [1000 + sum(ord(char) * 31**place for place, char in enumerate(word)) % 28_000 for word in text.split()[:40]]
        ids = np.array([[101, *words, 102]], np.int64)
        rows.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return rows
