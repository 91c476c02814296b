"""The `argosy` command: in this process where nothing is served, and as its users run it beside a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from argosy.cli.main import main
from tests.cli.site import Site, make_affine_model


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Result]:
    """Run a command in this process, with a home of its own."""

    def run(*arguments: object) -> Result:
        home = str(tmp_path / "home")
        return CliRunner().invoke(main, [str(argument) for argument in arguments], env={"ARGOSY_HOME": home})

    return run


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A home with two versions of the model `affine`; each module starts what it needs."""
    site = Site(tmp_path_factory.mktemp("site"))
    for seed in (1, 2):
        path = make_affine_model(site.folder / f"affine{seed}.onnx", seed)
        site.run("import", path, "--name", "affine")
    try:
        yield site
    finally:
        site.stop()
