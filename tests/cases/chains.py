"""A hybrid solver on the faces of a closed box, and the same step, loss and gradient written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from phi.torch.flow import Field, math

import phi_hybrid as ph
from cases.small import SmallNet, faces, forced_step, native_of
from phi_hybrid.data import Batch

TRAJECTORIES, STEPS = 3, 5

Tensors = Sequence[torch.Tensor]
Seen = Callable[[torch.Tensor], torch.Tensor]


def reference(u: Field, f: Field) -> Field:
    """What the solver is to learn: the velocity decays and the force counts double."""
    return 0.9 * forced_step(u, f) + 0.1 * f


def make_data(step: Callable = reference) -> ph.Trajectories:
    """Three trajectories of five steps, with a force that changes with time."""
    u, f = (
        faces("closed", 0, torch.float64, b=TRAJECTORIES),
        faces("closed", 1, torch.float64, b=TRAJECTORIES, time=STEPS),
    )
    with math.precision(64):
        return ph.Trajectories.generate(step, u, STEPS, (f,), progress=False)


def make_solver(
    block: ph.PhysicsBlock, data: ph.Trajectories, parallel: bool = False, width: int = 2
) -> ph.HybridSolver:
    """Untrained, with weights so large that its corrections matter; in the parallel one, the network sees the old state."""
    coupling = ph.coupling.Parallel(ph.Additive()) if parallel else ph.Additive()
    solver = ph.HybridSolver(block, SmallNet(4, 2, 2, width=width, gain=2.0).double(), coupling)
    solver.set_scales(torch.tensor([0.5, 0.7, 0.9, 1.1]), torch.tensor([0.2, 0.4]))
    data.whole().bind(solver)  # the block knows the layout
    return solver


def windows(data: ph.Trajectories, steps: int) -> Batch:
    """One window of each trajectory, beginning at different times where there is room."""
    dataset = data.windows(steps)
    room = STEPS - steps + 1
    return dataset.collate([dataset[n * room + n % room] for n in range(TRAJECTORIES)])


def force_at(batch: Batch, n: int) -> Tensors:
    return [f[:, n] for f in batch.inputs]


def channels(state: Tensors) -> torch.Tensor:
    """`(trajectory, channel, x, y)`: cells own their lower faces, and those at the walls are zero and not stored."""
    x, y = state
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 1, 0)), torch.nn.functional.pad(y, (1, 0))], 1)


def step_by_hand(solver: ph.HybridSolver, u: Tensors, f: Tensors, seen: Seen = lambda t: t) -> tuple[Tensors, Tensors]:
    """New state, and that before the correction; `seen` may change the state that the network sees."""
    after = native_of(solver.physics, *u, *f)
    shown = u if isinstance(solver.coupling, ph.coupling.Parallel) else after
    x = torch.cat([seen(channels(shown)), channels(f)], 1) / solver.input_scale.view(1, -1, 1, 1)
    c = solver.output_scale.view(1, -1, 1, 1) * solver.network(x)
    return (after[0] + c[:, 0, 1:], after[1] + c[:, 1, :, 1:]), after


def squares(state: Tensors, target: Tensors, scale: Sequence[float]) -> torch.Tensor:
    """Mean of ((u − u*)/σ)² over the entries of all components."""
    total = sum((((y - t) / s) ** 2).sum() for y, t, s in zip(state, target, scale))
    return total / sum(y.numel() for y in state)


def target_at(batch: Batch, n: int) -> Tensors:
    """Reference after step n, counted from 0."""
    return [s[:, n + 1] for s in batch.states]


def gradient_of(loss: torch.Tensor, solver: ph.HybridSolver) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(solver.parameters())))


def value_and_gradient(objective: ph.Unrolled, solver: ph.HybridSolver, batch: Batch) -> list[torch.Tensor]:
    """As the `Trainer` computes them."""
    solver.zero_grad(set_to_none=True)
    loss = objective.loss(objective.outputs(solver, batch), batch)
    objective.gradient.backward(loss, list(solver.parameters()))
    gradients = [p.grad.clone() for p in solver.parameters()]
    solver.zero_grad(set_to_none=True)
    return [loss.detach(), *gradients]


def agree(found: Tensors, expected: Tensors, tolerance: float = 1e-10) -> bool:
    """Whether a loss and its gradient agree, each relative to its size."""
    assert all(e.abs().max() > 0 for e in expected)
    return all(float((a - b).norm() / b.norm()) < tolerance for a, b in zip(found, expected, strict=True))
