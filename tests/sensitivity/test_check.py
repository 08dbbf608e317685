"""`check_gradients` tells sound simulators from unsound ones, in its words and numbers; derivatives are known."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from cases import simulators
from cases.small import line
from phi.torch.flow import (
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Noise,
    StaggeredGrid,
    advect,
    batch,
    diffuse,
    math,
    vec,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.sensitivity import GradientCheck

U = line(0)


def check(step: Callable, *arguments: object, **settings: object) -> GradientCheck:
    return ph.check_gradients(step, *(arguments or (U,)), **{"steps": 50, "directions": 3, "points": 2, **settings})


def line_number(step: Callable, text: str) -> int:
    lines, first = inspect.getsourcelines(step)
    return first + next(n for n, source in enumerate(lines) if text in source)


# --- the six kinds ---


@pytest.mark.smoke
def test_a_smooth_step_is_fit() -> None:
    found = check(simulators.smooth)
    assert found.fit and not found.problems and not found.warnings and not found.breaks
    assert found.arguments[0].reverse < 1e-8 and found.arguments[0].forward < 1e-8
    assert "is fit for training through 50 steps." in str(found) and "smooth along all lines" in str(found)


def test_a_hard_clamp_has_kinks_and_gives_no_gradient_outside() -> None:
    found = check(simulators.clamped, 2 * U)
    assert found.fit and {b.kind for b in found.breaks} == {"kink"}
    place = found.breaks[0].operation
    assert place.name == "clamp" and place.line.number == line_number(simulators.clamped, "clip")
    assert place.line.file == inspect.getsourcefile(simulators.clamped)
    values = 2 * ph.bridge.flatten(U)[0][0]
    outside = float((values.abs() > 1).double().mean())
    assert found.blocked[0].share == pytest.approx(outside, abs=0.1)  # at a point near the state
    assert "piecewise smooth: kinks" in str(found) and "math.clip" in str(found)


def test_a_detached_part_is_named() -> None:
    found = check(simulators.detached, 0.5 * U)
    assert not found.fit and found.arguments[0].wrong == ("reverse mode", "forward mode")
    (operation,) = found.wrong
    assert operation.name == "detach" and operation.line.number == line_number(simulators.detached, "stop_gradient")
    assert operation.share == pytest.approx(1)
    assert "the gradient by u is wrong" in str(found) and "speed = math.stop_gradient(u)" in str(found)


def test_an_exploding_step_says_how_soon() -> None:
    found = check(simulators.growing)
    assert found.verdict == "exploding" and not found.fit
    for curve in (found.growth.reverse, found.growth.forward):
        assert curve.rate == pytest.approx(1.5, rel=1e-6)
        assert curve.largest[-1] == pytest.approx(1.5**50, rel=1e-6)
        assert curve.horizon == 18  # 1.5¹⁷ < 1000 < 1.5¹⁸
        assert curve.digits_lost_after == 40  # 1.5³⁹ < 1/1.2e-7 < 1.5⁴⁰
    assert "exploding, ×1.5 a step" in str(found) and "after 18 steps" in str(found)


def test_a_wrong_custom_gradient_is_named() -> None:
    found = check(simulators.falsified, 0.9 * U / U.values.max, steps=3)
    assert found.arguments[0].wrong == ("reverse mode",)
    (operation,) = found.wrong
    assert operation.name == "custom_gradient" and operation.share == pytest.approx(1 / 3, rel=1e-3)
    assert operation.line.number == line_number(simulators.falsified, "Cube.apply")
    assert "33 % missing or wrong" in str(found) and "forward mode none" in str(found)


def test_a_discontinuous_branch_is_no_kink() -> None:
    found = check(simulators.branching)
    assert {b.kind for b in found.breaks} == {"jump"} and not any(a.wrong for a in found.arguments)
    size = float(ph.bridge.flatten(U)[0][0].double().square().mean().sqrt())
    assert found.breaks[0].size == pytest.approx(1 / size, rel=0.1)  # a jump of 1, in root mean squares
    assert found.breaks[0].operation.line.number == line_number(simulators.branching, "> 0.5")
    assert found.warnings or found.problems
    assert "values jump" in str(found) and "high = u.values > 0.5" in str(found)


# --- others ---


def test_rounding_is_all_jumps() -> None:
    found = check(simulators.rounded)
    assert found.missed == pytest.approx(1) and not found.fit and found.arguments[0].unused
    assert [o.name for o in found.without_gradient] == ["round"]


def test_a_vanishing_step_says_how_soon() -> None:
    found = check(simulators.decaying)
    assert found.verdict == "vanishing" and found.growth.reverse.horizon == 10  # 2⁻¹⁰ < 1e-3 < 2⁻⁹
    assert found.growth.reverse.digits_lost_after == 23  # 2⁻²³ < 1.2e-7 < 2⁻²²


def test_a_gradient_that_is_not_finite_names_step_and_line() -> None:
    found = check(simulators.rooted, 0 * U, steps=3)
    assert found.growth.finite_state and found.growth.not_finite == 3
    assert found.wrong[0].name == "sqrt" and "the gradient of step 3 is not finite" in str(found)


def test_a_state_that_is_not_finite_names_the_step() -> None:
    found = check(lambda u: 1e80 * u, steps=6)
    assert not found.growth.finite_state and found.growth.not_finite == 4  # (1e80)⁴ > 1.8e308
    assert "the state is not finite after step 4" in str(found)


def forced(u: Field, force: Field, nu: object) -> Field:
    return diffuse.explicit(u, nu, 0.1) + 0.1 * math.stop_gradient(force)


def test_every_input_is_checked_by_its_name() -> None:
    found = check(forced, U, U, wrap(0.1), steps=2)
    assert [a.name for a in found.arguments] == ["u", "force", "nu"]
    assert [bool(a.wrong) for a in found.arguments] == [False, True, False]
    assert "the gradient by force is wrong" in str(found)


def test_inputs_may_change_with_time() -> None:
    force = U.with_values(math.expand(U.values, batch(time=4)))
    assert check(lambda u, f: 0.9 * u + f, U, force, steps=4).fit
    with pytest.raises(ph.StateError, match="4 entries along 'time' but 5 steps"):
        check(lambda u, f: 0.9 * u + f, U, force, steps=5)


@pytest.mark.parametrize("captured", [False, True])
def test_blocks_and_hybrid_solvers(captured: bool) -> None:
    network = torch.nn.Conv1d(1, 1, 3, padding=1)
    physics = ph.capture(simulators.detached, U) if captured else simulators.detached
    solver = ph.HybridSolver(physics, network)
    before = [p.clone() for p in network.parameters()]
    known = list(physics.known) if captured else []
    for step in (physics, solver):
        found = check(step, 0.5 * U, steps=2)
        assert found.arguments[0].wrong and found.wrong[0].line.number == line_number(
            simulators.detached, "stop_gradient"
        )
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(before, network.parameters()))
    assert all(p.requires_grad for p in network.parameters())
    assert not captured or list(physics.known) == known


def test_kinks_of_interpolation_are_no_alarm() -> None:
    found = check(lambda u: advect.semi_lagrangian(u, u, 0.5), U, steps=20)
    assert found.fit and {b.kind for b in found.breaks} <= {"kink"} and found.arguments[0].reverse < 1e-8


def test_the_jumps_of_the_limiter_of_mac_cormack_are_in_plain_phiflow() -> None:
    """Bounds are those of the cell of the departure point: values jump where that changes, as nowhere else."""
    grid = dict(x=8, y=6, bounds=Box(x=8, y=6))
    with math.precision(64):
        math.seed(0)
        smoke = CenteredGrid(Noise(scale=3.0), ZERO_GRADIENT, **grid)

        def change(advection: Callable, speed: float, distance: float) -> float:
            both = [StaggeredGrid(vec(x=speed + s * distance, y=0.3), ZERO_GRADIENT, **grid) for s in (1, -1)]
            up, low = (advection(smoke, v, 1.0).values for v in both)
            return float(math.max(abs(up - low)))

        assert change(advect.mac_cormack, 1.0, 1e-8) > 1e-2 > 1e-6 > change(advect.mac_cormack, 1.3, 1e-8)
        assert change(advect.semi_lagrangian, 1.0, 1e-8) < 1e-6
        air = StaggeredGrid(vec(x=1.0, y=0.3), ZERO_GRADIENT, **grid)
        found = check(lambda v, s: advect.mac_cormack(s, v, 1.0), air, smoke, points=1)
    assert "jump" in {b.kind for b in found.breaks} and not any(a.wrong for a in found.arguments)


def test_a_function_that_cannot_be_repeated_has_no_growth() -> None:
    found = check(lambda u: math.sum(u.values**2, u.values.shape))
    assert found.growth is None and found.fit and "not measured" in str(found)


def test_a_seed_gives_the_same_numbers() -> None:
    assert str(check(simulators.smooth, steps=3)) == str(check(simulators.smooth, steps=3))
    assert str(check(simulators.smooth, steps=3)) != str(check(simulators.smooth, steps=3, seed=1))


def test_random_steps_are_held_still() -> None:
    assert check(lambda u: 0.9 * u + 0.1 * math.random_normal(u.values.shape), steps=3).fit


def branch(u: Field) -> Field:
    return u if u.values.max > 0 else -u


def test_wrong_inputs() -> None:
    for settings, name in (
        ({"steps": 0}, "steps = 0"),
        ({"directions": 1.5}, "directions = 1.5"),
        ({"points": 0}, "points"),
    ):
        with pytest.raises(ph.StateError, match=name):
            check(simulators.smooth, U, **settings)
    with pytest.raises(ph.StateError, match="state = .*holds NaN"):
        ph.check_gradients(lambda u: 0.9 * u, line(0) * float("nan"))
    with pytest.raises(ph.StateError, match="step = 3"):
        check(3, U)
    with pytest.raises(ph.StateError, match="real or complex"):
        check(lambda u: u, wrap([1, 2], batch("b")))
    with pytest.raises(ph.CaptureError, match="if u.values.max > 0"):
        check(branch)
