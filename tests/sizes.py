"""Print how large the source and the tests are, and the largest module and function of each.

    python tests/sizes.py

tests/test_layout.py and ruff keep the limits of the source: 400 lines a module, 60 a function,
100 columns.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ("vggkeras", "export"), ("tests",)
COLUMNS = 100


@dataclass(frozen=True)
class Function:
    """A function of a module, methods and inner functions included."""

    path: Path
    name: str
    lines: int  # with its signature and docstring, without decorators


def python_files(folders: tuple[str, ...]) -> list[Path]:
    """Return the Python files below some folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> list[Function]:
    """Return the functions of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [Function(path, n.name, (n.end_lineno or n.lineno) - n.lineno + 1) for n in nodes]


def line_count(path: Path) -> int:
    """Return how many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print a line for the source and one for the tests."""
    for title, folders in (("source", SOURCE), ("tests", TESTS)):
        paths = python_files(folders)
        largest = max(paths, key=line_count)
        longest = max((f for path in paths for f in functions(path)), key=lambda f: f.lines)
        texts = [path.read_text(encoding="utf-8").splitlines() for path in paths]
        wide = sum(len(line) > COLUMNS for text in texts for line in text)
        tests = sum(f.name.startswith("test_") for path in paths for f in functions(path))
        print(
            f"{title}: {len(paths)} files, {sum(map(len, texts)):,} lines, {wide} over {COLUMNS} "
            f"columns; largest module {largest.relative_to(ROOT)} ({line_count(largest)} lines), "
            f"largest function {longest.path.relative_to(ROOT)} {longest.name} "
            f"({longest.lines} lines)" + (f"; {tests} test functions" if tests else "")
        )


if __name__ == "__main__":
    main()
