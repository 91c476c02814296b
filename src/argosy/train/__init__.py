"""Fit models: from data to a published version. `argosy.train(...)` trains."""

from argosy.callables import make_callable
from argosy.train.datasets import Dataset, load_digits
from argosy.train.recipes import Recipe, RecipeRun, load_data_for, run_recipe
from argosy.train.result import Epoch, TrainResult
from argosy.train.run import train

__all__ = ["Dataset", "Epoch", "Recipe", "RecipeRun", "TrainResult", "load_data_for", "load_digits", "run_recipe", "train"]

make_callable(__name__, "argosy.train.run:train")
