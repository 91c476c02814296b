"""A change of what is proven of rows raises the number that verdicts carry."""

from __future__ import annotations

import hashlib
from pathlib import Path

import argosy.rows
from argosy.rows.edition import EDITION

DIGESTS = {1: "282e70fdf364f7be"}
"""By edition, of the files that its verdicts come from."""


def test_changed_proof_has_a_number_of_its_own() -> None:
    files = sorted(path for path in Path(argosy.rows.__path__[0]).glob("*.py") if path.name not in ("edition.py", "__init__.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    why = f"verdicts may differ: raise EDITION and write {digest!r} beside it here; or, if none can, write it beside {EDITION}"
    assert DIGESTS.get(EDITION) == digest, why
