"""Solves on other devices than the CPU are looked at later: nothing is lost, and the errors are the same.

The CPU stands for such a device here, with verdicts that wait.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from cases.small import SmallNet, noise
from cases.solve_steps import flow, pushed, smoothed, squared
from cases.solves import CPU, box_matrix, system, velocity, with_obstacle
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, batch, diffuse, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.linear_solve import (
    ConjugateGradient,
    LinearSolve,
    check_solves,
    checked_solves,
    conjugate_gradient,
    first_failure,
    flags,
    linear_solves,
    next_number,
)
from phi_hybrid.steps import PlainStep

SHAPE = (4, 3)
REGULAR = box_matrix(("outlet", "walls"), SHAPE)
SINGULAR = box_matrix(("walls", "periodic"), SHAPE)


@pytest.fixture(autouse=True)
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    check_solves()
    monkeypatch.setattr(flags, "AT_ONCE", frozenset())
    yield
    flags._waiting.clear()


def module(matrix: object, method: object = None) -> LinearSolve:
    return LinearSolve(system(matrix, SHAPE), method, 1e-5, 0.0)


def rhs(count: int = 3) -> torch.Tensor:
    return noise(count, 12, dtype=torch.float64)


def damaged() -> torch.Tensor:
    b = rhs()
    b[1, 4:6] = float("nan")
    return b


def line(*scales: float) -> Field:
    """A random centred scalar per scale, `(b, x)`."""
    values = torch.tensor(scales)[:, None] * noise(1, 8).abs().clamp(0.5, 2.0)
    return CenteredGrid(wrap(values, batch("b"), spatial("x")), PERIODIC, bounds=Box(x=2.0))


FAILURES: dict[str, Callable[[], torch.Tensor]] = {
    "not finite": lambda: module(REGULAR)(damaged()),
    "unbalanced": lambda: module(SINGULAR)(rhs()),
    "missed": lambda: module(with_obstacle(REGULAR, [7]), ConjugateGradient(max_iterations=1))(rhs()),
}


@pytest.mark.parametrize("name", FAILURES)
def test_errors_are_those_of_a_solve_that_is_looked_at_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAILURES[name]()
    with pytest.raises(ph.SolveError) as later:
        check_solves()
    check_solves()  # nothing waits any more
    monkeypatch.setattr(flags, "AT_ONCE", frozenset({"cpu"}))
    with pytest.raises(ph.SolveError) as at_once:
        FAILURES[name]()
    assert str(later.value) == str(at_once.value)
    assert later.value.residual == pytest.approx(at_once.value.residual, nan_ok=True)
    assert later.value.iterations == at_once.value.iterations


def test_the_first_of_several_failures_is_the_one_that_is_told() -> None:
    module(REGULAR)(rhs())
    start = next_number()
    FAILURES["unbalanced"]()
    FAILURES["not finite"]()
    number, error = first_failure(start)
    assert number > start and "no solution" in str(error)
    assert first_failure() is None  # those before had no fault, those after were dropped


def test_cotangents_and_tangents_wait_too() -> None:
    solve, holes = module(REGULAR), damaged()
    leaf = rhs().requires_grad_()
    gradient = torch.autograd.grad(solve(leaf), leaf, holes)[0]
    assert gradient.isnan().any()
    with pytest.raises(ph.SolveError, match="2 NaN or infinite values of 36"):
        check_solves()
    torch.func.jvp(solve, (rhs(),), (holes,))
    with pytest.raises(ph.SolveError, match="2 NaN or infinite values of 36"):
        check_solves()


def test_number_of_verdicts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "MOST", 10)
    solve = module(REGULAR)
    for _ in range(40):
        solve(rhs())
        assert len(flags._waiting) <= 10
    FAILURES["unbalanced"]()
    with pytest.raises(ph.SolveError, match="no solution"):
        for _ in range(11):
            solve(rhs())


def test_context_looks_at_its_own_solves() -> None:
    FAILURES["missed"]()
    with checked_solves():
        module(REGULAR)(rhs())
    with pytest.raises(ph.SolveError, match="no solution"), checked_solves():
        FAILURES["unbalanced"]()
    with pytest.raises(ph.SolveError, match="no solution") as error, checked_solves():
        FAILURES["unbalanced"]()
        raise ValueError("an error that a failed solve may have caused")
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(ValueError), checked_solves():
        raise ValueError
    with pytest.raises(KeyboardInterrupt), checked_solves():
        FAILURES["unbalanced"]()
        raise KeyboardInterrupt
    with pytest.raises(ph.SolveError, match="missed"):
        check_solves()  # the one from before
    check_solves()


def test_iterations_between_looks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One right-hand side is zero, one an eigenvector of nothing: they converge after different numbers of iterations."""
    b = rhs(4)
    b[0] = 0.0
    matrix = with_obstacle(box_matrix(("walls", "outlet"), SHAPE), [7], cuts=False)
    found, iterations = [], []
    for every in (1, 3, 50):
        monkeypatch.setattr(conjugate_gradient, "LOOK_EVERY", every)
        solver = ConjugateGradient().build(system(matrix, SHAPE), CPU, 1e-9)
        solution = solver.solve(b, False)
        found.append(solution.x)
        iterations.append(solution.iterations)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert iterations[0] < iterations[1] < iterations[0] + 3 and iterations[2] == 50


# --- steps, rollouts, training ---


def test_steps_on_states_and_plain_code() -> None:
    u, push = line(1.0, 2.0), wrap(torch.tensor([1.0, float("nan")]), batch("b"))
    for step in (ph.capture(smoothed, u), PlainStep(smoothed)):
        step(u)
        with pytest.raises(ph.SolveError, match="8 NaN or infinite values of 16"):
            step(u * push)
    with pytest.raises(ph.SolveError, match="8 NaN or infinite values of 16"), linear_solves():
        smoothed(u * push)
    with pytest.raises(ph.SolveError, match="1 iterations"):
        ph.capture(flow, velocity("inflow"), solver=ConjugateGradient(max_iterations=1))
    check_solves()


def test_native_steps_wait_for_the_caller() -> None:
    u = line(1.0, 2.0)
    bound = ph.capture(squared).bind(u)
    state = bound.flatten(u * 1e15)
    for _ in range(2):
        state = bound.native(*state)
    with pytest.raises(ph.SolveError, match="NaN or infinite values of 16"):
        check_solves()


def test_matrices_that_vary_are_looked_at_at_once() -> None:
    """Their values go to the host in any case; the error names the matrix."""
    u = line(1.0, 2.0)
    bound = ph.capture(lambda u, nu: diffuse.implicit(u, nu, 0.1)).bind(u, wrap(torch.tensor([0.1, 0.2]), batch("b")))
    (values, nu) = bound.flatten(u, wrap(torch.tensor([0.1, 0.2]), batch("b")))
    values[1, 3] = float("nan")
    with pytest.raises(ph.SolveError, match=r"matrix 1 of 2.*1 NaN"):
        bound.native(values, nu)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("bad", [0, 2, 15, 16, 33])
def test_rollouts_name_the_step_and_keep_what_was_computed(bad: int, keep: bool) -> None:
    """Looks are after 16, 32 and 34 steps."""
    numbers = torch.full((34,), 0.1)
    numbers[bad] = float("nan")
    u, push = line(1.0, 2.0), wrap(numbers, batch("time"))
    step = ph.capture(pushed, u, push.time[1 if bad == 0 else 0])
    with pytest.raises(ph.SolveError, match=f"in step {bad + 1} of 34: .*16 NaN or infinite") as error:
        (ph.rollout if keep else ph.repeat)(step, u, 34, push)
    assert error.value.step == bad + 1
    trajectory = error.value.trajectory
    expected = ph.rollout(step, u, bad, push).values if bad else math.expand(u.values, batch(time=1))
    first = 0 if keep else bad // 16 * 16  # states since the last look
    math.assert_close(trajectory.values, expected.time[first:], abs_tolerance=0, rel_tolerance=0)


def test_rollouts_that_become_non_finite_without_a_solve() -> None:
    u, push = line(1.0, 2.0), wrap(torch.full((20,), 1e3), batch("time"))
    with pytest.raises(ph.NonFiniteError, match=r"in step \d+ of 20 \(b 0, 1\)") as error:
        ph.rollout(lambda u, f: u * u * f, u, 20, push)
    trajectory = error.value.trajectory
    assert trajectory.shape.get_size("time") == error.value.step > 1
    assert bool(math.is_finite(trajectory.values).all)


def test_a_solve_that_is_given_infinity_by_an_earlier_step() -> None:
    """The state overflows in one step, the solve of the next is given it: the state is told."""

    def step(u: Field) -> Field:
        return diffuse.implicit(u, 0.1, 0.2) * 1e13

    with pytest.raises(ph.NonFiniteError, match="in step 3 of 6") as error:
        ph.rollout(ph.capture(step), line(1.0, 1.0), 6)
    assert error.value.trajectory.shape.get_size("time") == 3


def test_evaluation_goes_on_with_the_other_trajectories() -> None:
    data = ph.Trajectories.generate(ph.capture(smoothed), line(1.0, 1e3, 0.5, 1e5), 6, progress=False)
    found = ph.evaluate({"squared": ph.capture(squared)}, data)
    assert torch.isfinite(found.mae["squared"]).sum(1).tolist() == [6, 3, 6, 2]


def test_reference_solvers_that_fail() -> None:
    with pytest.raises(ph.DataError, match="step 4"):
        ph.Trajectories.generate(ph.capture(squared), line(1.0, 1e3), 9, progress=False)


class Late(torch.optim.SGD):
    """Gives the weights a value that breaks the step of the next update."""

    def step(self, closure: Callable) -> torch.Tensor:
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.fill_(1e30)
        return loss


@pytest.mark.parametrize("gradient", [ph.gradient.Full(), ph.gradient.Checkpointed(1)])
def test_training_fails_in_the_update_that_holds_the_solve(gradient: ph.gradient.GradientMode) -> None:
    data = ph.Trajectories.generate(ph.capture(squared), line(1.0, 0.5), 3, progress=False)
    solver = ph.HybridSolver(ph.capture(squared), SmallNet(1, 1, 1))
    optimizer = Late(solver.parameters(), 1e-3)
    objective = ph.Unrolled(2, gradient=gradient)
    trainer = ph.Trainer(solver, data, objective, optimizer=optimizer, batch_size=2, progress=False)
    trainer.fit(1)
    before = copy.deepcopy(solver.state_dict())
    with pytest.raises(ph.SolveError, match="at update 1: .*NaN or infinite") as error:
        trainer.fit(5)
    assert error.value.step == 1 and trainer.update == 1 and len(trainer.history["loss"]) == 1
    assert all(torch.equal(before[n], v) for n, v in solver.state_dict().items() if isinstance(v, torch.Tensor))
    check_solves()


class Blind(torch.optim.SGD):
    """Looks at nothing but the outputs, and solves again after its update, as half-inverse gradients do."""

    takes_outputs = True

    def step(self, closure: Callable) -> torch.Tensor:
        outputs = closure.outputs()
        loss = closure.loss(outputs)
        cotangents = [torch.full_like(o, float("nan")) for o in outputs]
        torch.autograd.grad(outputs, self.param_groups[0]["params"], cotangents, retain_graph=True)
        loss.backward()
        return loss


def test_solves_outside_of_the_closure_are_looked_at_before_the_update_ends() -> None:
    data = ph.Trajectories.generate(ph.capture(squared), line(1.0, 0.5), 3, progress=False)
    solver = ph.HybridSolver(ph.capture(squared), SmallNet(1, 1, 1), ph.coupling.Before())
    optimizer = Blind(solver.parameters(), 1e-3)
    trainer = ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, batch_size=2, progress=False)
    with pytest.raises(ph.SolveError, match="at update 0: .*NaN or infinite"):
        trainer.fit(1)
    assert trainer.update == 0
    check_solves()
