"""PyTorch: the sole importer of torch in the package's training half.

torch's stubs are partial, so the module is taken as `Any`; tensors are annotated where it helps the reader.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from argosy.errors import InputError, ModelError, list_choices
from argosy.frameworks.base import Framework, Step, fail_not_finite
from argosy.frameworks.layers import BatchNorm, Conv, Dense, Dropout, Flatten, Layer, MaxPool, Relu, name_layers
from argosy.optim import SGD, Adam, Optimizer, bias_correction
from argosy.signature import Arrays

__all__ = ["FRAMEWORK", "RuleOptimizer", "TorchFramework"]

torch: Any = importlib.import_module("torch")

_PREDICT_ROWS: Final = 256
"""Rows of one forward pass of `predict`: bounds its memory, and is large enough to be fast."""

_OPSET: Final = 17
"""Of the ONNX files: the first with LayerNormalization, and read by every runtime that Argosy knows."""

_EXPORTER_DEPRECATIONS: Final = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)


def _step_sgd(rule: SGD, rate: float, weight: Any, gradient: Any, state: dict[str, Any]) -> None:
    weight.add_(gradient, alpha=-rate)


def _step_adam(rule: Adam, rate: float, weight: Any, gradient: Any, state: dict[str, Any]) -> None:
    if "m" not in state:
        state.update(m=torch.zeros_like(weight), v=torch.zeros_like(weight))
    beta1, beta2 = rule.betas
    state["m"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = (bias_correction(beta, state["step"]) for beta in rule.betas)
    root = (state["v"] / correction2).sqrt_().add_(rule.epsilon)
    weight.addcdiv_(state["m"], root, value=-rate / correction1)


_RULES: Final[dict[type[Optimizer], Callable[[Any, float, Any, Any, dict[str, Any]], None]]] = {SGD: _step_sgd, Adam: _step_adam}


class RuleOptimizer(torch.optim.Optimizer):
    """One of Argosy's optimizers on torch weights, the same rule as its NumPy reference.

    The built-in ones are not used: frameworks differ in where they put epsilon, momentum and the penalty, and
    a model must train alike in all of them.
    """

    def __init__(self, weights: Any, rule: Optimizer) -> None:
        """Take `weights` as any torch optimizer does.

        Raises:
            InputError: `unknown_choice`, the rule has no implementation here.
        """
        if type(rule) not in _RULES:
            known = list_choices(kind.name for kind in _RULES)
            raise InputError("unknown_choice", kind="optimizer of torch", got=rule.name, known=known)
        super().__init__(weights, {})  # pyright: ignore[reportUnknownMemberType]
        self.rule = rule

    def measure_norm(self) -> float:
        """Give the Euclidean norm of all gradients together; not finite only if one of them is not."""
        with torch.no_grad():
            norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in self._gradients()])))
            if math.isfinite(norm):
                return norm
            # The squares of large float32 gradients overflow, those of float64 do not.
            return math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in self._gradients()))

    def step(self, closure: None = None) -> None:
        """Move every weight that has a gradient, in place.

        Args:
            closure: torch's rules that evaluate the loss themselves; none of ours do.
        """
        rule, scale = self.rule, 1.0
        if rule.clip_norm is not None:
            norm = self.measure_norm()
            scale = rule.clip_norm / norm if norm > rule.clip_norm else 1.0
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is None:
                        continue
                    gradient = weight.grad * scale if scale != 1.0 else weight.grad
                    if rule.weight_decay:
                        gradient = gradient.add(weight, alpha=rule.weight_decay)
                    state = self.state[weight]
                    # Counted for each weight: one that gets no gradient for a while must be corrected by its own steps.
                    state["step"] = state.get("step", 0) + 1
                    _RULES[type(rule)](rule, rule.rate_at(state["step"]), weight, gradient, state)

    def _gradients(self) -> list[Any]:
        weights = (weight for group in self.param_groups for weight in group["params"])
        return [weight.grad for weight in weights if weight.grad is not None]


def _cross_entropy(outputs: Any, targets: Any) -> Any:
    return torch.nn.functional.cross_entropy(outputs, targets)


def _binary_cross_entropy(outputs: Any, targets: Any) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)


def _mse(outputs: Any, targets: Any) -> Any:
    return torch.nn.functional.mse_loss(outputs, targets)


_LOSSES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "mse": _mse,
}


class TorchStep:
    """Fits one model in place, a mini-batch a call; see `base.Step`."""

    def __init__(self, model: Any, loss: str, rule: Optimizer) -> None:
        if loss not in _LOSSES:
            raise InputError("unknown_choice", kind="loss of torch", got=loss, known=list_choices(_LOSSES))
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        if not weights:
            raise InputError("bad_option", option="model", got=type(model).__qualname__, expected="a model with weights to train")
        self._model = model
        self._loss = _LOSSES[loss]
        self._optimizer = RuleOptimizer(weights, rule)
        self._num_steps = 0

    def __call__(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        self._num_steps += 1
        self._model.train()
        inputs = torch.from_numpy(x)
        self._optimizer.zero_grad()
        outputs = self._model(inputs)
        loss = self._loss(outputs, torch.from_numpy(y))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._fail("loss", self._find_bad_layer(inputs))
        loss.backward()
        if not math.isfinite(self._optimizer.measure_norm()):
            raise self._fail("gradient", self._find_bad_gradient())
        self._optimizer.step()
        return value, outputs.detach().numpy()

    def _fail(self, what: str, layer: str | None) -> ModelError:
        rate = self._optimizer.rule.learning_rate
        return fail_not_finite(step=self._num_steps, what=what, layer=layer, learning_rate=rate)

    def _find_bad_layer(self, inputs: Any) -> str | None:
        """Run the forward pass again and watch the layers.

        At fault is the first whose output is not finite; with none, the last, whose outputs the loss cannot bear.
        """
        ran: list[str] = []
        bad: list[str] = []

        def watch(name: str) -> Callable[[Any, Any, Any], None]:
            def look(layer: Any, given: Any, output: Any) -> None:
                ran.append(name)
                if torch.is_tensor(output) and not bool(torch.isfinite(output).all()):
                    bad.append(name)

            return look

        leaves = [(name, layer) for name, layer in self._model.named_modules() if not any(layer.children())]
        hooks = [layer.register_forward_hook(watch(name or type(layer).__name__)) for name, layer in leaves]
        with torch.no_grad():
            self._model(inputs)
        for hook in hooks:
            hook.remove()
        return (bad or ran[-1:] or [None])[0]

    def _find_bad_gradient(self) -> str | None:
        """The gradient runs from the last layer to the first, so the last bad one is where it began."""
        names = [name for name, w in self._model.named_parameters() if w.grad is not None and not bool(w.grad.isfinite().all())]
        return names[-1].rpartition(".")[0] or names[-1] if names else None


class TorchFramework:
    """See `base.Framework`. Models are `torch.nn.Module`s with one input and one output tensor, on the CPU."""

    name = "torch"

    def is_model(self, model: object) -> bool:
        return isinstance(model, torch.nn.Module)

    def build_network(self, layers: Sequence[Layer], input_shape: tuple[int, ...]) -> Any:
        model = torch.nn.Sequential()
        shape = input_shape
        for name, layer in zip(name_layers(layers), layers, strict=True):
            module, shape = _build_layer(layer, shape)
            model.add_module(name, module)
        return model

    @contextmanager
    def session(self, seed: int, num_threads: int | None) -> Generator[None]:
        num_before = torch.get_num_threads()
        torch.set_num_threads(num_threads or num_before)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield
        finally:
            torch.set_num_threads(num_before)

    def build_step(self, model: Any, loss: str, optimizer: Optimizer) -> Step:
        return TorchStep(model, loss, optimizer)

    def predict(self, model: Any, x: NDArray[Any]) -> NDArray[Any]:
        model.eval()
        parts: list[NDArray[Any]] = []
        with torch.no_grad():
            for start in range(0, len(x), _PREDICT_ROWS):
                rows = np.array(x[start : start + _PREDICT_ROWS])  # A copy: torch warns of read-only arrays.
                try:
                    outputs = model(torch.from_numpy(rows))
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    detail = f"the model fails on rows of shape {rows.shape} and type {rows.dtype}: {error}"
                    raise InputError("bad_data", detail=detail) from error
                if not torch.is_tensor(outputs) or outputs.ndim < 1 or len(outputs) != len(rows):
                    detail = f"for {len(rows)} rows the model gives {_describe(outputs)}, expected one tensor of as many rows"
                    raise InputError("bad_data", detail=detail)
                parts.append(outputs.numpy())
        return np.concatenate(parts)

    def get_weights(self, model: Any) -> Arrays:
        return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}

    def count_weights(self, model: Any) -> int:
        return sum(int(weight.numel()) for weight in model.parameters() if weight.requires_grad)

    def export_onnx(self, model: Any, rows: NDArray[Any], path: Path, *, input_name: str, output_name: str) -> None:
        model.eval()
        # Two rows: a single one lets the tracer take its 1 for a constant that broadcasts.
        traced = torch.from_numpy(rows[np.arange(2) % len(rows)])
        with warnings.catch_warnings():
            for text in _EXPORTER_DEPRECATIONS:
                warnings.filterwarnings("ignore", message=text, category=DeprecationWarning)
            try:
                # The TorchScript exporter, deprecated though it is: it needs no onnxscript, takes 0.1 s where the
                # other takes 2 to 6, and keeps the batch dynamic. What it gets wrong, the check of the export finds.
                torch.onnx.export(
                    model,
                    (traced,),
                    str(path),
                    dynamo=False,
                    opset_version=_OPSET,
                    input_names=[input_name],
                    output_names=[output_name],
                    dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
                )
            except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
                raise ModelError("export_failed", detail=str(error).strip()) from error


def _describe(outputs: object) -> str:
    return f"a tensor of shape {tuple(getattr(outputs, 'shape'))}" if torch.is_tensor(outputs) else type(outputs).__qualname__  # noqa: B009


def _build_layer(layer: Layer, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """Make a layer for rows of this shape, and give the shape that it makes of them."""
    nn = torch.nn
    match layer:
        case Conv(channels, kernel):
            return nn.Conv2d(shape[0], channels, kernel, padding=kernel // 2), (channels, *shape[1:])
        case BatchNorm():
            return nn.BatchNorm2d(shape[0]), shape
        case Relu():
            return nn.ReLU(), shape
        case MaxPool(size):
            return nn.MaxPool2d(size), (shape[0], shape[1] // size, shape[2] // size)
        case Flatten():
            return nn.Flatten(), (math.prod(shape),)
        case Dropout(rate):
            return nn.Dropout(rate), shape
        case Dense(units):
            return nn.Linear(shape[0], units), (units,)


FRAMEWORK: Final[Framework] = TorchFramework()
