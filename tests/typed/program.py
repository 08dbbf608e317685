"""A program as users write it, read by a type checker and never run: `mypy --strict` finds nothing wrong here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from phi.field import Field
from typing_extensions import assert_type

import phi_hybrid as ph
from phi_hybrid.data import Batch


def physics(velocity: Field, force: Field) -> Field:
    """Any function of PhiFlow."""
    return velocity + force


class Weighed(ph.losses.Term):
    """A loss term of one's own."""

    def __call__(self, states: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        return torch.stack([(own - true).abs().mean() for own, true in zip(states, batch.targets)]).sum()


def training(network: torch.nn.Module, states: Field, force: Field, folder: Path) -> ph.HybridSolver:
    """Data, a solver, and a training of it."""
    block = assert_type(ph.capture(physics, compile=True), ph.PhysicsBlock)
    data = assert_type(ph.Trajectories.generate(block, states, 60, (force,), coarsen=4), ph.Trajectories)
    first, second = data.split(6)
    solver = ph.HybridSolver(block, network, ph.coupling.Parallel(), sees="force", corrects="velocity")
    optimizer = torch.optim.Adam(solver.parameters(), 1e-3)
    objective = ph.Unrolled(4, ph.losses.Losses({"state": ph.losses.L2()}), noise=ph.Noise(1e-3))
    settings = ph.Curriculum({0: ph.Unrolled(1), 100: objective})
    trainer = ph.Trainer(solver, first, settings, optimizer=optimizer, validation=second, checkpoint=folder / "run.pt")
    assert_type(trainer.resume(folder / "run.pt").fit(100), dict[str, Any])
    half_inverse = ph.optim.HIG(network, kappa=0.5)
    ph.Trainer(solver, first, objective, optimizer=half_inverse, clip=1.0).fit()
    return assert_type(solver, ph.HybridSolver)


def looking(solver: ph.HybridSolver, test: ph.Trajectories, block: ph.PhysicsBlock, folder: Path) -> None:
    """Evaluation, figures and files."""
    evaluation = ph.evaluate({"source": block, "hybrid": solver}, test, metrics={"nrmse": ph.metrics.NRMSE()})
    print(evaluation.table((50,)).select(["mae"]).markdown())
    assert_type(ph.plot.errors(evaluation.curves(), dt=0.1), Figure).savefig(folder / "errors.png")
    solver.save(folder / "solver.pt", test.initial_state)
    loaded = ph.load(folder / "solver.pt")
    ph.export(loaded, test.initial_state, path=folder / "solver.pt2")
    bound = loaded.bind(test.initial_state)
    assert_type(bound.native(*bound.flatten(test.initial_state)), tuple[torch.Tensor, ...])
    assert_type(ph.check_gradients(block, test.initial_state, steps=4).verdict, str)


def comparing(solver: ph.HybridSolver, data: tuple[ph.Trajectories, ph.Trajectories]) -> ph.studies.StudyResult:
    """A study over seeds."""
    stages = [ph.studies.Stage(ph.Unrolled(n), updates=100) for n in (1, 4)]
    found = ph.study({"source": solver.physics}, data, {"unrolled": stages}, folder="out", seeds=3)
    found.table(["mae"])
    return found


def searching(block: ph.PhysicsBlock, observed: Field, start: Field) -> ph.inverse.Reconstruction:
    """An inverse problem, with a wrong path told by its error."""
    try:
        return ph.reconstruct(block, observed, start, times=(8,), rule=ph.optim.HalfInverse(0.5), iterations=10)
    except (ph.NonFiniteError, ph.SolveError) as error:
        print(assert_type(error.step, int | None))
        raise


def mistakes(solver: ph.HybridSolver, data: ph.Trajectories, optimizer: torch.optim.Optimizer) -> None:
    """What a checker must find; an `ignore` that it does not need is an error, too."""
    ph.Trainer(solver, data, ph.Unrolled(4))  # type: ignore[call-arg]
    ph.Trainer(solver, data, ph.Unrolled("4"), optimizer=optimizer)  # type: ignore[arg-type]
    ph.plot.errors(data, dt=0.1)  # type: ignore[arg-type]
    ph.HybridSolver(solver.physics, solver.network, corects="velocity")  # type: ignore[call-arg]
    ph.evaluate({"hybrid": solver}, data).tables()  # type: ignore[attr-defined]
