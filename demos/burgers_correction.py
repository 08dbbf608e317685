"""A coarse Burgers solver learns from a fine one: a network corrects every step, trained through the solver.

python demos/burgers_correction.py [--quick]      tables over seeds: demos/studies/burgers_correction.py
"""

import copy
import sys
from pathlib import Path

import torch
from phi.torch.flow import advect, diffuse, res_net

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "burgers_correction"
DT, STEPS = 0.025, 199


def step(u, force):
    """∂u/∂t + u ∂u/∂x = 0.01 ∂²u/∂x² + f, plain PhiFlow."""
    u = advect.mac_cormack(u, u, DT)
    u = diffuse.explicit(u, 0.01, DT, substeps=4)
    return u + DT * force


def train(solver, data, unrolled, updates, rate, label):
    """Trains through so many steps of the solver."""
    settings = dict(optimizer=torch.optim.Adam(solver.parameters(), rate), batch_size=16, clip=1.0, label=label)
    ph.Trainer(solver, data, ph.Unrolled(unrolled), **settings).fit(updates)
    return solver


print(
    f"A network learns to correct a coarse Burgers solver: {'15 s' if QUICK else 'half a minute'} on one core of the CPU."
)
torch.set_num_threads(1)  # 64 cells are too few to share
torch.manual_seed(0)
physics = ph.capture(step)

# the reference on 512 cells, random waves under a force of random waves, seen on 64 cells
waves, grid = ph.pde.burgers.waves_1d, ph.pde.burgers.line(512)
initial = waves(grid, 16, None, modes=(1, 4), waves=5, amplitude=0.5, seed=0)
force = waves(grid, 16, torch.arange(STEPS) * DT, modes=(3, 6), waves=5, amplitude=0.5, seed=1)
training, test = ph.Trajectories.generate(physics, initial, STEPS, (force,), coarsen=8).split(8)

# the same solver on 64 cells, and a network that sees u and f
updates = 200 if QUICK else 800
start = ph.HybridSolver(physics, res_net(2, 1, [32, 32, 32], in_spatial=1, periodic=True))
train(start, training, 1, 2 * updates, 2e-3, "1 of 3: beginning")
solvers = {
    "source": physics,
    "one step": train(copy.deepcopy(start), training, 1, updates // 4, 5e-4, "2 of 3: one step"),
    "8 steps": train(copy.deepcopy(start), training, 8, updates // 4, 5e-4, "3 of 3: 8 steps"),
}

evaluation = ph.evaluate(solvers, test)
print(evaluation.table((50,)).select(["mae", "mae_50", "blow_up"]))
print("mae: mean |u − u*| on held-out waves; mae_50: of the first 50 steps; blow_up: fraction of rollouts that failed")
OUT.mkdir(parents=True, exist_ok=True)
rollouts = {name: ph.rollout(s, test.initial_state, STEPS, *test.step_inputs) for name, s in solvers.items()}
rollouts = {"reference": test.trajectory, **rollouts}
ph.plot.spacetime(rollouts, reference="reference", dt=DT, title="Forced Burgers, held out").savefig(
    OUT / "spacetime.png"
)
ph.plot.errors(evaluation.curves(), dt=DT).savefig(OUT / "errors.png")
print(f"Figures: {OUT / 'spacetime.png'}, {OUT / 'errors.png'}")
