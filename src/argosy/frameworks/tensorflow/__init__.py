"""TensorFlow: the sole importer of tensorflow in the package's training half, beside Keras on its TensorFlow backend."""

from argosy.frameworks.tensorflow.framework import FRAMEWORK
from argosy.frameworks.tensorflow.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
