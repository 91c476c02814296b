"""Environments of their own: built once and whole, seen by nobody else's packages, and used by the server's workers."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import argosy
from argosy import environment
from argosy.deploy.local_node import LocalNode
from argosy.environment import find_interpreter, get_environment, is_importable, lives_apart
from argosy.errors import FaultError, InputError, NotAllowedError
from argosy.serve.wire.control_messages import decode
from tests.home import SIGNATURE, Home
from tests.processes import wait_until

LOCK = environment._LOCKS / "mxnet.txt"
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def read_pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> its version and its hashes, of a lock."""
    blocks = re.findall(r"^([a-z0-9._-]+)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    return {name: (version, re.findall(r"sha256:[0-9a-f]{64}", hashes)) for name, version, hashes in blocks}


def write_lock(folder: Path, *, python: str = f"{sys.version_info[0]}.{sys.version_info[1]}", digit: str = "") -> Path:
    """Write a lock named hpack, of that one package; `digit` stands in place of every hash's digits."""
    version, hashes = read_pins(LOCK.read_text())["hpack"]
    if digit:
        hashes = [f"sha256:{digit * 64}"]
    folder.mkdir(exist_ok=True)
    lines = [f"# For Python {python}", f"hpack=={version} \\", " \\\n".join(f"    --hash={one}" for one in hashes)]
    (folder / "hpack.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and one small environment, hpack, that may be built in it."""
    monkeypatch.setattr(environment, "_LOCKS", write_lock(tmp_path / "locks"))
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hide_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_find_uv", list)


def start_builder(cache: Path, *, uses_uv: bool) -> subprocess.Popen[str]:
    """Start a process that wants the environment hpack of this cache."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom argosy import environment\n"
        "environment._LOCKS = Path(sys.argv[1])\n"
        f"{'' if uses_uv else 'environment._find_uv = list'}\n"
        "print(environment.find_interpreter('hpack'))\n"
    )
    command = [sys.executable, "-c", program, str(cache.with_name("locks"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ask(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


# the lock


def test_lock_pins_every_package_with_a_hash() -> None:
    text = LOCK.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "    --hash=sha256:"))]
    pins = read_pins(text)
    assert len(lines) == len(pins) > 40
    assert all(hashes for _, hashes in pins.values())
    assert "uv pip compile" in text.split("anyio", 1)[0]


def test_lock_has_what_argosy_itself_needs() -> None:
    pins = read_pins(LOCK.read_text())
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["mxnet"]]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(pins[requirement.name.lower()][0]), requirement


# where it lies


def test_environments_lie_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ARGOSY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_environment("mxnet").folder.parent == tmp_path / ".cache" / "argosy" / "environments"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert get_environment("mxnet").folder.parent == tmp_path / "xdg" / "argosy" / "environments"
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path / "own"))
    assert get_environment("mxnet").folder.parent == tmp_path / "own" / "environments"
    assert re.fullmatch(r"mxnet-[0-9a-f]{12}", get_environment("mxnet").folder.name)


def test_another_lock_is_another_environment(cache: Path, tmp_path: Path) -> None:
    before = get_environment("hpack").folder
    write_lock(tmp_path / "locks", digit="0")
    assert get_environment("hpack").folder != before


@pytest.mark.parametrize("name", ["nothing", "../locks/hpack", "hpack.txt", ""])
def test_unknown_environment_lists_the_known_ones(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="known: hpack") as caught:
        find_interpreter(name)
    assert caught.value.key == "unknown_choice"
    assert not cache.exists()


def test_only_what_is_not_here_lives_apart(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_importable("hpack") and not lives_apart("hpack")
    assert not lives_apart("no_such_package")
    (tmp_path / "locks" / "no_such_package.txt").write_text("# For Python 3.11\n")
    assert lives_apart("no_such_package")
    # A folder of data that has its name is no package.
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_importable("no_such_package")


# building


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_environment_holds_its_lock_and_argosy_alone(
    tool: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if tool == "pip":
        hide_uv(monkeypatch)
    # Another environment's packages are not taken for its own.
    monkeypatch.setenv("PYTHONPATH", str(Path(pytest.__file__).parent.parent))
    python = find_interpreter("hpack")
    said = capfd.readouterr().err.splitlines()
    folder = get_environment("hpack").folder
    assert said[0] == f"argosy: building the environment of hpack in {folder}; this is done once"
    assert re.fullmatch(r"argosy: built the environment of hpack in \d+\.\d s", said[1]) and len(said) == 2
    assert python == folder / "bin" / "python"
    monkeypatch.delenv("PYTHONPATH")
    assert ask(python, "import hpack; print(hpack.__version__)") == read_pins(LOCK.read_text())["hpack"][0]
    assert ask(python, "import argosy, pathlib; print(pathlib.Path(argosy.__file__).resolve())") == argosy.__file__
    code = "import importlib.metadata as m; print(m.version('argosy'))"
    assert ask(python, code) == ask(Path(sys.executable), code) == argosy.__version__
    code = "import importlib.util as u; print([n for n in ('numpy', 'click', 'pytest', 'tests') if u.find_spec(n)])"
    assert ask(python, code) == "[]"
    assert find_interpreter("hpack") == python
    assert capfd.readouterr().err == ""


def test_processes_that_want_it_at_once_build_it_once(cache: Path) -> None:
    builders = [start_builder(cache, uses_uv=True) for _ in range(4)]
    ended = [builder.communicate(timeout=100) for builder in builders]
    said = "".join(errors for _, errors in ended)
    assert {output.strip() for output, _ in ended} == {str(get_environment("hpack").python)}, said
    assert said.count("building") == said.count("built") == 1


def test_builder_that_is_killed_leaves_nothing_that_is_believed(cache: Path) -> None:
    folder = get_environment("hpack").folder
    builder = start_builder(cache, uses_uv=False)
    wait_until(lambda: (folder / "pyvenv.cfg").exists(), 60)
    builder.send_signal(signal.SIGKILL)
    _, errors = builder.communicate(timeout=100)
    assert "building" in errors and "built" not in errors
    assert not get_environment("hpack").is_built
    (folder / "left").touch()
    python = find_interpreter("hpack")
    assert get_environment("hpack").is_built and not (folder / "left").exists()
    assert ask(python, "import argosy, hpack") == ""


def test_environment_whose_python_was_removed_is_built_anew(cache: Path) -> None:
    find_interpreter("hpack").unlink()
    assert not get_environment("hpack").is_built
    assert ask(find_interpreter("hpack"), "import hpack") == ""


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_package_with_another_hash_is_refused(tool: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tool == "pip":
        hide_uv(monkeypatch)
    write_lock(tmp_path / "locks", digit="0")
    with pytest.raises(FaultError, match=r"ended with code [12]") as caught:
        find_interpreter("hpack")
    assert caught.value.key == "environment_failed"
    assert "hash" in str(caught.value).lower() and "0" * 64 in str(caught.value)
    assert not get_environment("hpack").is_built


def test_lock_of_a_python_that_is_not_there_says_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_uv(monkeypatch)
    write_lock(tmp_path / "locks", python="3.99")
    with pytest.raises(FaultError, match=r"needs Python 3\.99; this is 3\..*no python3\.99 on PATH") as caught:
        find_interpreter("hpack")
    assert caught.value.key == "environment_python"


def test_cache_that_others_can_write_is_refused(cache: Path) -> None:
    folder = cache / "environments"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(NotAllowedError, match="can be written by other users"):
        find_interpreter("hpack")
    assert list(folder.iterdir()) == []


def test_cache_that_cannot_be_made_is_told(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(FaultError, match=r"cannot be built: .*exists"):
        find_interpreter("hpack")


def test_environment_follows_an_update_of_argosy(cache: Path) -> None:
    python = find_interpreter("hpack")
    (link,) = python.parent.parent.glob("lib/python*/site-packages/argosy-*.dist-info")
    # As an update leaves it: the folder of the version before is gone.
    link.unlink()
    link.with_name("argosy-0.0.0.dist-info").symlink_to(cache / "gone")
    code = "import importlib.metadata as m; print(m.version('argosy'))"
    assert ask(find_interpreter("hpack"), code) == argosy.__version__


# MXNet's


@pytest.fixture(scope="module")
def mxnet_python() -> Path:
    """MXNet's environment, in the cache that is used outside of tests too."""
    return find_interpreter("mxnet")


SERVE = """
import sys
import numpy as np
import argosy
from argosy.errors import FaultError
from argosy.signature import Signature, TensorSpec
from argosy.importers.onnx import import_onnx
from pathlib import Path

store = argosy.Store(Path(sys.argv[2]))
version = import_onnx(store, Path(sys.argv[1]), "scale")
assert version.manifest.num_golden > 0
signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
store.publish("net", {"net.jx": b"weights"}, signature=signature, entry="net.jx", runtime="jax")
x = np.arange(8, dtype=np.float32).reshape(2, 4)
with argosy.serve("scale@1", home=store.home) as server:
    with server.client() as client:
        assert (client.predict("scale", {"x": x})["y"] == 2 * x).all()
    try:
        server.deploy("net@1")
    except FaultError as error:
        print(error)
    with server.admin() as admin:
        steps = [event.step for event in admin.follow(admin.status()["deployments"][0]["rollouts"][0]["id"])]
print(np.__version__, steps)
"""


@pytest.mark.timeout(400)
def test_argosy_serves_with_the_old_numpy_of_mxnet(mxnet_python: Path, home: Home) -> None:
    home.publish_scale()
    script = home.path / "serve.py"
    script.write_text(SERVE)
    arguments = [home.files / "2.0.onnx", home.path / "old"]
    done = subprocess.run([mxnet_python, "-W", "error", script, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # What the rollout of a framework's version says where the framework is neither here nor in an environment.
    lines = done.stdout.splitlines()
    assert "Runtime jax needs the package jax, which is not installed" in lines[0]
    assert "pip install 'argosy[jax]'" in done.stdout
    assert lines[-1] == "1.23.5 ['failed']"


@pytest.mark.timeout(400)
def test_mxnet_runs_in_its_environment(mxnet_python: Path) -> None:
    code = "import mxnet, numpy; print(float((mxnet.nd.ones((2, 3)) * 2).sum().asscalar()), numpy.__version__)"
    assert ask(mxnet_python, code) == "12.0 1.23.5"


class FakeChannel:
    """Takes what would go to the supervisor."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_bytes(self, data: bytes, fds: tuple[int, ...]) -> None:
        self.sent.append(decode(data, "control", "supervisor"))


def make_node() -> tuple[LocalNode, FakeChannel]:
    channel = FakeChannel()
    node = LocalNode(channel, 0, lambda *_: None)  # pyright: ignore[reportArgumentType]
    return node, channel


@pytest.mark.timeout(400)
def test_worker_starts_with_the_interpreter_of_its_runtime(mxnet_python: Path) -> None:
    node, channel = make_node()
    node.start_worker("mx", 1, {"runtime": "mxnet", "key": "k", "deployment": "mx", "folder": "/nowhere"})
    node.start_worker("on", 1, {"runtime": "onnx", "key": "k", "deployment": "on", "folder": "/nowhere"})
    assert [message.spec.get("python") for message in channel.sent] == [str(mxnet_python), None]


def test_worker_is_not_started_without_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(tmp_path))
    node, channel = make_node()
    assert node.find_python("mxnet") is None
    with pytest.raises(FaultError, match="was removed while it was in use"):
        node.start_worker("mx", 1, {"runtime": "mxnet", "key": "k"})
    assert channel.sent == []


@pytest.mark.timeout(400)
def test_rollout_waits_for_the_environment_and_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGOSY_CACHE", str(home.path / "cache"))
    home.publish_scale()
    # The bytes are no model: the environment is what this is about.
    home.store.publish("mx", {"mx.params": b"weights"}, signature=SIGNATURE, entry="mx.params", runtime="mxnet")
    failures: list[Exception] = []

    def deploy(server: Any) -> None:
        try:
            server.deploy("mx@1")
        except FaultError as error:
            failures.append(error)

    with home.serve("scale@1") as server, server.admin() as admin, server.client() as client:
        thread = threading.Thread(target=deploy, args=(server,))
        thread.start()
        problems: set[str] = set()
        while thread.is_alive():
            problems |= {found["problem"] for found in admin.status()["deployments"]}
            assert client.predict("scale", [[1.0, 2.0, 3.0, 4.0]])["y"][0, 3] == 8.0
            time.sleep(0.02)
        events = [event for number in (1, 2) for event in admin.follow(number)]
    shutil.rmtree(home.path / "cache")
    assert "waits for the environment of runtime mxnet, which is being built" in problems
    said = [event.detail for event in events if event.step == "check" and "environment" in event.detail]
    assert said[0] == "building the environment of runtime mxnet; this is done once" and len(said) == 2
    assert "failed at step load" in str(failures[0])
