"""Where a flow came from: the initial state of Burgers' equation, searched with several update rules.

Wanted is x with P(x) = y*, P being 8 steps; the truth is −sin πx on 128 cells, the search begins at rest (Thuerey et al.,
Physics-based Deep Learning, arXiv 2109.05237). The rule says how a wanted update of y becomes one of x.

    python demos/reconstruction.py [--quick]          noise, shocks: demos/studies/reconstruct_burgers.py
"""

import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import PERIODIC, Box, CenteredGrid, advect, diffuse, math, vec

import phi_hybrid as ph
from phi_hybrid.optim import GaussNewton, HalfInverse, Inverse

QUICK, OUT = "--quick" in sys.argv, Path("out") / "reconstruction"
DT, STEPS = 1 / 32, 8


def step(u):
    """∂u/∂t + u ∂u/∂x = ν ∂²u/∂x², plain PhiFlow."""
    u = diffuse.explicit(u, 0.01 / (128 * math.PI), DT)
    return advect.semi_lagrangian(u, u, DT)


def back(u):
    """The way back, roughly: advection along −u."""
    for _ in range(STEPS):
        u = advect.semi_lagrangian(u, -u, DT)
    return u


def forth(u):
    for _ in range(STEPS):
        u = step(u)
    return u


print("Six ways to search for an initial state: 10 s on one core of the CPU.")
torch.set_num_threads(1)
with math.precision(64):
    truth = CenteredGrid(lambda x: vec(x=-math.sin(math.PI * x.vector["x"])), PERIODIC, x=128, bounds=Box(x=(-1, 1)))
    physics = ph.capture(step)
    observed = ph.repeat(physics, truth, STEPS)
    sample = truth.with_values(math.expand(truth.values, math.batch(sample=1)))
    inverse = ph.capture(ph.inverse.flow.local_inverse(forth, back)).bind(sample, sample)
    lbfgs = partial(torch.optim.LBFGS, max_iter=1, max_eval=26, line_search_fn="strong_wolfe")
    ways = {
        "gradient descent": dict(lr=5 / 64),
        "Adam": dict(lr=0.03, optimizer=torch.optim.Adam),
        "L-BFGS": dict(optimizer=lbfgs),
        "Gauss–Newton": dict(rule=GaussNewton(0.3), lr=0.3),
        "half-inverse": dict(rule=HalfInverse(0.5, 1e-2), lr=0.3),
        "inverse simulator": dict(rule=Inverse(inverse.native)),
    }
    found = {}
    print("                           iterations     loss  error")
    for number, (name, way) in enumerate(ways.items(), 1):
        print(f"{number} of 6: {name:17s}", end="  ", flush=True)
        iterations = 10 if QUICK or name == "inverse simulator" else 40
        result = ph.reconstruct(physics, observed, 0 * truth, times=(STEPS,), iterations=iterations, **way)
        error = float(math.l2_loss(result.state.values - truth.values) / math.l2_loss(truth.values)) ** 0.5
        print(f"{iterations:10d}  {result.losses[-1]:7.1e}  {error:5.3f}")
        found[name] = result
print("loss: ½ ‖P(x) − y*‖² after the last iteration; error: ‖x − x*‖/‖x*‖")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for name, result in found.items():
    left.semilogy(result.losses, label=name)
    right.plot(result.state.values.numpy("x,vector"))
right.plot(truth.values.numpy("x,vector"), "k--", label="truth")
left.set(xlabel="iteration", ylabel="½ ‖P(x) − y*‖²")
left.legend(fontsize=7)
right.legend()
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "search.png")
print(f"Figure: {OUT / 'search.png'}")
