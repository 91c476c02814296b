"""A process that says rubbish to another is ended alone, and its death says why; everybody else goes on answering."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import argosy
from argosy.errors import UnavailableError
from argosy.importers.python import publish_python
from argosy.server import Server
from argosy.signature import Signature, TensorSpec
from tests.home import SIGNATURE, Home, golden_scale, row
from tests.load import Load
from tests.processes import find_child, find_workers, is_alive, list_children, wait_until

PIDFD_GETFD = 438

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
    text += '"join_refusal":"","joining":"","pad_refusal":null,"service_s":[],"service":[],"escape":null,"trial":""}'
    return f"channel.send({text.encode()!r})"


def say(text: str) -> str:
    """Code that sends a text."""
    return f"channel.send({text.encode()!r})"


RIGHTS = "[(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [os.open('/dev/null', 0) for _ in range(16)]))]"
LARGE = """
channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
for size in (1 << 20, 200_000):
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
    "surrogate": (say('{"op":"refused","error":"\\ud800","tensor":null,"got":null,"allowed":null,"how":null}'), "Refused.error"),
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
    "hello of another": ('channel.send(b\'{"op":"hello","pid":%d}\' % os.getppid())', "Hello has no 'pid'"),
    "report again": (ready(), "second time"),
    "flood": (f"while True: {ready()}", "second time"),
    "joining ended wrongly": (say('{"op":"join_ended","reason":"x","difference":1e10}'), "JoinEnded.difference"),
    "descriptors": (f'channel.sendmsg([b\'{{"op":"hello"}}\'], {RIGHTS})', "descriptors"),
    "nothing": ("channel.send(b'')", "closed its"),
    "closed": ("channel.close(); os.close(channel_fd)", "closed its"),
    "link": ("os.write(link_fds[0], b'x')", "front-0 says"),
    "link closed": ("os.close(link_fds[0])", "front-0 says"),
}
IN_LOAD = ("list", "number", "bytes", "large", "deep", "of the control process", "descriptors", "nothing")


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
    assert "died: killed: " in str(caught.value)
    assert reason in str(caught.value)


# what the others say


@contextlib.contextmanager
def take_socket(server: Server, pid: int, kind: int) -> Iterator[socket.socket]:
    """A copy of the oldest socket that the supervisor made for a child: of SOCK_SEQPACKET the channel, of SOCK_STREAM a link."""
    pidfd = os.pidfd_open(pid)
    try:
        for number in sorted(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()):
            fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, number, 0)
            if fd < 0:
                pytest.skip(f"this machine lets no process take from another: {os.strerror(ctypes.get_errno())}")
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                os.close(fd)
                continue
            with sock:
                maker, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if (sock.family, sock.type, maker) == (socket.AF_UNIX, kind, server.pid):
                    yield sock
                    return
    finally:
        os.close(pidfd)
    raise AssertionError("the process has no such socket")


CONTROL, FRONT = "argosy.deploy.control", "argosy.serve.front.front"


@contextlib.contextmanager
def is_replaced_alone(server: Server, module: str, reason: str) -> Iterator[int]:
    """One of two processes is started again, with a reason in the server's log; the other one and the workers live on."""
    old, other = find_child(server, module), find_child(server, CONTROL if module == FRONT else FRONT)
    workers = find_workers(server, "scale")
    num_said = len((server.home / "serve.log").read_text())
    yield old
    wait_until(lambda: find_child(server, module) not in (0, old))
    assert not is_alive(old)
    assert (predict(server, "scale", 3.0) == row(6.0)).all()
    assert wait_until(lambda: find_workers_if_there(server)) == workers
    assert find_child(server, CONTROL if module == FRONT else FRONT) == other
    assert reason in (server.home / "serve.log").read_text()[num_said:]


def find_workers_if_there(server: Server, name: str = "scale") -> list[int]:
    """The same while the control process may be away."""
    try:
        return find_workers(server, name)
    except argosy.ArgosyError:
        return []


@pytest.mark.parametrize("module", [CONTROL, FRONT], ids=["control", "front"])
@pytest.mark.parametrize(
    "data", [b"[]", b"[" * 100_000, b'{"op":"hello"}', b'{"op":"stop_worker","name":1}'], ids=["list", "deep", "hello", "field"]
)
def test_process_that_says_rubbish_to_the_supervisor_is_replaced_alone(server: Server, module: str, data: bytes) -> None:
    with (
        is_replaced_alone(server, module, "killed: A message between processes is refused") as old,
        take_socket(server, old, socket.SOCK_SEQPACKET) as channel,
    ):
        channel.send(data)


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\2\0\0\0[]", b'\x0e\0\0\0{"op":"hello"}'], ids=["length", "list", "hello"]
)
@pytest.mark.parametrize(("module", "judge"), [(CONTROL, "front-0"), (FRONT, "control")], ids=["control", "front"])
def test_process_that_says_rubbish_to_a_sibling_is_replaced_alone(server: Server, module: str, judge: str, data: bytes) -> None:
    with (
        is_replaced_alone(server, module, f"killed: {judge} says: A message between processes is refused") as old,
        take_socket(server, old, socket.SOCK_STREAM) as stream,
    ):
        stream.send(data)


def test_control_process_that_closes_its_stream_to_a_front_is_replaced_alone(server: Server) -> None:
    with (
        is_replaced_alone(server, CONTROL, "killed: front-0 says: it closed its stream") as old,
        take_socket(server, old, socket.SOCK_STREAM) as stream,
    ):
        stream.shutdown(socket.SHUT_RDWR)


# what nobody hears


def test_worker_that_hangs_is_replaced_while_the_control_process_is_away(home: Home) -> None:
    home.publish_code("if (x == 77).any(): time.sleep(600)\nreturn {'y': x * 2}", golden=golden_scale())
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        control = find_child(server, CONTROL)
        os.kill(control, signal.SIGSTOP)
        with server.client() as client, pytest.raises(argosy.ArgosyError):
            client.predict("code", {"x": row(77)}, timeout_s=0.3)
        np.testing.assert_array_equal(predict(server, "code", 3.0), row(6.0))
        os.kill(control, signal.SIGCONT)
        assert "killed: it hangs: it has been at one batch for" in read_last_death(server, "code")


def test_processes_that_dead_workers_leave_behind_do_not_stay_as_zombies(home: Home) -> None:
    leave = "import subprocess\nsubprocess.Popen(['sleep', '0.1'])\nif (x == 77).any(): os._exit(9)\nreturn {'y': x * 2}"
    home.publish_code(leave)
    with home.serve() as server:
        server.deploy("code", allow_code=True)
        for _ in range(2):
            with pytest.raises(argosy.ArgosyError):
                predict(server, "code", 77.0)
            wait_until(lambda: find_workers(server, "code"))
        # Those that still sleep become children of the supervisor before they end.
        wait_until(lambda: all(is_alive(pid) for pid in list_children(server.pid)) and not find_sleepers())
        assert all(is_alive(pid) for pid in list_children(server.pid))


def find_sleepers() -> list[Path]:
    """Processes that the model above started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == b"sleep\x000.1\x00":
                found.append(path)
    return found


def test_link_that_a_front_had_no_room_for_is_made_later(home: Home) -> None:
    home.publish_scale()
    with home.serve("scale") as server:
        front = find_child(server, FRONT)
        (worker,) = find_workers(server, "scale")
        limits = resource.prlimit(front, resource.RLIMIT_NOFILE)
        resource.prlimit(front, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: find_workers(server, "scale") not in ([], [worker]))
        # It asks for the link again once a second, and lets nobody wait for one that it could not have twice.
        time.sleep(1.5)
        resource.prlimit(front, resource.RLIMIT_NOFILE, limits)
        np.testing.assert_array_equal(wait_until(lambda: try_to_predict(server, 3.0), 5.0), row(6.0))
        assert find_child(server, FRONT) == front


def try_to_predict(server: Server, value: float) -> Any:
    """An answer; None while there is no replica."""
    try:
        return predict(server, "scale", value).tolist()
    except UnavailableError:
        return None


def publish_wide(home: Home, name: str, size: int) -> None:
    """A version whose signature takes about `size` bytes."""
    wide = Signature((TensorSpec("x", "FP32", (-1, 4)), TensorSpec("z" * size, "FP32", (-1, 4))), SIGNATURE.outputs)
    path = home.files / "model.py"
    path.write_text(SOURCE.format(load="", infer=""))
    publish_python(home.store, path, name, signature=wide)


def test_new_control_process_is_told_of_more_workers_than_a_channel_holds(home: Home) -> None:
    home.publish_scale()
    publish_wide(home, "wide", 70_000)
    with home.serve("scale") as server:
        server.deploy("wide", allow_code=True, replicas=6)
        workers = find_workers(server, "wide")
        old = find_child(server, CONTROL)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: find_child(server, CONTROL) not in (0, old))
        assert wait_until(lambda: find_workers_if_there(server, "wide")) == workers
        assert "read its channel" not in (server.home / "serve.log").read_text()


def test_version_of_which_no_worker_can_be_told_is_refused_alone(server: Server, shared_home: Home) -> None:
    publish_wide(shared_home, "wider", 140_000)
    with nobody_else_is_harmed(server), pytest.raises(argosy.ArgosyError) as caught:
        server.deploy("wider", allow_code=True)
    assert "What workers of deployment 'wider' would be told of it takes 14" in str(caught.value)
    assert "at most 131072 bytes" in str(caught.value)
