"""Files of models that must be refused, whatever their format, without a trace, a stolen secret or a harmed importer.

    python attacks/hostile_model_files.py [--few]

Prints one line a file; exits 1 if one was published, left a trace outside, or had a secret in what was said of it.
A file of a framework that is not installed is left out. It takes a minute, as each file that is opened has a process of its own;
with --few, the first of each format is opened alone.
"""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import pickle
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from argosy.confine.confine import describe_confinement
from argosy.environment import get_environment, is_importable
from argosy.errors import ArgosyError
from argosy.importers.foreign import import_foreign
from argosy.importers.formats.base import FORMATS
from argosy.store.local import Store

SECRET = "correct-horse-battery-staple"
DEEP = 100_000
ROWS = np.zeros((2, 4), np.float32)


class Attack(NamedTuple):
    what: str
    path: Path
    options: dict[str, Any]
    format: str = ""
    """Whose framework has to be installed; "" if none is asked."""


class Bomb:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.code,)


class Maker:
    """Writes files into a folder, each into one of its own."""

    def __init__(self, folder: Path, marker: Path, secret: Path) -> None:
        self.folder, self.marker, self.secret = folder, marker, secret
        self.attacks: list[Attack] = []

    def add(self, what: str, name: str, content: bytes, format: str = "", **options: Any) -> Path:
        path = self.folder / str(len(self.attacks)) / name
        path.parent.mkdir()
        path.write_bytes(content)
        self.attacks.append(Attack(f"{name}: {what}", path, options, format))
        return path

    def zip(self, what: str, name: str, entries: dict[str, bytes], format: str = "", **options: Any) -> None:
        self.add(what, name, pack(entries), format, **options)


def pack(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def add_strange_files(make: Maker) -> None:
    """What is no file of the format that its name says."""
    names = [f"model{suffix}" for known in FORMATS.values() for suffix in known.suffixes[:1]]
    for name in dict.fromkeys([*names, "model-symbol.json"]):
        # With all that could be asked for, so that it is the file that is refused.
        allowed: dict[str, Any] = {"allow_pickle": True} if name.endswith((".pt", ".pkl")) else {}
        make.add("empty", name, b"", **allowed)
        make.add("text", name, b"tree of knowledge\n" * 9, **allowed)
        make.add("a pickle", name, pickle.dumps(Bomb(f"open({str(make.marker)!r}, 'w')")))
        make.add("a zip of nothing known", name, pack({"a": b"b"}), **allowed)
    path = make.add("a link in a circle", "loop.txt", b"")
    path.unlink()
    path.symlink_to(path)
    os.mkfifo(make.add("a named pipe", "pipe.txt.real", b"").with_name("pipe.txt"))
    make.attacks[-1] = make.attacks[-1]._replace(path=make.attacks[-1].path.with_name("pipe.txt"))
    make.attacks.append(Attack("a device", Path("/dev/zero"), {"format": "lightgbm"}))
    nothing = make.folder / "nothing"
    nothing.mkdir()
    make.attacks.append(Attack("a folder of nothing", nothing, {}))
    make.attacks.append(Attack("a format that there is not", make.attacks[0].path, {"format": "torhc"}))


def add_archives(make: Maker) -> None:
    keras = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b""}
    for name in ("../../escaped", "/tmp/escaped", "a/../../escaped", "a\\b", "./a"):
        make.zip(f"entry {name!r}", "slip.keras", keras | {name: b"x"})
    make.add("a bomb: 700 MB of zeros", "bomb.keras", pack_zeros(keras, 700 << 20))
    make.add("100,000 entries", "many.keras", pack({f"assets/{i:060}": b"" for i in range(100_000)}))
    make.zip("a pickle inside", "inside.keras", keras | {"assets/a": pickle.dumps(Bomb("1"))})
    make.zip("a pickle inside", "inside.skops", {"schema.json": b"{}", "model.pkl": pickle.dumps(Bomb("1"))})
    whole = pack(keras)
    make.add("cut in half", "half.keras", whole[: len(whole) // 2])
    make.add("its list of entries nowhere", "lost.keras", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:])
    make.add(
        "an encrypted entry",
        "locked.keras",
        whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
    )
    doubled = pack({"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"", "config.jsoN": b"[]"})
    make.add("one name twice", "twice.keras", doubled.replace(b"config.jsoN", b"config.json"))


def pack_zeros(entries: dict[str, bytes], size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        with archive.open("assets/zeros", "w", force_zip64=True) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    return out.getvalue()


# What a hostile process says instead of the importer's own program: {answer} is the text of its answer.
IMPOSTOR = "import json, os, pathlib, sys; folder = json.load(open(sys.argv[1]))['folder'];" + (
    " pathlib.Path(folder, 'answer.json').write_text({answer!r}); os._exit(0)"
)
CLAIM = {
    "runtime": "python",
    "entry": "m.py",
    "signature": {"inputs": [], "outputs": []},
    "is_synthetic": True,
    "difference": 0.0,
    "framework": "x",
    "versions": {},
}


def add_pickles(make: Maker) -> None:
    marker, secret = str(make.marker), str(make.secret)
    bombs = {
        "writes outside": f"open({marker!r}, 'w')",
        "starts a program": f"import os; os.system('touch {marker}')",
        "reads a secret": f"raise ValueError(open({secret!r}).read())",
        "answers nonsense": IMPOSTOR.format(answer="{}"),
        "claims to be code": IMPOSTOR.format(answer=json.dumps(CLAIM)),
        "claims to be ONNX, and is not": IMPOSTOR.format(answer=json.dumps({**CLAIM, "runtime": "onnx"})),
        "refuses with a text that does not fit": IMPOSTOR.format(answer=json.dumps({"detail": "x", "key": "export_differs"})),
        "crashes": "import ctypes; ctypes.string_at(0)",
        "takes all the memory": "x = [bytes(1 << 26) for _ in iter(int, 1)]",
    }
    for what, code in bombs.items():
        make.add(f"a bomb that {what}, opened", "bomb.pkl", pickle.dumps(Bomb(code)), "pickle", allow_pickle=True)
    make.add("a bomb, compressed", "bomb.joblib", zlib.compress(pickle.dumps(Bomb(f"open({marker!r}, 'w')"))))
    make.add(
        "a bomb, compressed and opened",
        "bomb.joblib",
        zlib.compress(pickle.dumps(Bomb(bombs["writes outside"]))),
        "pickle",
        allow_pickle=True,
    )
    make.zip("a bomb that is said to be a checkpoint", "bomb.pt", {"m/data.pkl": pickle.dumps(Bomb(bombs["writes outside"]))})
    checkpoint = {"m/data.pkl": pickle.dumps(Bomb(bombs["writes outside"]), 2), "m/version": b"3\n", "m/byteorder": b"little"}
    make.zip("a bomb as weights for code", "bomb.pt", checkpoint, "torch", code=write_program(make), sample=ROWS)


def write_program(make: Maker) -> str:
    path = make.folder / "program.py"
    path.write_text("def build():\n    import torch\n    return torch.nn.Linear(4, 2)\n")
    return f"{path}:build"


def add_torch(make: Maker) -> None:
    program = {"m/archive_format": b"pt2", "m/archive_version": b"0", "m/byteorder": b"little", "m/models/model.json": b"{}"}
    make.zip("machine code inside", "code.pt2", program | {"m/data/aotinductor/model/a.so": b"\x7fELF"}, "pt2")
    evil = json.dumps({"guards_code": ["__import__('os').system('true')"]}).encode()
    make.zip("an expression that runs a program", "guard.pt2", program | {"m/models/model.json": evil}, "pt2")
    weights = json.dumps({"config": {"w": {"path_name": "w", "use_pickle": True}}}).encode()
    pickled = program | {"m/data/weights/model_weights_config.json": weights}
    make.zip("weights as a pickle", "weights.pt2", pickled, "pt2")
    make.zip("of an older torch, all pickles", "old.pt2", {"serialized_exported_program.json": b"{}", "version": b"1"}, "pt2")
    script = {"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02).", "m/version": b"3\n"}
    reads = b"def forward(self, x):\n  return torch.from_file('/etc/passwd', False, 9)\n"
    make.zip("a script that reads a file", "reads.pt", script | {"m/code/__torch__.py": reads}, "torchscript", sample=ROWS)
    deep = b"def forward(self, x):\n  return " + b"(" * DEEP + b"x" + b")" * DEEP
    make.zip("a script as deep as the stack", "deep.pt", script | {"m/code/__torch__.py": deep}, "torchscript", sample=ROWS)


def add_keras(make: Maker) -> None:
    code = base64.b64encode(marshal.dumps(compile(f"open({str(make.marker)!r}, 'w')", "evil", "exec"))).decode()
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": function}}
    first = {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 4], "name": "i"}}
    system = {"module": "os", "class_name": "system", "config": f"touch {make.marker}", "registered_name": None}
    for what, evil in (("a Lambda", layer), ("a layer that is os.system", system)):
        config = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [first, evil]}}
        entries = {"metadata.json": b"{}", "config.json": json.dumps(config).encode(), "model.weights.h5": b""}
        make.zip(what, "evil.keras", entries, "keras")


def add_saved_model(make: Maker) -> None:
    saved = make.folder / "saved"
    saved.mkdir()
    (saved / "saved_model.pb").symlink_to(make.secret)
    make.attacks.append(Attack("SavedModel: a link to a secret", saved, {}))
    holder = make.folder / "holder"
    (holder / "variables").mkdir(parents=True)
    (holder / "saved_model.pb").write_bytes(b"\x08\x01")
    (holder / "variables" / "variables.index").symlink_to(make.secret)
    make.attacks.append(Attack("SavedModel: variables that are a link to a secret", holder, {}))
    if is_importable("tensorflow"):
        make.attacks.append(Attack("SavedModel: operator ReadFile", write_reader(make), {}, "savedmodel"))


def write_reader(make: Maker) -> Path:
    """A SavedModel whose signature reads the secret."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
        def serve(self, x: Any) -> Any:
            tf.io.write_file(str(make.marker), "evil")
            return {"stolen": tf.repeat(tf.io.read_file(str(make.secret)), tf.shape(x)[0])}

    reader = Reader()
    tf.saved_model.save(reader, make.folder / "reader", signatures={"serving_default": reader.serve})
    return make.folder / "reader"


def add_weights(make: Maker) -> None:
    known: dict[str, Any] = {"code": write_program(make), "sample": ROWS}

    def safetensors(what: str, header: bytes, data: bytes = b"", size: int | None = None) -> None:
        content = (len(header) if size is None else size).to_bytes(8, "little") + header + data
        make.add(what, "evil.safetensors", content, "safetensors", **known)

    tensor = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
    safetensors("a header of 2^63 bytes", b'{"a":{}}', size=1 << 63)
    safetensors("a header longer than the file", b'{"a":{}}', size=1000)
    safetensors("a header as deep as the stack", b'{"a":' * 50_000, bytes(100))
    safetensors("tensors that lie over each other", json.dumps({"weight": tensor, "bias": tensor}).encode(), bytes(32))
    huge = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 32]}
    safetensors("a tensor larger than the world", json.dumps({"weight": huge}).encode(), bytes(32))
    make.add("msgpack as deep as the stack", "deep.msgpack", b"\x81\xa1a" * DEEP, "flax", **known)
    make.add("msgpack of 2^32 entries", "huge.msgpack", b"\xdf\xff\xff\xff\xff", "flax", **known)


def add_tables(make: Maker) -> None:
    make.add("as deep as the stack", "deep.json", b'{"learner":' + b"[" * DEEP, "xgboost")
    make.add(
        "a text of 2^62 bytes",
        "huge.ubj",
        b"{L" + (7).to_bytes(8, "big") + b"learnerSL" + (1 << 62).to_bytes(8, "big"),
        "xgboost",
    )
    tree = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=3\nfeature_names=a b c d\n"
    tree += (
        "feature_infos=none none none none\ntree_sizes=300\n\nTree=0\nnum_leaves=2147483647\nnum_cat=0\nsplit_feature=9999999\n"
    )
    tree += "threshold=1\ndecision_type=2\nleft_child=-1\nright_child=77777777\nleaf_value=1 2\n\nend of trees\n"
    make.add("a tree of 2^31 leaves", "huge.txt", tree.encode(), "lightgbm")
    cycle = (
        tree.replace("2147483647", "2").replace("9999999", "0").replace("77777777", "0").replace("left_child=-1", "left_child=0")
    )
    make.add("a tree that is its own child", "cycle.txt", cycle.encode(), "lightgbm")


def add_mxnet(make: Maker) -> None:
    variable = {"op": "null", "name": "data", "inputs": []}

    def symbol(what: str, node: dict[str, Any], params: bytes = b"", heads: Any = ((1, 0, 0),)) -> None:
        graph = {"nodes": [variable, {"name": "n", "inputs": [[0, 0, 0]], **node}], "arg_nodes": [0], "heads": heads}
        path = make.add(what, "evil-symbol.json", json.dumps(graph).encode(), "mxnet", sample=ROWS)
        path.with_name("evil-0000.params").write_bytes(params)

    empty = (0x112).to_bytes(8, "little") + bytes(24)
    symbol("an operator that is not there", {"op": "steal_everything"}, empty)
    symbol("an operator that calls an address", {"op": "_Native", "attrs": {"info": "0xdeadbeef"}}, empty)
    symbol("an operator that is a Python class", {"op": "Custom", "attrs": {"op_type": "evil"}}, empty)
    symbol("a node that takes one to come", {"op": "relu", "inputs": [[99, 0, 0]]}, empty)
    symbol("an output that there is not", {"op": "relu"}, empty, heads=((1 << 40, 0, 0),))
    symbol("2^63 parameters", {"op": "relu"}, (0x112).to_bytes(8, "little") + bytes(8) + b"\xff" * 7 + b"\x7f")
    symbol("parameters that are a pickle", {"op": "relu"}, pickle.dumps(Bomb("1")))
    path = make.add("as deep as the stack", "deep-symbol.json", b'{"nodes": [' + b"[" * DEEP, "mxnet", sample=ROWS)
    path.with_name("deep-0000.params").write_bytes(empty)
    make.add("no parameters beside it", "alone-symbol.json", b'{"nodes": [', "mxnet", sample=ROWS)


ADDERS: list[Callable[[Maker], None]] = [
    *(add_strange_files, add_archives, add_pickles, add_torch, add_keras, add_saved_model, add_weights, add_tables, add_mxnet),
]


def is_installed(attack: Attack) -> bool:
    if attack.format == "mxnet":
        return is_importable("mxnet") or get_environment("mxnet").is_built
    return not attack.format or all(map(is_importable, FORMATS[attack.format].needs))


def choose_few(attacks: list[Attack]) -> list[Attack]:
    """Give those that no framework opens, and the first of each format."""
    opened: set[str] = set()
    few: list[Attack] = []
    for attack in attacks:
        if not attack.format or attack.format not in opened:
            few.append(attack)
            opened.add(attack.format)
    return few


def judge(store: Store, attack: Attack, marker: Path) -> tuple[str, bool]:
    """Try to import a file; a line to print, and whether it was refused without harm."""
    started = time.monotonic()
    try:
        import_foreign(store, attack.path, "evil", timeout_s=120, **attack.options)
    except ArgosyError as error:
        if SECRET in str(error):
            return f"STOLE THE SECRET: {attack.what}", False
        if marker.exists():
            return f"LEFT A TRACE: {attack.what}", False
        if error.key == "confined_timeout":
            return f"HUNG: {attack.what}", False
        return f"refused ({error.status} {error.key}, {time.monotonic() - started:.1f} s): {attack.what}", True
    return f"ACCEPTED: {attack.what}", False


def run(folder: Path, *, is_few: bool) -> Iterator[bool]:
    marker, secret = folder / "marker", folder / "secret"
    secret.write_text(SECRET)
    (folder / "upload").mkdir()
    store = Store(folder / "home")
    make = Maker(folder / "upload", marker, secret)
    for add in ADDERS:
        add(make)
    attacks = [attack for attack in make.attacks if is_installed(attack)]
    if is_few:
        attacks = choose_few(attacks)
    with ThreadPoolExecutor(2) as pool:
        for line, is_refused in pool.map(lambda attack: judge(store, attack, marker), attacks):
            print(line, flush=True)
            yield is_refused
    left = [*(store.home / "store" / "blobs" / "sha256").iterdir(), *Path(tempfile.gettempdir()).glob("escaped*")]
    if store.list_models() or left:
        print(f"TRACES: {store.list_models()} {left}")
        yield False


def main() -> int:
    if not describe_confinement().is_confined:
        print("nothing tried, this machine cannot confine:", *describe_confinement().missing)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if all(list(run(Path(folder), is_few=sys.argv[1:] == ["--few"]))) else 1


if __name__ == "__main__":
    sys.exit(main())
