"""Several solvers side by side: the spread of their trajectories says how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch

from phi_hybrid.bridge.checks import require, require_instance
from phi_hybrid.bridge.dims import MEMBER
from phi_hybrid.bridge.layout import (
    TreeLayout,
    describe_leaves,
    flatten,
    position_of,
    repeat,
    stack,
    unflatten,
    with_batch,
    without,
)
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.hybrid.solver import HybridSolver
from phi_hybrid.steps import BoundStep, NativeStep, Step, as_step, rollout
from phi_hybrid.steps.face import Call, Tensors, signature_of
from phi_hybrid.tracing import PhysicsBlock


class Ensemble(Step):
    """Members that each follow their own trajectory: u⁺ᵢ = Sᵢ(uᵢ, f), i = 1 … M.

    Solvers that differ in the seed of their training alone are a deep ensemble (Lakshminarayanan et al. 2017,
    arXiv 1612.01474): where the data did not determine the networks, they part. An ensemble is a step: states without a dim
    `member` are given to all members, those with one are shared out, and the result has one. `ph.evaluation.calibration` has mean and
    spread, and tells whether the spread can be trusted; `evaluate` measures the mean of the members.

    Hybrid solvers with the same physics and networks that differ in their weights alone are computed in one call,
    vmapped over the stacked weights; others, and networks that `torch.vmap` does not take, one after the other. Both are differentiable in the weights.

    Args:
        members: steps `state, *inputs -> state` for one kind of state: `HybridSolver`, `PhysicsBlock`, PhiFlow code.

    Raises:
        StateError: if there are no members; on the first call, if they return different kinds of states.
    """

    def __init__(self, members: Sequence[Callable[..., Any]]) -> None:
        super().__init__()
        require_instance("members", members, Iterable, "a list of steps, e.g. Ensemble([a, b, c])")
        steps = [as_step(member, f"members[{n}]") for n, member in enumerate(members)]
        for number, step in enumerate(steps):
            way_out = "a single solver: give all members at once, Ensemble([*a.members, *b.members])"
            require(not isinstance(step, Ensemble), f"members[{number}]", step, way_out)
        if not steps:
            raise StateError("an ensemble of no members: give at least one step, better five, e.g. Ensemble([a, b, c])")
        self.members = torch.nn.ModuleList(steps)

    def __len__(self) -> int:
        return len(self.members)

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True, **keywords: Any) -> Any:
        """Trajectories u₀ … u_steps of all members, `(member, time, batch, x, y, vector)`; see `phi_hybrid.rollout`.

        Args:
            state: u₀, the same for all members, or one each along a batch dim `member`.
            steps: number of steps, at least 0.
            *inputs: further arguments of the step, constant or with a batch dim `time`; with a dim `member`, one each.
            check: whether a non-finite state is an error, which names the member; otherwise it stays in the trajectory.

        Raises:
            NonFiniteError, SolveError, StateError: as `phi_hybrid.rollout`.
        """
        return rollout(self, self.repeat(state), steps, *inputs, check=check, **keywords)

    def repeat(self, state: Any) -> Any:
        """A state for every member: repeated along the batch dim `member`, unless it has one."""
        tensors, layout = flatten(state)
        wide = with_batch(layout, MEMBER)
        return unflatten(wide, repeat(tensors, layout, wide, {MEMBER: len(self)}))

    def bind(self, state: Any, *inputs: Any, **keywords: Any) -> BoundStep:
        """All members for one layout, with a dim `member`, so that the bound step takes its own results; see `Step.bind`."""
        return super().bind(self.repeat(state), *inputs, **keywords)

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> EnsembleStep:
        return EnsembleStep(self, layout, tensors)

    def native_for(self, layout: TreeLayout, tensors: Sequence[torch.Tensor], call: Call | None = None) -> EnsembleStep:
        step = super().native_for(layout, tensors, call)
        step.compare_members(tensors)  # their settings may have changed since
        return step

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = [_named(n, member.arguments, args, keywords) for n, member in enumerate(self.members)]
        return found[0]

    @property
    def argument_names(self) -> tuple[str, ...]:
        return self.members[0].argument_names


class EnsembleStep:
    """The native step of an `Ensemble`: vmapped over the members or one after the other, with the same results."""

    def __init__(self, ensemble: Ensemble, layout: TreeLayout, tensors: Sequence[torch.Tensor]) -> None:
        self.layout, self.signature = layout, signature_of(tensors)
        self._ensemble = ensemble
        self._positions = [position_of(MEMBER, axes) for axes in layout.leaves]
        self._check_size(tensors)
        self._frame = without(layout, MEMBER)
        self._frame_output = _named(0, ensemble.members[0].native_for, self._frame, self._of(0, tensors)).output_layout
        self.output_layout = with_batch(self._frame_output, MEMBER)
        self._stacked: Stacked | None = None
        self._failed: _SetUp | None = None

    def compare_members(self, tensors: Sequence[torch.Tensor]) -> None:
        """Decides whether the members, as they are now, can be computed at once."""
        members = self._ensemble.members
        self._first: NativeStep = members[0].native_for(self._frame, self._of(0, tensors))
        possible = alike(members) and not (self._failed and self._failed.still_holds(members[0], self._first))
        self._stacked = Stacked(members, self._first) if possible else None

    together: ClassVar[int] = 1

    def is_fresh(self) -> bool:
        """Tells if the physics is still what it was made of."""
        return self._first.is_fresh()

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        if self._stacked is None or self._stacked.would_lose_buffers:
            return self._one_by_one(tensors)
        try:
            return self._at_once(tensors)
        except SolveError:
            return self._one_by_one(tensors)  # tells which member fails
        except RuntimeError:  # networks that torch.vmap cannot take, or another error, which shows again
            found = self._one_by_one(tensors)
            self._stacked, self._failed = None, _SetUp(self._ensemble.members[0], self._first)
            return found

    def _at_once(self, tensors: Tensors) -> Tensors:
        out = tuple(position_of(MEMBER, axes) for axes in self.output_layout.leaves)
        return self._stacked(tensors, self._positions, out)

    def _one_by_one(self, tensors: Tensors) -> Tensors:
        frames = []
        for number, member in enumerate(self._ensemble.members):
            own = self._of(number, tensors)
            step: NativeStep = _named(number, member.native_for, self._frame, own)
            if step.output_layout != self._frame_output:
                raise StateError(
                    f"member {number} returns another kind of state than member 0: "
                    f"{self._frame_output.difference(step.output_layout)}. Make ensembles of steps for one kind of state"
                )
            frames.append(_named(number, step, *own))
        return stack(frames, self._frame_output, MEMBER)[0]

    def _of(self, number: int, tensors: Sequence[torch.Tensor]) -> Tensors:
        """What one member gets."""
        return tuple(t if p is None else t.select(p, number).contiguous() for t, p in zip(tensors, self._positions))

    def _check_size(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor, position in zip(tensors, self._positions):
            if position is not None and tensor.shape[position] != len(self._ensemble):
                raise StateError(
                    f"{describe_leaves(self.layout)} with {tensor.shape[position]} entries along '{MEMBER}', but the ensemble "
                    f"has {len(self._ensemble)} members: give one entry each, or no dim '{MEMBER}'"
                )


def _named(number: int, call: Callable, *args: Any) -> Any:
    """The call; errors say which member they are of."""
    try:
        return call(*args)
    except StateError as error:
        raise StateError(f"member {number}: {error}") from error
    except SolveError as error:
        named = SolveError(f"member {number}: {error}", error.residual, error.iterations)
        raise named from error


# --- members that differ in numbers alone, in one vmapped call ---


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


class _SetUp:
    """What `torch.vmap` has not taken: the step of the first solver, and the settings of its network, but for numbers."""

    def __init__(self, solver: HybridSolver, step: NativeStep) -> None:
        self._step = step
        self._settings = {part: _settings_of(part) for part in solver.network.modules()}

    def still_holds(self, solver: HybridSolver, step: NativeStep) -> bool:
        """Whether it is pointless to try again; in doubt it is not."""
        parts = list(solver.network.modules())
        return (
            step is self._step
            and parts == list(self._settings)
            and all(_equal(_settings_of(part), self._settings[part]) for part in parts)
        )


class _Template(torch.nn.Module):
    """The step of a solver as a module whose weights can be replaced."""

    def __init__(self, solver: HybridSolver, step: NativeStep) -> None:
        super().__init__()
        self.solver, self.step = solver, step

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.step(*tensors)


def alike(solvers: Sequence[Step]) -> bool:
    """Whether the solvers differ in nothing but the values of weights, scales and features; in doubt they do."""
    return all(type(s) is HybridSolver for s in solvers) and all(_same(a, b) for a, b in pairwise(solvers))


def _same(a: HybridSolver, b: HybridSolver) -> bool:
    return (
        (a.coupling, a.sees, a.corrects, a._features_layout) == (b.coupling, b.sees, b.corrects, b._features_layout)
        and a.boundaries == b.boundaries
        and _same_physics(a.physics, b.physics)
        and _same_physics(a.project, b.project)
        and _same_architecture(a.network, b.network)
        and _shapes(a) == _shapes(b)
    )


def _same_physics(a: Step | None, b: Step | None) -> bool:
    """Blocks of one function that are solved alike. Plain PhiFlow code cannot be vmapped."""
    if isinstance(a, PhysicsBlock) and isinstance(b, PhysicsBlock):
        return (a.step, a.compile_graphs, a.solves.method) == (b.step, b.compile_graphs, b.solves.method)
    return a is None and b is None


def _same_architecture(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Equal types, names and settings of all parts."""
    parts, others = list(a.named_modules()), list(b.named_modules())
    return len(parts) == len(others) and all(
        name == other and type(part) is type(its) and _equal(_settings_of(part), _settings_of(its))
        for (name, part), (other, its) in zip(parts, others)
    )


def _settings_of(part: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _TENSORS}


def _equal(own: dict[str, Any], its: dict[str, Any]) -> bool:
    try:
        return bool(own == its)
    except (RuntimeError, ValueError):  # tensors and arrays among them
        return False


def _owners(solver: HybridSolver) -> dict[str, torch.nn.Module]:
    """Name of every tensor that may differ between solvers that are alike → the module that holds it."""
    network = solver.network
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    own = ["input_mean", "input_scale", "output_scale", *(f"feature{n}" for n in range(solver._features))]
    return {f"network.{n}": network.get_submodule(n.rpartition(".")[0]) for n in names} | dict.fromkeys(own, solver)


def _shapes(solver: HybridSolver) -> dict[str, tuple]:
    tensors = {name: getattr(owner, name.rpartition(".")[2]) for name, owner in _owners(solver).items()}
    return {name: (t.shape, t.dtype, t.device) for name, t in tensors.items()}
