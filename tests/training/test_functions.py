"""Functions among settings: their text, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from phi_hybrid.training.functions import description

FUNCTIONS = """
def settings(rate):
    seen = []

    def own(x):
        seen.append(x)
        return own(x - 1) if x in {"a", "b", "c", 3} else rate

    return [own, {"further": [lambda x, factor=(2.0, "y"): factor[0] * x]}]
"""


def own_functions(rate: float) -> list[Any]:
    scope: dict[str, Any] = {}
    exec(FUNCTIONS, scope)
    return scope["settings"](rate)


def described(rate: float) -> str:
    return description(partial(print, own_functions(rate)))


def test_the_same_in_a_process_that_orders_sets_differently() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_functions as t; print(t.described(0.5))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == described(0.5) != described(0.25)


def test_what_calls_change_is_left_out() -> None:
    given = own_functions(0.5)
    before = description(given)
    assert given[0]("z") == 0.5 and description(given) == before


WEIGHT = 1.0


def weighted(x: float) -> float:
    return WEIGHT * x


def test_global_numbers_and_functions_beside_it_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> list[str]:
        return [description(f) for f in (weighted, lambda x: weighted(x), lambda x: [WEIGHT for _ in range(3)])]

    before = settings()
    assert settings() == before
    monkeypatch.setattr(sys.modules[__name__], "WEIGHT", 2.0)
    assert all(now != then for now, then in zip(settings(), before))


def test_attributes_that_are_named_like_global_numbers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = description(lambda x: x.WEIGHT)
    monkeypatch.setattr(sys.modules[__name__], "WEIGHT", 2.0)
    assert description(lambda x: x.WEIGHT) == before


def test_constants_and_defaults_within_functions_count() -> None:
    texts = [description(f) for f in (lambda x: 2 * x, lambda x: 3 * x, lambda x, y=3: y * x, lambda x, y=4: y * x)]
    nested = [description(lambda x: [n * x for n in range(3)]), description(lambda x: [n + x for n in range(3)])]
    assert len({*texts, *nested}) == 6
    assert description(lambda x: 2 * x) == texts[0]  # elsewhere in the file
