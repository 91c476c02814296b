"""TensorFlow: the sole importer of tensorflow in the training half, beside Keras on that backend."""

from argosy.frameworks.tensorflow.framework import FRAMEWORK
from argosy.frameworks.tensorflow.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
