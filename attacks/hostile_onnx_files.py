"""ONNX files that must be refused: weights that point out of the folder, or no ONNX at all.

    python attacks/hostile_onnx_files.py

Prints one line a file; exits 1 if one was published or left a trace in the store.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from argosy.errors import ArgosyError
from argosy.importers.onnx import import_onnx
from argosy.store.local import Store

LOCATIONS = {
    "parent": "../secret",
    "absolute": "/etc/passwd",
    "subfolder": "sub/weights.bin",
    "current folder": ".",
    "parent folder": "..",
    "empty": "",
    "backslash": "..\\secret",
    "null byte": "weights\0.bin",
    "right-to-left": "gnp\u202e.bin",
    "address in memory, as ONNX Runtime's own marker": "*/_ORT_MEM_ADDR_/*",
    "symbolic link out": "link-out.bin",
    "symbolic link to a device": "link-zero.bin",
    "named pipe": "pipe",
    "folder": "sub",
    "the store's own file": "argosy.json",
}


def write_model(path: Path, locations: list[str]) -> None:
    tensor = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for location in locations:
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "graph", [x], [y], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def make_attacks(folder: Path) -> dict[str, Path]:
    (folder.parent / "secret").write_bytes(bytes(32))
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights.bin").write_bytes(bytes(32))
    (folder / "link-out.bin").symlink_to("../secret")
    (folder / "link-zero.bin").symlink_to("/dev/zero")
    (folder / "argosy.json").write_bytes(bytes(32))
    (folder / "weights.bin").write_bytes(bytes(32))
    os.mkfifo(folder / "pipe")
    attacks: dict[str, Path] = {}
    for index, (what, location) in enumerate(LOCATIONS.items()):
        attacks[f"weights at: {what}"] = folder / f"external-{index}.onnx"
        write_model(attacks[f"weights at: {what}"], [location])
    attacks["weights at two places"] = folder / "two.onnx"
    write_model(attacks["weights at two places"], ["weights.bin", "../secret"])
    attacks["weights at no place"] = folder / "none.onnx"
    write_model(attacks["weights at no place"], [])
    contents = {"empty file": b"", "pickle": b"\x80\x04K\x01.", "zip": b"PK\x03\x04" + bytes(100), "noise": os.urandom(4096)}
    for what, content in contents.items():
        attacks[what] = folder / f"{what}.onnx"
        attacks[what].write_bytes(content)
    attacks["device"] = Path("/dev/zero")
    attacks["model is a named pipe"] = folder / "pipe"
    return attacks


def main() -> int:
    num_accepted = 0
    with tempfile.TemporaryDirectory() as temp:
        store = Store(Path(temp) / "home")
        for what, path in make_attacks(Path(temp) / "upload").items():
            try:
                import_onnx(store, path, "evil")
            except ArgosyError as error:
                print(f"refused ({error.status} {error.key}): {what}")
            else:
                num_accepted += 1
                print(f"ACCEPTED: {what}")
        left = list((store.home / "store" / "blobs" / "sha256").iterdir())
        if store.list_models() or left:
            num_accepted += 1
            print(f"TRACES IN THE STORE: {store.list_models()} {left}")
    return 1 if num_accepted else 0


if __name__ == "__main__":
    sys.exit(main())
