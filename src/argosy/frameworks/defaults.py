"""What most frameworks say alike; each says only where it differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from argosy.frameworks.base import MetricPart
from argosy.frameworks.trees import Tree, list_leaves, predict_rows

__all__ = ["FrameworkDefaults"]


class FrameworkDefaults(ABC):
    """See `base.Framework`: one whose models are not compiled, and whose loaders draw from global random numbers alone."""

    training_methods: tuple[str, ...] = ("train_step", "training_step")

    def find_opener(self, data: Any) -> Callable[[int], Any] | None:
        return None

    def get_compiled(self, model: Any) -> tuple[object, object]:
        return None, None

    def get_compiled_weights(self, model: Any) -> Tree:
        return None

    def list_compiled_metrics(self, model: Any) -> Any:
        return ()

    def describe_metric(self, metric: object) -> MetricPart | None:
        return None

    def find_seeder(self, data: Any) -> Callable[[int], None] | None:
        return None  # Steps draw from a seed of their own.

    def set_threads(self, num_threads: int) -> bool:
        return False  # Their number is fixed when the library starts.

    def reduce(self, part: Any) -> Any:
        return None

    @abstractmethod
    def answer(self, model: Any, inputs: Tree) -> Tree: ...

    def predict(self, model: Any, inputs: Tree) -> Tree:
        return predict_rows(inputs, partial(self.answer, model))

    def list_free_axes(self, model: Any, inputs: Tree) -> list[tuple[int, ...]]:
        return [() for _ in list_leaves(inputs)]
