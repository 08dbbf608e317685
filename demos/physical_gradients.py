"""Physical gradients and plain ones: a network learns to find where heat came from.

It sees y* = P(x*), what diffusion has left of rectangles of heat on 32² cells, and returns x. Differentiable physics passes
y* − P(x) back by the adjoint, which damps fine structures again; physical gradients by the inverse, sharpened as far as
rounding allows (Holl et al. 2022, arXiv 2109.15048). A network is trained towards x + Δx in both cases.

    python demos/physical_gradients.py [--quick]      U-nets, equal time: demos/studies/physical_gradients.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import batch, math, spatial, u_net, wrap

import phi_hybrid as ph
from phi_hybrid.optim import Chain, Gradient, LinearInverse, Link, SeparableNewton

QUICK, OUT = "--quick" in sys.argv, Path("out") / "physical_gradients"
CELLS, TIME, SAMPLES, UPDATES = 32, 4.0, 512, 150 if QUICK else 600

print(f"Two networks learn to undo diffusion: {'10 s' if QUICK else 'half a minute'} on one core of the CPU.")
torch.set_num_threads(1)
torch.manual_seed(0)


def rectangles(count):
    """Rectangles of heat of random places, sizes and strengths, less their mean, `(count, x, y)`."""
    cells = torch.arange(CELLS)
    edges = torch.rand(2, 3, count, 1) * CELLS, torch.rand(2, 3, count, 1) * 6 + 2  # centre, half width
    inside = [((cells - c).abs() < h).double() for c, h in zip(*edges)]
    images = torch.einsum("nsx,nsy,ns->sxy", *inside, torch.rand(3, count, dtype=torch.float64) * 2 - 1)
    return images - images.mean((1, 2), keepdim=True)


truth = rectangles(SAMPLES + 64)
with math.precision(64):
    field = ph.pde.heat.square(CELLS).with_values(wrap(truth, batch("sample"), spatial("x,y")))
    forward = ph.capture(ph.pde.heat.heat_step(TIME, 1.0)).bind(field).native
    sharpen = ph.capture(ph.pde.heat.Sharpening(1.0, TIME, 1e-10)).bind(field).native
observed = forward(truth)[0]


def physics(x):
    return forward(x)[0]


def chains(y):
    """Both ways from the error of y to a change of x."""
    loss = lambda found: ((found - y) ** 2).flatten(1).sum(1) / 2  # noqa: E731
    inverse = LinearInverse(lambda dy: sharpen(dy)[0])
    return {
        "plain": Chain(Link(physics, Gradient()), Link(loss, Gradient()), precision=torch.float64),
        "physical": Chain(Link(physics, inverse), Link(loss, SeparableNewton()), precision=torch.float64),
    }


def errors(network):
    """‖x − x*‖/‖x*‖ and ‖P(x) − y*‖/‖y*‖ on held-out samples."""
    with torch.no_grad():
        x, y = network(observed[SAMPLES:].float()[:, None])[:, 0].double(), observed[SAMPLES:]
    return [float((a - b).norm() / b.norm()) for a, b in ((x, truth[SAMPLES:]), (physics(x), y))]


figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
shown = {"y*": observed[-1], "x*": truth[-1]}
print("                  error of x  error of y")
for number, (name, rate) in enumerate({"plain": 3e-3, "physical": 1e-2}.items(), 1):
    print(f"{number} of 2: {name:8s}", end="  ", flush=True)
    torch.manual_seed(1)
    network = u_net(1, 1, levels=3, filters=8, batch_norm=False, periodic=True)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        y = observed[torch.randint(SAMPLES, (16,))]
        optimizer.zero_grad()
        chains(y)[name].proxy(network(y.float()[:, None])[:, 0]).backward()
        optimizer.step()
        schedule.step()
    print("{:10.3f}  {:10.4f}".format(*errors(network)))
    shown[name] = network(observed[-1].float()[None, None])[0, 0].detach()
print("error of x: ‖x − x*‖/‖x*‖ on held-out heat, of y: ‖P(x) − y*‖/‖y*‖")
for ax, (name, image) in zip(axes, shown.items()):
    limit = float(shown["y*" if name == "y*" else "x*"].abs().max())
    ax.imshow(image.T, origin="lower", cmap="RdBu", vmin=-limit, vmax=limit)
    ax.set(title=name, xticks=[], yticks=[])
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "examples.png")
print(f"Figure: {OUT / 'examples.png'}")
