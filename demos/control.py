"""Control of Burgers' equation: a network sets the force of every step, so that the flow ends at a given state.

A controller is a coupling: the network's output is the force, u⁺ = P(u, 0 + C(u, u*, remaining time)). It is trained through
all steps of the solver to reach the target with little force (Holl et al. 2020, arXiv 2001.07457).

    python demos/control.py [--quick]                 smoke, other controllers: demos/studies/control_burgers.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import batch, res_net, wrap

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "control"
CELLS, STEPS, DT = 32, 16, 0.06

print(f"A network learns to steer a flow to a target: {'10 s' if QUICK else '20 s'} on one core of the CPU.")
torch.set_num_threads(1)
torch.manual_seed(0)
flow = ph.pde.burgers.burgers_step(DT, 0.003)


def step(state, force, target, remaining):
    """The state keeps its force, so that the loss sees it; target and remaining time are for the network alone."""
    return {"force": force, "velocity": flow(state["velocity"], force)}


# from one random state to where another random force leads it, which the controller does not see
physics, grid = ph.capture(step), ph.pde.burgers.line(CELLS, 1.0)
start, hidden = (ph.pde.burgers.waves_1d(grid, 200, None, (1, 2), 2, a, seed=n) for n, a in enumerate((0.7, 1.0)))
remaining = wrap(1 - torch.arange(STEPS) / STEPS, batch("time"))
data = ph.Trajectories.generate(physics, {"force": 0 * hidden, "velocity": start}, STEPS, (hidden, start, remaining))
target = data.trajectory["velocity"].time[STEPS]
training, test = data.with_inputs(0 * hidden, target, remaining).split(168)


def distance(states, batch):
    """‖u_T − u*‖ of the last state; states are `(trajectory, time, x, vector)`: force, velocity."""
    return ((states[1][:, -1] - batch.targets[1][:, -1]) ** 2).mean((1, 2)).add(1e-6).sqrt().mean()


def effort(states, batch):
    """∫ f² dt, the mean over the line."""
    return (states[0] ** 2).mean((0, 2, 3)).sum() * DT


# the network sees force, velocity, target and remaining time
objective = ph.Unrolled(STEPS, ph.losses.Losses({"target": distance, "effort": (0.02, effort)}))
solver = ph.HybridSolver(
    physics, res_net(4, 1, [24, 24], in_spatial=1, periodic=True), ph.coupling.Forcing(0), sees=("target", "remaining")
)
optimizer = torch.optim.Adam(solver.parameters(), 3e-3)
settings = dict(optimizer=optimizer, batch_size=16, clip=1.0, label="controller")
ph.Trainer(solver, training, objective, **settings).fit(60 if QUICK else 300)

whole = test.whole()
with torch.no_grad():
    shown = {name: objective.outputs(way, whole) for name, way in {"no control": physics, "controlled": solver}.items()}
    shown = {"hidden force": tuple(s[:, 1:] for s in whole.states), **shown}
    print("              distance  effort")
    for name, states in shown.items():
        print(f"{name:12s}  {float(distance(states, whole)):8.4f}  {float(effort(states, whole)):6.4f}")
print("distance: root mean square of u_T − u* on held-out pairs, 0.001 at least; effort: ∫ f² dt, a mean over the line")
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
for ax, (name, states) in zip(axes, shown.items()):
    ax.imshow(states[1][0, :, :, 0].T, origin="lower", aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(title=name, xlabel="step")
axes[0].set_ylabel("u(x)")
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "control.png")
print(f"Figure: {OUT / 'control.png'}")
