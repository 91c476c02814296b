"""Ray Serve behind HAProxy: one deployment, its replicas joining rows; plain JSON."""

import os
import signal
import sys
from pathlib import Path

import orjson
import ray
from ort_model import FOLDER, MAX_BATCH, PORT, WAIT_MS, WORKERS, OrtModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

NUM_CPUS = 2


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Encoder:
    def __init__(self) -> None:
        self.model = OrtModel()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def join(self, rows: list) -> list:
        return list(self.model.run_rows(rows))

    async def __call__(self, request: Request) -> Response:
        y = await self.join(orjson.loads(await request.body()))
        return Response(orjson.dumps({"y": y}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def main() -> None:
    names = ("MODEL", "PORT", "GRPC_PORT", "METRICS_PORT", "FOLDER", "WORKERS", "THREADS", "MAX_BATCH", "WAIT_MS", "PAD")
    variables = {name: os.environ[name] for name in os.environ if name in names or name.startswith("RAY_SERVE_")}
    ray.init(
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": variables | {"PYTHONPATH": str(Path(__file__).parent)}},
        _node_ip_address="127.0.0.1",
        _temp_dir=f"{FOLDER}/ray",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Encoder.options(logging_config={"enable_access_log": False}).bind(), name="m", route_prefix="/infer")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
