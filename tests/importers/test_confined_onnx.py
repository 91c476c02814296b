"""ONNX files that are hostile: what opens them is confined and bounded, and what it answers is not believed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from argosy.cli.main import main
from argosy.confine import confine
from argosy.confine.confine import Completed, Confinement
from argosy.errors import ArgosyError, InputError, ModelError, TooLargeError
from argosy.importers import look
from argosy.importers.onnx import import_onnx
from argosy.signature import TensorSpec
from argosy.store.golden import Golden, encode_golden
from argosy.store.local import Store
from tests.bombs import write_endless, write_large
from tests.home import make_scale_model

GIB = 2**30
X = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
Y = {**X, "name": "y"}
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def assert_refused(store: Store, path: Path, kind: type[ArgosyError], key: str, **options: Any) -> ArgosyError:
    with pytest.raises(kind) as caught:
        import_onnx(store, path, "evil", **options)
    assert caught.value.key == key
    assert store.list_models() == []
    assert list((store.home / "store" / "blobs" / "sha256").iterdir()) == []
    return caught.value


def test_file_that_never_ends_is_given_up(store: Store, tmp_path: Path) -> None:
    began_s = time.monotonic()
    error = assert_refused(store, write_endless(tmp_path / "m.onnx"), ModelError, "confined_timeout", timeout_s=1.5)
    assert time.monotonic() - began_s < 30
    assert "m.onnx did not end within 1.5 s" in error.message
    assert "--timeout" in error.hint


@pytest.mark.parametrize("is_constant", [True, False], ids=["when it is opened", "when it runs"])
def test_file_that_takes_more_memory_than_it_may_is_refused(store: Store, tmp_path: Path, is_constant: bool) -> None:
    path = write_large(tmp_path / "m.onnx", 3 * GIB, is_constant=is_constant)
    error = assert_refused(store, path, TooLargeError, "confined_memory", memory_bytes=2 * GIB)
    assert "m.onnx needs more memory than the 2.0 GiB" in error.message
    assert "--memory" in error.hint


def test_default_bound_is_below_what_a_few_bytes_ask_for(store: Store, tmp_path: Path) -> None:
    assert_refused(store, write_large(tmp_path / "m.onnx", 64 * GIB), TooLargeError, "confined_memory")


def test_user_may_set_both_bounds_at_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    arguments = ["import", "--name", "evil"]
    slow = run(main, [*arguments, str(write_endless(tmp_path / "slow.onnx")), "--timeout", "1.5"])
    large = run(main, [*arguments, str(write_large(tmp_path / "large.onnx", 3 * GIB)), "--memory", "2"])
    assert [result.exit_code for result in (slow, large)] == [1, 1]
    assert "did not end within 1.5 s" in slow.stderr
    assert "than the 2.0 GiB" in large.stderr
    code = run(main, [*arguments, "model.py", "--timeout", "1", "--memory", "1"])
    assert "--timeout, --memory: not for .py files" in code.stderr


def test_importing_process_never_loads_what_parses_or_opens(
    store: Store, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_onnx(external="weights.bin")
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert import_onnx(store, path, "linear").manifest.num_golden == 8


def test_graph_is_imported_where_the_kernel_confines_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "describe_confinement", lambda: Confinement(0, False))
    assert import_onnx(store, make_scale_model(tmp_path / "m.onnx", 2.0), "scale").manifest.num_golden == 8
    with pytest.raises(ModelError, match=r"e.onnx did not end within 1 s"):
        import_onnx(store, write_endless(tmp_path / "e.onnx"), "evil", timeout_s=1.0)


def test_weights_that_only_a_function_s_default_names_are_found(store: Store, tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR)
    function = helper.make_function("own", "Shift", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])], opsets)
    function.attribute_proto.add(name="w", type=onnx.AttributeProto.TENSOR, t=tensor)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Shift", ["x"], ["y"], domain="own")], "g", infos[:1], infos[1:])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10).SerializeToString())
    assert_refused(store, path, InputError, "bad_external_data")


def test_examples_that_are_too_large_are_not_kept(store: Store, tmp_path: Path) -> None:
    # One answer has 257 MiB, and all examples of a version at most 256.
    nodes = [helper.make_node("Tile", ["x", "times"], ["y"])]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]), helper.make_tensor_value_info("y", 1, ["N", None])]
    weights = [numpy_helper.from_array(np.array([1, 257 << 16]), "times")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    version = import_onnx(store, path, "wide")
    assert version.manifest.num_golden == 0
    assert "one example with its answer has more than 268435456 bytes" in version.manifest.lineage["golden_error"]
    with pytest.raises(InputError, match="one example with its answer has more"):
        import_onnx(store, path, "wide", golden_inputs={"x": np.ones((5, 4), np.float32)})


def answer(**changes: Any) -> dict[str, Any]:
    """What an honest process says of y = 2 * x."""
    facts = {"producer": "p", "opsets": {"ai.onnx": 17}, "num_weights": 2, "precision": "fp32"}
    joining = {"kind": "independent", "reason": "rows"}
    signature = {"inputs": [X], "outputs": [Y]}
    made = {"type": "Examined", "signature": signature, "joining": joining, "facts": facts, "has_golden": True, "kept": [0, 1]}
    return made | changes


def golden(x: Any = ROWS, y: Any = 2 * ROWS) -> bytes:
    return encode_golden(Golden({"x": np.asarray(x)}, {"y": np.asarray(y)}))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have another process than ours open the file: whoever took it over from inside says what he likes."""

    def be_taken_over(content: Any, examples: bytes | None = None, num_bytes: int = 0) -> None:
        def run(*_: Any, write: list[Path], waiting: Any, **__: Any) -> Completed:
            waiting.close()
            (write[0] / "answer.json").write_bytes(content if isinstance(content, bytes) else msgspec.json.encode(content))
            if examples is not None:
                (write[0] / "golden.npz").write_bytes(examples)
                os.truncate(write[0] / "golden.npz", max(num_bytes, len(examples)))
            return Completed(b"", "", 0)

        monkeypatch.setattr(look, "run_confined", run)

    return be_taken_over


def test_honest_answer_is_published(store: Store, tmp_path: Path, say: Callable[..., None]) -> None:
    say(answer(), golden())
    version = import_onnx(store, make_scale_model(tmp_path / "m.onnx", 2.0), "scale")
    assert (version.manifest.num_golden, version.manifest.joining.kind) == (2, "independent")


@pytest.mark.parametrize(
    ("content", "examples"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"[" * 100_000, None, id="deep"),
        pytest.param(b" " * (2 << 20), None, id="large"),
        pytest.param(answer(more=1), golden(), id="another field"),
        pytest.param(answer(type="Version"), golden(), id="another type"),
        pytest.param(answer(joining={"kind": "always", "reason": ""}), golden(), id="another verdict"),
        pytest.param(answer(signature={"inputs": [X, X], "outputs": [Y]}), golden(), id="a tensor twice"),
        pytest.param(answer(signature={"inputs": [{**X, "shape": [-2]}], "outputs": [Y]}), golden(), id="negative axis"),
        pytest.param({"type": "Locations", "locations": []}, None, id="weights in no file"),
        pytest.param({"type": "Locations", "locations": [["m.onnx"]]}, None, id="weights in a file that is there"),
        pytest.param(answer(), None, id="no examples"),
        pytest.param(answer(), b"PK\x03\x04", id="examples cut off"),
        pytest.param(answer(), golden(y=ROWS.astype("f8")), id="examples of another datatype"),
        pytest.param(answer(), golden(y=np.ones((2, 5), "f4")), id="examples of another shape"),
        pytest.param(answer(), golden(y=np.ones((3, 4), "f4")), id="more answers than examples"),
    ],
)
def test_answer_that_cannot_be_is_refused(
    store: Store, tmp_path: Path, say: Callable[..., None], content: Any, examples: bytes | None
) -> None:
    say(content, examples)
    assert_refused(store, make_scale_model(tmp_path / "m.onnx", 2.0), InputError, "bad_onnx")


def test_examples_that_would_fill_the_memory_are_not_read(store: Store, tmp_path: Path, say: Callable[..., None]) -> None:
    say(answer(), golden(), num_bytes=300 << 20)
    assert_refused(store, make_scale_model(tmp_path / "m.onnx", 2.0), InputError, "bad_onnx")


def test_steps_and_labels_are_the_user_s_to_say(store: Store, tmp_path: Path, say: Callable[..., None]) -> None:
    step = {"kind": "text", "name": "words", "inputs": ["x"], "options": {"tokenizer": "../../secret"}}
    say(
        answer(signature={"inputs": [{**X, "unit": "m"}], "outputs": [{**Y, "labels": ["\x1b[2J"] * 4}], "preprocess": [step]}),
        golden(),
    )
    signature = import_onnx(store, make_scale_model(tmp_path / "m.onnx", 2.0), "scale").manifest.signature
    assert signature.preprocess == ()
    assert signature.inputs + signature.outputs == (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))


def test_inputs_of_examples_stay_the_user_s(store: Store, tmp_path: Path, say: Callable[..., None]) -> None:
    say(answer(kept=[1]), golden(x=np.zeros((1, 4), "f4"), y=2 * ROWS[1:]))
    path = make_scale_model(tmp_path / "m.onnx", 2.0)
    version = import_onnx(store, path, "scale", golden_inputs={"x": ROWS})
    assert store.load_golden(version).inputs["x"].tolist() == ROWS[1:].tolist()
    for kept in ([7], [-9], [0, 1]):
        say(answer(kept=kept), golden(y=2 * ROWS[:1]))
        with pytest.raises(InputError, match="an answer that cannot be"):
            import_onnx(store, path, "scale", golden_inputs={"x": ROWS})


@pytest.mark.parametrize("key", ["disk_full", "no_such_key", "bad_onnx"])
def test_refusal_says_no_more_than_it_may(store: Store, tmp_path: Path, say: Callable[..., None], key: str) -> None:
    say({"detail": "\x1b[2Jgone", "key": key, "fields": {"detail": "\x1b[2Jgone", "path": "m.onnx", "what": "x"}})
    error = assert_refused(store, make_scale_model(tmp_path / "m.onnx", 2.0), InputError, "bad_onnx")
    assert "gone" in error.message
    assert "\x1b" not in error.message
