"""A coarse solver of the flow past a cylinder learns from a finer one, and is tested at other Reynolds numbers.

Solver in the loop (Um et al. 2020, arXiv 2007.00016), small.

    python demos/wake_correction.py [--quick]         the experiment: demos/studies/wake_correction.py
"""

import sys
from pathlib import Path

import torch
from phi.torch.flow import advect, batch, res_net, wrap

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "wake_correction"
DT, STEPS = 1.0, 60 if QUICK else 100
NUMBERS = [100.0, 400.0, 1600.0, 200.0, 800.0]  # Re of the training, then of the test

print(f"A network learns to correct a coarse wake: {'20 s' if QUICK else 'a minute'} on one core of the CPU.")
torch.set_num_threads(1)  # small grids are not worth sharing
torch.manual_seed(0)
wake = ph.pde.navier_stokes.Wake()
reynolds = wrap(NUMBERS, batch("trajectory"))

# 128×64 cells, MacCormack; 200 steps until vortices are shed
reference = ph.capture(wake.step(DT, wake.substeps(DT, 128, NUMBERS[0]), advect.mac_cormack))
shedding = ph.repeat(reference, wake.disturbed(128, len(NUMBERS)), 200, reynolds)
data = ph.Trajectories.generate(reference, shedding, STEPS, (reynolds,), coarsen=4)
training, test = data.split(3)

# 32×16 cells, semi-Lagrangian; the network sees the velocity and Re, and corrects the velocity on its faces
source = ph.capture(wake.step(DT, wake.substeps(DT, 32, NUMBERS[0]), advect.semi_lagrangian))
hybrid = ph.HybridSolver(source, res_net(3, 2, [24, 24]))
optimizer = torch.optim.Adam(hybrid.parameters(), 2e-3)
for n, (unrolled, updates) in enumerate([(1, 150), (4, 30)] if QUICK else [(1, 400), (4, 100)], 1):
    settings = dict(optimizer=optimizer, batch_size=6, clip=1.0, label=f"{n} of 2: Unrolled({unrolled})")
    ph.Trainer(hybrid, training, ph.Unrolled(unrolled), **settings).fit(updates)

solvers = {"source": source, "hybrid": hybrid}
evaluation = ph.evaluate(solvers, test)
print(evaluation.grouped({f"Re {re:.0f}": [n] for n, re in enumerate(NUMBERS[3:])}).table().select(["mae", "blow_up"]))
print(
    f"mae: mean absolute error of the velocity over {STEPS} steps at unseen Reynolds numbers; blow_up: 1 where a rollout failed"
)
OUT.mkdir(parents=True, exist_ok=True)
rollouts = {name: ph.rollout(s, test.initial_state, STEPS, *test.step_inputs) for name, s in solvers.items()}
rollouts = {"reference": test.trajectory, **rollouts}
show = dict(reference="reference", dt=DT, quantity="vorticity", times=3)
ph.plot.rollout(rollouts, **show, title=f"Unseen Re = {NUMBERS[3]:.0f}, vorticity").savefig(OUT / "rollout.png")
ph.plot.errors(evaluation.curves(), dt=DT).savefig(OUT / "errors.png")
print(f"Figures: {OUT / 'rollout.png'}, {OUT / 'errors.png'}")
