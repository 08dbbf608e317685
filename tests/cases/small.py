"""Small steps, networks and comparisons; states are in `states`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from phi.torch.flow import Field, advect, diffuse

import phi_hybrid as ph
from cases.states import SIZE as BOX
from cases.states import component_values, faces, line, noise, scalar
from phi_hybrid.bridge.layout import matches
from phi_hybrid.steps import Step

__all__ = ["BOX", "component_values", "faces", "line", "noise", "scalar"]  # from `states`, for all that need both

DT = 0.1


def step(u: Field) -> Field:
    """Advection and diffusion, plain PhiFlow."""
    return diffuse.explicit(advect.semi_lagrangian(u, u, DT), 0.02, DT)


def forced_step(u: Field, force: Field) -> Field:
    """Forced advection and diffusion, plain PhiFlow."""
    return step(u) + DT * force


def reference(u: Field, force: Field) -> Field:
    """Force counts more, velocity decays: what a network can learn to correct in `forced_step`."""
    return 0.9 * step(u) + 2 * DT * force


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal in structure, boundaries, dims and to the last bit."""
    tensors_a, layout_a = ph.bridge.flatten(a)
    tensors_b, layout_b = ph.bridge.flatten(b)
    return layout_a == layout_b and equal(tensors_a, tensors_b)


def equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Whether two sequences of tensors are equal to the last bit, shapes and precision included."""
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


class SmallNet(torch.nn.Module):
    """Two convolutions with a smooth activation; the input shapes and values of the last call are kept for inspection."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dims: int,
        width: int = 4,
        seed: int = 0,
        gain: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        conv = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
        with torch.random.fork_rng():  # the global generator is left to the tests
            self.first = conv(inputs, width, 3, padding=1)
            self.last = conv(width, outputs, 3, padding=1)
        self.drop = torch.nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(gain * 0.3 * torch.randn(p.shape, generator=generator))
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach().clone()
        return self.last(self.drop(torch.tanh(self.first(x))))


def zero_net(inputs: int, outputs: int, dims: int) -> SmallNet:
    """A network whose output is zero whatever it sees."""
    return SmallNet(inputs, outputs, dims, gain=0.0)


def finite_differences(f: Any, parameters: Sequence[torch.Tensor], eps: float = 1e-6) -> list[torch.Tensor]:
    """Central differences of the scalar `f()` with respect to every entry of the parameters, in place and restored."""
    gradients = []
    with torch.no_grad():
        for p in parameters:
            flat, gradient = p.view(-1), torch.zeros(p.numel(), dtype=torch.float64)
            for i in range(p.numel()):
                value = flat[i].item()
                flat[i] = value + eps
                upper = float(f())
                flat[i] = value - eps
                lower = float(f())
                flat[i] = value
                gradient[i] = (upper - lower) / (2 * eps)
            gradients.append(gradient.view_as(p))
    return gradients


def relative_difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """‖a − b‖ / ‖b‖ over all tensors."""
    difference = sum(float(((x.double() - y.double()) ** 2).sum()) for x, y in zip(a, b))
    return (difference / sum(float((y.double() ** 2).sum()) for y in b)) ** 0.5


def native_of(step: Step, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The native step for tensors of a layout that the step was called with before."""
    known = [*step.known, *getattr(step, "physics", step).known]
    layout = next(n.layout for n in known if matches(n.layout, tensors))
    return step.native_for(layout, tensors)(*tensors)


def trained_on(data: ph.Trajectories, physics: Callable, channels: int, dims: int = 1) -> list[torch.Tensor]:
    """Weights of a small network, which sees so many channels and returns a velocity, after four updates."""
    solver = ph.HybridSolver(ph.capture(physics), SmallNet(channels, dims, dims))
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, batch_size=3, progress=False).fit(4)
    return [p.detach().clone() for p in solver.parameters()]


def forced_data(trajectories: int = 6) -> ph.Trajectories:
    """Six steps of a reference whose velocity decays and whose force counts otherwise than in `forced_step`."""
    reference = ph.capture(lambda u, f: 0.9 * step(u) + f)
    inputs = (line(1, b=trajectories, time=6),)
    return ph.Trajectories.generate(reference, line(0, b=trajectories), 6, inputs, progress=False)
