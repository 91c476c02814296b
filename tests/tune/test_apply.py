"""What was chosen is written beside what stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from argosy.tune.apply import write_num_fronts


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "[serve]\nnum_fronts = 3\n"),
        ("", "[serve]\nnum_fronts = 3\n"),
        ("# mine\n[serve]\nhttp_port = 80 # web\n", "# mine\n[serve]\nnum_fronts = 3\nhttp_port = 80 # web\n"),
        ("[serve] # x\nnum_fronts=1 # few\n", "[serve] # x\nnum_fronts = 3 # few\n"),
    ],
    ids=["missing", "empty", "other", "present"],
)
def test_number_of_fronts_is_written_beside_what_stands_there(before: str | None, after: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    if before is not None:
        path.write_text(before)
    assert "num_fronts = 3 now (was 1)" in write_num_fronts(tmp_path, 3)
    assert path.read_text() == after
    assert write_num_fronts(tmp_path, 3) == ""


def test_environment_that_wins_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_NUM_FRONTS", "2")
    assert "wins over config.toml" in write_num_fronts(tmp_path, 3)
    assert not (tmp_path / "config.toml").exists()
