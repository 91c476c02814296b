"""The plan of the house, held against the code's own imports: they run downward, and never in a circle.

Imports count wherever they stand: at the top, in functions, under TYPE_CHECKING, and in `import_module("argosy...")`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"

# From the ground up: a room imports what stands on lower floors, and never its neighbours on the same floor.
FLOORS = """
errors datatypes home raw callables version
signature config environment confine conformance output_file serve
runtimes
store optim rows data group serve.wire
serve.worker serve.node serve.dispatch
serve.v2 serve.http2
serve.http serve.grpc
serve.front
frameworks bench
importers train
search registry deploy
client
server
tune
compress
demo dashboard
cli
argosy
"""
FLOOR_OF = {room: floor for floor, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}
# Rooms that may import less than the floors below: the data plane knows neither the store nor what is above it, and the
# conformance suite must not use the code that it tests.
ONLY = {
    "conformance": {"errors"},
    "serve": {"errors", "datatypes", "home", "raw", "callables", "version", "signature", "config", "runtimes"},
}


def list_modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, `argosy` left out of the names."""
    modules: dict[str, Path] = {}
    for path in (SOURCE / "argosy").rglob("*.py"):
        parts = path.relative_to(SOURCE / "argosy").with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = list_modules()


def find_room(module: str) -> str:
    """The room that a module stands in; that of `argosy/__init__.py` is called argosy."""
    first, _, rest = module.partition(".")
    if first in ("", "__main__"):
        return "argosy"
    return f"serve.{rest.partition('.')[0]}" if first == "serve" and rest else first


def list_names(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield from (part.value for part in node.args[:1] if isinstance(part, ast.Constant) and isinstance(part.value, str))


def find_module(name: str) -> str | None:
    """The module of ours that an imported name is, or stands in; None for another library's."""
    if name.split(".")[0] != "argosy":
        return None
    inner = name.partition(".")[2]
    while inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner


def list_imports() -> dict[str, set[str]]:
    """What each module imports of ours."""
    imports: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found = {target for name in list_names(ast.parse(path.read_text())) if (target := find_module(name)) is not None}
        imports[module] = found - {module}
    return imports


IMPORTS = list_imports()


def find_circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that lead to one another, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in arrows.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                circles.append(sorted(group))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return circles


def list_arrows_between_rooms() -> dict[str, set[str]]:
    arrows: dict[str, set[str]] = defaultdict(set)
    for module, targets in IMPORTS.items():
        arrows[find_room(module)] |= {find_room(target) for target in targets} - {find_room(module)}
    return arrows


def is_allowed(room: str, target: str) -> bool:
    owner = room.split(".")[0]
    if owner in ONLY and target.split(".")[0] not in {*ONLY[owner], owner}:
        return False
    return FLOOR_OF[target] < FLOOR_OF[room]


def test_every_room_has_a_floor() -> None:
    assert {find_room(module) for module in MODULES} <= set(FLOOR_OF)


def test_imports_run_downward() -> None:
    upward = [
        f"{module} -> {target}"
        for module, targets in sorted(IMPORTS.items())
        for target in sorted(targets)
        if find_room(module) != find_room(target) and not is_allowed(find_room(module), find_room(target))
    ]
    assert upward == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert find_circles(list_arrows_between_rooms()) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert find_circles(IMPORTS) == []


def test_circle_is_found() -> None:
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
