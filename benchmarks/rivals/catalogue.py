"""The rivals: what each is installed from, how it is asked, and the best setting of those tried for each model.

Every rival is a program `rivals/NAME_server.py` that its own Python runs; it reads its settings from the environment
(`rivals/ort_model.py` lists them). All run the model on the same ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ORT = "onnxruntime==1.32.0"


@dataclass(frozen=True)
class Setting:
    """How a rival serves one model.

    Attributes:
        workers: processes, or instances, that hold the model.
        threads: of one operator.
        max_batch: rows that are joined at most; 1 joins none.
        wait_ms: how long a batch waits for more rows.
        more: variables of the environment that this rival alone knows.
    """

    workers: int = 2
    threads: int = 1
    max_batch: int = 1
    wait_ms: float = 1
    more: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        joined = f", batches of {self.max_batch} within {self.wait_ms:g} ms" if self.max_batch > 1 else ""
        each = f" of {self.threads} threads" if self.threads > 1 else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)}{each}{joined}"


@dataclass(frozen=True)
class Rival:
    """One server of the field.

    Attributes:
        environment: whose packages it runs with.
        packages: pinned; what they need is resolved by pip and kept in `installed.txt`.
        program: file in this folder.
        path: of its URL; a gRPC server has the path of V2's call.
        kind: of the bodies it takes: `v2`, `plain`, `stacked`, `raw`, `binary` or `grpc` (`bodies.py`).
        settings: by model; a model that is missing is one that this rival cannot serve.
        variables: environment of its processes.
        is_restless: it uses the processor while nobody asks it (0.15 cores, where the others use 0 to 0.03).
    """

    name: str
    environment: str
    packages: tuple[str, ...]
    program: str
    path: str
    kind: str
    settings: Mapping[str, Setting]
    variables: Mapping[str, str] = field(default_factory=dict)
    is_restless: bool = False


V2_PATH = "/v2/models/m/infer"
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
_MOSEC = ("mosec==0.9.8", "orjson==3.13.0", ORT, "numpy==2.4.6")
_TRITON = ("nvidia-pytriton==0.7.0", ORT, "numpy==1.26.4")
_FASTAPI = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.22.1", "httptools==0.9.0", "orjson==3.13.0", ORT, "numpy==2.4.6")
# A later uvloop than 0.21 has no event loop where MLServer asks for one.
_MLSERVER = ("mlserver==1.7.1", "uvloop==0.21.0", ORT)
_KSERVE = ("kserve==0.21.0", ORT)
_RAY = ("ray[serve,haproxy]==2.60.0", "orjson==3.13.0", ORT)
_BENTOML = ("bentoml==1.4.39", "uvloop==0.22.1", "httptools==0.9.0", ORT)
_LITSERVE = ("litserve==0.2.19", "uvloop==0.22.1", "httptools==0.9.0", ORT)
_TORCHSERVE = (
    "torchserve==0.12.0",
    "torch-model-archiver==0.12.0",
    "torch==2.13.0",
    "orjson==3.13.0",
    "psutil==7.2.2",
    "pyyaml",
    ORT,
)
_RAY_SWITCHES = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def _same(models: str, setting: Setting) -> dict[str, Setting]:
    return dict.fromkeys(models.split(), setting)


_LIST = (
    Rival("mosec", "mosec", _MOSEC, "mosec_server.py", "/inference", "plain", _same("mlp minilm lengths", Setting(max_batch=32))),
    # With batching on, one connection waits for a batch that never fills: this is its best setting for that.
    Rival("mosec alone", "mosec", _MOSEC, "mosec_server.py", "/inference", "plain", _same("mlp", Setting(workers=1))),
    Rival("mosec raw", "mosec", _MOSEC, "mosec_server.py", "/inference", "raw", _same("pixels", Setting(max_batch=8))),
    Rival(
        "triton",
        "triton",
        _TRITON,
        "triton_server.py",
        V2_PATH,
        "v2",
        _same("mlp minilm lengths", Setting(max_batch=32, wait_ms=0.2)),
    ),
    Rival(
        "triton binary",
        "triton",
        _TRITON,
        "triton_server.py",
        V2_PATH,
        "binary",
        _same("pixels", Setting(max_batch=8, wait_ms=0.2)),
    ),
    Rival(
        "triton gRPC",
        "triton",
        _TRITON,
        "triton_server.py",
        GRPC_PATH,
        "grpc",
        _same("mlp minilm", Setting(max_batch=32, wait_ms=0.2)),
    ),
    Rival("fastapi", "fastapi", _FASTAPI, "fastapi_server.py", V2_PATH, "v2", _same("mlp minilm lengths", Setting())),
    # Joins rows of one length only; its workers of their own (parallel_workers) were slower than the model in its process.
    Rival(
        "mlserver",
        "mlserver",
        _MLSERVER,
        "mlserver_server.py",
        V2_PATH,
        "v2",
        {"mlp": Setting(workers=1, max_batch=64), "minilm": Setting(workers=1, threads=2, max_batch=32, wait_ms=5)},
    ),
    Rival(
        "mlserver gRPC",
        "mlserver",
        _MLSERVER,
        "mlserver_server.py",
        GRPC_PATH,
        "grpc",
        _same("mlp", Setting(workers=1, max_batch=64)),
    ),
    Rival("kserve", "kserve", _KSERVE, "kserve_server.py", V2_PATH, "v2", _same("mlp minilm lengths", Setting())),
    # Its gRPC server is one process, whatever the number of workers.
    Rival("kserve gRPC", "kserve", _KSERVE, "kserve_server.py", GRPC_PATH, "grpc", _same("mlp", Setting(workers=1))),
    Rival(
        "ray",
        "ray",
        _RAY,
        "ray_server.py",
        "/infer",
        "plain",
        {"mlp": Setting(max_batch=64, wait_ms=2), **_same("minilm lengths", Setting(max_batch=32, wait_ms=5))},
        _RAY_SWITCHES,
        is_restless=True,
    ),
    # Joins rows of one length only.
    Rival(
        "bentoml",
        "bentoml",
        _BENTOML,
        "bentoml_server.py",
        "/infer",
        "stacked",
        {"mlp": Setting(max_batch=64), "minilm": Setting(max_batch=32)},
    ),
    Rival(
        "litserve",
        "litserve",
        _LITSERVE,
        "litserve_server.py",
        "/predict",
        "plain",
        {
            "mlp": Setting(workers=1, max_batch=64, more={"API_SERVERS": "2"}),
            **_same("minilm lengths", Setting(max_batch=32, wait_ms=5)),
        },
        is_restless=True,
    ),
    Rival(
        "torchserve",
        "torchserve",
        _TORCHSERVE,
        "torchserve_server.py",
        "/predictions/m",
        "plain",
        {"mlp": Setting(max_batch=32, wait_ms=2), **_same("minilm lengths", Setting(max_batch=32, wait_ms=5))},
    ),
)
RIVALS: Mapping[str, Rival] = {rival.name: rival for rival in _LIST}
# A rival that joins nothing pads nothing.
PADDING = ("mosec", "triton", "ray", "litserve", "torchserve")
