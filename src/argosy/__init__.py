"""Argosy: from training data to a service that many clients call, kept up to date while they call it.

Importing it starts nothing, configures no logging and needs no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from argosy.client import AdminClient, AsyncClient, Client, Prediction
    from argosy.compress.judge import Guard
    from argosy.compress.result import CompressResult
    from argosy.compress.run import compress
    from argosy.deploy.spec import DeploymentSpec
    from argosy.errors import ArgosyError
    from argosy.registry.transfer import pull, push
    from argosy.search.run import search
    from argosy.server import Server, serve
    from argosy.signature import Signature, TensorSpec
    from argosy.store.local import Store
    from argosy.store.manifest import Version
    from argosy.train.average import Ema
    from argosy.train.checkpoint import Checkpoints
    from argosy.train.publish import publish
    from argosy.train.run import TrainResult, train
    from argosy.train.start import Start

__all__ = [
    "AdminClient",
    "ArgosyError",
    "AsyncClient",
    "Checkpoints",
    "Client",
    "CompressResult",
    "DeploymentSpec",
    "Ema",
    "Guard",
    "Prediction",
    "Server",
    "Signature",
    "Start",
    "Store",
    "TensorSpec",
    "TrainResult",
    "Version",
    "compress",
    "publish",
    "pull",
    "push",
    "search",
    "serve",
    "train",
]

# Where each exported name lives; imported when it is first asked for. `train`, `search`, `compress` and `serve` are packages
# that can be called; `optim` and `data` are asked for often.
_HOMES: Final = {
    "__version__": "argosy.version",
    "AdminClient": "argosy.client",
    "ArgosyError": "argosy.errors",
    "AsyncClient": "argosy.client",
    "Checkpoints": "argosy.train.checkpoint",
    "Client": "argosy.client",
    "CompressResult": "argosy.compress.result",
    "DeploymentSpec": "argosy.deploy.spec",
    "Ema": "argosy.train.average",
    "Guard": "argosy.compress.judge",
    "Prediction": "argosy.client",
    "Server": "argosy.server",
    "Signature": "argosy.signature",
    "Start": "argosy.train.start",
    "Store": "argosy.store.local",
    "TensorSpec": "argosy.signature",
    "TrainResult": "argosy.train.run",
    "Version": "argosy.store.manifest",
    "publish": "argosy.train.publish",
    "pull": "argosy.registry.transfer",
    "push": "argosy.registry.transfer",
}


def __getattr__(name: str) -> Any:
    if name in ("train", "search", "compress", "serve", "optim", "data"):
        return importlib.import_module(f"argosy.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'argosy' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
