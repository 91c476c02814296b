"""The programs of `attacks/`, `benchmarks/` and `examples/`, which belong to no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> Any:
    """A program as a module, by its path below the project's folder; loaded once, with what it imports from beside it."""
    file = ROOT / path
    name = "_".join(Path(path).with_suffix("").parts)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        # Behind all others: its neighbours' plain names must hide no module.
        sys.path.append(str(file.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
    return sys.modules[name]
