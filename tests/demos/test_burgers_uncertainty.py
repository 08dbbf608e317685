"""The demo of uncertainty on a tiny case."""

from __future__ import annotations

from dataclasses import replace

import burgers_uncertainty as demo
import numpy as np
import pytest
from burgers_correction import LINE
from cases.small import component_values

from phi_hybrid.evaluation import calibration

CASE = replace(LINE, fine=64, coarse=16, trajectories=3, steps=8, pretraining=4, updates=2, filters=(8,))


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, dict[str, float]], dict[str, demo.Forecast]]:
    return demo.run(CASE, 3, 0, "cpu")


def test_metrics_of_every_kind_of_data(found: tuple) -> None:
    metrics, _ = found
    names = {"source", "single", "ensemble", "covering", "rms"}
    assert set(metrics) == names | {f"{n}, {kind}" for n in names for kind in demo.KINDS if kind != "held_out"}
    assert all(np.isfinite(v) for n, row in metrics.items() for k, v in row.items() if k != "rank_correlation")
    for end in ("", ", short_waves"):
        assert metrics["ensemble" + end]["rmse"] <= metrics["single" + end]["rmse"]  # the norm is convex
        assert metrics["covering" + end]["mae"] == pytest.approx(metrics["ensemble" + end]["mae"], rel=1e-4)
        scaled = metrics["rms"]["factor"] * metrics["ensemble" + end]["spread_skill"]
        assert metrics["rms" + end]["spread_skill"] == pytest.approx(scaled, rel=1e-4)


def test_errors_by_hand(found: tuple) -> None:
    metrics, forecasts = found
    forecast = forecasts["strong_force"]
    names = ["time", "trajectory"]
    members = component_values(forecast.members, ["member", *names])[0].double()
    source, truth = (component_values(u, names)[0].double() for u in (forecast.source, forecast.truth))
    assert truth.shape == (CASE.steps, CASE.trajectories, CASE.coarse, 1)
    expected = {"source": (source - truth).abs().mean(), "single": (members - truth).abs().mean()}
    expected["ensemble"] = (members.mean(0) - truth).abs().mean()
    for name, mae in expected.items():
        assert metrics[f"{name}, strong_force"]["mae"] == pytest.approx(float(mae), rel=1e-5)


def test_what_the_solver_does_not_see_does_not_change_its_spread(found: tuple) -> None:
    """Held-out data and those of another viscosity have the same initial states and forces."""
    _, forecasts = found
    one, other = (forecasts[kind] for kind in ("held_out", "unknown_viscosity"))
    spreads = [component_values(calibration.spread(f.members), ["time", "trajectory"])[0] for f in (one, other)]
    np.testing.assert_array_equal(*spreads)
    assert not np.array_equal(*(component_values(f.truth, ["time", "trajectory"])[0] for f in (one, other)))


def test_tables_and_figures(found: tuple) -> None:
    metrics, forecasts = found
    text = demo.tables(metrics)
    assert "rms, unknown_viscosity" in text and "rank_correlation" in text
    assert len(demo.bands(forecasts, CASE).axes) == 4 * len(demo.KINDS)
    assert len(demo.reliability(forecasts, 1.5, CASE).axes) == 3
    assert len(demo.spacetime(forecasts, CASE).axes) == 3 * len(demo.KINDS)
