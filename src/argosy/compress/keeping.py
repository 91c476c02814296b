"""Where a search for recipes is kept while it goes on: killed, the same call goes on with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from argosy.bench.rows import Rows
from argosy.compress.find import Keeping
from argosy.compress.judge import Guard
from argosy.compress.publish import PACKAGES
from argosy.compress.sample import Sample
from argosy.compress.steps.base import Workshop
from argosy.errors import ConflictError, InputError
from argosy.frameworks.describe import digest_arrays
from argosy.search.journal import find_folder
from argosy.signature import Arrays
from argosy.store.manifest import Version
from argosy.train.lineage import describe_environment

__all__ = ["choose_keeping", "explain_keeping", "forget"]


def choose_keeping(
    home: Path, parent: Version, workshop: Workshop, sample: Sample, guard: Guard, wanted: tuple[str, ...]
) -> Keeping:
    """Give a search a name of its own for all that its trials depend on.

    Args:
        home: of the store.
        parent: what is compressed.
        workshop: has the rows that recipes are made with.
        sample: has those that they are judged on.
        guard: what may be lost.
        wanted: what else the search was told.
    """
    about = {
        "parent": parent.digest,
        "calibration": _digest(workshop.calibration, {}),
        "training": _digest(workshop.training, workshop.targets),
        "student": getattr(workshop.student, "digest", ""),
        "evaluation": _digest(sample.rows, sample.targets),
        "guard": dataclasses.asdict(guard),
        "environment": describe_environment(PACKAGES),
    }
    whole = json.dumps([about, *wanted], sort_keys=True)
    return Keeping(home, f"compress-{hashlib.sha256(whole.encode()).hexdigest()[:16]}", about)


@contextmanager
def explain_keeping(keeping: Keeping | None, reference: str) -> Generator[None]:
    """Tell what is wrong with a kept search within the block by what is compressed: nobody has named that search.

    Raises:
        ConflictError: `compression_active`.
        InputError: `bad_kept_search`.
    """
    try:
        yield
    except (ConflictError, InputError) as error:
        if keeping is not None and error.key == "search_active":
            raise ConflictError("compression_active", reference=reference) from error
        if keeping is not None and error.key == "bad_journal":
            folder, detail = find_folder(keeping.home, keeping.name), error.fields["detail"]
            raise InputError("bad_kept_search", reference=reference, folder=folder, detail=detail) from error
        raise


def forget(keeping: Keeping | None) -> None:
    """Remove a search that has ended: called again, it would tell timings of another day."""
    if keeping is not None:
        shutil.rmtree(find_folder(keeping.home, keeping.name), ignore_errors=True)


def _digest(rows: Rows, targets: Arrays) -> str:
    return digest_arrays(*(array for row in rows for array in row.values()), *targets.values())
