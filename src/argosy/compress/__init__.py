"""Make versions smaller and faster within an accuracy guard. `argosy.compress(...)` compresses."""

from argosy.callables import make_callable

make_callable(__name__, "base:compress")
