"""Six simulators before training: which of them is fit for training through 50 steps, and which line is to blame?

The same diffusion–advection step, written six ways. Gradients are compared with finite differences, values are searched for
jumps, and gradients are followed through all steps.

    python demos/check_gradients.py [--quick]
"""

import sys
from pathlib import Path

import torch
from phi.torch.flow import PERIODIC, PI, Box, CenteredGrid, advect, diffuse, math

import phi_hybrid as ph

QUICK, OUT = "--quick" in sys.argv, Path("out") / "check_gradients"
STEPS, DT, NU = 20 if QUICK else 50, 0.1, 0.05


def smooth(u):
    """Centred advection in conservation form and diffusion."""
    return diffuse.explicit(u + DT * advect.differential(u, u, order=2), NU, DT)


def clamped(u):
    """Velocities are kept within bounds."""
    return u.with_values(math.clip(smooth(u).values, -0.6, 0.6))


def detached(u):
    """The advecting velocity is taken as given, to save memory."""
    velocity = math.stop_gradient(u)
    return diffuse.explicit(u + DT * advect.differential(u, velocity, order=2), NU, DT)


def exploding(u):
    """A chaotic map in every cell: values stay bounded, but neighbouring states part quickly."""
    return u.with_values(1.5 * math.sin(2 * smooth(u).values))


class Friction(torch.autograd.Function):
    """u·exp(−|u|·dt), with a gradient by hand that forgets a factor."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u * torch.exp(-DT * u.abs())

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return gradient * torch.exp(-DT * u.abs())  # · (1 − dt·|u|)


def wrong(u):
    """Friction with the gradient above."""
    u = smooth(u)
    values = Friction.apply(u.values.native(u.values.shape))
    return u.with_values(math.reshaped_tensor(values, [*u.values.shape]))


def branching(u):
    """Where a wave is steep, it breaks: half of it is lost."""
    breaks = abs(u.values) > 0.4
    return smooth(u).with_values(math.where(breaks, 0.5 * smooth(u).values, smooth(u).values))


print("Six simulators are checked before training, on one core of the CPU: a quarter of a minute.")
torch.set_num_threads(1)  # small grids are not worth sharing
u = CenteredGrid(lambda x: math.sin(x.vector["x"]), PERIODIC, Box(x=2 * PI), x=32)
u = 0.7 * u.with_values(math.expand(u.values, math.channel(vector="x")))
simulators, checks = (smooth, clamped, detached, exploding, wrong, branching), {}
for number, simulator in enumerate(simulators, 1):
    check = checks[simulator.__name__] = ph.check_gradients(simulator, u, steps=STEPS)
    print(f"\n{number} of {len(simulators)}: {check}")

print("\nsimulator  for training   gradients")
for name, check in checks.items():
    print(f"{name:9s}  {check.grade:13s}  {check.verdict}")
print(f"for training: verdict of the check; gradients: how their norm changes over {STEPS} steps backwards")
OUT.mkdir(parents=True, exist_ok=True)
ph.plot.gradient_growth(checks).savefig(OUT / "gradients.png", dpi=130)
print(f"Figure: {OUT / 'gradients.png'}")
