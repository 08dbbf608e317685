"""Equations of `ph.pde` and the gallery: no false alarm. Prints the table of docs/check_gradients.md:

pytest tests/sensitivity/test_fitness.py -m "slow or not slow" -n 0 -s
"""

from __future__ import annotations

import pytest
import torch
from cases.fitness import DETACHED, JUMPING, SMOOTH, equations, gallery, of_gallery, row

import phi_hybrid as ph

EQUATIONS = equations()
FAST = {"Burgers, 1D, upwind", "Heat", "Poisson, solve", "Oscillators, cubic", "Quantum well"}
PROBLEMS = {"Heat, sharpened": "exploding"}  # diffusion backwards in time
LIMITED = {
    "Smoke",
    "Burgers, 1D, MacCormack",
}  # MacCormack's limiter takes bounds from the cell, which change at its faces


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in EQUATIONS], ids=str
)
def test_no_false_alarm_for_equations(name: str) -> None:
    found = EQUATIONS[name].check()
    print(f"\n{row(name, found)}")
    assert not any(a.wrong for a in found.arguments) and max(a.reverse for a in found.arguments) < 1e-6
    kinds = {b.kind for b in found.breaks}
    assert (
        not kinds if EQUATIONS[name].values == SMOOTH else kinds <= ({"jump", "kink"} if name in LIMITED else {"kink"})
    )
    assert found.fit or all(PROBLEMS[name] in problem for problem in found.problems)


@pytest.mark.parametrize("name", [n for n in EQUATIONS if EQUATIONS[n].values == SMOOTH and n in FAST])
def test_torch_agrees_on_smooth_steps(name: str) -> None:
    case = EQUATIONS[name]
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
