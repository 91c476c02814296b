"""Pickles that must do no harm when they are opened in a confined process.

    python attacks/hostile_pickles.py

Prints one line a pickle; exits 1 if one of them left a trace, learned a secret, reached the network or its parent.
One harmless bomb is opened without confinement first, to show that it goes off.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from argosy.confine.confine import describe_confinement, run_confined
from argosy.errors import ArgosyError

SECRET = "correct-horse-battery-staple"
OUTSIDE = Path(tempfile.gettempdir()) / f"argosy-attack-{os.getpid()}"
TIMEOUT_S = 5.0
MEMORY_BYTES = 2 << 30

# What each pickle runs. {home} holds the secret, {write} may be written, {tcp} and {udp} are ports that listen.
CODE = {
    "shell command": "os.system('touch {home}/marker')",
    "program": "subprocess.run(['/usr/bin/touch', '{home}/marker'])",
    "program in its own place": "os.execv('/usr/bin/touch', ['touch', '{home}/marker'])",
    "write into home": "open('{home}/.profile', 'a').write('evil')",
    "write through /proc/self/root": "open('/proc/self/root{home}/marker', 'w')",
    "write into /tmp": "open('{outside}', 'w')",
    "steal a file": "print(open('{home}/secret').read())",
    "steal a file through a link": "os.symlink('{home}/secret', '{write}/l'); print(open('{write}/l').read())",
    "leave a link to a file": "os.symlink('{home}/secret', '{write}/model.onnx')",
    "leave a hard link to a file": "os.link('{home}/secret', '{write}/model.onnx')",
    "leave a named pipe": "os.mkfifo('{write}/model.onnx')",
    "steal the environment": "print(os.environ, open('/proc/self/environ').read())",
    "steal the parent's environment": "print(open(f'/proc/{{os.getppid()}}/environ').read())",
    "steal an open file": "print([os.pread(fd, 99, 0) for fd in range(3, 99) if os.path.exists(f'/proc/self/fd/{{fd}}')])",
    "open a file to everybody": "os.chmod('{home}/secret', 0o777)",
    "destroy a file": "os.truncate('{home}/secret', 0)",
    "call home by TCP": "socket.create_connection(('127.0.0.1', {tcp}), 2).send(b'x')",
    "call home by UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "never end": "while True: pass",
    "output without end": "while True: os.write(1, bytes(1 << 16))",
    "log without end": "while True: os.write(2, bytes(1 << 16))",
    "all the memory": "x = [bytes(1 << 24) for _ in iter(int, 1)]",
    "folders without end": "[(os.mkdir('d'), os.chdir('d')) for _ in range(5000)]",
    "crash": "ctypes.string_at(0)",
}
# These would leave nothing to see, so whoever gets to the end says so. None of them harms the machine that fails to hold it.
UNSEEN = {
    "write into the interpreter": "open(os.__file__, 'a')",
    "write into argosy": "open(__import__('argosy').__file__, 'a')",
    "call home by io_uring": "assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
    "signal to everything": "os.kill(-1, 0)",
    "starve the parent": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 1)",
    "outlive the parent": "assert libc.prctl(1, 0, 0, 0, 0) == 0",
    "another process": "os.fork()",
    "new namespace": "assert libc.unshare(0x10020000) == 0",
}
IMPORTS = "import ctypes, os, socket, subprocess\nlibc = ctypes.CDLL(None)\n"
RAW = {
    "one object ten thousand deep": b"(" * 10_000 + b"." * 10_000,
    "size of a terabyte": b"\x80\x05\x8e" + (1 << 40).to_bytes(8, "little"),
    "memo index of four thousand million": b"\x80\x02Nr\xff\xff\xff\xff.",
    "truncated": pickle.dumps({"a": 1}, 5)[:-3],
    "empty": b"",
    "noise": os.urandom(4096),
}


class Bomb:
    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.code,)


def make_attacks(home: Path, write: Path, tcp: socket.socket, udp: socket.socket) -> dict[str, bytes]:
    names = {"home": home, "write": write, "outside": OUTSIDE, "tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1]}
    unseen = {what: f"{code}; open('{{write}}/reached', 'w')" for what, code in UNSEEN.items()}
    bombs = {what: pickle.dumps(Bomb(IMPORTS + code.format(**names))) for what, code in (CODE | unseen).items()}
    return {**bombs, **RAW}


def find_harm(home: Path, write: Path, sockets: list[socket.socket], output: str) -> str:
    """Name what an attack reached; nothing if it was held."""
    secret = home / "secret"
    if SECRET in output:
        return "the secret was read"
    if [path.name for path in home.iterdir()] != ["secret"] or secret.read_text() != SECRET or secret.stat().st_mode & 0o077:
        return "home was changed"
    if list(write.iterdir()) or OUTSIDE.exists():
        return "it left a trace"
    for listener in sockets:
        try:
            listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
        except BlockingIOError:
            continue
        return "it used the network"
    return ""


def open_confined(path: Path, write: Path) -> tuple[str, str]:
    """Open a pickle; what it ended with, and all that it said."""
    try:
        done = run_confined(["pickle", str(path)], read=[path], write=[write], timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
    except ArgosyError as error:
        return error.key, ""
    last = done.stderr.strip().splitlines()[-1:]
    ending = last[0][:70] if last else f"exit code {done.returncode}"
    return ending, done.stdout.decode(errors="replace") + done.stderr


def show_that_bombs_go_off(folder: Path) -> None:
    marker, path = folder / "marker", folder / "control.pkl"
    path.write_bytes(pickle.dumps(Bomb(f"open({str(marker)!r}, 'w')")))
    subprocess.run([sys.executable, "-m", "pickle", str(path)], capture_output=True, check=True)
    assert marker.exists()


def main() -> int:
    if not describe_confinement().is_confined:
        print("nothing tried, this machine cannot confine:", *describe_confinement().missing)
        return 1
    num_harmful = 0
    os.environ["API_TOKEN"] = SECRET
    with tempfile.TemporaryDirectory() as temp, socket.create_server(("127.0.0.1", 0)) as tcp:
        folder = Path(temp)
        show_that_bombs_go_off(folder)
        home, write, path = folder / "home", folder / "write", folder / "model.pkl"
        home.mkdir()
        write.mkdir()
        (home / "secret").write_text(SECRET)
        (home / "secret").chmod(0o600)
        leaked = os.open(home / "secret", os.O_RDONLY)
        os.set_inheritable(leaked, True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            for listener in (tcp, udp):
                listener.setblocking(False)
            for what, content in make_attacks(home, write, tcp, udp).items():
                path.write_bytes(content)
                ending, output = open_confined(path, write)
                harm = find_harm(home, write, [tcp, udp], output)
                num_harmful += bool(harm)
                print(f"HARM, {harm}: {what}" if harm else f"held ({ending}): {what}")
        os.close(leaked)
    return 1 if num_harmful else 0


if __name__ == "__main__":
    sys.exit(main())
