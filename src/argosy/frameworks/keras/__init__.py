"""Keras 3, on whichever backend the process has chosen: the sole importer of keras in the training half."""

from argosy.frameworks.keras.framework import FRAMEWORK
from argosy.frameworks.keras.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
