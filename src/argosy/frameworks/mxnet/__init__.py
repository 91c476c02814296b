"""Apache MXNet (Gluon): the sole importer of mxnet in the package's training half."""

from argosy.frameworks.mxnet.framework import FRAMEWORK
from argosy.frameworks.mxnet.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
