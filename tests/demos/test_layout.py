"""Size and imports of essays and studies."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DEMOS = Path(__file__).parents[2] / "demos"
ESSAYS, STUDIES = sorted(DEMOS.glob("*.py")), sorted((DEMOS / "studies").glob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every import; no name where a module is imported as a whole."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_there_are_few_essays() -> None:
    assert 0 < len(ESSAYS) <= 11


@pytest.mark.parametrize("path", ESSAYS, ids=lambda p: p.stem)
def test_an_essay_is_short_and_stands_alone(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120
    rooms = {module.split(".")[0] for module, _ in imported(path)}
    assert rooms - set(sys.stdlib_module_names) <= {"phi_hybrid", "torch", "phi", "matplotlib"}


@pytest.mark.parametrize("path", [*ESSAYS, *STUDIES], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_demos_see_faces_only(path: Path) -> None:
    """phi_hybrid, its rooms, and what these export."""
    for module, name in imported(path):
        package, *inside = module.split(".")
        if package == "phi_hybrid":
            assert len(inside) < 2 or inside[1] in importlib.import_module(f"phi_hybrid.{inside[0]}").__all__, module
            face = importlib.import_module(module)
            assert not name or not inside or name in face.__all__, f"{module}.{name}"


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_studies_do_not_import_essays(path: Path) -> None:
    """A neighbour that is imported is a study, even where an essay has its name."""
    neighbours = {module for module, _ in imported(path)} & {essay.stem for essay in ESSAYS}
    assert neighbours <= {study.stem for study in STUDIES}
