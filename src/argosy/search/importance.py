"""How much each parameter decides, of what was told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Final

from argosy.errors import InputError, list_choices
from argosy.frameworks.base import import_extra
from argosy.search.record import Direction

__all__ = ["measure_importance"]

_LEAST_TRIALS: Final = 5
_QUANTILE: Final = 0.25
"""Of the trials are called good: of fewer, as in the paper, nothing can be told in tens of trials."""


def measure_importance(study: Any, objectives: Mapping[str, Direction], objective: str) -> dict[str, float]:
    """Give parts of 1 by parameter, the largest first; {} of too few trials, or where all came to the same.

    Args:
        study: Optuna's.
        objectives: and their directions.
        objective: one of them.

    Raises:
        InputError: `unknown_choice`.
    """
    if objective not in objectives:
        raise InputError("unknown_choice", kind="objective", got=objective, known=list_choices(objectives))
    importance = import_extra("optuna.importance", feature="A search", extra="search")
    place = list(objectives).index(objective)
    sign = 1.0 if objectives[objective] == "minimize" else -1.0
    values = [trial.values[place] for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(values) < _LEAST_TRIALS or len(set(values)) == 1:
        return {}

    def read_cost(trial: Any) -> float:
        return sign * trial.values[place]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=_QUANTILE)
        found = importance.get_param_importances(study, evaluator=evaluator, target=read_cost, normalize=True)
    return {name: float(part) for name, part in found.items() if math.isfinite(part)}
