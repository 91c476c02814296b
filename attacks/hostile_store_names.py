"""Names, references, aliases and file names that must never become a path.

    python attacks/hostile_store_names.py

Prints one line an attack; exits 1 if one was accepted or anything appeared outside the store.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from argosy.errors import ArgosyError
from argosy.signature import Signature, TensorSpec
from argosy.store.local import Store

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
HOSTILE = [
    "../evil",
    "../../evil",
    "/tmp/evil",
    "a/../../evil",
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "..\\evil",
    "a\0b",
    "a\nb",
    "a\x1b[2J",
    "gnp\u202e.onnx",
    "a\udc80",
    "a" * 256,
    "argosy.json/../x",
    ".incoming-1-0",
]
OWN_NAMES = ["argosy.json", "golden.npz"]


def make_attacks(store: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    def publish(name: str, file_name: str) -> object:
        return store.publish(name, {"model.onnx": b"w", file_name: b"evil"}, signature=SIGNATURE, entry="model.onnx")

    for text in [*HOSTILE, *OWN_NAMES]:
        yield f"file name {text[:40]!r}", lambda text=text: publish("iris", text)
    for text in HOSTILE:
        yield f"model name {text[:40]!r}", lambda text=text: publish(text, "other.bin")
        yield f"reference {text[:40]!r}", lambda text=text: store.get_version(text)
        yield f"reference iris@{text[:40]!r}", lambda text=text: store.get_version(f"iris@{text}")
        yield f"alias {text[:40]!r}", lambda text=text: store.set_alias("iris", text, 1)
    for text in ("1", "007", "latest", "\u0661"):
        yield f"alias {text!r}", lambda text=text: store.set_alias("iris", text, 1)


def main() -> int:
    num_accepted = 0
    with tempfile.TemporaryDirectory() as temp:
        store = Store(Path(temp) / "deep" / "er" / "home")
        store.publish("iris", {"model.onnx": b"w"}, signature=SIGNATURE, entry="model.onnx")
        before = sorted(Path(temp).rglob("*"))
        for what, attack in make_attacks(store):
            try:
                attack()
            except ArgosyError as error:
                print(f"refused ({error.status} {error.key}): {what}")
            else:
                num_accepted += 1
                print(f"ACCEPTED: {what}")
        appeared = set(Path(temp).rglob("*")) - set(before)
        if appeared:
            num_accepted += 1
            print(f"APPEARED: {appeared}")
    return 1 if num_accepted else 0


if __name__ == "__main__":
    sys.exit(main())
