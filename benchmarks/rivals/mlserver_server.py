"""MLServer (HTTP and gRPC): V2, rows joined by its adaptive batching, the model in the server's process."""

import json
import os
import sys
from pathlib import Path

from ort_model import FOLDER, GRPC_PORT, MAX_BATCH, METRICS_PORT, PORT, WAIT_MS

SERVER = {
    "debug": False,
    "host": "127.0.0.1",
    "http_port": PORT,
    "grpc_port": GRPC_PORT,
    "metrics_port": METRICS_PORT,
    "metrics_endpoint": None,
    "parallel_workers": 0,
}


def main() -> None:
    batching = {"max_batch_size": MAX_BATCH, "max_batch_time": WAIT_MS / 1000} if MAX_BATCH > 1 else {}
    model = {"name": "m", "implementation": "mlserver_model.OnnxModel", **batching}
    folder = Path(FOLDER)
    (folder / "settings.json").write_text(json.dumps(SERVER))
    (folder / "model-settings.json").write_text(json.dumps(model))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    program = str(Path(sys.executable).parent / "mlserver")
    os.execve(program, [program, "start", FOLDER], environment)


if __name__ == "__main__":
    main()
