"""One step of each kind in tests/gallery: eager PhiFlow with exact solves, undecorated, and captured.

pytest tests/benchmarks/test_bench_gallery.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cases.gallery import Kind, second_step

GALLERY = Path(__file__).parent.parent / "gallery"


def kinds() -> dict[str, Kind]:
    """All kinds by name, as the files of the gallery hold them."""
    modules = [".".join(p.with_suffix("").parts[-3:]) for p in sorted(GALLERY.glob("*/test_*.py"))]
    return {name: kind for module in modules for name, kind in importlib.import_module(module).KINDS.items()}


KINDS = kinds()


@pytest.mark.parametrize("way", ["eager", "captured"])
@pytest.mark.parametrize("name", KINDS)
def test_step(measure: Callable, name: str, way: str) -> None:
    measure(name, way, second_step(KINDS[name], way == "captured"), rounds=7)
