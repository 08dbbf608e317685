"""Equations of `ph.pde` and the gallery: no false alarm. Prints the table of docs/check_gradients.md:

pytest tests/sensitivity/test_fitness.py -m "slow or not slow" -n 0 -s
"""

from __future__ import annotations

import functools

import pytest
import torch
from cases.fitness import DETACHED, JUMPING, SMOOTH, equations, gallery, of_gallery, row

import phi_hybrid as ph

by_name = functools.cache(equations)  # not while tests are collected: some run a step
SMOOTH_AND_FAST = ("Heat", "Poisson, solve", "Oscillators, cubic", "Quantum well")
FAST = ("Burgers, 1D, upwind", *SMOOTH_AND_FAST)
SLOW = (
    *("Burgers, 1D, semi-Lagrangian", "Burgers, 1D, MacCormack", "Burgers, 2D, semi-Lagrangian", "Heat, sharpened"),
    *("Kuramoto–Sivashinsky", "Navier–Stokes", "Wake", "Channel with a porous body", "Poisson, ∇²u", "Smoke"),
    "Oscillators, linear",
)
PROBLEMS = {"Heat, sharpened": "exploding"}  # diffusion backwards in time
LIMITED = {
    "Smoke",
    "Burgers, 1D, MacCormack",
}  # MacCormack's limiter takes bounds from the cell, which change at its faces


def test_every_equation_is_here() -> None:
    assert set(by_name()) == {*FAST, *SLOW}
    assert all(by_name()[name].values == SMOOTH for name in SMOOTH_AND_FAST)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_no_false_alarm_for_equations(name: str) -> None:
    case = by_name()[name]
    found = case.check()
    print(f"\n{row(name, found)}")
    assert not any(a.wrong for a in found.arguments) and max(a.reverse for a in found.arguments) < 1e-6
    kinds = {b.kind for b in found.breaks}
    allowed = set() if case.values == SMOOTH else {"jump", "kink"} if name in LIMITED else {"kink"}
    assert kinds <= allowed
    assert found.fit or all(PROBLEMS[name] in problem for problem in found.problems)


@pytest.mark.parametrize("name", SMOOTH_AND_FAST)
def test_torch_agrees_on_smooth_steps(name: str) -> None:
    case = by_name()[name]
    tensors, _ = ph.bridge.flatten(case.arguments)
    bound = ph.capture(case.step).bind(*case.arguments)
    doubled = [t.to(torch.complex128 if t.is_complex() else torch.float64).requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(bound.native, doubled, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery())
def test_no_false_alarm_in_the_gallery(name: str) -> None:
    found = of_gallery(gallery()[name]).check()
    print(f"\n{row(name, found)}")
    wrong = any(a.wrong for a in found.arguments)
    assert wrong == (name in DETACHED)
    assert wrong or max(a.reverse for a in found.arguments) < 1e-6
    if wrong:
        assert any("detach" in str(operation) and "test_" in str(operation) for operation in found.wrong)
    if any(b.kind == "jump" for b in found.breaks):
        assert name in JUMPING
