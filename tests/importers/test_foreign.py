"""Models of every format: imported in a confined process, served by one server, held against what their framework answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import argosy
from argosy.confine.confine import describe_confinement
from argosy.environment import find_interpreter, get_environment, is_importable
from argosy.errors import ArgosyError, InputError, NotAllowedError
from argosy.importers.foreign import import_foreign
from argosy.runtimes.base import load_runtime_class
from argosy.server import Server
from argosy.signature import Ragged, RaggedInput
from argosy.store.local import Store, Version

# Of the extra `convert`; a framework of which a file is skips its own.
pytestmark = [
    pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel cannot confine a process"),
    pytest.mark.needs("lightgbm", "onnxscript", "skl2onnx", "xgboost"),
]

WRITER = Path(__file__).with_name("foreign_files.py")
TOLERANCE = 1e-5
"""Relative to the largest magnitude of an output: float32 kernels that sum in another order differ by 1e-7 to 1e-6."""
NEEDS = {"torch": "torch", "tables": "onnxruntime", "tensorflow": "tensorflow", "jax": "flax", "mxnet": "mxnet"}


class Case(NamedTuple):
    file: str
    group: str
    input: str = "input"
    runtime: str = "onnx"
    has_sample: bool = False
    options: dict[str, Any] = {}


CASES = {
    "torchscript": Case("torchscript.pt", "torch", "input", has_sample=True),
    "pt2": Case("pt2.pt2", "torch"),
    "safetensors": Case("safetensors.safetensors", "torch", has_sample=True, options={"code": "program.py:build_torch"}),
    "state": Case("state.pt", "torch", has_sample=True, options={"code": "program.py:build_torch"}),
    "pickled": Case("pickled.pt", "torch", has_sample=True, options={"allow_pickle": True}),
    "sklearn": Case("sklearn.joblib", "tables", options={"allow_pickle": True}),
    "xgboost": Case("xgboost.ubj", "tables"),
    "lightgbm": Case("lightgbm.txt", "tables"),
    "keras": Case("keras.keras", "tensorflow", "input_layer"),
    "savedmodel": Case("savedmodel", "tensorflow", "x"),
    "jax": Case("jax.jax", "jax", runtime="jax"),
    "flax": Case("flax.msgpack", "jax", has_sample=True, options={"code": "program.py:build_linen"}),
    "mxnet": Case("mxnet-symbol.json", "mxnet", "data", has_sample=True),
}


# Not every one in both ways: TensorFlow takes as long to start as ten others.
QUICK = ("lightgbm", "mxnet", "safetensors", "sklearn", "xgboost")
DAMAGED = [
    pytest.param(name, damage, id=f"{name}-{damage}", marks=[] if name in QUICK else pytest.mark.slow)
    for name in CASES
    for damage in ("half", "flipped")
    if name not in ("flax", "state", "pickled") and (name, damage) != ("savedmodel", "flipped")
]


def find_python(group: str) -> Path | None:
    if is_importable(NEEDS[group]):
        return Path(sys.executable)
    return find_interpreter("mxnet") if group == "mxnet" and get_environment("mxnet").is_built else None


class Bench:
    """Files as each framework writes them, and a store that they are imported into; each of it when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.files.mkdir()
        self.store = Store(folder / "home")
        (self.files / "secret").write_text("correct-horse")
        self._written: set[str] = set()
        self._versions: dict[str, Version] = {}

    def write(self, group: str) -> Path:
        """Have a framework write its files; the folder of all."""
        if group not in self._written:
            if (python := find_python(group)) is None:
                pytest.skip(f"{NEEDS[group]} is not installed")
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run([python, WRITER, group, self.files], check=True, timeout=100, capture_output=True, env=environment)
            self._written.add(group)
        return self.files

    def bring(self, path: Path, name: str, case: Case) -> Version:
        """Import a file with what its format needs beside it."""
        options = dict(case.options)
        if "code" in options:
            options["code"] = f"{self.files}/{options['code']}"
        rows = np.load(self.files / "rows.npy") if case.has_sample else None
        return import_foreign(self.store, path, name, sample=rows, **options)

    def find_version(self, name: str) -> Version:
        """The version of a file that was imported whole."""
        if name not in self._versions:
            case = CASES[name]
            self._versions[name] = self.bring(self.write(case.group) / case.file, name, case)
        return self._versions[name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def store(bench: Bench) -> Store:
    return bench.store


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 16]) + content[middle + 16 :]
    path.write_bytes(content[:middle] if damage == "half" else flipped)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with argosy.serve(home=store.home) as server:
        yield server


def measure(want: np.ndarray, got: np.ndarray) -> float:
    assert want.shape == got.shape
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else np.inf
    return float(np.max(np.abs(want - got)) / np.max(np.abs(want)))


@pytest.mark.parametrize("name", CASES)
def test_imported_model_answers_as_its_framework(name: str, bench: Bench, server: Server) -> None:
    bench.find_version(name)
    server.deploy(name, allow_code=True)
    with server.client() as client:
        got = client.predict(name, {CASES[name].input: np.load(bench.files / "rows.npy")})
    expected = dict(np.load(bench.files / f"{name}.answers.npz"))
    assert got.keys() == expected.keys()
    for output, want in expected.items():
        answer = np.char.decode(got[output].astype("S")) if want.dtype.kind == "U" else got[output]
        assert measure(want, answer) <= TOLERANCE, output


@pytest.mark.parametrize("name", CASES)
def test_version_says_where_it_comes_from(name: str, bench: Bench) -> None:
    case, manifest = CASES[name], bench.find_version(name).manifest
    lineage = manifest.lineage
    assert manifest.runtime == case.runtime
    assert lineage["source_file"] == case.file
    assert lineage["source"]["digest"].startswith("sha256:") and lineage["source"]["size_bytes"] > 0
    assert lineage["environment"]
    assert lineage["export"]["format"] == case.runtime
    assert 0 <= lineage["export"]["difference"] <= TOLERANCE
    # The user's rows become golden examples; without any, they are random, and this is said.
    assert (manifest.num_golden, manifest.golden_is_synthetic) == (8, not case.has_sample)


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_damaged_file_is_refused_or_answers_as_what_it_became(name: str, damage: str, bench: Bench) -> None:
    case, folder = CASES[name], bench.files / "damaged" / f"{name}-{damage}"
    source, path = bench.write(case.group) / case.file, folder / case.file
    folder.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, path)
    for part in () if source.is_dir() else bench.files.glob(f"{Path(case.file).stem.removesuffix('-symbol')}[-.]*"):
        shutil.copy(part, folder)
    spoil(path / "saved_model.pb" if source.is_dir() else path, damage)
    outcome: Version | ArgosyError
    try:
        outcome = bench.bring(path, "damaged", case)
    except ArgosyError as error:
        outcome = error
    if isinstance(outcome, ArgosyError):
        assert outcome.key in (
            "format_mismatch",
            "bad_archive",
            "bad_model_file",
            "bad_sample",
            "needs_sample",
            "not_convertible",
        )
        assert "Traceback" not in str(outcome) and len(outcome.message) < 1000
    else:
        # Weights were hit, or what nothing depends on; the framework saw the same file.
        assert outcome.manifest.lineage["export"]["difference"] <= TOLERANCE
    if damage == "half":
        assert isinstance(outcome, ArgosyError)


def test_several_inputs_and_outputs_keep_their_names(bench: Bench, store: Store) -> None:
    files = bench.write("torch")
    rows = np.load(files / "rows.npy")
    version = import_foreign(store, files / "heads.pt", "heads", sample={"right": rows, "left": rows})
    signature = version.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("left", (-1, 4)), ("right", (-1, 4))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("sum", (-1, 4)), ("first", (-1,))]
    # A script that gives a dictionary has no ONNX form; PyTorch serves it.
    assert version.manifest.runtime == "torch"
    assert "DictConstruct" in version.manifest.lineage["export"]["reason"]
    golden = store.load_golden(version)
    np.testing.assert_array_equal(golden.outputs["first"], rows[:8, 0])


TWO = """
import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 3), torch.nn.Linear(2, 3)

    def forward(self, left, right):
        mixed = self.a(left) + self.b(right)
        return {"mixed": mixed, "total": mixed.sum(1)}

def build():
    return Two()
"""


def test_model_that_code_builds_takes_several_inputs_by_the_names_of_its_arguments(store: Store, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    scope: dict[str, Any] = {}
    exec(TWO, scope)
    model = scope["build"]()
    (tmp_path / "two.py").write_text(TWO)
    torch.save(model.state_dict(), tmp_path / "two.pt")
    rng = np.random.default_rng(0)
    sample = {"right": rng.standard_normal((8, 2)), "left": rng.standard_normal((8, 4))}
    version = import_foreign(store, tmp_path / "two.pt", "two", sample=sample, code=f"{tmp_path}/two.py:build")
    signature = version.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("left", (-1, 4)), ("right", (-1, 2))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("mixed", (-1, 3)), ("total", (-1,))]
    assert version.manifest.runtime == "onnx"
    golden = store.load_golden(version)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(golden.inputs[name]) for name in ("left", "right")))
    for name, want in expected.items():
        np.testing.assert_allclose(golden.outputs[name], want.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="names of the model's arguments: left, right") as caught:
        import_foreign(
            store, tmp_path / "two.pt", "two", sample=sample | {"other": sample["left"]}, code=f"{tmp_path}/two.py:build"
        )
    assert caught.value.key == "bad_sample"


def test_program_of_jax_keeps_its_inputs_and_outputs(bench: Bench, store: Store) -> None:
    files = bench.write("jax")
    version = import_foreign(store, files / "two.jax", "two-of-jax")
    signature = version.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("input_0", (-1, 4)), ("scale", (-1, 1))]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("mixed", (-1, 3)), ("total", (-1,))]
    golden = store.load_golden(version)
    with np.load(files / "two.weights.npz") as kept:
        mixed = golden.inputs["input_0"] @ kept["weights"] * golden.inputs["scale"]
    np.testing.assert_allclose(golden.outputs["mixed"], mixed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(golden.outputs["total"], mixed.sum(1), rtol=1e-5, atol=1e-5)


def test_lengths_of_a_script_are_free_if_they_are_named(store: Store, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(9, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embed(ids).mean(1) if bool(ids.sum() > 50) else self.embed(ids).sum(1)

    model = Bag()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(tmp_path / "bag.pt"))
    ids = np.random.default_rng(0).integers(0, 9, (8, 5))
    ragged = Ragged({"ids": RaggedInput(1)})
    version = import_foreign(store, tmp_path / "bag.pt", "bag", sample=ids, ragged=ragged)
    assert (version.manifest.signature.inputs[0].shape, version.manifest.signature.ragged) == ((-1, -1), ragged)
    runtime = load_runtime_class(version.manifest.runtime)()
    runtime.load(store.open_artifact(version), version.manifest.entry, version.manifest.options)
    for length in (1, 30):
        rows = np.random.default_rng(length).integers(0, 9, (2, length))
        with torch.no_grad():
            np.testing.assert_allclose(runtime.infer({"ids": rows})["output"], model(torch.from_numpy(rows)).numpy(), rtol=1e-5)
    with pytest.raises(InputError, match=r"there are: ids of shape \[8, 5\]") as caught:
        import_foreign(store, tmp_path / "bag.pt", "bag", sample=ids, dynamic={"ids": [2]})
    assert caught.value.key == "bad_option"


def test_columns_that_are_picked_by_name_are_inputs(bench: Bench, store: Store) -> None:
    files = bench.write("tables")
    with pytest.raises(InputError, match="needs sample rows"):
        import_foreign(store, files / "columns.joblib", "columns", allow_pickle=True)
    sample = {"age": np.zeros(3, np.float32), "city": ["oslo", "rome", "bern"]}
    version = import_foreign(store, files / "columns.joblib", "columns", allow_pickle=True, sample=sample)
    assert [(s.name, s.datatype, s.shape) for s in version.manifest.signature.inputs] == [
        ("age", "FP32", (-1, 1)),
        ("city", "BYTES", (-1, 1)),
    ]


@pytest.mark.parametrize(("group", "file"), [("tables", "sklearn.joblib"), ("torch", "pickled.pt")])
def test_pickle_is_not_opened_unless_allowed(bench: Bench, store: Store, group: str, file: str) -> None:
    files = bench.write(group)
    with pytest.raises(NotAllowedError, match="runs whatever code its maker put in") as caught:
        import_foreign(store, files / file, "unopened")
    assert "--allow-pickle" in caught.value.hint and ("skops" in caught.value.hint or ".pt2" in caught.value.hint)


def test_sample_has_to_fit(bench: Bench, store: Store) -> None:
    files = bench.write("tables")

    def refuse(sample: Any, file: str = "xgboost.ubj") -> str:
        with pytest.raises(InputError) as caught:
            import_foreign(store, files / file, "unfit", sample=sample)
        assert caught.value.key == "bad_sample"
        return caught.value.message

    assert "has shape (3, 5), expected (-1, 4)" in refuse(np.zeros((3, 5), np.float32))
    assert "it has nonsense, expected input" in refuse({"nonsense": np.zeros((3, 4))})
    assert "not rectangular" in refuse([[1.0, 2.0], [1.0]])
    assert "neither numbers nor text" in refuse([[None] * 4])
    assert "rows are" in refuse(np.zeros((0, 4), np.float32))
    assert "is bool, expected FP32" in refuse(np.zeros((3, 4), bool))
    bench.write("torch")
    assert "the model fails on them" in refuse(np.zeros((3, 5), np.float32), "torchscript.pt")


def test_code_has_to_fit(bench: Bench, store: Store) -> None:
    files = bench.write("tables")
    bench.write("torch")
    rows = np.load(files / "rows.npy")

    def refuse(code: str | None, file: str = "safetensors.safetensors") -> ArgosyError:
        with pytest.raises(ArgosyError) as caught:
            import_foreign(store, files / file, "unfit", sample=rows, code=code)
        return caught.value

    program = files / "program.py"
    assert refuse(None).key == "needs_code"
    assert refuse("program.py").key == "bad_code"
    assert refuse(f"{files}/nothing.py:build").key == "missing_file"
    assert "has no attribute 'nothing'" in refuse(f"{program}:nothing").message
    assert "expected nothing for a LightGBM model" in refuse(f"{program}:build_torch", "lightgbm.txt").message


def test_code_cannot_read_what_lies_elsewhere(
    bench: Bench, store: Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = bench.write("torch")
    (tmp_path / "secret").write_text("correct-horse")
    thief = tmp_path_factory.mktemp("thief") / "thief.py"
    thief.write_text(f"def build():\n    raise ValueError(open('{tmp_path}/secret').read())\n")
    with pytest.raises(InputError, match="PermissionError") as caught:
        import_foreign(store, files / "safetensors.safetensors", "stolen", code=f"{thief}:build", sample=np.zeros((1, 4)))
    assert "correct-horse" not in str(caught.value)


def test_missing_framework_is_named_with_its_extra(bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = bench.write("tables")
    monkeypatch.setattr("argosy.importers.foreign.is_importable", lambda package: False)
    with pytest.raises(InputError, match="needs the package lightgbm") as caught:
        import_foreign(store, files / "lightgbm.txt", "absent")
    assert caught.value.hint == "pip install 'argosy[convert]'"


def test_nothing_is_imported_where_a_process_cannot_be_confined(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = bench.write("tables")
    monkeypatch.setattr("argosy.confine.confine.read_landlock_abi", lambda: 0)
    with pytest.raises(NotAllowedError, match="cannot confine files"):
        import_foreign(store, files / "sklearn.joblib", "unconfined", allow_pickle=True)
