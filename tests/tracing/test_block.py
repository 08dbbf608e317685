"""The block as a module: signatures and re-capture, pickling, moving, wrong inputs."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import equal, same
from cases.states import field_of, random_field, random_leaves
from cases.steps import Model, burgers, viscous
from phi.torch.flow import Field, StaggeredGrid, diffuse, math, spatial

from phi_hybrid import PhysicsBlock, capture
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import CaptureError, StateError


def velocity(kind: str = "closed", placement: str = "staggered", seed: int = 0, **batches: int) -> Field:
    return random_field(placement, kind, 2, seed=seed, **(batches or {"b": 2}))


class Counted:
    """A step that knows how often PhiFlow ran it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, u: Field, nu: Any = 0.02) -> Field:
        self.calls += 1
        return diffuse.explicit(u, nu, 0.1)


@pytest.mark.smoke
def test_same_signature_is_captured_once() -> None:
    step = Counted()
    block = capture(step, velocity(), check=False)
    calls = step.calls
    for seed in range(3):
        u = velocity(seed=seed)
        after = block(u)
        block.native(*block.flatten(u))
        assert block.graph_for(u) is block.known[0]
        assert not same(after, u)
    assert step.calls == calls and len(block.known) == 1


def test_nothing_is_captured_without_example() -> None:
    step = Counted()
    block = capture(step)
    assert step.calls == 0 and len(block.known) == 0
    assert same(block(velocity()), step(velocity()))


@pytest.mark.parametrize(
    "other",
    [
        velocity(b=3),
        velocity(time=2),
        velocity("inflow"),
        random_field("staggered", "closed", 2, dtype=torch.float64, b=2),
        random_field("staggered", "closed", 3, b=2),
        velocity(placement="vector"),
        StaggeredGrid(1.0, 0, x=6, y=5),
    ],
    ids=["size", "name", "boundary", "dtype", "3D", "centred", "bounds"],
)
def test_new_signatures_are_captured(other: Field) -> None:
    block = capture(burgers, velocity(), check=False)
    with math.precision(other.values.dtype.precision):
        expected = burgers(other)
    assert same(block(other), expected)
    assert len(block.known) == 2
    assert same(block(velocity(seed=4)), burgers(velocity(seed=4)))  # the first is still there
    assert len(block.known) == 2


def test_numbers_are_constants_of_a_signature() -> None:
    step = Counted()
    block = PhysicsBlock(step, check=False)
    u = velocity()
    for nu in (0.02, 0.2, 0.02):
        assert same(block(u, nu), diffuse.explicit(u, nu, 0.1))
    assert len(block.known) == 2


def test_tensors_are_inputs() -> None:
    step = Counted()
    block = PhysicsBlock(step, check=False)
    u = velocity()
    block(u, math.wrap(torch.tensor(0.02)))
    calls = step.calls
    results = []
    for nu in (0.02, 0.2):
        results.append(block(u, math.wrap(torch.tensor(nu))))
        assert same(results[-1], diffuse.explicit(u, math.wrap(torch.tensor(nu)), 0.1))
    assert step.calls == calls and len(block.known) == 1 and not same(*results)


def test_gradient_with_respect_to_a_parameter() -> None:
    leaves = random_leaves("staggered", "closed", 2, (2,), torch.float64)
    u = field_of(leaves, "staggered", "closed", 2, ("b",))
    block = capture(viscous, u, math.wrap(torch.tensor(0.1).double()), check=False)

    def energy(nu: torch.Tensor) -> torch.Tensor:
        return sum((t**2).sum() for t in block.native(*leaves, nu))

    nu = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy(nu), nu)
    by_differences = (energy(nu + 1e-5) - energy(nu - 1e-5)) / 2e-5
    assert gradient.item() < -0.1
    torch.testing.assert_close(gradient, by_differences.detach(), rtol=1e-8, atol=0)


def test_cache_is_bounded_and_warns() -> None:
    def step(x: Any, factor: int) -> Any:
        return x * factor

    block = PhysicsBlock(step, check=False)
    x = math.wrap(torch.ones(3), spatial("x"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for n in range(15):
            block(x, n)
    with pytest.warns(RuntimeWarning, match="16 times.*phi.math.wrap"):
        block(x, 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for n in range(16, 20):
            assert block(x, n).native("x")[0] == n
    assert len(block.known) == 16
    assert block(x, 3).native("x")[0] == 3  # made room before, captured again
    assert len(block.known) == 16


# --- wrong inputs ---


def test_clashing_precisions() -> None:
    u, nu = velocity(), math.wrap(torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(StateError, match="float32, torch.float64"):
        capture(viscous)(u, nu)
    block = capture(viscous, u, math.wrap(torch.tensor(0.1)))
    with pytest.raises(StateError, match="float32, torch.float64"):
        block.native(*flatten(u)[0], torch.tensor(0.1, dtype=torch.float64))


def test_step_that_fails_names_the_cause() -> None:
    with pytest.raises(StateError, match=r"\(b=any, x=6, y=5, vector=x,y\): AssertionError.*'z'"):
        capture(lambda u: u.vector["z"])(velocity(placement="vector"))


def test_a_failed_capture_leaves_the_block_usable() -> None:
    block = capture(viscous, velocity(), 0.1, check=False)
    with pytest.raises((StateError, CaptureError)):
        block(velocity(), "thick")
    assert len(block.known) == 1
    assert same(block(velocity(), 0.1), viscous(velocity(), 0.1))


# --- a module ---


def test_block_has_no_state() -> None:
    block = capture(burgers, velocity(), check=False)
    assert not list(block.parameters()) and not block.state_dict()
    assert list(block.buffers())  # constants, which travel with the block but are not saved
    model = Model(block)
    assert [n for n, _ in model.named_parameters()] == ["gain"] and list(model.state_dict()) == ["gain"]
    model.load_state_dict({"gain": torch.tensor(2.0)}, strict=True)


def test_pickled_block_with_importable_step() -> None:
    block = capture(burgers, velocity(), check=False)
    loaded = pickle.loads(pickle.dumps(block))
    u, other = velocity(seed=1), velocity("open")
    assert same(loaded(u), burgers(u)) and len(loaded.known) == 1
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    gradients = [torch.autograd.grad(sum((t**2).sum() for t in b.native(*leaves)), leaves) for b in (block, loaded)]
    assert equal(*gradients)
    assert same(loaded(other), burgers(other)) and len(loaded.known) == 2


def test_pickled_block_with_local_step() -> None:
    nu = 0.07

    def local(u: Field) -> Field:
        return diffuse.explicit(u, nu, 0.1)

    u, loaded = velocity(seed=1), pickle.loads(pickle.dumps(capture(local, velocity(), check=False)))
    again = pickle.loads(pickle.dumps(loaded))
    for block in (loaded, again):
        assert same(block(u), local(u))
        assert same(block.unflatten(block.native(*block.flatten(u))), local(u))
        with pytest.raises(CaptureError, match="local.*define the step at module level"):
            block(velocity("open"))


def test_block_inside_a_saved_model() -> None:
    buffer = io.BytesIO()
    torch.save(Model(capture(burgers, velocity(), check=False)), buffer)
    buffer.seek(0)
    model = torch.load(buffer, weights_only=False)
    u = velocity(seed=2)
    assert equal(model(*flatten(u)[0]), flatten(burgers(burgers(u) * 0.5))[0])


def test_fourth_order_stencils_travel_too() -> None:
    def step(u: Field) -> Field:
        return diffuse.explicit(u, 0.02, 0.1, order=4)

    u = random_field("scalar", "open", 1, b=2)
    block = capture(step, u, check=False)
    for copied in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert same(copied(u), step(u))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deep", "pickled"])
def test_constants_of_copies_are_in_no_state_dict(copied: Callable) -> None:
    """A solver that was copied, then trained, gives its weights to one that was not."""
    block = capture(burgers, velocity(), check=False)
    clone = copied(copied(block))
    assert list(block.buffers()) and len(list(clone.buffers())) == len(list(block.buffers()))
    assert not block.state_dict() and not clone.state_dict()
    block.load_state_dict(clone.state_dict())


def test_deep_copies_are_independent() -> None:
    block = capture(burgers, velocity(), check=False)
    clone = copy.deepcopy(block)
    assert clone.step is block.step and clone.known[0] is not block.known[0]
    clone(velocity("open"))
    assert len(clone.known) == 2 and len(block.known) == 1
    u = velocity(seed=1)
    assert same(clone(u), block(u))
    assert not {b.data_ptr() for b in clone.buffers()} & {b.data_ptr() for b in block.buffers()}


@pytest.mark.parametrize("move", ["half", "to", "model"])
def test_precision_of_a_block_is_that_of_its_inputs(move: str) -> None:
    block = capture(burgers, velocity(), check=False)
    if move == "model":
        Model(block).double()
    else:
        block.to(torch.float64) if move == "to" else getattr(block, move)()
    u = velocity(seed=1)
    assert same(block(u), burgers(u)) and len(block.known) == 1


def test_device_move_rewrites_the_graph() -> None:
    """`meta` stands for any other device: tensors made inside the step follow."""

    def step(u: Field) -> Field:
        return (
            u + u.with_values(math.random_normal(u.values.shape)) * 0.1 + u * math.wrap(torch.arange(6.0), spatial("x"))
        )

    u = velocity("periodic", "scalar")
    block = capture(step, u).to("meta")
    graph = block.known[0]
    assert graph.device.type == "meta" and {b.device.type for b in block.buffers()} == {"meta"}
    assert graph.signature.tensors == ((torch.Size([2, 6, 5]), torch.float32, torch.device("meta")),)
    (out,) = block.native(torch.empty(2, 6, 5, device="meta"))
    assert out.device.type == "meta" and out.shape == (2, 6, 5)
    assert {str(n.kwargs["device"]) for n in graph.module.graph.nodes if n.kwargs.get("device")} <= {"meta"}


def test_blocks_work_inside_a_step() -> None:
    """A captured step may itself be part of a step to capture."""
    inner = capture(burgers, velocity(), check=False)

    def twice(u: Field) -> Field:
        return inner(inner(u))

    u = velocity(seed=3)
    assert same(capture(twice, velocity(), check=False)(u), burgers(burgers(u)))
