"""Fit models: from data to a published version."""

from argosy.train.data import Dataset, load_digits
from argosy.train.recipes import Recipe, RecipeRun, load_data_for, run_recipe
from argosy.train.result import Epoch, TrainResult
from argosy.train.run import train

__all__ = ["Dataset", "Epoch", "Recipe", "RecipeRun", "TrainResult", "load_data_for", "load_digits", "run_recipe", "train"]
