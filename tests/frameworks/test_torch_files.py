"""torch's own files: what a model is saved as, how it is served, and what is refused before torch opens it."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch

from argosy.errors import ModelError
from argosy.frameworks.base import get_framework
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Relu, draw_weights
from argosy.runtimes.base import BadInput
from argosy.runtimes.torch import TorchRuntime
from tests.frameworks.one_tensor import save_one

FRAMEWORK = get_framework("torch")
NAMES = {"inputs": ["x"], "outputs": ["y"]}
LAYERS = (Conv(3), BatchNorm(), Relu(), MaxPool(), Flatten(), Dropout(0.5), Dense(4))


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(5, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Embedding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.embed(x).mean(dim=1))


class Branching(torch.nn.Module):
    """Which branch is taken depends on the numbers: a script keeps both."""

    def forward(self, x):
        if bool(x.sum() > 1e6):
            return x * 2
        return x + 1


class Fixed(torch.nn.Module):
    """Answers two rows and no other number."""

    def forward(self, x):
        return x + torch.ones(2, 1)


class Pair(torch.nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "product": a * b}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_rows(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def make_network():
    return FRAMEWORK.build_network(LAYERS, (2, 6, 4), draw_weights(LAYERS, (2, 6, 4), 0))


def load(folder, entry, names=NAMES):
    runtime = TorchRuntime()
    runtime.load(folder, entry, names)
    return runtime


@pytest.mark.parametrize(
    ("make", "rows", "entry"),
    [
        pytest.param(make_network, make_rows(5, 2, 6, 4), "model.pt2", id="cnn"),
        pytest.param(Recurrent, make_rows(5, 6, 5), "model.pt2", id="lstm"),
        pytest.param(Embedding, np.arange(20).reshape(5, 4), "model.pt2", id="embedding"),
        pytest.param(lambda: torch.nn.Linear(4, 2).double(), make_rows(5, 4, dtype="float64"), "model.pt2", id="float64"),
        pytest.param(Branching, make_rows(5, 4), "model.ts", id="branching"),
    ],
)
def test_saved_model_answers_any_number_of_rows_as_the_model(make, rows, entry, tmp_path):
    model = make()
    assert save_one(FRAMEWORK, model, rows, tmp_path).entry == entry
    assert [path.name for path in tmp_path.iterdir()] == [entry]
    runtime = load(tmp_path, entry)
    for num_rows in (1, 2, 3, 7, 20):
        x = rows[np.arange(num_rows) % len(rows)]
        x.flags.writeable = False
        answer = runtime.infer({"x": x})["y"]
        # The same operators on the same machine.
        np.testing.assert_allclose(answer, FRAMEWORK.predict(model, x), atol=1e-5)
        assert answer.flags.c_contiguous


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("makes_script", [False, True], ids=["program", "script"])
def test_index_out_of_range_is_the_fault_of_who_sent_it(makes_script, tmp_path):
    rows = np.arange(20).reshape(5, 4)
    if makes_script:
        torch.jit.script(Embedding()).save(str(tmp_path / "model.ts"))
    else:
        save_one(FRAMEWORK, Embedding(), rows, tmp_path)
    runtime = load(tmp_path, "model.ts" if makes_script else "model.pt2")
    with pytest.raises(BadInput, match="out of range"):
        runtime.infer({"x": rows + 40})
    assert runtime.infer({"x": rows})["y"].shape == (5, 3)


def test_model_of_a_fixed_number_of_rows_is_refused_with_every_reason(tmp_path):
    with pytest.raises(ModelError) as caught:
        save_one(FRAMEWORK, Fixed(), make_rows(2, 1), tmp_path)
    assert caught.value.key == "save_failed"
    assert all(f"{way}: " in caught.value.message for way in ("program", "script", "trace"))
    assert not [*tmp_path.iterdir()]


def write_pair(path):
    rows = {0: torch.export.Dim("rows")}
    # Not one tensor twice: torch would take the second for the first.
    program = torch.export.export(Pair(), (torch.ones(2, 3),), {"b": torch.zeros(2, 3)}, dynamic_shapes={"a": rows, "b": rows})
    torch.export.save(program, str(path))


def test_tensors_are_matched_by_their_order(tmp_path):
    write_pair(tmp_path / "pair.pt2")
    runtime = load(tmp_path, "pair.pt2", {"inputs": ["left", "right"], "outputs": ["plus", "times"]})
    left, right = make_rows(5, 3), np.full((5, 3), 2.0, np.float32)
    answers = runtime.infer({"right": right, "left": left})
    np.testing.assert_array_equal(answers["plus"], left + right)
    np.testing.assert_array_equal(answers["times"], left * right)
    with pytest.raises(ValueError, match="expected 1 tensors: y"):
        load(tmp_path, "pair.pt2", {"inputs": ["left", "right"], "outputs": ["y"]}).infer({"right": right, "left": left})


def test_kind_of_a_file_is_told_by_its_content(tmp_path):
    save_one(FRAMEWORK, make_network(), make_rows(2, 2, 6, 4), tmp_path)
    shutil.move(tmp_path / "model.pt2", tmp_path / "weights.bin")
    assert load(tmp_path, "weights.bin").infer({"x": make_rows(3, 2, 6, 4)})["y"].shape == (3, 4)


def test_runtime_takes_the_number_of_threads(tmp_path):
    entry = save_one(FRAMEWORK, torch.nn.Linear(4, 2), make_rows(2, 4), tmp_path).entry
    before = torch.get_num_threads()
    try:
        load(tmp_path, entry, NAMES | {"threads": before + 1})
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


class Nasty:
    def __reduce__(self):
        return print, ("unpickled",)


def rewrite(path, change=lambda text: text, extra=(), root="m"):
    """Write an archive again with another `model.json`, and entries added or replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    entries["models/model.json"] = change(entries["models/model.json"].decode()).encode()
    entries |= dict(extra)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"{root}/{name}", content)


def set_guard(text):
    return json.dumps(json.loads(text) | {"guards_code": ["__import__('os').system('true')"]})


def call(target):
    return lambda text: text.replace("torch.ops.aten.linear.default", target)


def evaluate(expression):
    return lambda text: re.sub(r"Symbol\('s\d+', positive=True, integer=True\)", expression, text)


WEIGHTS = "data/weights/model_weights_config.json"


@pytest.mark.parametrize(
    ("change", "extra", "words"),
    [
        pytest.param(call("torch.serialization.os.system"), (), "os.system", id="module"),
        pytest.param(call("torch.ops.aten.from_file.default"), (), "from_file", id="file"),
        pytest.param(call("torch.ops.load_library"), (), "load_library", id="library"),
        pytest.param(call("_operator.methodcaller"), (), "methodcaller", id="operator"),
        pytest.param(evaluate("exit(1)"), (), "no arithmetic", id="expression"),
        pytest.param(evaluate("s77.__class__"), (), "no arithmetic", id="attribute"),
        pytest.param(set_guard, (), "no arithmetic", id="guard"),
        pytest.param(lambda text: text.replace('"signature"', '"__enum__": 1, "signature"', 1), (), "nested", id="import"),
        pytest.param(str, [("data/aotinductor/model/lib.so", b"")], "not of a program", id="machine-code"),
        pytest.param(str, [("data/constants/opaque_obj_0", pickle.dumps(Nasty()))], "not of a program", id="object"),
        pytest.param(str, [("data/sample_inputs/model.pt", pickle.dumps(Nasty()))], "more than tensors", id="samples"),
        pytest.param(str, [(WEIGHTS, b'{"config": {"w": {"use_pickle": true}}}')], "pickle", id="weights"),
        pytest.param(lambda text: text[:50], (), "not loaded", id="damaged"),
    ],
)
def test_program_that_reaches_out_of_itself_is_not_opened(change, extra, words, tmp_path, capsys):
    entry = save_one(FRAMEWORK, torch.nn.Linear(4, 2), make_rows(2, 4), tmp_path).entry
    rewrite(tmp_path / entry)
    assert load(tmp_path, entry).infer({"x": make_rows(3, 4)})["y"].shape == (3, 2)
    rewrite(tmp_path / entry, change, extra)
    with pytest.raises(ValueError, match=words):
        load(tmp_path, entry)
    assert "unpickled" not in capsys.readouterr().out


def test_archive_that_two_readers_may_read_differently_is_not_opened(tmp_path):
    entry = save_one(FRAMEWORK, torch.nn.Linear(4, 2), make_rows(2, 4), tmp_path).entry
    whole = (tmp_path / entry).read_bytes()
    with zipfile.ZipFile(tmp_path / entry, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/models/model.json", b"{}")
    with pytest.raises(ValueError, match="two entries of one name"):
        load(tmp_path, entry)
    (tmp_path / entry).write_bytes(whole)
    with zipfile.ZipFile(tmp_path / entry, "a") as archive:
        archive.writestr("other/models/model.json", b"{}")
    with pytest.raises(ValueError, match="more than one root"):
        load(tmp_path, entry)
    with zipfile.ZipFile(tmp_path / entry, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", bytes(65 << 20))
    with pytest.raises(ValueError, match="would unfold to"):
        load(tmp_path, entry)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00."], ids=["empty", "cut", "pickle"])
def test_file_that_is_no_archive_is_not_opened(content, tmp_path):
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(ValueError, match="no archive of torch's"):
        load(tmp_path, "model.pt2")


def test_file_of_torch_save_is_not_opened(tmp_path):
    torch.save(torch.nn.Linear(4, 2), tmp_path / "model.ts")
    with pytest.raises(ValueError, match="neither a program of"):
        load(tmp_path, "model.ts")


class Reader(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_file("/etc/hostname", False, 4, dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_that_reads_files_is_not_opened(tmp_path):
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(Reader()), content)
    (tmp_path / "model.ts").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="from_file, which reads or writes files"):
        load(tmp_path, "model.ts")
