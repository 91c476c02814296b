"""What all gRPC connections of a front share."""

from __future__ import annotations

import asyncio

from argosy.serve.dispatch.admit import Admit
from argosy.serve.dispatch.errands import Errands
from argosy.serve.dispatch.router import Router
from argosy.serve.http2.limits import Limits
from argosy.serve.http2.server import Http2Server

__all__ = ["GrpcServer"]


class GrpcServer(Http2Server):
    """A front's gRPC connections, and what they need of it.

    Args:
        router: of this front.
        admit: of this front.
        errands: of this front.
        version: of Argosy, for the server's metadata.
        limits: for each connection.
    """

    def __init__(self, router: Router, admit: Admit, errands: Errands, version: str, limits: Limits) -> None:
        super().__init__(limits, admit.intake)
        self.router = router
        self.admit = admit
        self.errands = errands
        self.version = version

    def report(self, error: Exception) -> None:
        """Tell the event loop's exception handler of a fault of ours."""
        context = {"message": "a gRPC request failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
