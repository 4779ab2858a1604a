"""The layout of the source: no import cycle, one direction, and limits on modules and functions."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from sizes import ROOT, SOURCE, functions, line_count, python_files

MODULE_LINES, FUNCTION_LINES = 400, 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files(SOURCE)}


def imported(path: Path) -> set[str]:
    """Modules of this project that a module imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = submodules & MODULES.keys()
            names |= inside or {str(node.module)}
    return (names & MODULES.keys()) - {module_name(path)}


def test_there_is_no_import_cycle():
    order = TopologicalSorter({name: imported(path) for name, path in MODULES.items()})
    assert set(order.static_order()) == MODULES.keys()  # raises CycleError, which names the cycle


def package(name: str) -> str:
    """The package below vggkeras that a module belongs to; export is one."""
    first, *rest = name.split(".")
    return rest[0] if first == "vggkeras" and rest else first


def test_packages_import_one_way():
    """configs <- models <- weights <- training, data and runtimes <- evaluation, and so on."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        inside = {package(other) for other in imported(path)} - {package(name)}
        graph.setdefault(package(name), set()).update(inside)
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("configs") < order.index("models") < order.index("training")
    assert order.index("data") < order.index("evaluation") < order.index("export")


def test_vggkeras_does_not_import_export():
    for name, path in MODULES.items():
        if name.startswith("vggkeras"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            modules |= {
                a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
            }
            assert not [m for m in modules if m.split(".")[0] == "export"], name


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_modules_and_functions_are_short_and_described(path):
    assert line_count(path) <= MODULE_LINES
    assert [f for f in functions(path) if f.lines > FUNCTION_LINES] == []
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
