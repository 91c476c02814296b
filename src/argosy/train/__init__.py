"""Fit models: from data to a published version. `argosy.train(...)` trains."""

from argosy.callables import make_callable

make_callable(__name__, "run:train")
