"""Run models: fronts, workers, supervisor. `argosy.serve(...)` starts a server."""

from argosy.callables import make_callable

make_callable(__name__, "argosy.server:serve")
