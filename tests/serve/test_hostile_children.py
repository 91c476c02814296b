"""A process that says rubbish to another is ended alone, and its death says why; everybody else goes on answering."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import argosy
from argosy.importers.python import publish_python
from argosy.server import Server
from tests.conftest import SIGNATURE, Home, Load, find_child, find_workers, row, wait_until

SOURCE = '''
import array, os, socket, time
import numpy as np


def find_sockets():
    """This process's own, oldest first: the channel to the supervisor, then the links to fronts."""
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    names = {{fd: os.readlink(f"/proc/self/fd/{{fd}}") for fd in fds if os.path.exists(f"/proc/self/fd/{{fd}}")}}
    return [fd for fd in fds if names.get(fd, "").startswith("socket:")]


def attack(code):
    channel_fd, *link_fds = find_sockets()
    channel = socket.socket(fileno=os.dup(channel_fd))
    exec(code, {{**globals(), "channel": channel, "channel_fd": channel_fd, "link_fds": link_fds}})
    time.sleep(60)


class Model:
    def load(self, folder):
        if code := {load!r}:
            attack(code)

    def infer(self, inputs):
        if (inputs["x"] == 666).any():
            attack({infer!r})
        return {{"y": inputs["x"] * 2}}
'''


def ready(memory_bytes: str = "1") -> str:
    """Code that sends a report, with this in one of its fields."""
    text = f'{{"op":"ready","load_s":0.1,"warm_s":0.1,"threads":1,"memory_bytes":{memory_bytes},"golden_difference":null,'
    text += '"join_refusal":"","pad_refusal":null,"service_s":[],"service":[]}'
    return f"channel.send({text.encode()!r})"


def say(text: str) -> str:
    """Code that sends a text."""
    return f"channel.send({text.encode()!r})"


RIGHTS = "[(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.open('/dev/null', 0) for _ in range(16)]))]"
LARGE = """
channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
for size in (1 << 20, 190_000):
    try:
        channel.send(b"[" * size)
        break
    except OSError:
        pass  # this machine's buffers are smaller
"""

# What a worker does, and what its death says.
ATTACKS = {
    "list": (say("[]"), "no JSON object"),
    "number": (say("1"), "no JSON object"),
    "cut": (say("{"), "no JSON"),
    "bytes": ("channel.send(bytes(range(256)))", "no JSON"),
    "surrogate": (say('{"op":"refused","error":"\\ud800","tensor":null,"got":null,"allowed":null}'), "Refused.error"),
    "large": (LARGE, "longer than"),
    "deep": ("channel.send(b'[' * 100_000)", "nested too deep"),
    "nan": (ready("NaN"), "NaN"),
    "infinite": (ready("1e999"), "1e999"),
    "huge": (ready("9" * 5000), "no JSON"),
    "negative": (ready("-1"), "Ready.memory_bytes is -1"),
    "type": (ready('"x"'), "Ready.memory_bytes is 'x'"),
    "field": (say('{"op":"ready"}'), "Ready lacks"),
    "unknown": (say('{"op":"quit"}'), "'quit'"),
    "no op": (say("{}"), "None"),
    "of the control process": (say('{"op":"stop_worker","name":"w-scale-1-00000000"}'), "`stop_worker`"),
    "of a front": (say('{"op":"accuse","name":"control","pid":1,"reason":""}'), "`accuse`"),
    "hello again": (say('{"op":"hello"}'), "second time"),
    "hello of another": ('channel.send(b\'{"op":"hello","pid":%d}\' % os.getppid())', "Hello has no pid"),
    "report again": (ready(), "second time"),
    "flood": (f"while True: {ready()}", "second time"),
    "descriptors": (f'channel.sendmsg([b\'{{"op":"hello"}}\'], {RIGHTS})', "descriptors"),
    "nothing": ("channel.send(b'')", "closed its"),
    "closed": ("channel.close(); os.close(channel_fd)", "closed its"),
    "link": ("os.write(link_fds[0], b'x')", "front-0 says"),
    "link closed": ("os.close(link_fds[0])", "front-0 says"),
}
IN_LOAD = [name for name in ATTACKS if name not in ("report again", "flood", "link", "link closed")]


def publish(home: Home, name: str, *, load: str = "", infer: str = "") -> None:
    path = home.files / "model.py"
    path.write_text(SOURCE.format(load=load, infer=infer))
    publish_python(home.store, path, name, signature=SIGNATURE, repeatable=False)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("hostile"))
    home.publish_scale()
    return home


@pytest.fixture(scope="module")
def server(shared_home: Home) -> Iterator[Server]:
    with shared_home.serve("scale") as server:
        yield server


def list_family(server: Server) -> list[int]:
    """The processes that must not be harmed."""
    family = [server.pid, find_child(server, "argosy.deploy.control"), find_child(server, "argosy.serve.front.front")]
    return family + find_workers(server, "scale")


def is_double(value: float, answer: np.ndarray, version: str) -> bool:
    return bool((answer == row(value) * 2).all())


@contextlib.contextmanager
def nobody_else_is_harmed(server: Server) -> Iterator[None]:
    """All that other clients ask is answered meanwhile, and by the same processes."""
    family = list_family(server)
    descriptors = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
    with Load(server, "scale", is_double, num_clients=2) as load:
        yield
    assert load.failures == []
    assert load.sent > 0
    assert list_family(server) == family
    assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < descriptors + 8  # the hostile worker's own, and no more


def read_last_death(server: Server, name: str) -> str:
    """Of a deployment's only worker, as the status says."""
    with server.admin() as admin:
        (found,) = [each for each in admin.status()["deployments"] if each["spec"]["name"] == name]
    return "".join(worker["last_death"] for lane in found["lanes"] for worker in lane["workers"])


def predict(server: Server, name: str, value: float) -> Any:
    with server.client() as client:
        return client.predict(name, {"x": row(value)}, timeout_s=20.0)["y"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_worker_that_says_rubbish_is_killed_alone_and_replaced(server: Server, shared_home: Home, attack: str) -> None:
    code, reason = ATTACKS[attack]
    name = f"hostile-{attack.replace(' ', '-')}"
    publish(shared_home, name, infer=code)
    server.deploy(name, allow_code=True)
    with nobody_else_is_harmed(server):
        with pytest.raises(argosy.ArgosyError):
            predict(server, name, 666.0)
        death = wait_until(lambda: read_last_death(server, name))
        assert death.startswith("killed: ")
        assert reason in death
        # Another is started, and linked.
        np.testing.assert_array_equal(predict(server, name, 4.0), row(8.0))
    with server.admin() as admin:
        admin.undeploy(name)


@pytest.mark.parametrize("attack", IN_LOAD)
def test_version_whose_load_says_rubbish_is_refused(server: Server, shared_home: Home, attack: str) -> None:
    code, reason = ATTACKS[attack]
    name = f"loading-{attack.replace(' ', '-')}"
    publish(shared_home, name, load=code)
    with nobody_else_is_harmed(server), pytest.raises(argosy.ArgosyError) as caught:
        server.deploy(name, allow_code=True)
    assert "died with killed: " in str(caught.value)
    assert reason in str(caught.value)
