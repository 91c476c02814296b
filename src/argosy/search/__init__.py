"""Find the best parameters: of a program, by training it, or of anything else. `argosy.search(...)` searches.

run.py         a program of the user's; the place to start
study.py       ask and tell; space.py: what may be chosen
methods.py     how the next trial is chosen; linear.py: by a linear programme; stopping.py: when one is stopped
population.py  how a population goes on, from the weights of its best
record.py      what is known of trials: front, best, hypervolume; importance.py
journal.py     where a study is kept; book.py: its trials, as Optuna has them
runner.py      trials of a program; crew.py: in processes of their own; child.py: such a process
measure.py     size and speed of what a trial made, as it would be served
result.py      what a search came to; report.py, plots.py: its page
"""

from argosy.callables import make_callable
from argosy.search.linear import Score
from argosy.search.methods import METHODS
from argosy.search.record import Record
from argosy.search.space import Choice, Float, Int, Space, read_space
from argosy.search.study import Study, Trial

__all__ = ["METHODS", "Choice", "Float", "Int", "Record", "Score", "Space", "Study", "Trial", "read_space"]

make_callable(__name__, "argosy.search.run:search")
