"""A body of little drag: the shape of given area in a channel, Re = 20, by gradients through the steady flow.

The radius of the body is a cosine series of its angle. The steady flow is found by fixed-point iterations of a captured step,
and differentiated implicitly: the adjoint is a fixed point, too, and nothing of the way there is kept.

    python demos/shape.py [--quick]                   against other searches: demos/studies/drag_shape.py
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from phi.torch.flow import math

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "shape"
CELLS, SOLVES = (16, 6) if QUICK else (24, 10)

print("A disc becomes a body of little drag: 10 s on one core of the CPU.")
torch.set_num_threads(1)
channel = ph.pde.penalized_flow.Channel(CELLS)
with math.precision(64):
    velocity, (x, y) = channel.rest(), channel.points()
    step = ph.capture(channel.step()).bind(velocity, x)
    flow, points = ph.bridge.flatten(velocity)[0], list(zip(ph.bridge.flatten(x)[0], ph.bridge.flatten(y)[0]))

coefficients = torch.zeros(4, dtype=torch.float64, requires_grad=True)  # the disc
optimizer = torch.optim.Adam([coefficients], 0.12)
drags, flows = [], []
for solve in range(SOLVES):
    mask = tuple(channel.body(coefficients, p) for p in points)
    steady = ph.inverse.steady_state(step.native, flow, mask, tolerance=1e-4 * channel.dt, max_steps=5000)
    flow = tuple(s.detach() for s in steady)  # the next search begins here
    drag = channel.drag(steady[0], mask[0])
    optimizer.zero_grad()
    drag.backward()
    optimizer.step()
    drags.append(drag.item())
    flows.append((flow[0], mask[0].detach()))
    print(f"solve {solve + 1} of {SOLVES}: drag coefficient {drags[-1]:.3f}")

best = drags.index(min(drags))
print("           drag   area")
for n, name in ((0, "disc"), (best, "best body")):
    print(f"{name:9s}  {drags[n]:.3f}  {float(flows[n][1].sum()) * channel.dx**2:.4f}")
print(
    f"drag: its coefficient, {100 * (1 - drags[best] / drags[0]):.0f} % less in the end; area: of the body, π/4 is given"
)
figure, axes = plt.subplots(2, 1, figsize=(6, 5), layout="constrained")
for ax, n, name in zip(axes, (0, best), ("disc", "body of least drag")):
    speed, body = (t.reshape(t.shape[-2:]).T for t in flows[n])
    ax.imshow(speed, origin="lower", cmap="viridis", vmin=0, vmax=2.2)
    ax.contour(body, [0.5], colors="white")
    ax.set(title=f"{name}, drag coefficient {drags[n]:.3f}", xticks=[], yticks=[])
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "flow.png")
print(f"Figure: {OUT / 'flow.png'}")
