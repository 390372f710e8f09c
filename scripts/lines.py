"""Lines of code per folder: `python scripts/lines.py [root]`. Counts lines that hold code, and those that hold only words.

A line of code is one that a token other than a comment, a docstring or a line break touches.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.AST) -> set[int]:
    """The lines of every docstring."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, False
        ):
            words = node.body[0]
            lines.update(range(words.lineno, (words.end_lineno or words.lineno) + 1))
    return lines


def count(path: Path) -> tuple[int, int]:
    """(lines of code, lines of comments and docstrings) of one Python file."""
    docstrings = docstring_lines(ast.parse(path.read_text(encoding="utf-8")))
    words: set[int] = set(docstrings)
    code: set[int] = set()
    with tokenize.open(path) as source:
        for token in tokenize.generate_tokens(source.readline):
            lines = range(token.start[0], token.end[0] + 1)
            if token.type == tokenize.COMMENT:
                words.update(lines)
            elif token.type not in _NOT_CODE:
                code.update(lines)
    code -= docstrings
    return len(code), len(words - code)


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for top in ("flame", "tests", "scripts", "benchmarks"):
        for path in sorted((root / top).rglob("*.py")):
            code, words = count(path)
            row = totals[str(path.parent.relative_to(root))]
            row[:] = row[0] + 1, row[1] + code, row[2] + words
    print(f"{'folder':28}{'files':>7}{'code':>9}{'words':>9}")
    for folder, (files, code, words) in sorted(totals.items()):
        print(f"{folder:28}{files:>7}{code:>9}{words:>9}")
    print("{:28}{:>7}{:>9}{:>9}".format("total", *map(sum, zip(*totals.values()))))


if __name__ == "__main__":
    main()
