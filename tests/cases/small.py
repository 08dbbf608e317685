"""Tiny states, steps and networks for the tests of hybrid solvers, data and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    advect,
    batch,
    channel,
    diffuse,
    dual,
    math,
    spatial,
    vec,
)

import phi_hybrid as ph
from phi_hybrid.bridge.layout import matches
from phi_hybrid.steps import Step

torch.set_num_threads(1)  # the grids are tiny

DT = 0.1
CELLS = {"x": 6, "y": 5, "z": 4}
BOX = {"x": 2.0, "y": 1.5, "z": 1.2}
BOUNDARIES: dict[str, Any] = {
    "periodic": PERIODIC,
    "closed": 0,
    "open": ZERO_GRADIENT,
    "inflow": {"x": ZERO_GRADIENT, "y-": vec(x=0.0, y=1.0), "y+": ZERO_GRADIENT},
}
BITS = {torch.float32: 32, torch.float64: 64}


def stored_faces(kind: str, component: str) -> tuple[int, int]:
    """How many of the outer (lower, upper) faces of a component are degrees of freedom."""
    if kind == "inflow":
        return (0, 1) if component == "y" else (1, 1)
    return {"periodic": (1, 0), "closed": (0, 0), "open": (1, 1)}[kind]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def line(
    seed: int = 0, cells: int = 8, dtype: torch.dtype = torch.float32, boundary: Any = PERIODIC, **batches: int
) -> Field:
    """Random centred velocity `(*batches, x, vector)` on a line."""
    values = noise(*batches.values(), cells, 1, seed=seed, dtype=dtype)
    dims = [batch(n) for n in batches]
    with math.precision(BITS[dtype]):
        return CenteredGrid(math.wrap(values, *dims, spatial("x"), channel(vector="x")), boundary, bounds=Box(x=2.0))


def faces(
    kind: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    names: str = "xy",
    cells: dict[str, int] | None = None,
    **batches: int,
) -> Field:
    """Random staggered velocity `(*batches, x, y[, z])` on a box."""
    cells = {n: (cells or CELLS)[n] for n in names}
    components = {}
    for number, component in enumerate(names):
        lower, upper = stored_faces(kind, component)
        shape = [c - 1 + lower + upper if n == component else c for n, c in cells.items()]
        values = 0.5 * noise(*batches.values(), *shape, seed=seed + 1000 * number, dtype=dtype)
        components[component] = math.wrap(values, *[batch(n) for n in batches], *[spatial(n) for n in names])
    with math.precision(BITS[dtype]):
        values = math.stack(components, dual("vector"))
        return StaggeredGrid(values, BOUNDARIES[kind], bounds=Box(**{n: BOX[n] for n in names}), **cells)


def scalar(seed: int = 0, dtype: torch.dtype = torch.float32, **batches: int) -> Field:
    """Random centred scalar `(*batches, x, y)` with zero gradient at the sides."""
    values = noise(*batches.values(), CELLS["x"], CELLS["y"], seed=seed, dtype=dtype)
    with math.precision(BITS[dtype]):
        tensor = math.wrap(values, *[batch(n) for n in batches], spatial("x,y"))
        return CenteredGrid(tensor, ZERO_GRADIENT, bounds=Box(x=BOX["x"], y=BOX["y"]))


def step(u: Field) -> Field:
    """Advection and diffusion, plain PhiFlow."""
    return diffuse.explicit(advect.semi_lagrangian(u, u, DT), 0.02, DT)


def forced_step(u: Field, force: Field) -> Field:
    """Forced advection and diffusion, plain PhiFlow."""
    return step(u) + DT * force


def component_values(field: Field, batches: Sequence[str] = ()) -> list[torch.Tensor]:
    """Values by PhiFlow's own means: one tensor per staggered component, `(*batches, x, y[, z])`, or one with vector."""
    names = list(field.resolution.names)
    with math.precision(field.values.dtype.precision):
        if field.is_staggered:
            return [field.values[{"~vector": n}].native([*batches, *names]) for n in names]
        channels = list(field.values.shape.channel.names)
        return [field.values.native([*batches, *names, *channels])]


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
