"""Clients of a server: `Client` and `AsyncClient` ask for predictions, `AdminClient` deploys.

httpx is imported when a client is made, so that importing this costs NumPy and msgspec alone.
"""

from argosy.client.admin import AdminClient, RolloutProgress
from argosy.client.infer import AsyncClient, Client
from argosy.client.wire import Metadata, Prediction

__all__ = ["AdminClient", "AsyncClient", "Client", "Metadata", "Prediction", "RolloutProgress"]
