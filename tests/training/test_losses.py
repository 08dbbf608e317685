"""Terms of the loss against formulas written by hand, and analytic spectra."""

from __future__ import annotations

import math as m
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases.chains import STEPS, agree, channels, force_at, make_data, make_solver, windows
from cases.small import SmallNet, faces, forced_step, line, native_of, noise
from cases.states import RESOLUTION, SIZE
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, Field, batch, channel, field, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import Batch, DataLayout
from phi_hybrid.training.losses import (
    L1,
    L2,
    BeforeCorrection,
    Conserved,
    EveryStep,
    Geometric,
    LastStep,
    Losses,
    Part,
    Residual,
    Spectral,
    Steps,
    Vanishing,
)

Tensors = tuple[torch.Tensor, ...]

FORCED = ph.capture(forced_step)

WEIGHTS = {
    EveryStep(): [1, 1, 1, 1, 1],
    LastStep(): [0, 0, 0, 0, 1],
    Steps(2, 5): [0, 1, 0, 0, 1],
    Geometric(0.5): [1, 0.5, 0.25, 0.125, 0.0625],
    Geometric(2.0): [1, 2, 4, 8, 16],
}


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return make_data()


@pytest.fixture(scope="module")
def b(data: ph.Trajectories) -> Batch:
    return data.whole()


@pytest.fixture(scope="module")
def states(b: Batch) -> Tensors:
    """Something to compare with the data, of two components of different size."""
    return tuple(t + 0.1 * noise(*t.shape, seed=n, dtype=t.dtype) for n, t in enumerate(b.targets))


def weighted(per_step: list[torch.Tensor], weights: list[float]) -> float:
    return float(sum(w * e for w, e in zip(weights, per_step)) / sum(weights))


# --- at which steps ---


@pytest.mark.parametrize("at", WEIGHTS, ids=repr)
@pytest.mark.parametrize("term, size", [(L2, lambda e: e**2), (L1, torch.abs)])
def test_comparison_by_hand(at: Any, term: type, size: Any, states: Tensors, b: Batch) -> None:
    sigma = [float(s.std()) for s in b.states]
    per_step = []
    for n in range(STEPS):
        errors = [((y[:, n] - s[:, n + 1]) / d).ravel() for y, s, d in zip(states, b.states, sigma)]
        per_step.append(size(torch.cat(errors)).mean())
    assert float(term(at)(states, b)) == pytest.approx(weighted(per_step, WEIGHTS[at]), rel=1e-12)


@pytest.mark.parametrize("at", WEIGHTS, ids=repr)
def test_steps_without_weight_get_no_gradient(at: Any, states: Tensors, b: Batch) -> None:
    leaves = [y.clone().requires_grad_() for y in states]
    L2(at)(leaves, b).backward()
    for leaf in leaves:
        sizes = leaf.grad.abs().amax([0, 2, 3])
        assert [bool(s > 0) for s in sizes] == [w > 0 for w in WEIGHTS[at]]


# --- spectral ---


@pytest.mark.smoke
def test_power_zero_is_l2(states: Tensors, b: Batch) -> None:
    """Parseval, for the gradient as well; grids of odd and even size."""
    found = []
    for term in (Spectral(0), L2()):
        leaves = [y.clone().requires_grad_() for y in states]
        loss = term(leaves, b)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert agree(*found, tolerance=1e-12)


def wave_batch(error: torch.Tensor) -> Batch:
    """Reference zero, σ = 2, one step; `error` `(x, y)` with a channel."""
    grid = CenteredGrid(0, PERIODIC, x=error.shape[0], y=error.shape[1], bounds=Box(x=1, y=3))
    values = math.expand(grid.values, channel(vector="x"))
    layout = ph.bridge.flatten(grid.with_values(values))[1]
    zero = torch.zeros(1, 2, *error.shape, 1, dtype=torch.float64)
    return Batch((zero,), (), DataLayout(layout, ph.bridge.flatten(())[1]), (2.0,))


@pytest.mark.parametrize("power", [0.5, 2.0])
@pytest.mark.parametrize("k", [(0, 0), (3, 2), (8, 0)], ids=str)
def test_weight_of_a_wave(k: tuple[int, int], power: float) -> None:
    """A wave of known number counts (k/k_Nyquist)^(2·power) times its mean square: 16 × 10 cells, Nyquist 8 and 5."""
    x, y = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (16, 10)), indexing="ij")
    wave = torch.cos(2 * m.pi * (k[0] * x / 16 + k[1] * y / 10))
    share = ((k[0] / 8) ** 2 + (k[1] / 5) ** 2) ** power
    found = Spectral(power)((wave[None, None, :, :, None],), wave_batch(wave))
    assert float(found) == pytest.approx(share * float((wave**2).mean()) / 4, rel=1e-12, abs=1e-25)


def test_states_without_a_grid_are_compared_as_they_are() -> None:
    layout = ph.bridge.flatten(math.wrap(torch.zeros(3), channel(vector="a,b,c")))[1]
    states = noise(2, 4, 3, dtype=torch.float64)
    b = Batch((states,), (), DataLayout(layout, ph.bridge.flatten(())[1]), (0.5,))
    y = (states[:, 1:] + 0.1,)
    assert float(Spectral(1)(y, b)) == pytest.approx(0.04, rel=1e-12) == float(L2()(y, b))


# --- physics ---


def divergence_by_hand(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Closed box: the faces at the walls are zero and not stored."""
    x = torch.nn.functional.pad(x, (0, 0, 1, 1)).diff(dim=-2) / (SIZE["x"] / RESOLUTION[2]["x"])
    y = torch.nn.functional.pad(y, (1, 1)).diff(dim=-1) / (SIZE["y"] / RESOLUTION[2]["y"])
    return x + y


def test_divergence_by_hand(states: Tensors, b: Batch) -> None:
    per_step = [(divergence_by_hand(*(y[:, n] for y in states)) ** 2).mean() / 9 for n in range(STEPS)]
    for divergence, at in ((field.divergence, EveryStep()), (ph.capture(field.divergence), Geometric(0.5))):
        found = float(Vanishing(divergence, 3.0, at)(states, b))
        assert found == pytest.approx(weighted(per_step, WEIGHTS[at]), rel=1e-12)


def momentum(u: Field) -> math.Tensor:
    return math.stack([math.sum(u.values[{"~vector": d}], "x,y") for d in "xy"], channel(vector="x,y"))


def test_conserved_drift_by_hand(states: Tensors, b: Batch) -> None:
    drifts = [(y - t).sum([-1, -2]) for y, t in zip(states, b.targets)]
    expected = float((torch.stack(drifts) ** 2).mean()) / 25
    assert float(Conserved(momentum, 5.0)(states, b)) == pytest.approx(expected, rel=1e-12)
    assert float(Conserved(momentum)(b.targets, b)) == 0.0


def test_residual_of_states_that_obey_the_step(data: ph.Trajectories) -> None:
    """The reference with its own step; another step leaves a residual, which is worked out by hand."""
    block, b = FORCED, make_data(FORCED).whole()
    assert float(Residual(block)(b.targets, b)) == 0.0
    b = data.whole()
    per_step = []
    for n in range(STEPS):
        after = native_of(block, *(s[:, n] for s in b.states), *force_at(b, n))
        errors = [((s[:, n + 1] - a) / d).ravel() for s, a, d in zip(b.states, after, b.scale)]
        per_step.append((torch.cat(errors) ** 2).mean())
    at = Geometric(0.5)
    assert float(Residual(block, at)(b.targets, b)) == pytest.approx(weighted(per_step, WEIGHTS[at]), rel=1e-12)


def test_residual_is_a_function_of_all_states(b: Batch, states: Tensors) -> None:
    """Also of the state that a step starts from: d/duₙ of ‖uₙ₊₁ − uₙ/2‖² is not zero."""
    leaves = [y.clone().requires_grad_() for y in states]
    residual = Residual(lambda u, f: u * 0.5, LastStep())
    gradients = torch.autograd.grad(residual(leaves, b), leaves)
    count = sum(y[:, 0].numel() for y in states)
    for g, y, s in zip(gradients, states, b.scale):
        error = 2 * (y[:, 4] - 0.5 * y[:, 3]) / (s**2 * count)
        torch.testing.assert_close(g[:, 4], error, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(g[:, 3], -0.5 * error, rtol=1e-12, atol=1e-14)
        assert not g[:, :3].any()


TURNING = [
    L2(),
    Spectral(0),
    Vanishing(lambda u: u.values),
    Conserved(lambda u: u.values),
    Residual(lambda u: u * 1j),
    BeforeCorrection(L2(LastStep())),
]


@pytest.mark.parametrize("term", TURNING, ids=lambda t: type(t).__name__)
def test_squares_of_complex_states_by_hand(term: Any) -> None:
    """Mean squares of moduli, real numbers; the phase of all states together does not matter."""
    data = ph.Trajectories.generate(lambda u: u * 1j, line(0, dtype=torch.float64, b=3) * (1 + 0.5j), 4, progress=False)
    b, error = data.whole(), torch.complex(*(noise(3, 4, 8, 1, seed=n, dtype=torch.float64) for n in (0, 1)))
    (true,), scale = b.targets, data.scale[0]
    states = true + error
    expected = {
        "Vanishing": states,
        "Conserved": error,
        "Residual": (error - 1j * torch.cat([torch.zeros_like(error[:, :1]), error[:, :-1]], 1)) / scale,
        "BeforeCorrection": error[:, -1] / scale,
    }.get(type(term).__name__, error / scale)
    found = term((states,), b)
    assert not found.is_complex()
    assert float(found) == pytest.approx(float((expected.abs() ** 2).mean()), rel=1e-12)


def test_losses_are_real(b: Batch, states: Tensors) -> None:
    losses = Losses({"phase": lambda states, b: states[0].mean() * 1j})
    with pytest.raises(ph.StateError, match=r"value of terms\['phase'\] = .*one real number"):
        losses.contributions(states, (), b)


TERMS = {
    "state": L2(Geometric(0.5)),
    "divergence": (0.1, Vanishing(field.divergence)),
    "source": (2, BeforeCorrection(L1(LastStep()))),
    "spectrum": (0.5, Spectral(1)),
}


def test_contributions_by_hand_and_their_sum(data: ph.Trajectories) -> None:
    solver, b = make_solver(FORCED, data), windows(data, 3)
    objective = ph.Unrolled(3, Losses(TERMS))
    with torch.no_grad():
        outputs = objective.outputs(solver, b)
    own, before = outputs[:2], outputs[2:]
    parts = objective.contributions(outputs, b)
    assert list(parts) == list(TERMS)
    expected = {
        "state": L2(Geometric(0.5))(own, b),
        "divergence": 0.1 * Vanishing(field.divergence)(own, b),
        "source": 2 * L1(LastStep())(before, b),
        "spectrum": 0.5 * Spectral(1)(own, b),
    }
    assert parts == {name: pytest.approx(float(e), rel=1e-12) for name, e in expected.items()}
    assert float(objective.loss(outputs, b)) == pytest.approx(float(sum(expected.values())), rel=1e-12)
    after = native_of(solver.physics, *b.initial, *force_at(b, 0))
    torch.testing.assert_close(channels([t[:, 0] for t in before]), channels(after), rtol=1e-12, atol=1e-12)


def farthest(states: Tensors, b: Batch) -> torch.Tensor:
    return sum((y - t).abs().max() for y, t in zip(states, b.targets))


def test_functions_of_states_before_the_correction(data: ph.Trajectories) -> None:
    """Also after a warm-up; named in messages and checkpoints as they were given."""
    solver, b = make_solver(FORCED, data), windows(data, 3)
    objective = ph.Unrolled(3, Losses({"source": BeforeCorrection(farthest)}), warm_up=1)
    with torch.no_grad():
        outputs = objective.outputs(solver, b)
        assert objective.loss(outputs, b) == farthest(outputs[2:], b.after(1)) > 0
    assert repr(BeforeCorrection(farthest)) == f"BeforeCorrection(term={farthest!r})"
    assert repr(BeforeCorrection(L2())) == f"BeforeCorrection(term={L2()!r})"


def test_residual_before_the_correction(data: ph.Trajectories) -> None:
    """Both steps start from the corrected state: the physics has no residual of its own, another step has its difference."""
    solver, b = make_solver(FORCED, data), windows(data, 3)
    losses = Losses({"own": BeforeCorrection(Residual(FORCED)), "none": BeforeCorrection(Residual(lambda u, f: u * 0))})
    objective = ph.Unrolled(3, losses)
    with torch.no_grad():
        outputs = objective.outputs(solver, b)
        parts = objective.contributions(outputs, b)
    assert parts["own"] == 0
    squares = torch.cat([((p / s) ** 2).ravel() for p, s in zip(outputs[2:], b.scale)])
    assert float(parts["none"]) == pytest.approx(float(squares.mean()), rel=1e-12)


def test_weights_in_single_precision(b: Batch, states: Tensors) -> None:
    """Losses keep the precision of the states."""
    single = replace(b, states=tuple(s.float() for s in b.states))
    for term in (L2(Geometric(0.5)), L1(), Spectral(1.5), Vanishing(field.divergence)):
        found = term([y.float() for y in states], single)
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(term(states, b)), rel=1e-5)


# --- parts ---


def smoke(seed: int) -> Field:
    """Smoke on 16 × 16 cells of the box whose velocity lives on 8 × 8."""
    with math.precision(64):
        values = math.wrap(noise(2, 16, 16, seed=seed, dtype=torch.float64), batch("b"), spatial("x,y"))
        return CenteredGrid(values, ZERO_GRADIENT, bounds=Box(x=SIZE["x"], y=SIZE["y"]))


PARTS = {"velocity": lambda n: faces("closed", n, torch.float64, cells={"x": 8, "y": 8}, b=2), "smoke": smoke}
FADING = {"velocity": lambda u: u * 0.8, "smoke": lambda s: s * 0.5 + 1}


def kept(step: Any, state: Any) -> ph.Trajectories:
    with math.precision(64):
        return ph.Trajectories.generate(step, state, 3, progress=False)


def fading(state: dict[str, Field]) -> dict[str, Field]:
    return {name: FADING[name](part) for name, part in state.items()}


PLUME = kept(fading, {name: make(0) for name, make in PARTS.items()})
SPECIES = kept(lambda s: (s[0] * 0.8, s[1] * 0.5 + 1), (PARTS["velocity"](0), smoke(0)))
ALONE = {name: kept(FADING[name], make(0)).whole() for name, make in PARTS.items()}
LEAVES = {"velocity": slice(0, 2), "smoke": slice(2, 3)}


def guesses(b: Batch) -> Tensors:
    return tuple(t + 0.1 * noise(*t.shape, seed=n, dtype=t.dtype) for n, t in enumerate(b.targets))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "term",
    [
        L2(),
        L1(Geometric(0.5)),
        Spectral(1),
        Conserved(ph.quantities.total, 2.0),
        Conserved(ph.capture(ph.quantities.energy), 2.0, LastStep()),
        Residual(lambda u: u * 0.9),
        lambda states, b: sum((y - t).abs().amax() * s for y, t, s in zip(states, b.targets, b.scale)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_part_is_the_term_of_this_part_alone(term: Any, name: str) -> None:
    """Of dicts by name, of tuples by index: tensors, scales, layouts and first states of this part."""
    states = guesses(PLUME.whole())
    own = states[LEAVES[name]]
    expected = term(own, ALONE[name])
    for data, part in ((PLUME, name), (SPECIES, list(PARTS).index(name))):
        assert torch.equal(Part(part, term)(states, data.whole()), expected) and float(expected) > 0


def test_parts_by_hand_and_their_gradients() -> None:
    """σ of the smoke alone; a term of one part has no gradient in the other."""
    b = PLUME.whole()
    states = [y.requires_grad_() for y in guesses(b)]
    loss = Part("smoke", L2())(states, b)
    error = ((states[2] - b.states[2][:, 1:]) / b.states[2].std()) ** 2
    torch.testing.assert_close(loss, error.mean(), rtol=1e-6, atol=0)
    found = torch.autograd.grad(loss, states, allow_unused=True)
    assert found[0] is None and found[1] is None and found[2].abs().min() > 0
    divergence = Part("velocity", Vanishing(field.divergence))(states, b)
    assert divergence == Vanishing(field.divergence)(states[:2], ALONE["velocity"]) > 0


def test_training_by_parts() -> None:
    """Corrections of the velocity alone, weighed against its own error and divergence, before and after them."""
    block = ph.capture(fading)
    solver = ph.HybridSolver(block, SmallNet(3, 2, 2).double(), corrects=["velocity"])
    terms = {
        "smoke": (0.5, Part("smoke", L1())),
        "divergence": Part("velocity", Vanishing(field.divergence)),
        "before": Part("velocity", BeforeCorrection(L2())),
        "same": BeforeCorrection(Part("velocity", L2())),
        "physics": Part("velocity", BeforeCorrection(Residual(FADING["velocity"]))),
        "its part": BeforeCorrection(Part("velocity", Residual(FADING["velocity"]))),
    }
    losses, b = Losses(terms), PLUME.windows(2).collate([PLUME.windows(2)[n] for n in (0, 2)])
    assert losses.needs_uncorrected
    parts = ph.Unrolled(2, losses).contributions(ph.Unrolled(2, losses).outputs(solver, b), b)
    assert parts["smoke"] == 0 < parts["divergence"] and parts["before"] == parts["same"] > 0
    assert parts["physics"] == parts["its part"] == 0
    parts["divergence"].backward()
    assert all(p.grad.abs().max() > 0 for p in solver.network.parameters())


@pytest.mark.parametrize("make", [lambda r: ph.Unrolled(3, r, warm_up=1), lambda r: ph.training.Pushforward(2, r)])
def test_residuals_need_the_state_before(make: Any) -> None:
    """After steps without gradient it would be that of the reference, which the model has left."""
    for term in (Part("smoke", Residual(fading)), BeforeCorrection(Residual(fading)), Residual(fading)):
        residual = Losses({"pde": term})
        with pytest.raises(ph.StateError, match=r"terms\['pde'\].*warm_up"):
            make(residual)
        ph.Unrolled(3, residual)
        ph.training.Pushforward(1, residual)
    make(Losses({"pde": Part("smoke", L2())}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Part("heat", L2())((), PLUME.whole()), r"'heat'.*\['velocity', 'smoke'\]"),
        (lambda: Part(2, L2())((), SPECIES.whole()), r"part 2.*\[0, 1\]"),
        (lambda: Part("u", L2())((), ALONE["smoke"]), "part 'u'"),
        (lambda: Steps(), "numbers = "),
        (lambda: Steps(0, 2), "numbers = 0"),
        (lambda: Geometric(0.0), "ratio = 0.0"),
        (lambda: Geometric(float("nan")), "ratio = nan"),
        (lambda: Spectral(-1.0), "power = -1.0"),
        (lambda: Vanishing(field.divergence, 0.0), "scale = 0.0"),
        (lambda: Conserved(momentum, float("inf")), "scale = inf"),
        (lambda: Losses({}), "{}"),
        (lambda: Losses({"a": (0.1, L2(), 3)}), r"terms\['a'\] = .*weight"),
        (lambda: Losses({"a": (float("nan"), L2())}), r"terms\['a'\] = \(nan, .*finite"),
        (lambda: Losses({"a": (True, L2())}), r"terms\['a'\] = \(True, .*finite"),
    ],
)
def test_parts_that_are_not_there(make: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()


def test_steps_beyond_the_horizon(states: Tensors, b: Batch) -> None:
    with pytest.raises(ph.StateError, match=r"Steps\(2, 6\).*1 … 5"):
        L2(Steps(2, 6))(states, b)


@pytest.mark.parametrize("term", [Vanishing, Conserved])
@pytest.mark.parametrize("dims", ["everything", "time"])
def test_quantities_that_mix_trajectories_or_times(term: Any, dims: str, states: Tensors, b: Batch) -> None:
    """Errors of different trajectories would cancel, and a loss would depend on the size of the batch."""

    def mixed(u: Field) -> math.Tensor:
        return math.sum(u.values, u.values.shape if dims == "everything" else ["time", *u.values.shape.spatial])

    with pytest.raises(ph.StateError, match="mixed of states with the batch dims 'time' and 'trajectory' .* keep both"):
        term(mixed)(states, b)
