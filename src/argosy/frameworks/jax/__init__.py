"""JAX with flax.nnx and optax: their sole importer in the package's training half."""

from argosy.frameworks.jax.framework import FRAMEWORK
from argosy.frameworks.jax.optimizer import RuleOptimizer

__all__ = ["FRAMEWORK", "RuleOptimizer"]
