"""A conformance suite for the Open Inference Protocol V2, over HTTP and gRPC, against any server.

    target = Target("http://localhost:8000", grpc_address="localhost:8001")
    result = run_clauses(target)

`clause.py` says what a clause is, `run.py` runs them, `target.py` is the server, and the other modules hold the checks.
Nothing here uses the code of Argosy's own server.
"""

from argosy.conformance.run import Finding, Result, run_clauses
from argosy.conformance.target import Target
from argosy.conformance.write_models import write_models

__all__ = ["Finding", "Result", "Target", "run_clauses", "write_models"]
