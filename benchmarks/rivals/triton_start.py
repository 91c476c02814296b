"""Start Triton's C++ core, which the wheel of nvidia-pytriton holds, with a model repository."""

import os
import sysconfig
from pathlib import Path

import pytriton

CORE = Path(pytriton.__file__).parent / "tritonserver"


def start(repository: Path, port: int, grpc_port: int, *more: str) -> None:
    """Become the server; `more` are options of its own."""
    # The stub must be of this Python's version, and find the interpreter's library. It passes PYTHONPATH over, and takes the
    # modules of the folder where the server was started before those of the interpreter.
    stub = CORE / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        stub.symlink_to(CORE / "python_backend_stubs" / sysconfig.get_python_version() / stub.name)
    environment = os.environ | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    os.chdir(CORE.parent.parent)
    options = {
        "model-repository": repository,
        "backend-directory": CORE / "backends",
        "http-address": "127.0.0.1",
        "http-port": port,
        "http-thread-count": 2,
        "grpc-address": "127.0.0.1",
        "grpc-port": grpc_port,
        "allow-metrics": "false",
    }
    program = str(CORE / "bin" / "tritonserver")
    os.execve(program, [program, *(f"--{name}={value}" for name, value in options.items()), *more], environment)
