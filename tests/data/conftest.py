from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NUM_ROWS = 500

Columns = Mapping[str, Any]


def write_parquet(path: Path, columns: Columns, group: int = 40) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(make_arrow(columns)), path, row_group_size=group)


def write_feather(path: Path, columns: Columns) -> None:
    import pyarrow as pa
    import pyarrow.feather as feather

    feather.write_feather(pa.table(make_arrow(columns)), path, chunksize=64)


def make_arrow(columns: Columns) -> dict[str, Any]:
    import pyarrow as pa

    return {name: pa.array(list(c)) if getattr(c, "ndim", 1) > 1 else pa.array(c) for name, c in columns.items()}


def write_csv(path: Path, columns: Columns) -> None:
    flat = {name: column for name, column in columns.items() if getattr(column, "ndim", 1) == 1}
    lines = [",".join(flat), *(",".join(map(str, row)) for row in zip(*flat.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")


def write_jsonl(path: Path, columns: Columns) -> None:
    plain = {name: column.tolist() if isinstance(column, np.ndarray) else list(column) for name, column in columns.items()}
    rows = (dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    "parquet": write_parquet,
    "feather": write_feather,
    "csv": write_csv,
    "jsonl": write_jsonl,
}


@pytest.fixture
def columns() -> dict[str, Any]:
    """A matrix, a number, a string that no other row has, and a label."""
    random = np.random.default_rng(3)
    x = random.normal(size=(NUM_ROWS, 4))
    return {"x": x, "a": x[:, 0], "key": [f"key {row}" for row in range(NUM_ROWS)], "y": np.arange(NUM_ROWS) % 3}


@pytest.fixture(params=[*WRITERS])
def path(request: pytest.FixtureRequest, tmp_path: Path, columns: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same rows in each format, in blocks of some dozens."""
    monkeypatch.setattr("argosy.data.csv._BLOCK_BYTES", 1000)
    monkeypatch.setattr("argosy.data.jsonl._BLOCK_BYTES", 4000)
    path = tmp_path / f"rows.{request.param}"
    WRITERS[request.param](path, columns)
    return path
