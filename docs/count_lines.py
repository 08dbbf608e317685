"""Counts the lines of code of coming_from_book.md and of the book's notebooks: python docs/count_lines.py FOLDER

FOLDER holds the notebooks of github.com/tum-pbs/pbdl-book; the page gives the commit. Without it, the programs of the page
alone are counted. A line counts if it holds code. Blank lines, comments, docstrings, shell and notebook commands do not
count, nor do statements that only draw. Both sides are counted by the same function.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent / "coming_from_book.md"
DRAWS = {"plt", "pylab", "sns", "vis", "bplt", "fig", "axes", "axs", "ax", "im", "pltx", "pltv", "plot", "show_state"}
"""A statement that uses one of these names only draws."""
LEFT_OUT = {
    "diffphys-code-burgers": {23},  # pictures of another notebook's solution
    "reinflearn-code": {11, 15, 17, 19, 21},  # reinforcement learning
}
"""Cells of a notebook, by position, whose task the program here does not do."""


def programs() -> dict[str, str]:
    """Name of a notebook → program of the page."""
    sections = re.findall(r"^## `([\w-]+)`.*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    return {name: "".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)) for name, text in sections}


def notebook(path: Path) -> str:
    """Code cells one after the other, without shell and notebook commands."""
    cells = json.loads(path.read_text())["cells"]
    code = [
        c["source"] for n, c in enumerate(cells) if c["cell_type"] == "code" and n not in LEFT_OUT.get(path.stem, ())
    ]
    lines = "\n".join("".join(source) for source in code).splitlines()
    return "\n".join("" if line.lstrip().startswith(("!", "%")) else line for line in lines)


def draws(statement: ast.stmt) -> bool:
    """True for a statement that only draws, and for a loop or branch of nothing else."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name in DRAWS
    if hasattr(statement, "body"):
        return all(draws(inner) for inner in statement.body)
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        names |= {alias.asname or alias.name for alias in statement.names}
    return bool(names & DRAWS)


def counted(block: ast.AST) -> Iterator[int]:
    """Numbers of the lines that count."""
    for statement in getattr(block, "body", []):
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if docstring or draws(statement):
            continue
        body = getattr(statement, "body", None)
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        yield from range(first, max(body[0].lineno, first + 1) if body else statement.end_lineno + 1)
        for inner in (statement, *getattr(statement, "handlers", [])):
            yield from counted(inner)
        yield from counted(ast.Module(getattr(statement, "orelse", []), []))


def count(code: str) -> int:
    """Lines of a program that count."""
    lines = code.splitlines()
    held = {lines[n - 1].strip() and n for n in counted(ast.parse(code))}
    return sum(1 for n in held if n and not lines[n - 1].lstrip().startswith("#"))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for name, program in programs().items():
        here = count(program)
        there = count(notebook(folder / f"{name}.ipynb")) if folder else None
        print(f"{name:24s} {here:4d}" + (f" {there:4d} {here / there:.2f}" if there else ""))


if __name__ == "__main__":
    main()
