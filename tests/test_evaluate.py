"""Errors over time against NumPy by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from phi.torch.flow import Field, batch, math
from small_cases import DT, SmallNet, component_values, faces, forced_step, line, scalar, step

import phi_hybrid as ph

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


@pytest.mark.parametrize("steps", [0, -1, STEPS + 1])
def test_steps_out_of_range(steps: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=f"steps = {steps} but the data has trajectories of 5 steps; use 1 … 5"):
        ph.evaluate({"worse": worse}, data, steps)


@pytest.mark.parametrize("horizon", [0, STEPS + 1])
def test_horizons_out_of_range(horizon: int, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=rf"horizons \[{horizon}\]: the evaluation has 5 steps; use 1 … 5"):
        ph.evaluate({"worse": worse}, data).summary((2, horizon))


def test_solver_that_does_not_fit(data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match="cannot be repeated"):
        ph.evaluate({"halving": lambda u, f: u.x[:4]}, data)
    with pytest.raises(ph.StateError, match="but got 2 arguments"):
        ph.evaluate({"unforced": step}, data)
