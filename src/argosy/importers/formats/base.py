"""Which formats of model files there are, and what a file gives once it is loaded.

`files/X.py` loads the formats of framework X: `load(source)` gives a `ForeignModel`. That happens in a confined process
alone (`argosy.importers.convert`), for a file is as hostile as whoever made it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from argosy.errors import InputError, ModelError, list_choices
from argosy.signature import Arrays, TensorSpec

__all__ = ["FORMATS", "ForeignModel", "Format", "Source", "find_format", "fit_to_specs", "load", "refuse"]


class Format(NamedTuple):
    """One format of files."""

    title: str
    """For messages, after "is not": `a TorchScript archive`."""
    module: str
    """Of `importers/formats`, that loads it."""
    suffixes: tuple[str, ...]
    needs: tuple[str, ...]
    """Packages that must be importable."""
    extra: str
    """Of Argosy, that brings them."""
    runtimes: tuple[str, ...] = ()
    """What may serve a model of it that does not convert to ONNX."""
    is_pickle: bool = False
    """Opening it runs code of its maker's choice."""
    needs_code: bool = False
    """It holds weights alone."""
    takes_code: bool = False
    """Code may be given: the file's weights are then loaded into what it builds."""
    is_recognisable: bool = True
    """Its content tells it from any other; otherwise the suffix, or the user, does."""
    instead: str = ""
    """For a pickle: what else its owner can do."""


_TORCH_INSTEAD: Final = (
    "where it holds weights alone, give what builds the model, --code FILE.py:FUNCTION; a whole model export with "
    "torch.export.save (.pt2)"
)
_PICKLE_INSTEAD: Final = "save it with skops (.skops), or convert it to ONNX with skl2onnx where it was trained"

FORMATS: Final[dict[str, Format]] = {
    "torchscript": Format(
        "a TorchScript archive",
        "torch",
        (".pt", ".pth", ".ts", ".torchscript"),
        ("torch",),
        "torch",
        ("torch",),
    ),
    "pt2": Format("a torch.export archive", "torch", (".pt2",), ("torch",), "torch", ("torch",)),
    "torch": Format(
        "a file of torch.save",
        "torch",
        (".pt", ".pth", ".bin", ".ckpt"),
        ("torch",),
        "torch",
        ("torch",),
        is_pickle=True,
        takes_code=True,
        instead=_TORCH_INSTEAD,
    ),
    "keras": Format("a Keras archive", "keras", (".keras",), ("keras",), "keras", ("keras",)),
    "savedmodel": Format("a SavedModel folder", "tensorflow", (), ("tensorflow",), "tensorflow", ("tensorflow",)),
    "mxnet": Format("an MXNet symbol", "mxnet", (".json",), ("mxnet",), "mxnet", ("mxnet",)),
    "openvino": Format("an OpenVINO IR graph", "openvino", (".xml",), ("openvino",), "openvino", ("openvino",)),
    "jax": Format(
        "a program of jax.export",
        "jax",
        (".jax", ".stablehlo"),
        ("jax",),
        "jax",
        ("jax",),
        is_recognisable=False,
    ),
    "flax": Format(
        "weights of Flax",
        "jax",
        (".msgpack", ".flax"),
        ("flax",),
        "jax",
        ("jax",),
        needs_code=True,
        takes_code=True,
        is_recognisable=False,
    ),
    "safetensors": Format(
        "a safetensors file",
        "safetensors",
        (".safetensors",),
        ("safetensors",),
        "convert",
        runtimes=("jax", "keras", "tensorflow", "torch"),
        needs_code=True,
        takes_code=True,
    ),
    "pickle": Format(
        "a pickle",
        "sklearn",
        (".pkl", ".pickle", ".joblib"),
        ("sklearn", "skl2onnx"),
        "convert",
        is_pickle=True,
        is_recognisable=False,
        instead=_PICKLE_INSTEAD,
    ),
    "skops": Format("a skops archive", "sklearn", (".skops",), ("skops", "skl2onnx"), "convert"),
    "xgboost": Format("an XGBoost model", "xgboost", (".json", ".ubj", ".model"), ("xgboost",), "convert"),
    "lightgbm": Format("a LightGBM model", "lightgbm", (".txt", ".lgb", ".model"), ("lightgbm",), "convert"),
}
"""By the name that `--format` takes."""


class Source(NamedTuple):
    """What is loaded: a copy of the user's file, and what the user says of it."""

    format: str
    """Key of `FORMATS`."""
    path: Path
    """The file, or the folder of a SavedModel."""
    code: Path | None = None
    """The user's program that builds the model, whose weights the file holds."""
    function: str = ""
    """Of the program; called without arguments, it gives the model."""


class ForeignModel(ABC):
    """A model that was loaded from a file. The first axis of its tensors is rows, unless `inputs` fixes it."""

    framework: str = ""
    """For the lineage."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions belong in a lineage."""
    input_names: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    """What the file tells of the inputs; () if it does not tell shapes."""
    outputs: tuple[TensorSpec, ...] = ()
    """What the file tells of the outputs; () if it does not tell shapes."""
    runtime: str = ""
    """What serves its native form; "" if it has none that is no pickle."""
    words: tuple[str, ...] = ()
    """Some that the model knows, for random texts."""
    is_of_doubles: bool = False
    """Its own numbers are float64; what is written may hold them in float32."""
    dynamic: Mapping[str, Sequence[int]] = {}
    """Axes of any length that the user names, by input, of a model that does not tell shapes."""

    @property
    def free_axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of each input that are of any length, beside that of the rows: as the file tells, or the user."""
        first = 0 if any(spec.shape[:1] != (-1,) for spec in self.inputs) else 1
        told = {spec.name: [axis for axis, dim in enumerate(spec.shape) if dim < 0 and axis >= first] for spec in self.inputs}
        named = {name: tuple(axes) for name, axes in self.dynamic.items()}
        return {name: tuple(sorted({*told.get(name, ()), *named.get(name, ())})) for name in self.input_names}

    def take_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Name the inputs for a sample with these names, where the file does not even tell how many there are.

        Raises:
            InputError: `bad_sample`, there are no such inputs.
        """
        del names  # The file tells.
        return self.input_names

    def arrange(self, inputs: Arrays) -> Arrays:
        """Give sample rows the types and shapes that the model takes; they have the names of its inputs.

        Raises:
            InputError: `bad_sample`, they do not fit.
        """
        return fit_to_specs(inputs, self.inputs) if self.inputs else inputs

    def list_forms(self, inputs: Arrays) -> list[Arrays]:
        """Give the same inputs in other types that the model takes, to be tried in order; by default there are none."""
        return []

    def draw_edges(self, inputs: Arrays) -> Arrays | None:
        """Give rows at and beside numbers where the model switches, if it tells any, beside real rows."""
        return None

    def draw_roundings(self) -> Iterable[Callable[[Arrays], Arrays]]:
        """Give a model that is of doubles a few times, its own numbers rounded as float32 might leave them."""
        return ()

    @abstractmethod
    def predict(self, inputs: Arrays) -> Arrays:
        """Answer a batch by the framework itself.

        Raises:
            InputError: `bad_sample`, it fails on these rows.
        """

    @abstractmethod
    def export_onnx(self, inputs: Arrays, path: Path) -> None:
        """Write the model as an ONNX file with the tensors that `predict` takes and gives.

        Args:
            inputs: real rows, to trace.
            path: of the file to write.

        Raises:
            ModelError: `export_failed`, ONNX has no word for something in it.
        """

    def save_native(self, inputs: Arrays, folder: Path) -> str:
        """Write the model into an empty folder in the form that its runtime loads. By default there is none.

        Args:
            inputs: real rows, to trace.
            folder: to write to.

        Returns:
            The name of the file that the runtime is told to load.

        Raises:
            ModelError: `save_failed`.
        """
        raise ModelError("save_failed", detail=f"a form of {self.framework}'s own would be a pickle, or nothing here serves it")


def find_format(name: str) -> Format:
    """Give a format by name.

    Raises:
        InputError: `unknown_choice`.
    """
    if name not in FORMATS:
        raise InputError("unknown_choice", kind="format", got=name, known=list_choices(FORMATS))
    return FORMATS[name]


def refuse(title: str, detail: str) -> InputError:
    """Make the error of a file that is not what it should be; `path` is filled in by who knows the user's name of it."""
    return InputError("bad_model_file", path="?", title=title, detail=detail)


def refuse_weights(detail: str) -> InputError:
    """Make the error of weights that are not those of the model that the user's code builds: one of the two is another's."""
    # A library's own words may be lines with tabs before them.
    return InputError("weights_differ", path="?", detail=" ".join(detail.split()))


def load(source: Source) -> ForeignModel:
    """Load a file. Whatever a library raises on a file that is damaged comes through as it is.

    Raises:
        InputError: `bad_model_file` and others, by format.
    """
    module: Any = importlib.import_module(f"argosy.importers.formats.{FORMATS[source.format].module}")
    return module.load(source)


def fit_to_specs(inputs: Arrays, specs: Sequence[TensorSpec], *, keeps_doubles: bool = False) -> Arrays:
    """Give arrays the datatypes that a file tells of; numbers with a fraction and integers may be of another width.

    Args:
        inputs: by name, one for each of `specs`.
        specs: of the file.
        keeps_doubles: float64 stays, where float32 is told.

    Raises:
        InputError: `bad_sample`, a shape or a kind of number does not fit.
    """
    fitted: Arrays = {}
    for spec in specs:
        array = inputs[spec.name]
        if not spec.accepts(array.shape):
            raise InputError("bad_sample", detail=f"input {spec.name!r} has shape {array.shape}, expected {spec.shape}")
        if keeps_doubles and (array.dtype, spec.datatype) == (np.float64, "FP32"):
            fitted[spec.name] = array
            continue
        kinds = {"f": "fiu", "i": "iu", "u": "iu"}.get(spec.dtype.kind, spec.dtype.kind)
        cast = array.astype(spec.dtype) if array.dtype.kind in kinds else None
        if cast is None or (spec.dtype.kind in "iu" and not np.array_equal(cast, array)):
            raise InputError("bad_sample", detail=f"input {spec.name!r} is {array.dtype}, expected {spec.datatype}")
        fitted[spec.name] = cast
    return fitted
