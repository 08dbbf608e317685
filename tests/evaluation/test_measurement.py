"""Errors of rollouts over time against NumPy by hand."""

from __future__ import annotations

import math as m
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import BOX, DT, SmallNet, component_values, faces, forced_step, line, noise, scalar, step
from phi.torch.flow import ZERO_GRADIENT, Box, CenteredGrid, Field, batch, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import Mixture
from phi_hybrid.evaluation.metrics import MAE, Correlation, Divergence, Drift, Frame, Metric, Part, SpectrumError

TRAJECTORIES, STEPS = 3, 5


def worse(u: Field, f: Field) -> Field:
    return 0.9 * u + DT * f


def make_data(count: int) -> ph.Trajectories:
    f = line(1, b=count, time=STEPS)
    return ph.Trajectories.generate(ph.capture(forced_step), line(0, b=count), STEPS, (f,), progress=False)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return make_data(TRAJECTORIES)


@pytest.fixture(scope="module")
def many() -> ph.Trajectories:
    return make_data(7)


def kept(u: Any, steps: int) -> ph.Trajectories:
    """Data of a state that stays as it is."""
    return ph.Trajectories.generate(lambda v: v, u, steps, progress=False)


# --- all metrics at every step ---


def test_errors_by_hand(data: ph.Trajectories) -> None:
    """One trajectory after the other, NumPy in double precision."""
    mae, nrmse = np.zeros((2, TRAJECTORIES, STEPS))
    for number in range(TRAJECTORIES):
        u, f = data.initial_state.trajectory[number], data.step_inputs[0].trajectory[number]
        for n in range(STEPS):
            u, true = worse(u, f.time[n]), data.states[0][number, n + 1].double().numpy()
            error = component_values(u)[0].double().numpy() - true
            mae[number, n] = np.abs(error).mean()
            nrmse[number, n] = np.sqrt((error**2).sum() / (true**2).sum())
    for steps in (None, 1, 3):
        found = ph.evaluate({"worse": worse, "captured": ph.capture(worse), "exact": forced_step}, data, steps)
        for name in ("worse", "captured"):
            np.testing.assert_allclose(found.mae[name], mae[:, :steps], rtol=1e-4)
            np.testing.assert_allclose(found.nrmse[name], nrmse[:, :steps], rtol=1e-4)
        assert not found.mae["exact"].any() and not found.nrmse["exact"].any()
    assert mae.min() > 0.01


def test_other_metrics_by_hand(data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse}, data, metrics={"energy": Drift(ph.quantities.energy)})
    own, true = ph.rollout(worse, data.initial_state, STEPS, *data.step_inputs), data.trajectory
    a, b = (component_values(u, ("trajectory", "time"))[0].double().numpy()[:, 1:, :, 0] for u in (own, true))
    pearson = [[np.corrcoef(a[t, n], b[t, n])[0, 1] for n in range(STEPS)] for t in range(TRAJECTORIES)]
    np.testing.assert_allclose(found["correlation"]["worse"], pearson, rtol=1e-5)
    cosine = (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    np.testing.assert_allclose(found["cosine"]["worse"], cosine, rtol=1e-5)
    drift = np.abs((a**2).sum(2) / (b**2).sum(2) - 1)
    np.testing.assert_allclose(found["energy"]["worse"], drift, rtol=1e-4)


def test_staggered_components_count_by_their_faces() -> None:
    """On a closed box there are more interior x faces than y faces or the other way round: the mean is over all."""
    data, shift = kept(faces("closed", b=2), 1), 0.25

    def shifted(u: Field) -> Field:
        x, y = (u.values[{"~vector": n}] for n in "xy")
        return u.with_values(math.stack({"x": x + shift, "y": y}, math.dual("vector")))

    found = ph.evaluate({"shifted": shifted}, data)
    n_x, n_y = 5 * 5, 6 * 4
    assert found.mae["shifted"].flatten().tolist() == pytest.approx([shift * n_x / (n_x + n_y)] * 2, rel=1e-6)
    for number in range(2):
        norm = sum(float((s[number, 1] ** 2).sum()) for s in data.states) ** 0.5
        assert float(found.nrmse["shifted"][number]) == pytest.approx(shift * n_x**0.5 / norm, rel=1e-5)


def test_metrics_may_be_plain_functions(data: ph.Trajectories) -> None:
    def by_rows(own: Frame, reference: Frame) -> torch.Tensor:
        return (own.rows - reference.rows).abs().mean(1)

    def by_phiflow(own: Frame, reference: Frame) -> math.Tensor:
        difference = abs(own.state.values - reference.state.values)
        return math.mean(difference, difference.shape.non_batch)

    found = ph.evaluate({"worse": worse}, data, metrics={"rows": by_rows, "phiflow": by_phiflow})
    assert torch.equal(found["rows"]["worse"], found.mae["worse"])
    np.testing.assert_allclose(found["phiflow"]["worse"], found.mae["worse"], rtol=1e-5)


def test_networks_are_evaluated_without_dropout_and_gradients(data: ph.Trajectories) -> None:
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1, dropout=0.5))
    first, second = (ph.evaluate({"solver": solver}, data).mae["solver"] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert solver.training and solver.network.drop.training
    solver.eval()
    assert torch.equal(ph.evaluate({"solver": solver}, data).mae["solver"], first)
    assert not solver.network.drop.training


# --- states of several parts ---


def plume() -> dict[str, Field]:
    """Staggered velocity on 8 × 8 cells, smoke on 16 × 16 of the same box, three trajectories."""
    values = math.wrap(noise(3, 16, 16, seed=1), batch("b"), spatial("x,y"))
    smoke = CenteredGrid(values, ZERO_GRADIENT, bounds=Box(x=BOX["x"], y=BOX["y"]))
    return {"velocity": faces("closed", cells={"x": 8, "y": 8}, b=3), "smoke": smoke}


def fading(state: dict[str, Field]) -> dict[str, Field]:
    return {"velocity": 0.5 * state["velocity"], "smoke": state["smoke"] - 1}


def test_plume() -> None:
    """Velocity halves, smoke falls by 1: errors by hand, part by part, and a table that names them."""
    data = kept(plume(), 2)
    further = {
        "mass": Part("smoke", Drift(ph.quantities.total, scale=1.0)),
        "smoke correlates": Part("smoke", Correlation()),
        "divergence": Part("velocity", Divergence()),
    }
    found = ph.evaluate({"fading": fading, "captured": ph.capture(fading)}, data, metrics=further)
    x, y, smoke = (t[:, 0].double().flatten(1) for t in data.states)
    velocity, decay = torch.cat([x, y], 1), torch.tensor([0.5, 0.75])
    fallen = torch.tensor([1.0, 2.0]).expand(3, 2).double()
    expected = {
        "mae velocity": velocity.abs().mean(1, keepdim=True) * decay,
        "nrmse velocity": decay.expand(3, 2).double(),
        "mae smoke": fallen,
        "nrmse smoke": fallen * 16 / smoke.norm(dim=1, keepdim=True),
        "mass": fallen * BOX["x"] * BOX["y"],
        "smoke correlates": torch.ones(3, 2).double(),
    }
    for name in found.lifetime:
        for metric, values in expected.items():
            torch.testing.assert_close(found[metric][name], values, rtol=1e-4, atol=1e-6)
        share = smoke.shape[1] / (smoke.shape[1] + velocity.shape[1])
        mixed = share * found["mae smoke"][name] + (1 - share) * found["mae velocity"][name]
        torch.testing.assert_close(found.mae[name], mixed)
    largest = ph.quantities.largest_divergence(data.trajectory["velocity"].time[0].trajectory[0])
    assert found["divergence"]["fading"][0].tolist() == pytest.approx([largest] * 2, rel=1e-5)
    head, row, _ = str(found.table()).splitlines()
    for column in expected:
        end = head.index(column) + len(column)
        assert float(row[:end].split()[-1]) == pytest.approx(float(expected[column].mean()), rel=1e-3)
    first_step = float(found["mae velocity"]["fading"][:, 0].mean())
    assert found.summary((1,))["fading"]["mae velocity_1"] == pytest.approx(first_step)


def test_two_species() -> None:
    """A tuple; the second species overflows in one trajectory: all parts of it have failed."""
    a, b = scalar(0, b=2), scalar(1, b=2)
    b = b.with_values(b.values * math.wrap(torch.tensor([1.0, 1e30]), batch("b")))
    found = ph.evaluate({"reaction": lambda s: (s[0] + 0.25, s[1] * 1e6)}, kept((a, b), 2))
    torch.testing.assert_close(found["mae 0"]["reaction"][0], torch.tensor([0.25, 0.5]).double())
    size = component_values(b, ["b"])[0][0].double().abs().mean()
    torch.testing.assert_close(
        found["mae 1"]["reaction"][0], size * torch.tensor([1e6, 1e12]).double(), rtol=1e-5, atol=0
    )
    assert found.lifetime["reaction"].tolist() == [2, 1]
    assert torch.isinf(found["mae 0"]["reaction"]).tolist() == [[False, False], [False, True]]


# --- failures ---


def test_blow_up_is_infinite_and_counted() -> None:
    """The second of four trajectories overflows in step 4 and the third in step 3: 1e3^(2^n), 1e6^(2^n) > 3.4e38."""
    u, start = line(0, b=4), math.wrap(torch.tensor([1.0, 1e3, 1e6, 1.0]), batch("b"))
    data = kept(u.with_values(start + 0 * u.values), 6)
    finite: list[bool] = []

    def seen(own: Frame, reference: Frame) -> torch.Tensor:
        finite.append(bool(torch.isfinite(own.rows).all()))
        return torch.zeros(4)

    found = ph.evaluate({"squaring": lambda v: v * v, "fine": lambda v: v * 2}, data, metrics={"seen": seen})
    assert all(finite) and len(finite) == 12  # metrics see no failed states
    failed = torch.arange(6) >= torch.tensor([[6], [3], [2], [6]])
    for metric, value in (("mae", m.inf), ("nrmse", m.inf), ("correlation", -m.inf), ("cosine", -m.inf)):
        assert torch.equal(found[metric]["squaring"] == value, failed)
        assert torch.isfinite(found[metric]["fine"]).all()
    assert found.lifetime["squaring"].tolist() == [6, 3, 2, 6] and found.lifetime["fine"].tolist() == [6] * 4
    assert [found.summary((3,))["squaring"][k] for k in ("blow_up", "blow_up_3")] == [0.5, 0.25]


def test_failure_is_not_undone_by_later_finite_states() -> None:
    """A step that turns NaN into a number again has failed all the same."""

    def hiccup(u: Field, n: math.Tensor) -> Field:
        values = math.where(n == 1, float("nan"), u.values)
        return u.with_values(math.where(n == 2, 1.0, values))

    n = math.wrap(torch.tensor([0.0, 1.0, 2.0, 3.0]), batch("time"))
    data = ph.Trajectories.generate(lambda v, n: v, line(0, b=2), 4, (n,), progress=False)
    found = ph.evaluate({"hiccup": hiccup}, data)
    assert torch.isinf(found.mae["hiccup"]).tolist() == [[False, True, True, True]] * 2
    assert found.lifetime["hiccup"].tolist() == [1, 1]


class Sometimes(Metric):
    """1, but NaN for the second trajectory in the second step."""

    def __init__(self, failure: float) -> None:
        self.failure, self.calls = failure, 0

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        self.calls += 1
        return torch.tensor([1.0, m.nan if self.calls == 2 else 1.0, 1.0])


@pytest.mark.parametrize("inside", [lambda metric: metric, lambda metric: Part("u", metric)])
def test_metric_that_is_not_finite_fails_for_this_step_alone(inside: Callable) -> None:
    chosen = {"up": inside(Sometimes(m.inf)), "down": inside(Sometimes(-2.0))}
    found = ph.evaluate({"kept": lambda s: s}, kept({"u": line(0, b=3)}, STEPS), metrics=chosen)
    for name, value in (("up", m.inf), ("down", -2.0)):
        expected = torch.ones(TRAJECTORIES, STEPS, dtype=torch.float64)
        expected[1, 1] = value
        assert torch.equal(found[name]["kept"], expected)
    assert found.summary()["kept"]["blow_up"] == 0 and found.lifetime["kept"].tolist() == [STEPS] * TRAJECTORIES


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_failures_do_not_touch_other_trajectories(batch_size: int) -> None:
    """Two trajectories overflow; the others have the numbers that they have alone."""
    u, scale = line(0, b=4), math.wrap(torch.tensor([1.0, 1e3, 1.0, 1e6]), batch("b"))
    data = kept(u.with_values(u.values * scale), 6)

    def explosive(v: Field) -> Field:
        return v.with_values(math.where(abs(v.values) > 100, v.values**2, 0.9 * v.values))

    energy = {"energy": Drift(ph.quantities.energy)}
    found = ph.evaluate({"explosive": explosive}, data, metrics=energy, batch_size=batch_size)
    alone = ph.evaluate({"explosive": explosive}, data[[0, 2]], metrics=energy)
    failed = found.lifetime["explosive"] < 6
    assert failed.tolist() == [False, True, False, True]
    for metric, values in found.values.items():
        assert torch.equal(values["explosive"][~failed], alone[metric]["explosive"])
        assert not torch.isfinite(values["explosive"][failed][:, -1]).any()


# --- a few trajectories at a time ---


def test_chunks_change_nothing(many: ph.Trajectories) -> None:
    """Grid operations do not mix trajectories: equal to the last bit."""
    metrics = {"energy": Drift(ph.quantities.energy), "spectrum": SpectrumError()}
    whole = ph.evaluate({"worse": ph.capture(worse)}, many, metrics=metrics, batch_size=7)
    for batch_size in (1, 2, 3, 5, 100):
        block = ph.capture(worse)
        found = ph.evaluate({"worse": block}, many, metrics=metrics, batch_size=batch_size)
        for metric, values in whole.values.items():
            assert torch.equal(found[metric]["worse"], values["worse"]), metric
        assert len(block.known) == 1  # all chunks have one size


def test_chunks_change_nothing_but_rounding_in_networks(many: ph.Trajectories) -> None:
    """Convolutions may add in another order for another batch size."""
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1))
    whole, found = (ph.evaluate({"hybrid": solver}, many, batch_size=n).mae["hybrid"] for n in (7, 2))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-7)


# --- errors ---


@pytest.mark.parametrize(
    ("solvers", "options", "message"),
    [
        ({"halving": lambda u, f: u.x[:4]}, {}, "cannot be repeated"),
        ({"unforced": step}, {}, "but got 2 by position"),
        (
            {"a": worse},
            {"metrics": {"mae": MAE(), "blow_up": MAE()}},
            r"metrics \['blow_up', 'mae'\] are measured anyway",
        ),
        ({"a": worse}, {"metrics": {"b": Part("smoke", MAE())}}, "the state has no part 'smoke', for it is a single"),
        (
            {"a": worse},
            {"metrics": {"all": lambda own, true: own.rows}},
            r"metric 'all' returned shape \(3, 8\), but should return one number per trajectory, \(3,\): reduce",
        ),
        (
            {"a": worse},
            {"metrics": {"one": lambda own, true: own.rows.mean()}},
            r"metric 'one' returned shape \(\), but",
        ),
        (
            {"a": worse},
            {"metrics": {"complex": lambda own, true: own.rows.mean(1) * 1j}},
            "metric 'complex' returned torch.complex128, but should return real numbers",
        ),
    ],
)
def test_errors(solvers: Any, options: dict, message: str, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=message):
        ph.evaluate(solvers, data, **options)


def test_defaults_of_parts_keep_their_names() -> None:
    with pytest.raises(ph.StateError, match=r"metrics \['mae smoke'\] are measured anyway; give yours other names"):
        ph.evaluate({"fading": fading}, kept(plume(), 1), metrics={"mae smoke": MAE()})


def test_sets_of_a_mixture_are_evaluated_one_by_one(data: ph.Trajectories, many: ph.Trajectories) -> None:
    mixture = Mixture({"few": data, "many": many})
    with pytest.raises(ph.StateError, match=r"ph.evaluate\(solvers, part\) for name, part in data.sets.items"):
        ph.evaluate({"worse": worse}, mixture)
    found = {name: ph.evaluate({"worse": worse}, part) for name, part in mixture.sets.items()}
    assert found["few"].mae["worse"].shape == (3, STEPS) and found["many"].mae["worse"].shape == (7, STEPS)
