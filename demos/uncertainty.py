"""How far a trained solver can be trusted: the spread of an ensemble beside its error, on usual and on unusual data.

Members differ in their initial weights and in the order of the data. On data like those of the training, the spread says
about how large the error is; where the physics is not what they were trained on, they agree and are wrong.

    python demos/uncertainty.py [--quick]             calibration: demos/studies/burgers_uncertainty.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import advect, diffuse, res_net

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "uncertainty"
DT, STEPS, MEMBERS, UPDATES = 0.025, 100, 4 if QUICK else 5, 150 if QUICK else 400


def burgers(viscosity):
    """A captured step of ∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² + f."""

    def step(u, force):
        u = advect.mac_cormack(u, u, DT)
        return diffuse.explicit(u, viscosity, DT, substeps=12) + DT * force

    return ph.capture(step)


def trajectories(seed, viscosity=0.01, amplitude=0.5, modes=(3, 6)):
    """Eight trajectories of the reference on 256 cells, seen on 64."""
    waves, grid, times = ph.pde.burgers.waves_1d, ph.pde.burgers.line(256), torch.arange(STEPS) * DT
    initial = waves(grid, 8, None, (1, 4), 5, 0.5, seed=2 * seed)
    force = waves(grid, 8, times, modes, 5, amplitude, seed=2 * seed + 1)
    return ph.Trajectories.generate(burgers(viscosity), initial, STEPS, (force,), coarsen=4, progress=False)


print(
    f"{MEMBERS} networks are trained and asked how sure they are: {'20 s' if QUICK else 'a minute'} on one core of the CPU."
)
torch.set_num_threads(1)
source, training, members = burgers(0.01), trajectories(0), []
for seed in range(MEMBERS):
    torch.manual_seed(seed)
    members.append(ph.HybridSolver(source, res_net(2, 1, [24, 24], in_spatial=1, periodic=True)))
    optimizer = torch.optim.Adam(members[-1].parameters(), 2e-3)
    for unrolled, updates in ((1, UPDATES), (4, UPDATES // 5)):
        label = f"{seed + 1} of {MEMBERS}: Unrolled({unrolled})"
        settings = dict(optimizer=optimizer, batch_size=16, clip=1.0, seed=seed, label=label)
        ph.Trainer(members[-1], training, ph.Unrolled(unrolled), **settings).fit(updates)
ensemble = ph.Ensemble(members)

kinds = {
    "held out": trajectories(1),
    "strong force": trajectories(1, amplitude=1.0),
    "short waves": trajectories(1, modes=(9, 12)),
    "another viscosity": trajectories(1, viscosity=0.05),
}
figure, axes = plt.subplots(1, len(kinds), figsize=(12, 2.6), sharey=True, layout="constrained")
print(f"{'':18s} error  spread   ratio  coverage")
for ax, (name, data) in zip(axes, kinds.items()):
    found = ensemble.rollout(data.initial_state, STEPS, *data.step_inputs).time[1:]
    truth, calibration = data.trajectory.time[1:], ph.evaluation.calibration
    numbers = calibration.skill(found, truth), calibration.expected_skill(found), calibration.spread_skill(found, truth)
    numbers = *numbers, calibration.coverage(found, truth, 0.9)
    print("{:18s} {:.3f}   {:.3f}  {:6.2f}  {:8.2f}".format(name, *map(float, numbers)))
    last = dict(time=-1, trajectory=0)
    states = calibration.mean(found), calibration.spread(found), truth
    mean, spread, true = (u[last].values.numpy("x,vector")[:, 0] for u in states)
    ax.fill_between(range(64), mean - 2 * spread, mean + 2 * spread, alpha=0.35)
    ax.plot(mean, label="mean ± 2 s")
    ax.plot(true, "k", linewidth=1, label="reference")
    ax.set(title=name, xlabel="cell")
axes[0].legend(fontsize=7)
print("error: of the mean of all members; spread: the error to expect by their standard deviation; ratio: of spread to")
print("error, 1 is right; coverage: how often intervals of 90 % hold the truth, 0.9 is right")
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "states.png")
print(f"Figure: {OUT / 'states.png'}")
