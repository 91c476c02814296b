"""A confined process reaches what it was given and nothing else; whatever it does, its caller goes on."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from argosy.confine import confine
from argosy.confine.confine import Completed, describe_confinement, remove_hostile_folder, run_confined
from argosy.errors import InputError, ModelError, NotAllowedError
from tests.confine.box import TIMEOUT_S, Box
from tests.processes import is_alive, wait_until

pytestmark = pytest.mark.skipif(not describe_confinement().is_confined, reason="this kernel cannot confine a process")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


@pytest.fixture
def listeners(box: Box) -> Iterator[dict[str, Any]]:
    """Services of this machine that a process could talk to."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        named.bind(str(box.read / "socket"))
        abstract.bind(f"\0argosy-test-{os.getpid()}")
        named.listen()
        abstract.listen()
        yield {
            "TCP": tcp.getsockname(),
            "UDP": udp.getsockname(),
            "NAMED": named.getsockname(),
            "ABSTRACT": abstract.getsockname(),
        }


def test_given_folders_can_be_read_and_written(box: Box) -> None:
    done = box.run(
        "import sys, pathlib\n"
        "out = pathlib.Path(WRITE, 'deep', 'out'); out.parent.mkdir(); out.write_text(open(GIVEN).read() * 2)\n"
        "out.rename(pathlib.Path(WRITE, 'moved')); out.parent.rmdir(); open('scratch', 'w').write('x')\n"
        "print(sys.argv[1:], os.listdir(READ), os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR'], os.getcwd())"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (box.write / "moved").read_text() == "datadata"
    *_, cwd = done.stdout.decode().split()
    assert done.stdout.decode().startswith("[] ['given'] True")
    assert not Path(cwd).exists()


def test_process_is_the_first_to_end_where_memory_runs_out(box: Box) -> None:
    assert box.run("print(open('/proc/self/oom_score_adj').read().strip())").stdout == b"1000\n"


def test_one_file_can_be_given(box: Box) -> None:
    (box.read / "other").write_text("x")
    assert box.attempt("open(GIVEN).read()", read=[box.given]) == "done"
    assert box.attempt("open(READ + '/other')", read=[box.given]) == "denied"
    assert box.attempt("open(WRITE + '/new', 'w')", write=[]) == "denied"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("open(SECRET)", id="read-a-file-of-home"),
        pytest.param("os.listdir(HOME)", id="list-home"),
        pytest.param("open(f'{READ}/../home/secret')", id="climb-out"),
        pytest.param("open(f'/proc/self/root{SECRET}')", id="through-proc-root"),
        pytest.param(f"open('/proc/{os.getpid()}/environ')", id="environment-of-the-parent"),
        pytest.param("open('/proc/self/mem', 'r+b')", id="own-memory-as-a-file"),
        pytest.param("open('/etc/passwd')", id="users"),
        pytest.param("open('/dev/shm/x', 'w')", id="shared-memory"),
        pytest.param("open(HOME + '/new', 'w')", id="write-a-file-in-home"),
        pytest.param("open(GIVEN, 'w')", id="overwrite-what-may-be-read"),
        pytest.param("os.open(GIVEN, os.O_RDONLY | os.O_TRUNC)", id="truncate-while-opening"),
        pytest.param("os.open(SECRET, 3 | os.O_TRUNC)", id="truncate-with-access-mode-3"),
        pytest.param("os.truncate(SECRET, 0)", id="truncate"),
        pytest.param("os.remove(GIVEN)", id="remove"),
        pytest.param("os.chmod(SECRET, 0o666)", id="chmod"),
        pytest.param("os.chown(SECRET, os.getuid(), -1)", id="chown"),
        pytest.param("os.utime(SECRET)", id="utime"),
        pytest.param("os.setxattr(SECRET, 'user.x', b'')", id="setxattr"),
        pytest.param("call('syscall', 452, -100, SECRET.encode(), 0o666, 0)", id="fchmodat2"),
        pytest.param("os.symlink(SECRET, WRITE + '/link')", id="make-a-symbolic-link"),
        pytest.param("os.mkfifo(WRITE + '/fifo')", id="make-a-pipe"),
        pytest.param("os.rename(GIVEN, WRITE + '/moved')", id="move-what-may-be-read"),
        pytest.param("call('inotify_add_watch', os.memfd_create('x'), HOME.encode(), 256)", id="watch-home"),
        pytest.param("import fcntl; fcntl.fcntl(open(GIVEN), fcntl.F_SETLEASE, fcntl.F_WRLCK)", id="take-a-lease"),
        pytest.param("os.kill(os.getppid(), 9)", id="kill-the-parent"),
        pytest.param("os.kill(os.getppid(), 0)", id="ask-whether-the-parent-lives"),
        pytest.param("os.killpg(0, 9)", id="kill-by-group"),
        pytest.param("import signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)", id="kill-by-descriptor"),
        pytest.param("import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))", id="limit-the-parent"),
        pytest.param("os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))", id="starve-the-parent"),
        pytest.param("os.sched_setaffinity(os.getppid(), {0})", id="move-the-parent"),
        pytest.param("os.setpriority(os.PRIO_USER, 0, 19)", id="starve-the-user"),
        pytest.param("call('ptrace', 16, os.getppid(), 0, 0)", id="ptrace-the-parent"),
        pytest.param("call('prctl', 1, 0, 0, 0, 0)", id="outlive-the-parent"),
        pytest.param("os.fork()", id="fork"),
        pytest.param("import subprocess; subprocess.run(['/bin/true'])", id="start-a-program"),
        pytest.param("os.posix_spawn('/bin/true', ['true'], {})", id="spawn-a-program"),
        pytest.param("os.execv('/bin/true', ['true'])", id="become-a-program"),
        pytest.param("call('unshare', 0x10000000)", id="new-user-namespace"),
        pytest.param("call('shmget', 1, 4096, 0o1600)", id="shared-memory-by-number"),
        pytest.param("call('mq_open', b'/argosy-test', 66, 0o600, None)", id="message-queue"),
        pytest.param("call('syscall', 425, 8, ctypes.create_string_buffer(120))", id="io-uring"),
        pytest.param("os.setuid(65534)", id="another-user"),
        pytest.param("socket.socketpair(type=socket.SOCK_DGRAM)", id="datagram-pair"),
    ],
)
def test_process_is_denied(box: Box, source: str) -> None:
    assert box.attempt(source) == "denied"
    assert box.secret.read_text() == "swordfish"
    assert box.secret.stat().st_mode & 0o777 == 0o640
    assert box.given.read_text() == "data"
    assert not list(box.write.iterdir())


def test_hard_link_to_a_secret_is_refused(box: Box) -> None:
    # The kernel calls this a move between file systems, or denies it; both leave no link.
    assert box.attempt("try: os.link(SECRET, WRITE + '/link')\nexcept OSError: raise PermissionError") == "denied"
    assert not list(box.write.iterdir())


def test_symbolic_link_found_in_a_folder_leads_nowhere(box: Box) -> None:
    for folder in (box.read, box.write):
        (folder / "link").symlink_to(box.secret)
        assert box.attempt(f"open({str(folder / 'link')!r})") == "denied"
        assert box.attempt(f"open({str(folder / 'link')!r}, 'w')") == "denied"
    assert box.secret.read_text() == "swordfish"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("socket.create_connection({TCP}, 5)", id="tcp"),
        pytest.param("socket.create_server(('127.0.0.1', 0))", id="tcp-server"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', {UDP})", id="udp"),
        pytest.param("socket.socket(socket.AF_UNIX).connect({NAMED!r})", id="socket-in-a-folder"),
        pytest.param("socket.socket(socket.AF_UNIX).connect({ABSTRACT!r})", id="abstract-socket"),
        pytest.param("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", id="netlink"),
    ],
)
def test_no_socket_can_be_opened(box: Box, listeners: dict[str, Any], source: str) -> None:
    assert box.attempt(source.format(**listeners)) == "denied"


def test_environment_holds_no_secret(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "swordfish")
    monkeypatch.setenv("PYTHONPATH", str(box.home))
    done = box.run("print(sorted(os.environ), open('/proc/self/environ').read())", env={"KERAS_BACKEND": "torch"})
    assert b"swordfish" not in done.stdout and str(box.home).encode() not in done.stdout
    names = re.findall(r"'(\w+)'", done.stdout.decode())
    assert names == ["HOME", "JOBLIB_MULTIPROCESSING", "KERAS_BACKEND", "LANG", "LOGNAME", "PATH", "TMPDIR"]


def test_descriptors_are_not_inherited(box: Box) -> None:
    with box.secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        done = box.run("print([fd for fd in range(100) if os.path.exists(f'/proc/self/fd/{fd}')], os.read(0, 1))")
    assert done.stdout == b"[0, 1, 2] b''\n"


def test_modules_of_a_hostile_folder_run_only_confined(box: Box) -> None:
    marker = box.home / "marker"
    for name in ("sitecustomize", "usercustomize", "json", "ctypes", "struct", "runpy", "argosy"):
        (box.code / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    (box.code / "evil.pth").write_text(f"import os; open({str(marker)!r}, 'w')")
    assert box.attempt("import json, argosy.errors; json.dumps(argosy.errors.MESSAGES)") == "done"
    assert not marker.exists()


class Bomb:
    """Calls what it likes when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("kind", ["os.system", "subprocess", "open"])
def test_pickle_bomb_harms_nobody(box: Box, kind: str) -> None:
    marker, path = box.home / "marker", box.read / "bomb.pkl"
    command = f"touch {marker}"
    bombs = {
        "os.system": Bomb(os.system, command),
        "subprocess": Bomb(subprocess.check_call, ["/bin/sh", "-c", command]),
        "open": Bomb(open, str(marker), "w"),
    }
    path.write_bytes(pickle.dumps(bombs[kind]))
    done = run_confined(["pickle", str(path)], read=[path], write=[], timeout_s=TIMEOUT_S)
    assert not marker.exists()
    assert kind == "os.system" or "PermissionError" in done.stderr
    # The bomb is real: it goes off where nothing confines it.
    subprocess.run([sys.executable, "-m", "pickle", str(path)], capture_output=True, check=True)
    assert marker.exists()


def test_process_that_does_not_end_is_killed(box: Box) -> None:
    source = (
        "import signal, threading, time\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "open(WRITE + '/pid', 'w').write(str(os.getpid())); os.close(1); os.close(2); time.sleep(600)"
    )
    with pytest.raises(ModelError, match="probe did not end within 2 s and was killed"):
        box.run(source, timeout_s=2.0)
    assert not is_alive(int((box.write / "pid").read_text()))


def test_endless_output_is_cut(box: Box) -> None:
    with pytest.raises(ModelError, match="wrote more than 16777216 bytes"):
        box.run("while True: os.write(1, bytes(1 << 16))")


def test_only_the_end_of_the_log_is_kept_and_cannot_move_the_cursor(box: Box) -> None:
    done = box.run("for _ in range(1000): os.write(2, b'x' * 20000)\nos.write(2, 'é\\x1b[2J\\u202eend\\n'.encode())")
    assert done.returncode == 0
    assert len(done.stderr) < 8001
    assert done.stderr.endswith("xé�[2J�end\n")


def test_process_dies_with_its_caller(box: Box) -> None:
    (box.code / "probe.py").write_text(
        f"import os, time\nopen({str(box.write / 'pid')!r}, 'x').write(str(os.getpid()))\ntime.sleep(600)"
    )
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path; from argosy.confine.confine import run_confined\n"
            f"run_confined(['probe'], read=[], write=[Path({str(box.write)!r})], module_folders=[Path({str(box.code)!r})],"
            " timeout_s=600)",
        ],
        env={**os.environ, "TMPDIR": str(box.home)},
    )
    pid = int(wait_until(lambda: (box.write / "pid").exists() and (box.write / "pid").read_text()))
    caller.kill()
    caller.wait()
    wait_until(lambda: not is_alive(pid))


def test_limits_hold(box: Box) -> None:
    done = box.run(
        "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "try: bytes(2 << 30)\nexcept MemoryError: print('none')",
        memory_bytes=1 << 30,
    )
    assert done.stdout.decode().splitlines() == ["(0, 0)", "none"]


def test_several_run_at_once(box: Box) -> None:
    results: list[Completed] = []
    sources = ["print(1)", "print(2)", "print(3)"]
    boxes = [Box(box.home / str(index)) for index in range(len(sources))]
    threads = [
        threading.Thread(target=lambda one=one, source=source: results.append(one.run(source)))
        for one, source in zip(boxes, sources, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.stdout for done in results) == [b"1\n", b"2\n", b"3\n"]


def test_deep_and_locked_folder_is_removed(box: Box) -> None:
    source = (
        "import sys\nos.chdir({folder})\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')\n"
        "open('file', 'w'); os.mkdir('locked', 0); print(os.environ['HOME'])"
    )
    done = box.run(source.format(folder="WRITE"))
    assert done.returncode == 0, done.stderr
    outside = box.home / "outside"
    outside.write_text("kept")
    (box.write / "link").symlink_to(outside)
    remove_hostile_folder(box.write)
    assert not box.write.exists() and outside.read_text() == "kept"
    done = box.run(source.format(folder="os.environ['HOME']"), write=[])
    assert done.returncode == 0 and not Path(done.stdout.decode().strip()).exists()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        pytest.param({"read": [Path("/no/such/file")]}, "missing_file", id="no-file"),
        pytest.param({"write": [Path("a\0b")]}, "missing_file", id="null-byte"),
        pytest.param({"module_folders": [Path("/no/such/folder")]}, "missing_file", id="no-folder"),
        pytest.param({"python": Path("/no/such/python")}, "not_started", id="no-interpreter"),
        pytest.param({"env": {"A": "x\0y"}}, "not_started", id="null-byte-in-a-variable"),
        pytest.param({"env": {"PYTHONPATH": "/tmp"}}, "bad_option", id="ignored-variable"),
        pytest.param({"timeout_s": 0}, "bad_option", id="no-time"),
        pytest.param({"timeout_s": float("nan")}, "bad_option", id="time-that-is-no-number"),
        pytest.param({"memory_bytes": 0}, "bad_option", id="no-memory"),
    ],
)
def test_bad_option_is_refused(box: Box, options: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        box.run("", **options)
    assert caught.value.key == key


def test_module_is_needed() -> None:
    with pytest.raises(InputError, match="expected a module, then its arguments"):
        run_confined([], read=[], write=[], timeout_s=TIMEOUT_S)


def test_machine_without_landlock_refuses_unless_told_otherwise(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "read_landlock_abi", lambda: 0)
    assert not describe_confinement().is_confined
    with pytest.raises(NotAllowedError, match="cannot confine files"):
        box.run("print(1)")
    assert box.attempt("open(SECRET)", is_required=False) == "done"
    assert box.attempt("socket.socket()", is_required=False) == "denied"


def test_machine_without_filter_still_confines_files(
    box: Box, listeners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confine, "can_filter_calls", lambda: False)
    with pytest.raises(NotAllowedError, match="cannot confine sockets and processes"):
        box.run("print(1)")
    attempts = ["open(SECRET)", "os.execv('/bin/true', ['true'])"]
    attempts += ["socket.create_connection({TCP}, 5)"] if describe_confinement().landlock_abi >= 4 else []
    if describe_confinement().landlock_abi >= 7:
        attempts += ["socket.socket(socket.AF_UNIX).connect({ABSTRACT!r})", "os.kill(os.getppid(), 0)"]
    for source in attempts:
        assert box.attempt(source.format(**listeners), is_required=False) == "denied", source


def test_grandchildren_end_with_the_process_where_they_cannot_be_prevented(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "can_filter_calls", lambda: False)
    fork = "import time\nif not os.fork():\n    open(WRITE + '/pid', 'w').write(str(os.getpid())); time.sleep(600)\n"
    waits = "while not (os.path.exists(WRITE + '/pid') and open(WRITE + '/pid').read()): time.sleep(0.01)\n"
    assert box.run(fork + waits, is_required=False).returncode == 0
    wait_until(lambda: not is_alive(int((box.write / "pid").read_text())))
    (box.write / "pid").unlink()
    with pytest.raises(ModelError, match="did not end"):
        box.run(fork + waits + "time.sleep(600)", is_required=False, timeout_s=2.0)
    wait_until(lambda: not is_alive(int((box.write / "pid").read_text())))
