"""Find out whether a torch model looks at its numbers from Python, which a tracer does not see: it writes down one way."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["find_looks", "refuse_tracer_warnings"]

torch: Any = importlib.import_module("torch")
_modes: Any = importlib.import_module("torch.overrides")

_MEMORY: Final = {"__array__", "__dlpack__", "__reduce_ex__", "data_ptr", "numpy", "storage", "untyped_storage"}
_AS_TEXT: Final = frozenset({"__format__", "__repr__", "__str__", *_MEMORY})
"""What not even torch.export follows: it goes on with a text, an array or the memory of what is not there yet."""
_LOOKS: Final = _AS_TEXT | {
    "__bool__",
    "__complex__",
    "__contains__",
    "__float__",
    "__index__",
    "__int__",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "tolist",
}
"""Functions of torch that give Python a number, or something made of numbers."""


def find_looks(call: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """Run a model once, and name the functions by which its code looked at numbers; what torch's own functions do is theirs.

    Returns:
        All of them, and those that torch.export does not follow.
    """
    seen: dict[str, None] = {}

    class Watch(_modes.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            if name in _LOOKS:
                seen[name] = None
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        call()
    return list(seen), [name for name in seen if name in _AS_TEXT]


@contextmanager
def refuse_tracer_warnings() -> Generator[None]:
    """Make an error of what a tracer warns of in code that is not torch's own, where it knows what it does.

    Raises:
        RuntimeError: with the warning's text.
    """
    kind = torch.jit.TracerWarning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", kind)
        warnings.filterwarnings("ignore", category=kind, module="torch.(?!jit)")
        # A constant that the code itself makes is one: what was looked at to make it is warned of, too.
        warnings.filterwarnings("ignore", category=kind, message=".*are registered as constants in the trace")
        yield
    if caught:
        text = str(caught[0].message).partition(". ")[0]
        place = f"{caught[0].filename.rpartition('/')[2]}, line {caught[0].lineno}"
        raise RuntimeError(f"the tracer warns of the model's code ({place}): {text}")
