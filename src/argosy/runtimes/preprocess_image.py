"""Pictures to pixels, by Pillow: decoded, turned upright, resized, scaled.

What a client sent is hostile: only the formats that Pillow's own decoders read are tried, the size that the file claims is
bounded before a pixel is decoded, and no step makes a larger picture than the claimed one and the model's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from argosy.runtimes.base import BadInput
from argosy.runtimes.preprocess import BadStep, Made, load_module

__all__ = ["FORMATS", "STEP", "ImageStep"]

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
MAX_PIXELS: Final = 50_000_000
"""A picture of a good phone; decoded it takes 150 MB."""
MAX_TIMES: Final = 8
"""So many times `max_pixels` in one batch: decoding them takes some seconds, which the worker's other clients wait for."""
MAX_FREE_PIXELS: Final = 4_000_000
"""Of a picture whose width or height follows from the other."""

_CHANNELS: Final = {"grey": ("L", 1), "RGB": ("RGB", 3), "BGR": ("RGB", 3)}
_LAYOUTS: Final = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2), "NHW": (None, 1, 2)}
"""Where channels, height and width stand in the tensor's shape."""
_MODES: Final = ("stretch", "crop", "pad")
_FILTERS: Final = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_OPTIONS: Final = frozenset(
    ("size", "resize", "shorter", "filter", "fill", "channels", "layout", "scale", "mean", "std", "max_pixels")
)


class ImageStep:
    """How a picture becomes one tensor.

    Options:
        size: [height, width]; by default the tensor's. -1 follows the picture.
        resize: `stretch` (the default), `crop` the middle, or `pad` with `fill` (0 to 255, by default 0).
        shorter: of `crop`: the shorter side is brought to so many pixels first, as "resize 256, crop 224" does.
        filter: bilinear (the default), or another of Pillow's.
        channels: RGB, BGR or grey; by default what the tensor's number of channels says.
        layout: NCHW, NHWC, or NHW for grey without an axis of channels; by default what the shape says.
        scale, mean, std: a value is (pixel * scale - mean) / std, pixels being 0 to 255; a number or one for each channel.
        max_pixels: of a picture as it comes; by default 50 million.
    """

    def __init__(self, inputs: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], folder: Path) -> None:
        if unknown := options.keys() - _OPTIONS:
            raise BadStep(f"unknown options {', '.join(sorted(unknown))}; known: {', '.join(sorted(_OPTIONS))}")
        if len(inputs) != 1:
            raise BadStep(f"a picture becomes one tensor, not {', '.join(inputs)}")
        ((self._name, spec),) = inputs.items()
        self._image = load_module("PIL.Image", "pillow", "image")
        self._image.init()  # its decoders, which the first request would wait for
        self._turn = load_module("PIL.ImageOps", "pillow", "image").exif_transpose
        self._dtype = np.dtype({"UINT8": "u1", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}.get(spec["datatype"], "V"))
        if self._dtype.kind == "V":
            raise BadStep(f"tensor {self._name!r} is {spec['datatype']}, expected UINT8, FP16, FP32 or FP64")
        shape: Sequence[int] = spec["shape"]
        self._layout = _choose(options, "layout", _LAYOUTS, _guess_layout(shape))
        channel, height, width = _LAYOUTS[self._layout]
        if len(shape) != (3 if channel is None else 4):
            raise BadStep(f"tensor {self._name!r} has shape {tuple(shape)}, which is not {self._layout}")
        count = 1 if channel is None else shape[channel]
        self._channels = _choose(options, "channels", _CHANNELS, {1: "grey", 3: "RGB"}.get(count, ""))
        self._mode, num_channels = _CHANNELS[self._channels]
        if count not in (-1, num_channels):
            raise BadStep(f"tensor {self._name!r} has {count} channels, {self._channels} has {num_channels}")
        self._size = _read_size(options, (shape[height], shape[width]), self._name)
        self._read_resize(options)
        self._read_scaling(options, num_channels)

    def _read_resize(self, options: Mapping[str, Any]) -> None:
        self._resize = _choose(options, "resize", _MODES, "stretch")
        if -1 in self._size and "resize" in options:
            raise BadStep(f"resize is {self._resize!r}, but the size {list(self._size)} keeps the picture's proportions")
        self._filter: Any = self._image.Resampling[_choose(options, "filter", _FILTERS, "bilinear").upper()]
        self._shorter = _read_number(options, "shorter", 0)
        self._fill = _read_number(options, "fill", 0)
        self._max_pixels = _read_number(options, "max_pixels", MAX_PIXELS)
        if self._shorter and (self._resize != "crop" or self._shorter < max(self._size)):
            raise BadStep(f"option shorter is {self._shorter}, expected with crop, and at least {max(self._size)}")
        if not 0 <= self._fill <= 255 or (self._fill and self._resize != "pad"):
            raise BadStep(f"option fill is {self._fill}, expected 0 to 255, and with pad")
        if not 0 < self._max_pixels <= MAX_PIXELS:
            raise BadStep(f"option max_pixels is {self._max_pixels}, expected 1 to {MAX_PIXELS}")

    def _read_scaling(self, options: Mapping[str, Any], num_channels: int) -> None:
        scale, mean, std = (_read_channels(options, key, value, num_channels) for key, value in _SCALING.items())
        if not std.all():
            raise BadStep("option std holds 0")
        if self._dtype.kind == "u" and options.keys() & _SCALING.keys():
            raise BadStep(f"tensor {self._name!r} is UINT8: it takes pixels as they are, without scale, mean and std")
        # (pixel * scale - mean) / std as one product and one difference.
        self._factor, self._offset = (scale / std).astype(np.float32), (mean / std).astype(np.float32)

    def convert(self, name: str, rows: Sequence[bytes]) -> Made:
        """Decode, resize and scale each row.

        Raises:
            BadInput: a row is no picture of a known format, damaged, or too large.
        """
        names = [f"row {place} of input {name!r}" for place in range(len(rows))]
        pictures = [self._guard(what, self._open, row) for what, row in zip(names, rows, strict=True)]
        # Known from their heads: nothing is decoded before.
        num_pixels = sum(picture.width * picture.height for picture in pictures)
        if num_pixels > (limit := MAX_TIMES * self._max_pixels):
            raise BadInput(f"input {name!r} has {num_pixels} pixels in all, at most {limit} are taken: send fewer rows a request")
        return Made({self._name: [self._guard(what, self._decode, row) for what, row in zip(names, pictures, strict=True)]}, [])

    def _guard(self, what: str, read: Callable[[str, Any], Any], row: Any) -> Any:
        """Run a part of Pillow on what a client sent, and say that it is the client's fault if that fails."""
        try:
            return read(what, row)
        except BadInput:
            raise
        except Exception as error:  # of what is not a picture, Pillow's decoders raise whatever they stumble over
            detail = str(error) if not isinstance(error, self._image.UnidentifiedImageError) else "of no known format"
            raise BadInput(f"{what} is no picture that can be read ({', '.join(FORMATS)}): {detail[:200]}") from error

    def _open(self, what: str, row: bytes) -> Any:
        picture = self._image.open(io.BytesIO(row), formats=FORMATS)
        if picture.width * picture.height > self._max_pixels:
            raise BadInput(f"{what} has {picture.width} x {picture.height} pixels, at most {self._max_pixels} are taken")
        if picture.mode.startswith(("I", "F")):
            raise BadInput(f"{what} has more than 8 bits a channel, which is not taken")
        return picture

    def _decode(self, what: str, picture: Any) -> NDArray[Any]:
        with picture:
            return self._scale(np.asarray(self._fit(self._turn(picture).convert(self._mode), what)))

    def _fit(self, picture: Any, what: str) -> Any:
        """Bring a picture to the model's size; parts that are cut off are never scaled."""
        own = picture.height, picture.width
        height, width = self._size
        if -1 in self._size:
            ratio = 1.0 if height == width else (height / own[0] if width == -1 else width / own[1])
            height, width = (round(side * ratio) if size == -1 else size for side, size in zip(own, self._size, strict=True))
            height, width = max(1, height), max(1, width)
            if height * width > MAX_FREE_PIXELS:
                raise BadInput(f"{what} becomes {width} x {height} pixels, at most {MAX_FREE_PIXELS} are taken")
        if self._resize == "pad":
            ratio = min(height / own[0], width / own[1])
            inner = max(1, min(height, round(own[0] * ratio))), max(1, min(width, round(own[1] * ratio)))
            target = self._image.new(self._mode, (width, height), self._fill if self._mode == "L" else (self._fill,) * 3)
            place = (width - inner[1]) // 2, (height - inner[0]) // 2
            target.paste(picture.resize(inner[::-1], self._filter), place)
            return target
        box = None
        if self._resize == "crop":
            ratio = self._shorter / min(own) if self._shorter else max(height / own[0], width / own[1])
            rows, columns = min(own[0], height / ratio), min(own[1], width / ratio)
            top, left = (own[0] - rows) / 2, (own[1] - columns) / 2
            box = (left, top, left + columns, top + rows)
        return picture if (height, width) == own and box is None else picture.resize((width, height), self._filter, box)

    def _scale(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self._channels == "BGR":
            pixels = pixels[..., ::-1]
        if self._channels == "grey" and self._layout != "NHW":
            pixels = pixels[..., None]
        if self._dtype.kind == "f":
            pixels = (pixels.astype(np.float32) * self._factor - self._offset).astype(self._dtype, copy=False)
        return np.moveaxis(pixels, -1, 0) if self._layout == "NCHW" else pixels


_SCALING: Final = {"scale": 1.0, "mean": 0.0, "std": 1.0}


def _choose(options: Mapping[str, Any], option: str, known: Mapping[str, Any] | Sequence[str], default: str) -> str:
    value = options.get(option, default)
    if not isinstance(value, str) or value not in known:
        raise BadStep(f"option {option} is {value!r}, expected {', '.join(known)}")
    return value


def _guess_layout(shape: Sequence[int]) -> str:
    if len(shape) == 3:
        return "NHW"
    fits = [layout for layout, place in (("NCHW", 1), ("NHWC", -1)) if len(shape) == 4 and shape[place] in (1, 3)]
    return fits[0] if len(fits) == 1 else ""


def _read_size(options: Mapping[str, Any], own: tuple[int, int], name: str) -> tuple[int, int]:
    size: Any = options.get("size", list(own))
    if not isinstance(size, list | tuple) or len(cast("list[Any]", size)) != 2:
        raise BadStep(f"option size is {size!r}, expected [height, width]")
    sides = cast("list[Any]", size)
    if not all(type(side) is int and (side == -1 or 0 < side <= 1 << 14) for side in sides):
        raise BadStep(f"option size is {size!r}, expected whole numbers, or -1 for what follows from the picture")
    if any(want not in (-1, side) for want, side in zip(own, sides, strict=True)):
        raise BadStep(f"option size is {size!r}, but tensor {name!r} has height and width {list(own)}")
    return sides[0], sides[1]


def _read_number(options: Mapping[str, Any], option: str, default: int) -> int:
    value = options.get(option, default)
    if type(value) is not int:
        raise BadStep(f"option {option} is {value!r}, expected a whole number")
    return value


def _read_channels(options: Mapping[str, Any], option: str, default: float, num_channels: int) -> NDArray[Any]:
    """A number, or one for each channel, in the order that the tensor has."""
    given: Any = options.get(option, default)
    values = cast("list[Any]", given) if isinstance(given, list | tuple) else [given] * num_channels
    is_right = len(values) == num_channels and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    if not is_right:
        raise BadStep(f"option {option} is {given!r}, expected a number, or {num_channels} of them")
    return np.array(values, np.float64)


STEP: Final = ImageStep
