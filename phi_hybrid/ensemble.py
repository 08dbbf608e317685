"""Several solvers side by side: the spread of their trajectories says how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from phi_hybrid.bridge.layout import (
    Layout,
    describe_leaves,
    difference,
    expand,
    flatten,
    position_of,
    stack,
    tuple_of,
    unflatten,
    with_batch,
    without,
)
from phi_hybrid.capture import NativeFace, NativeStep
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.stacked import Stacked, alike
from phi_hybrid.unroll import as_step, rollout

Tensors = tuple[torch.Tensor, ...]

MEMBER = "member"
"""Name of the batch dim that runs over the members of an ensemble."""


class Ensemble(NativeFace):
    """Members that each follow their own trajectory: u⁺ᵢ = Sᵢ(uᵢ, f), i = 1 … M.

    Solvers that differ in the seed of their training alone are a deep ensemble (Lakshminarayanan et al. 2017,
    arXiv 1612.01474): where the data did not determine the networks, they part. An ensemble is a step: states without a dim
    `member` are given to all members, those with one are shared out, and the result has one. `ph.calibration` has mean and
    spread, and tells whether the spread can be trusted; `evaluate` measures the mean of the members.

    Hybrid solvers with the same physics and networks that differ in their weights alone are computed in one call,
    vmapped over the stacked weights; others one after the other. Both are differentiable in the weights.

    Args:
        members: steps `state, *inputs -> state` for one kind of state: `HybridSolver`, `PhysicsBlock`, PhiFlow code.

    Raises:
        StateError: if there are no members; on the first call, if they return different kinds of states.
    """

    def __init__(self, members: Sequence[Callable]) -> None:
        super().__init__()
        members = list(members)
        if not members:
            raise StateError("an ensemble of no members: give at least one step, better five, e.g. Ensemble([a, b, c])")
        self.members = torch.nn.ModuleList(as_step(member) for member in members)
        self._steps: list[EnsembleStep] = []

    def __len__(self) -> int:
        return len(self.members)

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True) -> Any:
        """Trajectories u₀ … u_steps of all members, `(member, time, batch, x, y, vector)`; see `phi_hybrid.rollout`.

        Args:
            state: u₀, the same for all members, or one each along a batch dim `member`.
            steps: number of steps, at least 0.
            *inputs: further arguments of the step, constant or with a batch dim `time`; with a dim `member`, one each.
            check: whether a non-finite state is an error, which names the member; otherwise it stays in the trajectory.

        Raises:
            NonFiniteError, SolveError, StateError: as `phi_hybrid.rollout`.
        """
        return rollout(self, self.repeat(state), steps, *inputs, check=check)

    def repeat(self, state: Any) -> Any:
        """A state for every member: repeated along the batch dim `member`, unless it has one."""
        tensors, layout = flatten(state)
        wide = with_batch(layout, MEMBER)
        positions = [position_of(MEMBER, axes) for axes in layout.leaves]
        return unflatten(
            wide,
            [
                w if known is not None else w.expand([len(self) if a.name == MEMBER else -1 for a in axes]).contiguous()
                for w, axes, known in zip(expand(tensors, layout, wide), wide.leaves, positions)
            ],
        )

    def flatten(self, *args: Any) -> Tensors:
        """State and inputs as torch tensors, in the order that `native` takes them; it takes its own results, too."""
        tensors = super().flatten(*args)
        state, *inputs = self._layouts[0].children
        repeated = tuple_of(with_batch(state, MEMBER), *inputs)
        if repeated not in self._layouts:
            self._layouts = [*self._layouts[:15], repeated]
        return tensors

    def bind(self, layout: Layout, tensors: Sequence[torch.Tensor]) -> EnsembleStep:
        """The step of all members for this layout and these shapes, precision and device."""
        for step in self._steps:
            if step.layout == layout and step.accepts(tensors):
                break
        else:
            step = EnsembleStep(self, layout, tensors)
            self._steps = [step, *self._steps][:16]
        step.compare_members(tensors)
        return step

    def known_steps(self) -> Sequence[EnsembleStep]:
        return self._steps

    def check_arguments(self, args: tuple) -> None:
        for number, member in enumerate(self.members):
            _named(number, member.check_arguments, args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": []}


class EnsembleStep:
    """The native step of an `Ensemble`: vmapped over the members or one after the other, with the same results."""

    def __init__(self, ensemble: Ensemble, layout: Layout, tensors: Sequence[torch.Tensor]) -> None:
        self.layout = layout
        self._signature = [(t.shape, t.dtype, t.device) for t in tensors]
        self._ensemble = ensemble
        self._positions = [position_of(MEMBER, axes) for axes in layout.leaves]
        self._check_size(tensors)
        self._frame = without(layout, MEMBER)
        self._frame_output = _named(0, ensemble.members[0].bind, self._frame, self._of(0, tensors)).output_layout
        self.output_layout = with_batch(self._frame_output, MEMBER)
        self._stacked: Stacked | None = None

    def compare_members(self, tensors: Sequence[torch.Tensor]) -> None:
        """Decides whether the members, as they are now, can be computed at once."""
        members = self._ensemble.members
        first = members[0].bind(self._frame, self._of(0, tensors))
        self._stacked = Stacked(members, first) if alike(members) else None

    def accepts(self, tensors: Sequence[torch.Tensor]) -> bool:
        return len(tensors) == len(self._signature) and all(
            (t.shape, t.dtype, t.device) == s for t, s in zip(tensors, self._signature)
        )

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        if self._stacked is None or self._stacked.would_lose_buffers:
            return self._one_by_one(tensors)
        try:
            return self._at_once(tensors)
        except SolveError:
            return self._one_by_one(tensors)  # tells which member fails

    def _at_once(self, tensors: Tensors) -> Tensors:
        out = tuple(position_of(MEMBER, axes) for axes in self.output_layout.leaves)
        return self._stacked(tensors, self._positions, out)

    def _one_by_one(self, tensors: Tensors) -> Tensors:
        frames = []
        for number, member in enumerate(self._ensemble.members):
            own = self._of(number, tensors)
            step: NativeStep = _named(number, member.bind, self._frame, own)
            if step.output_layout != self._frame_output:
                raise StateError(
                    f"member {number} returns another kind of state than member 0: "
                    f"{difference(self._frame_output, step.output_layout)}. Make ensembles of steps for one kind of state"
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
