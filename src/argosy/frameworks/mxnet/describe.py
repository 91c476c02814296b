"""Gluon's losses, optimizers and blocks as JSON data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray

from argosy.frameworks.base import LossPart, MetricPart, name_kind
from argosy.frameworks.describe import Describer, list_attributes
from argosy.frameworks.mxnet.library import mx

__all__ = ["describe_loss", "describe_metric", "describe_optimizer", "describe_program"]

_UNBOUNDED: Final = {"SigmoidBinaryCrossEntropyLoss": "_from_sigmoid", "SoftmaxCrossEntropyLoss": "_from_logits"}
"""Gluon's losses that take logits, unless this attribute of theirs is set."""

_ALWAYS_UNBOUNDED: Final = ("LogisticLoss", "HingeLoss", "SquaredHingeLoss")

_MEANS: Final = (mx.metric.Accuracy, mx.metric.TopKAccuracy, mx.metric.CrossEntropy, mx.metric.NegativeLogLikelihood)
"""Metrics that are means over rows, whatever the batches."""

_COUNTED: Final = ("num_update", "m_schedule", "count", "cur_step_ind", "aggregate_num", "allow_np_array")
"""Attributes of optimizers and schedules that are not what a user chose."""


def describe_loss(loss: object) -> LossPart | None:
    """See `base.Framework.describe_loss`."""
    if not callable(loss):
        return None
    name = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    if not isinstance(loss, mx.gluon.loss.Loss):
        return LossPart(name, _DESCRIBER.describe_named(loss), takes_logits=False)
    own: Any = loss
    blank = list_attributes(mx.gluon.HybridBlock(prefix=""))
    given = {key: value for key, value in list_attributes(own).items() if key not in blank and _is_setting(value)}
    settings = {key.removeprefix("_"): value for key, value in _DESCRIBER.describe_settings(given).items()}
    takes_logits = name in _ALWAYS_UNBOUNDED or (name in _UNBOUNDED and not getattr(own, _UNBOUNDED[name]))
    return LossPart(name, settings | _DESCRIBER.describe_code(own), takes_logits)


def describe_metric(metric: object) -> MetricPart | None:
    """See `base.Framework.describe_metric`: one of `mx.metric`, by its name."""
    if not isinstance(metric, mx.metric.EvalMetric):
        return None
    own: Any = metric
    # Its values are those of one metric; a composite has several.
    if not isinstance(own.get()[0], str):
        return None

    def compute(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
        fresh = copy.deepcopy(own)
        fresh.reset()
        fresh.update([mx.nd.array(targets, dtype=targets.dtype)], [mx.nd.array(outputs, dtype=outputs.dtype)])
        return float(fresh.get()[1])

    return MetricPart(own.get()[0], compute, is_mean=type(own) in _MEANS)


def describe_optimizer(optimizer: object) -> dict[str, Any] | None:
    """See `base.Framework.describe_optimizer`."""
    own: Any = optimizer
    if isinstance(own, mx.gluon.Trainer):
        own = own.optimizer
    if not isinstance(own, mx.optimizer.Optimizer):
        return None
    described: dict[str, Any] = {"name": name_kind(own), **_list_settings(own), **_DESCRIBER.describe_code(own)}
    if own.lr_scheduler is not None:
        described["lr_scheduler"] = {"name": name_kind(own.lr_scheduler), **_list_settings(own.lr_scheduler)}
    return described


def describe_program(model: Any) -> Any:
    """See `base.Framework.describe_program`."""
    return _DESCRIBER.describe(model, is_program=True)


def _list_settings(value: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(value, "__dict__", {})
    return _DESCRIBER.describe_settings({k: own for k, own in attributes.items() if _is_setting(own) and k not in _COUNTED})


def _is_setting(value: object) -> bool:
    return isinstance(value, str | float | int | mx.nd.NDArray)


def _to_array(value: object) -> NDArray[Any] | None:
    own: Any = value
    return own.asnumpy() if isinstance(own, mx.nd.NDArray) else None


def _list_parts(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, mx.gluon.Parameter):
        return {"shape": value.shape, "dtype": str(value.dtype), "grad_req": value.grad_req}
    if not isinstance(value, mx.gluon.Block):
        return None
    own: Any = value
    blank = list_attributes(mx.gluon.HybridBlock(prefix=""))  # What blocks keep themselves, the names of the process among it.
    kept = {name: part for name, part in list_attributes(own).items() if name not in blank and not name.startswith("_cached")}
    return {**kept, "children": dict(own._children), "parameters": dict(own._reg_params)}


_DESCRIBER: Final = Describer(("mxnet",), _to_array, _list_parts)
