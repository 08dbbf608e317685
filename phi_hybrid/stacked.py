"""Hybrid solvers that differ in numbers alone, computed in one vmapped call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from phi_hybrid.capture import NativeFace, NativeStep, PhysicsBlock
from phi_hybrid.hybrid import HybridSolver

Tensors = Sequence[torch.Tensor]

_TENSORS = {"_parameters", "_buffers", "_modules"}


class Stacked:
    """The native step of the first solver, vmapped over the stacked weights and scales of all.

    Args:
        solvers: `alike`.
        step: of the first solver, bound to what one solver gets.
    """

    def __init__(self, solvers: Sequence[HybridSolver], step: NativeStep) -> None:
        self._template = _Template(solvers[0], step)
        self._networks = [solver.network for solver in solvers]
        owners = [_owners(solver) for solver in solvers]
        self._sources = {
            f"solver.{name}": [(own[name], name.rpartition(".")[2]) for own in owners] for name in owners[0]
        }

    @property
    def would_lose_buffers(self) -> bool:
        """Whether networks may write to buffers, such as running averages in training, which here are copies."""
        return any(n.training for n in self._networks) and any(True for n in self._networks for _ in n.buffers())

    def __call__(
        self, tensors: Tensors, positions: Sequence[int | None], out: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        """One step of all solvers.

        Args:
            tensors: state and inputs.
            positions: axis of each that runs over the solvers, `None` for what all of them get.
            out: the same for the results.
        """
        stacked = {
            name: torch.stack([getattr(module, attribute) for module, attribute in sources])
            for name, sources in self._sources.items()
        }

        def step(weights: dict[str, torch.Tensor], *own: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.func.functional_call(self._template, weights, own)

        return torch.vmap(step, (0, *positions), out, randomness="different")(stacked, *tensors)


class _Template(torch.nn.Module):
    """The step of a solver as a module whose weights can be replaced."""

    def __init__(self, solver: HybridSolver, step: NativeStep) -> None:
        super().__init__()
        self.solver, self.step = solver, step

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.step(*tensors)


def alike(solvers: Sequence[NativeFace]) -> bool:
    """Whether the solvers differ in nothing but the values of weights, scales and features; in doubt they do."""
    return all(type(s) is HybridSolver for s in solvers) and all(_same(a, b) for a, b in pairwise(solvers))


def _same(a: HybridSolver, b: HybridSolver) -> bool:
    return (
        (a.coupling, a.sees, a._features_layout) == (b.coupling, b.sees, b._features_layout)
        and torch.equal(a.boundaries, b.boundaries)
        and _same_physics(a.physics, b.physics)
        and _same_physics(a.project, b.project)
        and _same_architecture(a.network, b.network)
        and _shapes(a) == _shapes(b)
    )


def _same_physics(a: NativeFace | None, b: NativeFace | None) -> bool:
    """Blocks of one function that are solved alike. Plain PhiFlow code cannot be vmapped."""
    if isinstance(a, PhysicsBlock) and isinstance(b, PhysicsBlock):
        return (a.step, a.compile_graphs, a.solves.method) == (b.step, b.compile_graphs, b.solves.method)
    return a is None and b is None


def _same_architecture(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Equal types, names and settings of all parts."""
    parts, others = list(a.named_modules()), list(b.named_modules())
    return len(parts) == len(others) and all(
        name == other and type(part) is type(its) and _settings(part, its)
        for (name, part), (other, its) in zip(parts, others)
    )


def _settings(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    own, its = ({k: v for k, v in vars(m).items() if k not in _TENSORS} for m in (a, b))
    try:
        return bool(own == its)
    except (RuntimeError, ValueError):  # tensors and arrays among them
        return False


def _owners(solver: HybridSolver) -> dict[str, torch.nn.Module]:
    """Name of every tensor that may differ between solvers that are alike → the module that holds it."""
    network = solver.network
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    own = ["input_scale", "output_scale", *(f"feature{n}" for n in range(solver._features))]
    return {f"network.{n}": network.get_submodule(n.rpartition(".")[0]) for n in names} | dict.fromkeys(own, solver)


def _shapes(solver: HybridSolver) -> dict[str, tuple]:
    tensors = {name: getattr(owner, name.rpartition(".")[2]) for name, owner in _owners(solver).items()}
    return {name: (t.shape, t.dtype, t.device) for name, t in tensors.items()}
