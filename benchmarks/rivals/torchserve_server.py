"""TorchServe: plain JSON, batches joined by its Java front, Python workers that run `torchserve_handler.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ort_model import FOLDER, GRPC_PORT, MAX_BATCH, METRICS_PORT, PORT, WAIT_MS, WORKERS

HERE, BIN = Path(__file__).resolve().parent, Path(sys.executable).parent


def make_archive(store: Path) -> None:
    # The archiver wants a file of weights; the handler reads the ONNX file itself.
    weights = store / "none.pt"
    weights.write_text("none")
    handler = ["--handler", str(HERE / "torchserve_handler.py"), "--serialized-file", str(weights)]
    names = ["--model-name", "m", "--version", "1", "--export-path", str(store), "--force"]
    subprocess.run([str(BIN / "torch-model-archiver"), *names, *handler], check=True)


def main() -> None:
    store = Path(FOLDER) / "store"
    store.mkdir()
    make_archive(store)
    model = {
        "defaultVersion": True,
        "marName": "m.mar",
        "minWorkers": WORKERS,
        "maxWorkers": WORKERS,
        "batchSize": MAX_BATCH,
        "maxBatchDelay": max(1, int(WAIT_MS)),
        "responseTimeout": 60,
    }
    # It cannot do without its management, metrics and gRPC listeners; Linux gives these two ports of its own choice.
    management, grpc_management = (int(os.environ[name]) for name in ("SPARE_PORT_1", "SPARE_PORT_2"))
    settings = {
        "inference_address": f"http://127.0.0.1:{PORT}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{METRICS_PORT}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": GRPC_PORT,
        "grpc_management_port": grpc_management,
        "load_models": "m.mar",
        "models": json.dumps({"m": {"1": model}}),
        "job_queue_size": 1000,
        "disable_token_authorization": "true",
        "default_response_timeout": 60,
        "enable_envvars_config": "true",
        "disable_system_metrics": "true",
        "vmargs": "-Xmx1g",
    }
    config = Path(FOLDER) / "config.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "LOG_LOCATION": FOLDER,
        "METRICS_LOCATION": FOLDER,
    }
    program = str(BIN / "torchserve")
    options = [
        "--start",
        "--foreground",
        "--ncs",
        "--disable-token-auth",
        "--ts-config",
        str(config),
        "--model-store",
        str(store),
    ]
    os.execve(program, [program, *options], environment)


if __name__ == "__main__":
    main()
