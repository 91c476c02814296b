"""Make a version small and fast within an accuracy guard. `argosy.compress(...)` compresses."""

from argosy.callables import make_callable
from argosy.compress.base import CompressResult, Method, compress, get_method
from argosy.compress.judge import Guard, Score
from argosy.compress.measure import Cost, Gain
from argosy.compress.report import describe_result, tabulate_result

__all__ = [
    "CompressResult",
    "Cost",
    "Gain",
    "Guard",
    "Method",
    "Score",
    "compress",
    "describe_result",
    "get_method",
    "tabulate_result",
]

make_callable(__name__, "argosy.compress.base:compress")
