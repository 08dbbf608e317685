"""Gradient modes against loops in plain torch with `detach`, identities between modes, and their memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.chains import (
    STEPS,
    agree,
    force_at,
    make_data,
    make_solver,
    squares,
    step_by_hand,
    target_at,
    value_and_gradient,
    windows,
)
from cases.small import equal, forced_step
from torch.utils._python_dispatch import TorchDispatchMode

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.training.gradient import Checkpointed, Detached, Full, Paths, Record, SignConsistent, Truncated

Tensors = tuple[torch.Tensor, ...]


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return make_data()


@pytest.fixture(scope="module", params=[False, True], ids=["sequential", "parallel"])
def solver(request: Any, data: ph.Trajectories) -> ph.HybridSolver:
    return make_solver(ph.capture(forced_step), data, request.param)


def detached(state: Tensors) -> Tensors:
    return tuple(t.detach() for t in state)


def damped(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * tensor + (1 - factor) * tensor.detach()


def loop(
    solver: ph.HybridSolver,
    b: Batch,
    between: Callable[[int, Tensors], Tensors] = lambda n, u: u,
    seen: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
) -> list[torch.Tensor]:
    """Loss and gradient by hand; `between` may change the state that step n > 0 starts from."""
    u, losses = b.initial, []
    for n in range(b.steps):
        u, _ = step_by_hand(solver, between(n, u) if n else u, force_at(b, n), seen)
        losses.append(squares(u, target_at(b, n), b.scale))
    loss = sum(losses) / b.steps
    return [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))]


def sign_consistent(solver: ph.HybridSolver, b: Batch, **how: Any) -> list[torch.Tensor]:
    """Two backward passes; where their signs differ there is no update."""
    (loss, *full), (_, *physics) = loop(solver, b, **how), loop(solver, b, seen=torch.Tensor.detach, **how)
    return [loss, *(p * (torch.sign(p) == torch.sign(g)) for g, p in zip(full, physics))]


def every_second(n: int, u: Tensors) -> Tensors:
    return detached(u) if n % 2 == 0 else u


MODES = {
    Full(): loop,
    Truncated(2): lambda s, b: loop(s, b, every_second),
    Detached(): lambda s, b: loop(s, b, lambda n, u: detached(u)),
    Checkpointed(): loop,
    Checkpointed(2): loop,
    Paths(network=0): lambda s, b: loop(s, b, seen=torch.Tensor.detach),
    Paths(0.3, 0.6): lambda s, b: loop(
        s, b, lambda n, u: tuple(damped(t, 0.6) for t in u), seen=lambda t: damped(t, 0.3)
    ),
    Paths(0, chaining=Truncated(2)): lambda s, b: loop(s, b, every_second, seen=torch.Tensor.detach),
    Paths(0.3, 0.6, Checkpointed(2)): lambda s, b: loop(
        s, b, lambda n, u: tuple(damped(t, 0.6) for t in u), seen=lambda t: damped(t, 0.3)
    ),
    SignConsistent(): sign_consistent,
    SignConsistent(Truncated(2)): lambda s, b: sign_consistent(s, b, between=every_second),
    SignConsistent(Checkpointed(2)): sign_consistent,
    Paths(step=0.6, chaining=SignConsistent()): lambda s, b: sign_consistent(
        s, b, between=lambda n, u: tuple(damped(t, 0.6) for t in u)
    ),
}


@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_loss_and_gradient_by_hand(mode: Any, solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    for steps in (2, STEPS):
        b = windows(data, steps)
        found = value_and_gradient(ph.Unrolled(steps, gradient=mode), solver, b)
        assert agree(found, MODES[mode](solver, b)), steps


def test_the_modes_differ(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """Otherwise the loops by hand would not tell them apart."""
    b = windows(data, STEPS)
    different = (Full(), Truncated(2), Detached(), Paths(network=0), Paths(0.3, 0.6), SignConsistent())
    gradients = [torch.cat([g.ravel() for g in MODES[m](solver, b)[1:]]) for m in different]
    for n, g in enumerate(gradients):
        assert all((g - other).norm() > 1e-3 * g.norm() for other in gradients[:n])


IDENTITIES = [
    (Truncated(STEPS), Full()),
    (Truncated(STEPS + 3), Full()),
    (Truncated(1), Detached()),
    (Paths(1, 1), Full()),
    (Paths(step=0), Detached()),
    (Checkpointed(), Full()),
    (Checkpointed(1), Full()),
    (Checkpointed(STEPS + 2), Full()),
]


def test_identities(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """To the last bit: the same operations in the same order."""
    b = windows(data, STEPS)
    for modes in IDENTITIES:
        found = [value_and_gradient(ph.Unrolled(STEPS, gradient=m), solver, b) for m in modes]
        assert equal(*found), modes


def test_modes_agree_on_values_and_on_single_steps(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """No mode changes a value, and a single step has none before it that a gradient could flow to."""
    one, all_steps = windows(data, 1), windows(data, STEPS)
    gradient = value_and_gradient(ph.Unrolled(1), solver, one)
    outputs = ph.Unrolled(STEPS).outputs(solver, all_steps)
    for mode in MODES:
        assert agree(value_and_gradient(ph.Unrolled(1, gradient=mode), solver, one), gradient, tolerance=1e-14), mode
        assert equal(ph.Unrolled(STEPS, gradient=mode).outputs(solver, all_steps), outputs), mode


@pytest.mark.smoke
def test_sign_consistent_adds_to_gradients(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """As `backward` does, and parameters that are frozen stay without."""
    b, objective = windows(data, 3), ph.Unrolled(3, gradient=SignConsistent())
    parameters = list(solver.parameters())
    once = value_and_gradient(objective, solver, b)[1:]
    parameters[0].requires_grad_(False)
    try:
        for _ in range(2):
            SignConsistent().backward(objective.loss(objective.outputs(solver, b), b), parameters)
        assert parameters[0].grad is None
        assert agree([p.grad for p in parameters[1:]], [2 * g for g in once[1:]])
    finally:
        parameters[0].requires_grad_(True)
        solver.zero_grad(set_to_none=True)


def test_the_network_gate_opens_again_after_an_error() -> None:
    x, calls, mode = torch.ones((), requires_grad=True), [], SignConsistent()

    def fail(gradient: torch.Tensor) -> None:
        calls.append(gradient)
        if len(calls) == 2:
            raise RuntimeError("no second time")

    def step(n: int, u: Tensors) -> Record:
        product = mode.gate(u[0] * x) * u[0]
        product.register_hook(fail)
        return Record((product,))

    (((y,), _),) = mode.chain(step, (torch.ones(()),), 1)
    with pytest.raises(RuntimeError, match="no second time"):
        mode.backward(y, [x])
    (((y,), _),) = mode.chain(step, (torch.ones(()),), 1)
    y.backward()
    assert x.grad == 1


def test_dropout_is_the_same_when_it_is_computed_again(data: ph.Trajectories) -> None:
    solver = make_solver(ph.capture(forced_step), data)
    solver.network.drop.p = 0.5
    b, found = windows(data, STEPS), []
    for mode in (Full(), Checkpointed()):
        torch.manual_seed(4)
        found.append(value_and_gradient(ph.Unrolled(STEPS, gradient=mode), solver, b))
    assert equal(*found)


# --- memory ---


class Live(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and the most there have been."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


@pytest.fixture(scope="module")
def long(data: ph.Trajectories) -> tuple[ph.HybridSolver, Batch]:
    """64 steps of the data's first state, under a constant force."""
    whole = data.whole()
    states = tuple(s[:, :1].repeat(1, 65, *[1] * (s.ndim - 2)) for s in whole.states)
    inputs = tuple(f[:, :1].repeat(1, 64, *[1] * (f.ndim - 2)) for f in whole.inputs)
    solver = make_solver(ph.capture(forced_step), data, width=16)
    return solver, Batch(states, inputs, whole.layouts, whole.scale)


def cut(b: Batch, steps: int) -> Batch:
    return Batch(tuple(s[:, : steps + 1] for s in b.states), b.inputs, b.layouts, b.scale)


def saved_bytes(outputs: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # a storage that is freed could give its address to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs()
    return sum(storages.values())


def test_memory_of_64_checkpointed_steps(long: tuple[ph.HybridSolver, Batch]) -> None:
    """What is kept for the backward pass, and the most that is alive in the whole iteration."""
    solver, b = long
    saved, peak = {}, {}
    for mode in (Full(), Checkpointed()):
        objective = ph.Unrolled(64, gradient=mode)
        value_and_gradient(objective, solver, b)
        saved[mode] = saved_bytes(lambda o=objective: o.outputs(solver, b))
        with Live() as live:
            value_and_gradient(objective, solver, b)
        peak[mode] = live.peak
    assert saved[Checkpointed()] + saved[Full()] / 8 <= 0.35 * saved[Full()]  # kept states, and one of 8 segments
    assert peak[Checkpointed()] <= 0.35 * peak[Full()]


def test_memory_is_linear_in_the_horizon(long: tuple[ph.HybridSolver, Batch]) -> None:
    solver, b = long
    saved = {n: saved_bytes(lambda n=n: ph.Unrolled(n).outputs(solver, cut(b, n))) for n in (4, 8, 16, 32, 64)}
    per_step = (saved[64] - saved[4]) / 60
    for n, size in saved.items():
        assert size / n == pytest.approx(per_step, rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Truncated(0), "0"),
        (lambda: Checkpointed(-1), "-1"),
        (lambda: Paths(network=-0.1), "network = -0.1"),
        (lambda: Paths(step=float("nan")), "step = nan"),
    ],
)
def test_values_out_of_range(make: Callable, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()


def test_physics_paths_need_physics(data: ph.Trajectories) -> None:
    b = windows(data, 2)
    with pytest.raises(ph.StateError, match="HybridSolver"):
        ph.Unrolled(2, gradient=Paths(network=0)).outputs(ph.capture(forced_step), b)
