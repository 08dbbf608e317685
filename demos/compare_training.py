"""Ways to train a hybrid solver, side by side: one step, one step on noisy states, and through several steps.

Kuramoto–Sivashinsky, ∂u/∂t + u ∂u/∂x + ∂²u/∂x² + ∂⁴u/∂x⁴ = 0: chaotic, so that small errors grow. The reference has 96
cells and ten substeps, the solver 48 cells and two of a lower order.

    python demos/compare_training.py [--quick]        tuned, over seeds: demos/studies/compare_training.py
"""

import copy
import sys
import time
from pathlib import Path

import torch
from phi.torch.flow import res_net

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "compare_training"
DT, UPDATES = 0.5, 100 if QUICK else 200

print(f"Five ways to train, after one beginning: {'15 s' if QUICK else 'half a minute'} on one core of the CPU.")
torch.set_num_threads(1)
torch.manual_seed(0)
ks = ph.pde.kuramoto_sivashinsky
reference = ph.capture(ks.kuramoto_sivashinsky_step(DT, substeps=10))
source = ph.capture(ks.kuramoto_sivashinsky_step(DT, substeps=2, scheme=ks.etd1))

start = ph.repeat(reference, ks.initial_states(ks.line(96), 16, seed=0), 200)  # onto the attractor
training, test = ph.Trajectories.generate(reference, start, 100, coarsen=2).split(8)


def trained(solver, objective, updates, rate, label):
    """A copy of the solver, trained."""
    solver = copy.deepcopy(solver)
    settings = dict(optimizer=torch.optim.Adam(solver.parameters(), rate), batch_size=16, clip=1.0, label=label)
    ph.Trainer(solver, training, objective, **settings).fit(updates)
    return solver


network = res_net(1, 1, [32, 32, 32], in_spatial=1, periodic=True)
hybrid = ph.HybridSolver(source, network, ph.coupling.Parallel())
begun = trained(hybrid, ph.Unrolled(1), 3 * UPDATES, 2e-3, "1 of 6: beginning")
objectives = {
    "one step": ph.Unrolled(1),
    "noise": ph.Unrolled(1, noise=ph.Noise(1e-3)),
    "4 steps, stopped gradient": ph.Unrolled(4, gradient=ph.gradient.Detached()),
    "4 steps": ph.Unrolled(4),
    "8 steps": ph.Unrolled(8),
}
solvers, seconds = {"source": source}, {"source": 0.0}
for n, (name, objective) in enumerate(
    objectives.items(), 2
):  # the same number of updates for all, from the same weights on
    began = time.perf_counter()
    solvers[name] = trained(begun, objective, UPDATES, 1e-3, f"{n} of 6: {name}")
    seconds[name] = time.perf_counter() - began

evaluation = ph.evaluate(solvers, test, 40)
rows = {name: {**row, "seconds": seconds[name]} for name, row in evaluation.summary((12,)).items()}
print(ph.evaluation.Table(rows).select(["mae_12", "mae", "blow_up", "seconds"]))
print(
    "mae_12: mean |u − u*| of the first 12 steps on held-out data; mae: of 40 steps; blow_up: fraction of rollouts that"
)
print("failed; seconds: of training, after the beginning that all share")
OUT.mkdir(parents=True, exist_ok=True)
ph.plot.errors(evaluation.curves(), dt=DT).savefig(OUT / "errors.png")
print(f"Figure: {OUT / 'errors.png'}")
