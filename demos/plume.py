"""A plume of smoke around a cylinder: a state of two fields, both corrected by a network that starts from the solver.

The reference has 64×80 cells, the solver 16×20. A state is a dict {velocity, smoke} of staggered and centred fields.

    python demos/plume.py [--quick]         the experiment: demos/studies/plume_correction.py
"""

import sys
from pathlib import Path

import torch
from phi.torch.flow import (
    Box,
    CenteredGrid,
    Obstacle,
    Sphere,
    StaggeredGrid,
    advect,
    batch,
    channel,
    fluid,
    math,
    res_net,
    resample,
    vec,
    wrap,
)

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "plume"
DT, STEPS, TRAJECTORIES = 1.0, 20 if QUICK else 40, 8 if QUICK else 20
CYLINDER = Obstacle(Sphere(vec(x=16.0, y=22.0), radius=4.0))


def step(state, inflow):
    """∂s/∂t + u·∇s = q, ∂u/∂t + u·∇u = 0.1 s e_y − ∇p, ∇·u = 0, plain PhiFlow."""
    velocity = state["velocity"]
    smoke = advect.mac_cormack(state["smoke"], velocity, DT) + DT * inflow
    lift = resample(smoke * math.vec(x=0.0, y=0.1), velocity)
    velocity = advect.semi_lagrangian(velocity, velocity, DT) + DT * lift
    return {"velocity": fluid.make_incompressible(velocity, CYLINDER)[0], "smoke": smoke}


print(f"A network learns to correct a coarse plume: {'10 s' if QUICK else 'half a minute'} on one core of the CPU.")
torch.set_num_threads(1)  # small grids are not worth sharing
torch.manual_seed(0)
physics = ph.capture(step)

# smoke flows into a closed box at random places; the first stored state is ten steps after air at rest
domain = dict(x=64, y=80, bounds=Box(x=32, y=40))
places = torch.rand(TRAJECTORIES, 2) * torch.tensor([16.0, 4.0]) + torch.tensor([8.0, 4.0])
places = wrap(places, batch("trajectory"), channel(vector="x,y"))
inflow = 0.2 * resample(Sphere(places, radius=3.0), CenteredGrid(0, 0, **domain), soft=True)  # shares of cells
air = StaggeredGrid(0, 0, **domain)
still = {"velocity": air.with_values(math.expand(air.values, places.shape.batch)), "smoke": 0 * inflow}
rising = ph.repeat(physics, still, 10, inflow)
training, test = ph.Trajectories.generate(physics, rising, STEPS, (inflow,), coarsen=4).split(TRAJECTORIES - 4)

# the network sees velocity, smoke and inflow; its last layer is zero at first, so that the hybrid starts as the solver
network = res_net(4, 3, [32, 32, 32])
torch.nn.init.zeros_(network.Res_out.weight), torch.nn.init.zeros_(network.Res_out.bias)
hybrid = ph.HybridSolver(physics, network)
optimizer = torch.optim.Adam(hybrid.parameters(), 3e-3)
updates = 60 if QUICK else 400
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
objective = ph.Unrolled(4, ph.losses.Losses({"state": ph.losses.L1()}))  # absolute errors: quiet places count, too
settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=4, clip=1.0, label="hybrid")
ph.Trainer(hybrid, training, objective, validation=test, **settings).fit(updates)  # warns of a worse solver

solvers = {"source": physics, "hybrid": hybrid}
print(
    ph.evaluate(solvers, test).table().select(["mae velocity", "mae smoke", "nrmse velocity", "nrmse smoke", "blow_up"])
)
print(
    "mae: mean absolute error on held-out inflows; nrmse: error relative to the reference; blow_up: fraction that failed"
)
OUT.mkdir(parents=True, exist_ok=True)
rollouts = {name: ph.rollout(s, test.initial_state, STEPS, *test.step_inputs) for name, s in solvers.items()}
figure = ph.plot.rollout(
    {"reference": test.trajectory, **rollouts}, reference="reference", part="smoke", times=3, dt=DT
)
figure.savefig(OUT / "smoke.png")
print(f"Figure: {OUT / 'smoke.png'}")
