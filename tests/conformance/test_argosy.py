"""Our own server passes every clause, over HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from argosy.cli.main import main
from argosy.conformance.model import OCTETS
from argosy.conformance.write_models import write_models
from argosy.importers.onnx import import_onnx
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from argosy.store.golden import Golden
from tests.home import Home
from tests.processes import read_state


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("conformance"))
    folder = home.files / "models"
    names = write_models(folder)
    for name in names:
        import_onnx(home.store, folder / name / "1" / "model.onnx", name)
    specs = tuple((TensorSpec(name, "BYTES", (-1, 4)),) for name in "xy")
    rows = np.array([[b"a", b"b", b"c", b"d"]], object)
    home.publish_code("return {'y': x}", OCTETS, signature=Signature(*specs), golden=Golden({"x": rows}, {"y": rows}))
    with home.serve() as running, ThreadPoolExecutor(4) as threads:
        list(threads.map(running.deploy, names))
        running.deploy(OCTETS, allow_code=True)
        yield running


def test_argosy_passes_every_clause(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    words = [server.url, "--grpc", server.grpc_address, "--admin-token", read_state(server)["token"], "--report", str(report)]
    done = CliRunner().invoke(main, ["conformance", *words, "--json"])
    found = json.loads(done.stdout)
    others = {finding["id"]: finding for finding in found["result"]["findings"] if finding["outcome"] != "pass"}
    assert others == {}
    assert found["conforming"]
    assert done.exit_code == 0
    assert report.read_text().startswith("<!doctype html>")
