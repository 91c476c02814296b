"""Make a version small and fast within an accuracy guard. `argosy.compress(...)` compresses.

run.py         the whole of it; the place to start
find.py        which recipe serves an objective best; catalogue.py: which suit a model; space.py: with which layers in float
trials.py      what a search asks for, made and judged; keeping.py: where it is kept; gradient.py, layers.py: which layers suffer
recipe.py      recipes as data, carried out; steps/: what they are made of
step_process.py    the confined process in which steps work; step_child.py: the process itself
retrain.py     what steps that train share; student.py: models that the user gives; channels/: of an ONNX graph
sample.py      rows to calibrate with and rows to judge on, never the same
jury.py        candidates beside their original, each in a process of its own; answers.py: what these must be
judge.py       the guard; metrics.py, fidelity.py, spread.py, interval.py, kind.py: its measures; ruin.py, dependence.py: what
               none of them counts
measure.py     bytes, seconds, memory; served.py: what clients see of it
publish.py     the child version; result.py, examples.py, report.py, plot.py: what it came to
"""

from argosy.callables import make_callable
from argosy.compress.find import Budget
from argosy.compress.judge import Guard, Score
from argosy.compress.measure import Cost, Gain
from argosy.compress.recipe import Recipe, get_recipe
from argosy.compress.report import describe_result, tabulate_result, write_report
from argosy.compress.result import CompressResult
from argosy.compress.run import compress
from argosy.compress.steps.base import Step

__all__ = [
    "Budget",
    "CompressResult",
    "Cost",
    "Gain",
    "Guard",
    "Recipe",
    "Score",
    "Step",
    "compress",
    "describe_result",
    "get_recipe",
    "tabulate_result",
    "write_report",
]

make_callable(__name__, "argosy.compress.run:compress")
