"""A plume of smoke, a state of two fields: the network corrects the velocity only, the smoke follows.

The reference has 64×80 cells, the solver 32×40. A state is a dict {velocity, smoke} of staggered and centred fields.

    python demos/plume.py [--quick]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import (
    Box,
    CenteredGrid,
    Sphere,
    StaggeredGrid,
    advect,
    batch,
    channel,
    fluid,
    math,
    res_net,
    resample,
    wrap,
)

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "plume"
DT, STEPS = 1.0, 30 if QUICK else 40


def step(state, inflow):
    """∂s/∂t + u·∇s = q, ∂u/∂t + u·∇u = 0.1 s e_y − ∇p, ∇·u = 0, plain PhiFlow."""
    velocity = state["velocity"]
    smoke = advect.mac_cormack(state["smoke"], velocity, DT) + DT * inflow
    lift = resample(smoke * math.vec(x=0.0, y=0.1), velocity)
    velocity = advect.semi_lagrangian(velocity, velocity, DT) + DT * lift
    return {"velocity": fluid.make_incompressible(velocity)[0], "smoke": smoke}


torch.set_num_threads(1)  # small grids are not worth sharing
torch.manual_seed(0)
physics = ph.capture(step)

# smoke flows into a closed box at random places
domain = dict(x=64, y=80, bounds=Box(x=32, y=40))
places = wrap(
    torch.rand(6, 2) * torch.tensor([16.0, 4.0]) + torch.tensor([8.0, 4.0]), batch("trajectory"), channel(vector="x,y")
)
inflow = 0.2 * CenteredGrid(Sphere(places, radius=3.0), 0, **domain)
air = StaggeredGrid(0, 0, **domain)
still = {"velocity": air.with_values(math.expand(air.values, places.shape.batch)), "smoke": 0 * inflow}
training, test = ph.Trajectories.generate(physics, still, STEPS, (inflow,), coarsen=2).split(4)

# the network sees velocity, smoke and inflow; what it adds to the velocity has its divergence taken out again
hybrid = ph.HybridSolver(
    physics,
    res_net(4, 2, [24, 24]),
    corrects=["velocity"],
    project=ph.capture(lambda s: {**s, "velocity": fluid.make_incompressible(s["velocity"])[0]}),
)
optimizer = torch.optim.Adam(hybrid.parameters(), 2e-3)
for unrolled, updates in [(1, 100), (4, 30)] if QUICK else [(1, 250), (4, 100)]:
    ph.Trainer(hybrid, training, ph.Unrolled(unrolled), optimizer=optimizer, batch_size=4, clip=1.0).fit(updates)

solvers = {"source": physics, "hybrid": hybrid}
print(ph.evaluate(solvers, test).table())
OUT.mkdir(parents=True, exist_ok=True)
figure, axes = plt.subplots(1, 3, figsize=(8, 3.8), layout="constrained")
shown = {
    "reference": test.trajectory,
    **{n: ph.rollout(s, test.initial_state, STEPS, *test.step_inputs) for n, s in solvers.items()},
}
for ax, (name, states) in zip(axes, shown.items()):
    smoke = states["smoke"].time[STEPS].trajectory[0]
    ax.imshow(smoke.values.numpy("y,x"), origin="lower", cmap="magma", vmin=0)
    ax.set(title=name, xticks=[], yticks=[])
figure.savefig(OUT / "smoke.png")
