"""PyTorch: the sole importer of torch in the package's training half."""

from argosy.frameworks.torch.framework import FRAMEWORK
from argosy.frameworks.torch.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
