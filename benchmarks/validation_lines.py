"""Counts the lines of the package that check by hand: guards that raise, handlers that turn one error into another.

    python benchmarks/validation_lines.py [FOLDER]

A line counts once that belongs to a `raise`, to an `if` that ends in a `raise` below it, to an `except` that ends in
one, or to a `Told(...)`, which is such a handler in one line. Ranges and types that stand in annotations are no such
lines: a schema checks them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path


def validation_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines of a file that check by hand."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        guard = isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], ast.Raise)
        handler = isinstance(node, ast.ExceptHandler) and isinstance(node.body[-1], ast.Raise)
        told = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Told"
        if isinstance(node, ast.Raise) or guard or handler or told:
            assert isinstance(node, ast.stmt | ast.expr | ast.ExceptHandler)
            assert node.end_lineno is not None
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "l2c"
    print(sum(len(validation_lines(ast.parse(path.read_text()))) for path in root.rglob("*.py")))
