"""Helpers that the demos share, and the demos of half-inverse gradients."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import common
import hig_burgers
import hig_oscillators
import hig_poisson
import hig_quantum
import pytest
import torch
from phi.math import batch, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.pde import poisson
from phi_hybrid.pde.quantum import infidelity

RUNS = [
    {"source": {"mae": 0.3, "mae_50": 0.1}, "unrolled_16": {"mae": 0.02, "mae_50": 0.01}},
    {"source": {"mae": 0.5, "mae_50": 0.2}, "unrolled_16": {"mae": 0.04, "mae_50": 0.03}},
    {"source": {"mae": 0.4, "mae_50": 0.9}, "unrolled_16": {"mae": float("inf"), "mae_50": 0.02}},
]


def test_options_of_every_demo() -> None:
    parser = common.arguments("About this demo.", "some_demo")
    options = parser.parse_args([])
    assert vars(options) == {
        "quick": False, "full": False, "seed": 0, "seeds": 1, "device": "cpu", "out": Path("out") / "some_demo"
    }  # fmt: skip
    options = parser.parse_args("--quick --seed 3 --seeds 2 --device cuda --out there".split())
    assert options.quick and options.seed == 3 and options.seeds == 2 and options.device == "cuda"
    assert options.out == Path("there")
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "abacus"])


def test_metrics_of_one_seed(tmp_path: Path) -> None:
    common.write_metrics(tmp_path / "new" / "folder", RUNS[:1], 12.5)
    metrics = json.loads((tmp_path / "new" / "folder" / "metrics.json").read_text())
    assert metrics == {**RUNS[0], "seconds": 12.5}


def test_metrics_of_several_seeds_are_medians(tmp_path: Path) -> None:
    common.write_metrics(tmp_path, RUNS, 3.0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["source"] == {"mae": 0.4, "mae_50": 0.2}
    assert metrics["unrolled_16"] == {"mae": 0.04, "mae_50": 0.02}
    assert metrics["seeds"] == RUNS and metrics["seconds"] == 3.0


def test_table_of_seeds() -> None:
    head, source, unrolled = common.seed_table(RUNS, ["mae", "mae_50"]).splitlines()
    assert head.split() == ["mae", "mae_50"]
    assert source.split() == ["source", "0.4", "[0.3,", "0.5]", "0.2", "[0.1,", "0.9]"]
    assert unrolled.split() == ["unrolled_16", "0.04", "[0.02,", "inf]", "0.02", "[0.01,", "0.03]"]
    assert len(head) == len(source) == len(unrolled)


def test_missing_device_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    common.require_device("cpu")
    with pytest.raises(SystemExit, match="torch sees no CUDA device; use --device cpu"):
        common.require_device("cuda")


def test_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Figure:
        def savefig(self, path: Path, dpi: int) -> None:
            Path(path).write_text(f"{dpi} dpi")

    common.save_figures(tmp_path / "out", {"errors": Figure(), "rollout": Figure()})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["errors.png", "rollout.png"]
    assert capsys.readouterr().out.count("wrote") == 2


def test_poisson_task_has_a_solution() -> None:
    task = hig_poisson.make_task(0)
    assert sum(p.numel() for p in task.network.parameters()) == 24_896
    f = task.held_out[:2]
    solve = ph.capture(poisson.solve)
    solve.flatten(poisson.noise(poisson.square(8), 2, 0))
    assert float(task.loss(task.physics(solve.native(f)[0], f), f)) < 1e-6
    assert task.physics(task.network(f), f).shape == f.shape


def test_burgers_correction_learns_by_half_inverse_gradients() -> None:
    case = replace(hig_burgers.LINE, fine=64, coarse=16, trajectories=2, steps=12)
    training, test = hig_burgers.reference_data(case, 0)
    solver = hig_burgers.untrained(case, 0)
    entrant = replace(hig_burgers.ENTRANTS["hig"], make=hig_burgers.hig(0.5, 8.0))
    history, last = hig_burgers.train(solver, {"loss": training, "held_out": test}, entrant, 1.0, 0)
    assert history["loss"][-1] < history["loss"][0]
    assert {len(values) for values in history.values()} == {hig_burgers.LOOKS + 1}
    assert last.singular_values[0] > 0


def test_training_is_paid_back_by_cheaper_rollouts() -> None:
    plain = {"coarse": {"mae": 0.1, "rollout_seconds": 1.0}, "fine": {"mae": 0.0, "rollout_seconds": 3.0}}
    row = {"mae": 0.05, "rollout_seconds": 1.0, "seconds": 10.0}
    assert hig_burgers.break_even(row, plain) == 5
    assert hig_burgers.break_even({**row, "rollout_seconds": 4.0}, plain) == math.inf
    assert hig_burgers.break_even({**row, "mae": 0.2, "rollout_seconds": 0.5}, plain) == 20


def trained(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict:
    """metrics.json of a demo run with these options."""
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(tmp_path), *options])
    demo.main()
    assert (tmp_path / "training.png").exists()
    return json.loads((tmp_path / "metrics.json").read_text())


def test_oscillator_task() -> None:
    """The loss of the task is that of the chain: without forces it does not come back to where it started."""
    task = hig_oscillators.make_task(hig_oscillators.LINEAR, 0)
    x = task.held_out[:8]
    y = task.physics(torch.zeros(8, 24), x)
    assert y.shape == x.shape == (8, 2, 2) and task.network(x).shape == (8, 24)
    assert float(task.loss(x, x)) == 0 and 0.1 < float(task.loss(y, x)) < 10


def test_quantum_loss_is_the_infidelity() -> None:
    generator = torch.Generator().manual_seed(0)
    psi, target = (torch.randn(5, 14, dtype=torch.complex64, generator=generator) for _ in range(2))
    expected = infidelity(*(wrap(s, batch("b"), spatial("x")) for s in (psi, target))).mean
    found = hig_quantum.infidelity(psi, torch.cat([target.real, target.imag], 1))
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_every_entrant_sees_a_gradient_of_the_quantum_loss() -> None:
    """HIG looks at real and imaginary parts of ∂L/∂ψ, which lazily conjugated tensors do not have."""
    psi = torch.randn(5, 14, dtype=torch.complex64, requires_grad=True)
    (gradient,) = torch.autograd.grad(hig_quantum.infidelity(psi, torch.randn(5, 28)), psi)
    assert torch.view_as_real(gradient).shape == (5, 14, 2)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--nonlinear",)], ids=["linear", "nonlinear"])
def test_oscillator_demo(options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = trained(hig_oscillators, tmp_path, monkeypatch, *options)
    assert metrics["hig"]["held_out"] < 0.3 * metrics["source"]["held_out"]


@pytest.mark.slow
def test_quantum_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = trained(hig_quantum, tmp_path, monkeypatch)
    assert {"source", "adam", "gauss_newton", "hig"} <= set(metrics)
    assert all(math.isfinite(metrics[name]["held_out"]) for name in hig_quantum.ENTRANTS)
