"""`argosy tune`, from end to end."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from argosy.cli.main import main
from argosy.deploy.ledger import Ledger
from argosy.errors import NotAllowedError, NotFoundError
from argosy.tune.run import tune
from argosy.tune.search import Goal
from argosy.tune.traffic import Traffic
from tests.home import Home, golden_scale


def invoke(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["tune", *arguments, "--home", str(home.store.home)])


def test_command_shows_explains_plots_and_writes_its_choice(home: Home) -> None:
    pytest.importorskip("matplotlib")
    home.publish_scale()
    Ledger(home.store).request_rollout(Ledger(home.store).plan("scale", timeout_s=7.0))
    picture = home.path / "tune.svg"
    options = ["--budget-s", "3", "--connections", "4", "--json", "--plot", str(picture)]
    result = invoke(home, "scale", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["explanation"][0].startswith("chosen: ")
    assert picture.read_text().startswith("<?xml")
    spec = Ledger(home.store).find_deployment("scale").spec
    chosen = told["choice"]["candidate"]
    assert (spec.replicas, spec.max_batch_rows, spec.timeout_s) == (chosen["replicas"], chosen["max_batch_rows"], 7.0)
    assert spec.threads == chosen["engine"]["threads"]
    with home.serve() as server, server.client() as client:
        assert client.is_ready() is not None
        refused = invoke(home, "scale", "--budget-s", "1")
        assert refused.exit_code == 1
        assert f"A server (process {server.pid}) runs" in refused.stderr and "--share" in refused.stderr


def test_dry_run_writes_nothing_and_share_measures_beside_a_server(home: Home) -> None:
    home.publish_scale()
    with home.serve():
        result = invoke(home, "scale", "--budget-s", "0.2", "--connections", "2", "--share", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "nothing was written" in result.stdout and "ENGINE" in result.stdout
    assert Ledger(home.store).list_deployments() == []


def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(home: Home) -> None:
    home.publish_code("return {'y': x}", golden=golden_scale(1.0))
    version = home.store.get_version("code")
    with pytest.raises(NotAllowedError):
        tune(home.store, version, Traffic(), Goal())
    home.publish_code("return {'y': x}", "bare")
    with pytest.raises(NotFoundError, match="golden"):
        tune(home.store, home.store.get_version("bare"), Traffic(), Goal(), allow_code=True)
    assert not (home.store.home / "tune").exists()


def test_python_model_is_tuned_when_its_code_is_allowed(home: Home) -> None:
    version = home.publish_code("return {'y': x}", golden=golden_scale(1.0))
    outcome = tune(home.store, version, Traffic(connections=2), Goal(budget_s=0.2), allow_code=True)
    assert outcome.choice.candidate.engine.runtime == "python"
    assert outcome.choice.good_per_s > 0


def test_trace_and_what_it_says_itself_exclude_each_other(home: Home) -> None:
    home.publish_scale()
    result = invoke(home, "scale", "--trace", "t.jsonl", "--rate", "5")
    assert result.exit_code == 2 and "--trace says when" in result.stderr
