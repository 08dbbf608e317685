"""Errors over time against NumPy by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import DT, SmallNet, component_values, faces, forced_step, line, scalar, step
from phi.torch.flow import Field, batch, math

import phi_hybrid as ph
from phi_hybrid.evaluation import quantities
from phi_hybrid.evaluation.metrics import Drift, Frame, SpectrumError

TRAJECTORIES, STEPS = 3, 5


def worse(u: Field, f: Field) -> Field:
    return 0.9 * u + DT * f


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    f = line(1, b=TRAJECTORIES, time=STEPS)
    return ph.Trajectories.generate(ph.capture(forced_step), line(0, b=TRAJECTORIES), STEPS, (f,), progress=False)


def errors_by_hand(step_: Callable, data: ph.Trajectories, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """One trajectory after the other, NumPy in double precision."""
    mae, nrmse = np.zeros((len(data), steps)), np.zeros((len(data), steps))
    for number in range(len(data)):
        u, f = data.initial_state.trajectory[number], data.step_inputs[0].trajectory[number]
        for n in range(steps):
            u = step_(u, f.time[n])
            error = component_values(u)[0].double().numpy() - data.states[0][number, n + 1].double().numpy()
            mae[number, n] = np.mean(np.abs(error))
            nrmse[number, n] = np.sqrt(np.sum(error**2) / np.sum(data.states[0][number, n + 1].double().numpy() ** 2))
    return mae, nrmse


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_errors_by_hand(steps: int | None, data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse, "captured": ph.capture(worse)}, data, steps)
    mae, nrmse = errors_by_hand(worse, data, steps or STEPS)
    for name in ("worse", "captured"):
        assert found.mae[name].shape == (TRAJECTORIES, steps or STEPS)
        np.testing.assert_allclose(found.mae[name].numpy(), mae, rtol=1e-4)
        np.testing.assert_allclose(found.nrmse[name].numpy(), nrmse, rtol=1e-4)
    assert mae.min() > 0.01


def test_the_reference_has_no_error(data: ph.Trajectories) -> None:
    found = ph.evaluate({"reference": forced_step}, data)
    assert not found.mae["reference"].any() and not found.nrmse["reference"].any()


def test_staggered_components_count_by_their_faces() -> None:
    """On a closed box there are more interior x faces than y faces or the other way round: the mean is over all."""
    data = ph.Trajectories.generate(lambda u: u, faces("closed", b=2), 1, progress=False)
    shift = 0.25

    def shifted(u: Field) -> Field:
        return u + u.with_values(
            math.stack(
                {"x": 0 * u.values[{"~vector": "x"}] + shift, "y": 0 * u.values[{"~vector": "y"}]}, math.dual("vector")
            )
        )

    found = ph.evaluate({"shifted": shifted}, data)
    n_x, n_y = 5 * 5, 6 * 4
    assert found.mae["shifted"].flatten().tolist() == pytest.approx([shift * n_x / (n_x + n_y)] * 2, rel=1e-6)
    for number in range(2):
        norm = sum(float((s[number, 1] ** 2).sum()) for s in data.states) ** 0.5
        assert float(found.nrmse["shifted"][number]) == pytest.approx(shift * n_x**0.5 / norm, rel=1e-5)


def test_summary_and_horizons(data: ph.Trajectories) -> None:
    summary = ph.evaluate({"worse": worse, "reference": forced_step}, data).summary((1, 3))
    mae, nrmse = errors_by_hand(worse, data, STEPS)
    assert {k: v for k, v in summary["worse"].items() if not k.startswith("co")} == pytest.approx(
        {
            "mae": mae.mean(),
            "mae_1": mae[:, 0].mean(),
            "mae_3": mae[:, :3].mean(),
            "nrmse": nrmse.mean(),
            "nrmse_1": nrmse[:, 0].mean(),
            "nrmse_3": nrmse[:, :3].mean(),
            "blow_up": 0.0,
            "blow_up_1": 0.0,
            "blow_up_3": 0.0,
        },
        rel=1e-4,
    )
    assert list(summary) == ["worse", "reference"] and summary["reference"]["mae"] == 0.0


def test_blow_up_is_infinite_and_counted() -> None:
    """The second of four trajectories overflows in step 4 and the third in step 3: 1e3^(2^n), 1e6^(2^n) > 3.4e38."""
    start = math.wrap(torch.tensor([1.0, 1e3, 1e6, 1.0]), batch("b"))
    u = line(0, b=4)
    u = u.with_values(start + 0 * u.values)
    data = ph.Trajectories.generate(lambda v: v, u, 6, progress=False)
    found = ph.evaluate({"squaring": lambda v: v * v, "fine": lambda v: v * 2}, data)
    assert torch.isinf(found.mae["squaring"]).tolist() == [
        [False] * 6,
        [False] * 3 + [True] * 3,
        [False] * 2 + [True] * 4,
        [False] * 6,
    ]
    assert torch.equal(torch.isinf(found.nrmse["squaring"]), torch.isinf(found.mae["squaring"]))
    summary = found.summary((2, 3))
    assert summary["squaring"]["blow_up"] == 0.5 and summary["squaring"]["mae"] == float("inf")
    assert summary["squaring"]["mae_2"] < 1e38 and summary["squaring"]["mae_3"] == float("inf")
    assert summary["fine"]["blow_up"] == 0.0 and summary["fine"]["mae"] > 0
    assert summary["squaring"]["blow_up_2"] == 0.0 and summary["squaring"]["blow_up_3"] == 0.25
    assert summary["squaring"]["correlation"] == -float("inf") and summary["squaring"]["correlation_2"] > -1
    assert found.lifetime["squaring"].tolist() == [6, 3, 2, 6] and found.lifetime["fine"].tolist() == [6] * 4
    assert "inf" in str(found.table())


def test_failure_is_not_undone_by_later_finite_states() -> None:
    """A step that turns NaN into a number again has failed all the same."""

    def hiccup(u: Field, n: math.Tensor) -> Field:
        values = math.where(n == 1, float("nan"), u.values)
        return u.with_values(math.where(n == 2, 1.0, values))

    u = line(0, b=2)
    n = math.wrap(torch.tensor([0.0, 1.0, 2.0, 3.0]), batch("time"))
    data = ph.Trajectories.generate(lambda v, n: v, u, 4, (n,), progress=False)
    found = ph.evaluate({"hiccup": hiccup}, data)
    assert torch.isinf(found.mae["hiccup"]).tolist() == [[False, True, True, True]] * 2
    assert found.summary()["hiccup"]["blow_up"] == 1.0


def test_states_of_several_fields() -> None:
    def both(state: tuple[Field, Field]) -> tuple[Field, Field]:
        return state[0] * 0.5, state[1] + 1.0

    v, s = faces("open", b=2), scalar(1, b=2)
    data = ph.Trajectories.generate(lambda state: state, (v, s), 1, progress=False)
    found = ph.evaluate({"both": both}, data)
    for number in range(2):
        errors = [*(0.5 * c[number] for c in component_values(v, "b")), torch.ones(6, 5)]
        expected = torch.cat([e.flatten() for e in errors]).abs().mean()
        assert float(found.mae["both"][number, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_table(data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse, "a longer name": forced_step}, data)
    summary = found.summary((2,))
    head, *rows = str(found.table((2,))).splitlines()
    names = ["mae", "nrmse", "correlation", "cosine", "blow_up"]
    assert head.split() == [n + end for n in names for end in ("", "_2")]
    assert len(rows) == 2 and len({len(r) for r in [head, *rows]}) == 1
    for row, (name, metrics) in zip(rows, summary.items()):
        assert row.startswith(name + " ")
        numbers = [float(x) for x in row[len(name) :].split()]
        assert numbers == pytest.approx(list(metrics.values()), rel=1e-3)


def test_networks_are_evaluated_without_dropout(data: ph.Trajectories) -> None:
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1, dropout=0.5))
    first, second = (ph.evaluate({"solver": solver}, data).mae["solver"] for _ in range(2))
    assert torch.equal(first, second)
    assert solver.training and solver.network.drop.training
    solver.eval()
    assert torch.equal(ph.evaluate({"solver": solver}, data).mae["solver"], first)
    assert not solver.network.drop.training


def test_no_gradients_are_recorded(data: ph.Trajectories) -> None:
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1))
    assert not ph.evaluate({"solver": solver}, data).mae["solver"].requires_grad


@pytest.mark.parametrize("horizon", [0, STEPS + 1])
def test_horizons_out_of_range(horizon: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=rf"horizons \[{horizon}\]: the evaluation has 5 steps; use 1 … 5"):
        ph.evaluate({"worse": worse}, data).summary((2, horizon))


def test_solver_that_does_not_fit(data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match="cannot be repeated"):
        ph.evaluate({"halving": lambda u, f: u.x[:4]}, data)
    with pytest.raises(ph.StateError, match="but got 2 arguments"):
        ph.evaluate({"unforced": step}, data)


# --- further metrics ---


def test_every_metric_at_every_step_by_hand(data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse}, data, metrics={"energy": Drift(quantities.energy)})
    own, true = ph.rollout(worse, data.initial_state, STEPS, *data.step_inputs), data.trajectory
    a, b = (component_values(u, ("trajectory", "time"))[0].double().numpy()[:, 1:, :, 0] for u in (own, true))
    pearson = [[np.corrcoef(a[t, n], b[t, n])[0, 1] for n in range(STEPS)] for t in range(TRAJECTORIES)]
    np.testing.assert_allclose(found["correlation"]["worse"], pearson, rtol=1e-5)
    cosine = (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    np.testing.assert_allclose(found["cosine"]["worse"], cosine, rtol=1e-5)
    drift = np.abs((a**2).sum(2) / (b**2).sum(2) - 1)
    np.testing.assert_allclose(found["energy"]["worse"], drift, rtol=1e-4)
    assert found.summary((2,))["worse"]["energy_2"] == pytest.approx(drift[:, :2].mean(), rel=1e-4)
    with pytest.raises(ph.StateError, match=r"metric 'spectrum' was not measured, only \['mae', .*'energy'\]; add it"):
        found["spectrum"]


def test_metrics_may_be_plain_functions(data: ph.Trajectories) -> None:
    def by_rows(own: Frame, reference: Frame) -> torch.Tensor:
        return (own.rows - reference.rows).abs().mean(1)

    def by_phiflow(own: Frame, reference: Frame) -> math.Tensor:
        difference = abs(own.state.values - reference.state.values)
        return math.mean(difference, difference.shape.non_batch)

    found = ph.evaluate({"worse": worse}, data, metrics={"rows": by_rows, "phiflow": by_phiflow})
    assert torch.equal(found["rows"]["worse"], found.mae["worse"])
    np.testing.assert_allclose(found["phiflow"]["worse"], found.mae["worse"], rtol=1e-5)


def test_metric_that_is_not_finite_fails_for_this_step_alone(data: ph.Trajectories) -> None:
    calls = []

    def sometimes(own: Frame, reference: Frame) -> torch.Tensor:
        calls.append(0)
        return torch.tensor([1.0, float("nan") if len(calls) == 2 else 1.0, 1.0])

    found = ph.evaluate({"worse": worse}, data, metrics={"sometimes": sometimes})
    expected = torch.ones(TRAJECTORIES, STEPS, dtype=torch.float64)
    expected[1, 1] = torch.inf
    assert torch.equal(found["sometimes"]["worse"], expected)
    assert found.summary()["worse"]["blow_up"] == 0 and found.lifetime["worse"].tolist() == [STEPS] * TRAJECTORIES


# --- a few trajectories at a time ---


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7, 100])
def test_chunks_change_nothing(batch_size: int) -> None:
    """Grid operations do not mix trajectories: equal to the last bit."""
    f = line(1, b=7, time=STEPS)
    many = ph.Trajectories.generate(ph.capture(forced_step), line(0, b=7), STEPS, (f,), progress=False)
    block, metrics = ph.capture(worse), {"energy": Drift(quantities.energy), "spectrum": SpectrumError()}
    whole = ph.evaluate({"worse": block}, many, metrics=metrics, batch_size=7)
    found = ph.evaluate({"worse": block}, many, metrics=metrics, batch_size=batch_size)
    for metric, values in whole.values.items():
        assert torch.equal(found[metric]["worse"], values["worse"]), metric
    assert len(block.graphs) <= 2  # all chunks have one size


def test_chunks_change_nothing_but_rounding_in_networks() -> None:
    """Convolutions may add in another order for another batch size."""
    f = line(1, b=5, time=STEPS)
    many = ph.Trajectories.generate(ph.capture(forced_step), line(0, b=5), STEPS, (f,), progress=False)
    solver = ph.HybridSolver(ph.capture(forced_step), SmallNet(2, 1, 1))
    whole, found = (ph.evaluate({"hybrid": solver}, many, batch_size=n).mae["hybrid"] for n in (5, 2))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_failures_do_not_touch_other_trajectories(batch_size: int) -> None:
    """Two trajectories overflow; the others have the numbers that they have alone."""
    scale = math.wrap(torch.tensor([1.0, 1e3, 1.0, 1e6]), batch("b"))
    u = line(0, b=4)
    data = ph.Trajectories.generate(lambda v: v, u.with_values(u.values * scale), 6, progress=False)

    def explosive(v: Field) -> Field:
        return v.with_values(math.where(abs(v.values) > 100, v.values**2, 0.9 * v.values))

    energy = {"energy": Drift(quantities.energy)}
    found = ph.evaluate({"explosive": explosive}, data, metrics=energy, batch_size=batch_size)
    alone = ph.evaluate({"explosive": explosive}, data[[0, 2]], metrics=energy)
    failed = found.lifetime["explosive"] < 6
    assert failed.tolist() == [False, True, False, True]
    for metric, values in found.values.items():
        assert torch.equal(values["explosive"][~failed], alone[metric]["explosive"])
        assert not torch.isfinite(values["explosive"][failed][:, -1]).any()


# --- times, groups, tables ---


def scripted(values: list[list[float]]) -> Any:
    """A metric with these values, `(trajectory, step)`."""
    columns = iter(torch.tensor(values).T)

    class Scripted:
        failure = -float("inf")

        def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
            return next(columns)

    return Scripted()


def test_time_to_a_threshold(data: ph.Trajectories) -> None:
    curve = [[0.99, 0.9, 0.7, 0.9, 0.9], [1.0, 1.0, 1.0, 1.0, 1.0], [0.5, 0.9, 0.9, 0.9, 0.9]]
    found = ph.evaluate({"worse": worse}, data, metrics={"c": scripted(curve)})
    assert found.time_to(0.8, "c", dt=0.5)["worse"].tolist() == [1.0, 2.5, 0.0]
    assert found.time_to(0.95, "c")["worse"].tolist() == [1, 5, 0]
    row = found.summary((), (0.8, 0.95), correlation="c", dt=0.5)["worse"]
    assert row["time_to_0.8"] == pytest.approx(3.5 / 3) and row["time_to_0.95"] == 1.0
    assert found.until(2).time_to(0.8, "c")["worse"].tolist() == [2, 2, 0]


def test_failed_rollouts_have_decorrelated() -> None:
    """Constant in time until they overflow after 2 and 3 steps: the correlation is 1 until then."""
    start = math.wrap(torch.tensor([1.0, 1e30, 1e24]), batch("b"))
    u = line(0, b=3)
    u = u.with_values(start * (2 + math.sin(u.points.vector["x"])) + 0 * u.values)
    data = ph.Trajectories.generate(lambda v: v, u, 6, progress=False)
    found = ph.evaluate({"growing": lambda v: v * 1e4}, data)
    lifetime = found.lifetime["growing"].tolist()
    assert lifetime[0] == 6 and lifetime[1] < lifetime[2] < 6
    for metric in ("correlation", "cosine", "mae"):
        assert found.time_to(-2.0, metric, dt=0.1)["growing"].tolist() == pytest.approx([0.1 * n for n in lifetime])
    summary = found.summary((1, 6), (0.8,))["growing"]
    assert summary["correlation"] == -float("inf") and summary["correlation_1"] == pytest.approx(1)
    assert summary["time_to_0.8"] == pytest.approx(sum(lifetime) / 3)
    assert (summary["blow_up_1"], summary["blow_up_6"], summary["blow_up"]) == (0, 2 / 3, 2 / 3)


@pytest.mark.parametrize("inside", [[0, 2], torch.tensor([True, False, True]), np.array([0, 2]), slice(0, 3, 2)])
def test_groups_of_trajectories(inside: Any, data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse, "reference": forced_step}, data)
    grouped = found.grouped({"inside": inside, "outside": [1]})
    names = [f"{s}, {g}" for s in ("worse", "reference") for g in ("inside", "outside")]
    assert list(grouped.summary()) == list(grouped.table().rows) == list(grouped.curves()) == names
    assert torch.equal(grouped.mae["worse, inside"], found.mae["worse"][[0, 2]])
    assert torch.equal(found.select(inside).nrmse["worse"], found.nrmse["worse"][[0, 2]])
    expected = ph.evaluate({"worse": worse}, data[[1]]).summary((2,), (0.9,))["worse"]
    assert grouped.summary((2,), (0.9,))["worse, outside"] == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [[3], [True, False], [], [0.5], "ab", slice(3, 9)])
def test_groups_that_do_not_fit(wrong: Any, data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse}, data)
    with pytest.raises(ph.StateError, match=r"no trajectories of 3: give indices 0 … 2|selects none of 3 trajectories"):
        found.grouped({"all": [0, 1, 2], "wrong": wrong})


def test_horizons_are_evaluations_of_fewer_steps(data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse}, data)
    short = ph.evaluate({"worse": worse}, data, 2)
    for metric, values in short.values.items():
        assert torch.equal(found.until(2)[metric]["worse"], values["worse"])
        assert found.summary((2,))["worse"][f"{metric}_2"] == pytest.approx(short.summary()["worse"][metric])
    with pytest.raises(ph.StateError, match=r"horizons \[6\]: the evaluation has 5 steps"):
        found.until(6)


def test_numbers_over_time(data: ph.Trajectories) -> None:
    found = ph.evaluate({"worse": worse, "reference": forced_step}, data)
    table = found.over_time("nrmse")
    assert table.columns == ["worse", "reference"] and list(table.rows) == ["1", "2", "3", "4", "5"]
    assert [row["worse"] for row in table.rows.values()] == found.nrmse["worse"].mean(0).tolist()
    curves = found.curves("correlation", start=1.0)["worse"]
    assert curves.shape == (TRAJECTORIES, STEPS + 1) and torch.equal(curves[:, 0], torch.ones(TRAJECTORIES).double())
    assert torch.equal(found.curves()["worse"][:, 1:], found.mae["worse"])


# --- what does not fit ---


def test_metrics_that_do_not_fit(data: ph.Trajectories) -> None:
    with pytest.raises(
        ph.StateError, match=r"metrics \['blow_up', 'mae'\] are measured anyway; give yours other names"
    ):
        ph.evaluate({"worse": worse}, data, metrics={"mae": SpectrumError(), "blow_up": SpectrumError()})
    message = r"metric 'all' returned shape \(3, 8\), but should return one number per trajectory, \(3,\): reduce"
    with pytest.raises(ph.StateError, match=message):
        ph.evaluate({"worse": worse}, data, metrics={"all": lambda own, reference: own.rows})
    with pytest.raises(ph.StateError, match=r"metric 'one' returned shape \(\), but"):
        ph.evaluate({"worse": worse}, data, metrics={"one": lambda own, reference: own.rows.mean()})
    found = ph.evaluate({"worse": worse}, data, metrics={"mae_2": SpectrumError()})
    with pytest.raises(ph.StateError, match=r"\['mae_2'\] would stand for two numbers each: rename the metric"):
        found.summary((2,))
    with pytest.raises(ph.StateError, match=r"\['blow_up_3', .* would stand for two"):
        found.summary((3, 3))
    with pytest.raises(ph.StateError, match="metric 'vorticity' was not measured"):
        found.time_to(0.8, "vorticity")
