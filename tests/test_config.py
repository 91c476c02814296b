"""Command line over environment over file over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from argosy.config import load_serve_config
from argosy.errors import InputError


def test_sources_win_in_order(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[serve]\nhttp_port = 1\ngrpc_port = 2\nmetrics_port = 3\n")
    environment = {"ARGOSY_HTTP_PORT": "10", "ARGOSY_GRPC_PORT": "20"}
    config, sources = load_serve_config({"http_port": 100, "host": None}, home=tmp_path, environment=environment)
    assert (config.http_port, config.grpc_port, config.metrics_port, config.admin_port) == (100, 20, 3, 8003)
    picked = [sources[name] for name in ("http_port", "grpc_port", "metrics_port", "admin_port", "host")]
    assert picked == ["command line", "environment", "file", "default", "default"]


@pytest.mark.parametrize(
    ("text", "given", "environment", "message"),
    [
        pytest.param(
            "[serve]\nhttp_prot = 1\n",
            {},
            {},
            "config.toml is not valid: unknown key `http_prot`; known: .*http_port",
            id="unknown-key",
        ),
        pytest.param("[server]\n", {}, {}, "unknown table `server`", id="unknown-table"),
        pytest.param("[serve]\nhttp_port = '1'\n", {}, {}, "`http_port`", id="text-for-a-number-in-the-file"),
        pytest.param("[serve\n", {}, {}, "config.toml", id="not-toml"),
        pytest.param("", {"http_port": 70000}, {}, "0 to 65535", id="port-out-of-range"),
        pytest.param("", {"num_fronts": 0}, {}, "1 to 16", id="no-front"),
        pytest.param("", {}, {"ARGOSY_HTTP_PORT": "many"}, "environment variable ARGOSY_HTTP_PORT", id="word-for-a-number"),
        pytest.param("", {"nonsense": 1}, {}, "unknown key `nonsense`", id="unknown-option"),
    ],
)
def test_bad_setting_is_refused(
    tmp_path: Path, text: str, given: dict[str, object], environment: dict[str, str], message: str
) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_serve_config(given, home=tmp_path, environment=environment)
