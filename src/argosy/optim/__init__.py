"""Optimizers: what a training step does to the weights, defined once, in plain NumPy. Each has a card beside the code."""

from argosy.optim.base import GradientOptimizer, Optimizer, OptimizerState
from argosy.optim.free import Genetic, GradientFreeOptimizer, RandomSearch
from argosy.optim.groups import Group
from argosy.optim.registry import OPTIMIZERS, get_optimizer
from argosy.optim.rules import SGD, Adam, Momentum, RMSprop
from argosy.optim.schedules import CosineDecay, LinearDecay, OneCycle, ReduceOnPlateau, Schedule, StepDecay

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "CosineDecay",
    "Genetic",
    "GradientFreeOptimizer",
    "GradientOptimizer",
    "Group",
    "LinearDecay",
    "Momentum",
    "OneCycle",
    "Optimizer",
    "OptimizerState",
    "RMSprop",
    "RandomSearch",
    "ReduceOnPlateau",
    "Schedule",
    "StepDecay",
    "get_optimizer",
]
