"""The block as a module: signatures and re-capture, pickling, moving, wrong inputs, the native face."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases.block_steps import Model, burgers, viscous
from cases.states import field_of, leaves_of, random_field, random_leaves
from phi.torch.flow import Field, StaggeredGrid, batch, diffuse, math, spatial

from phi_hybrid import PhysicsBlock, capture
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import CaptureError, StateError


def velocity(kind: str = "closed", placement: str = "staggered", seed: int = 0, **batches: int) -> Field:
    return random_field(placement, kind, 2, seed=seed, **(batches or {"b": 2}))


def same(a: Field, b: Field) -> bool:
    (x, layout), (y, other) = flatten(a), flatten(b)
    return layout == other and all(torch.equal(p, q) for p, q in zip(x, y))


class Counted:
    """A step that knows how often PhiFlow ran it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, u: Field, nu: Any = 0.02) -> Field:
        self.calls += 1
        return diffuse.explicit(u, nu, 0.1)


# --- signatures ---


def test_same_signature_is_captured_once() -> None:
    step = Counted()
    block = capture(step, velocity())
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
        velocity(b=2, time=2),
        velocity(time=2),
        velocity("open"),
        velocity("inflow"),
        random_field("staggered", "closed", 2, dtype=torch.float64, b=2),
        random_field("staggered", "closed", 3, b=2),
        velocity(placement="vector"),
        StaggeredGrid(1.0, 0, x=6, y=5),
        StaggeredGrid(1.0, 0, x=5, y=5),
    ],
    ids=["size", "dims", "name", "boundary", "inflow", "dtype", "3D", "centred", "bounds", "resolution"],
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
    block = PhysicsBlock(step)
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
    block = capture(viscous, field_of(leaves, "staggered", "closed", 2, ("b",)), math.wrap(torch.tensor(0.1).double()))

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
    with pytest.warns(RuntimeWarning, match="captured 16 times.*phi.math.wrap"):
        block(x, 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for n in range(16, 20):
            assert block(x, n).native("x")[0] == n
    assert len(block.known) == 16
    assert block(x, 3).native("x")[0] == 3  # made room before, captured again
    assert len(block.known) == 16


def test_same_shapes_with_other_boundaries_are_not_confused() -> None:
    """The PhiFlow face looks at the layout; periodic and inflow grids store the same faces."""
    periodic, inflow = velocity("periodic"), velocity("inflow")
    assert [t.shape for t in flatten(periodic)[0]] == [t.shape for t in flatten(inflow)[0]]
    block = capture(burgers)
    for _ in range(2):
        for u in (periodic, inflow):
            after = block(u)
            assert same(after, burgers(u)) and after.boundary == u.boundary
    assert len(block.known) == 2


def test_bound_steps_keep_their_layout() -> None:
    """Of two layouts with the same shapes, each bound step computes its own, whatever was seen last."""
    block = capture(burgers)
    states = {kind: velocity(kind) for kind in ("periodic", "inflow")}
    bound = {kind: block.bind(u) for kind, u in states.items()}
    for kind in ("periodic", "inflow", "periodic"):
        tensors = bound[kind].flatten(states[kind])
        expected = leaves_of(burgers(states[kind]), "staggered", 2, ("b",))
        assert all(torch.equal(a, b) for a, b in zip(bound[kind].native(*tensors), expected)), kind
        assert same(bound[kind].unflatten(bound[kind](*tensors)), burgers(states[kind]))
    with pytest.raises(StateError, match="boundary"):
        bound["inflow"].flatten(states["periodic"])
    with pytest.raises(StateError, match=r"2 layouts.*bind\("):
        block.native(*tensors)
    with pytest.raises(StateError, match=r"2 layouts.*bind\("):
        block.unflatten(tensors)


# --- the native face ---


def test_flatten_native_unflatten_is_forward() -> None:
    u = velocity("inflow", b=2, time=3)
    block = capture(burgers)
    after = block.unflatten(block.native(*block.flatten(u)))
    assert same(after, block(u)) and same(after, burgers(u))
    assert after.boundary == u.boundary and after.bounds == u.bounds


def test_native_face_takes_other_batch_sizes() -> None:
    block = capture(burgers, velocity(b=2), check=False)
    leaves = random_leaves("staggered", "closed", 2, (5,), seed=3)
    expected = burgers(field_of(leaves, "staggered", "closed", 2, ("b",)))
    natives = block.native(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(natives, leaves_of(expected, "staggered", 2, ("b",))))
    assert same(block.unflatten(natives), expected)
    assert len(block.known) == 2


def test_native_face_takes_other_precision() -> None:
    block = capture(burgers, velocity(), check=False)
    leaves = random_leaves("staggered", "closed", 2, (2,), torch.float64)
    natives = block.native(*leaves)
    assert all(t.dtype == torch.float64 for t in natives)
    for a, b in zip(natives, block.native(*(t.float() for t in leaves))):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["closed", "periodic", "open"])
def test_strided_tensors(kind: str) -> None:
    leaves = random_leaves("staggered", kind, 2, (3,))
    block = capture(burgers, field_of(leaves, "staggered", kind, 2, ("b",)), check=False)
    expected = block.native(*leaves)
    transposed = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in leaves]
    spread = [torch.stack([t, t + 1], -1)[..., 0] for t in leaves]
    repeated = [t[:1].expand(3, *t.shape[1:]) for t in leaves]
    for strided in (transposed, spread):
        assert not any(t.is_contiguous() for t in strided)
        assert all(torch.equal(a, b) for a, b in zip(block.native(*strided), expected))
    assert all(torch.equal(a[2], b[0]) for a, b in zip(block.native(*repeated), expected))


def test_native_does_not_write_to_its_inputs() -> None:
    block = capture(burgers, velocity())
    leaves = random_leaves("staggered", "closed", 2, (2,))
    before = [t.clone() for t in leaves]
    block.native(*leaves)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before))


def test_no_grad_and_inference_mode() -> None:
    block = capture(burgers, velocity())
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    expected = block.native(*leaves)
    assert all(t.requires_grad for t in expected)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = block.native(*leaves)
            assert not any(t.requires_grad for t in found)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_first_capture_under_no_grad_is_differentiable_later() -> None:
    block = PhysicsBlock(burgers)
    with torch.no_grad():
        block(velocity())
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    assert torch.autograd.grad(block.native(*leaves)[0].sum(), leaves)[0].any()
    assert len(block.known) == 1


# --- wrong inputs ---


def test_missing_and_superfluous_arguments() -> None:
    block = capture(viscous)
    for args in ((), (velocity(),), (velocity(), 0.1, 0.2)):
        with pytest.raises(StateError, match=rf"\(u.*nu.*\).*{len(args)} by position"):
            block(*args)
    with pytest.raises(StateError, match="nu"):
        block.flatten(velocity())
    assert len(block.known) == 0


def test_clashing_precisions() -> None:
    u, nu = velocity(), math.wrap(torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(StateError, match="float32, torch.float64.*precision"):
        capture(viscous)(u, nu)
    block = capture(viscous, u, math.wrap(torch.tensor(0.1)))
    with pytest.raises(StateError, match="different precision"):
        block.native(*flatten(u)[0], torch.tensor(0.1, dtype=torch.float64))


def test_unknown_native_shapes() -> None:
    block = capture(burgers, velocity())
    good = flatten(velocity())[0]
    for wrong in ((), good[:1], (*good, good[0]), tuple(t[0] for t in good), tuple(t[..., :-1] for t in good)):
        with pytest.raises(StateError, match=r"do not fit.*\(b=any, x=5, y=5\)"):
            block.native(*wrong)
    with pytest.raises(StateError, match="no result of this"):
        block.unflatten(tuple(t[..., :-1] for t in good))
    with pytest.raises(StateError):
        PhysicsBlock(burgers).native(*good)


def test_native_tensors_are_no_states() -> None:
    with pytest.raises(StateError, match="phi.math.wrap"):
        capture(burgers)(torch.zeros(2, 6, 5))


def test_step_that_fails_names_the_cause() -> None:
    with pytest.raises(
        StateError, match=r"fails in plain PhiFlow.*\(b=any, x=6, y=5, vector=x,y\): AssertionError.*'z'"
    ):
        capture(lambda u: u.vector["z"])(velocity(placement="vector"))


def test_a_failed_capture_leaves_the_block_usable() -> None:
    block = capture(viscous, velocity(), 0.1)
    with pytest.raises((StateError, CaptureError)):
        block(velocity(), "thick")
    assert len(block.known) == 1
    assert same(block(velocity(), 0.1), viscous(velocity(), 0.1))


# --- a module ---


def test_block_has_no_state() -> None:
    block = capture(burgers, velocity())
    assert not list(block.parameters()) and not block.state_dict()
    assert list(block.buffers())  # constants, which travel with the block but are not saved
    model = Model(block)
    assert [n for n, _ in model.named_parameters()] == ["gain"] and list(model.state_dict()) == ["gain"]
    model.load_state_dict({"gain": torch.tensor(2.0)}, strict=True)


def test_pickled_block_with_importable_step() -> None:
    block = capture(burgers, velocity())
    loaded = pickle.loads(pickle.dumps(block))
    u = velocity(seed=1)
    assert len(loaded.known) == 1
    assert same(loaded(u), burgers(u)) and len(loaded.known) == 1
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    gradients = [torch.autograd.grad(sum((t**2).sum() for t in b.native(*leaves)), leaves) for b in (block, loaded)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    other = velocity("open")
    assert same(loaded(other), burgers(other)) and len(loaded.known) == 2


def test_pickled_block_with_local_step() -> None:
    nu = 0.07

    def local(u: Field) -> Field:
        return diffuse.explicit(u, nu, 0.1)

    block = capture(local, velocity())
    loaded = pickle.loads(pickle.dumps(block))
    u = velocity(seed=1)
    assert same(loaded(u), local(u))
    assert same(loaded.unflatten(loaded.native(*loaded.flatten(u))), local(u))
    with pytest.raises(CaptureError, match="without its step"):
        loaded(velocity("open"))
    again = pickle.loads(pickle.dumps(loaded))
    assert same(again(u), local(u))


def test_unpickled_local_step_gives_a_capture_error() -> None:
    block = pickle.loads(pickle.dumps(capture(lambda u: u * 2.0, velocity())))
    with pytest.raises(CaptureError, match="define the step at module level"):
        block(velocity("open"))


def test_block_inside_a_saved_model() -> None:
    buffer = io.BytesIO()
    torch.save(Model(capture(burgers, velocity())), buffer)
    buffer.seek(0)
    model = torch.load(buffer, weights_only=False)
    u = velocity(seed=2)
    expected = burgers(burgers(u) * 0.5)
    assert all(torch.equal(a, b) for a, b in zip(model(*flatten(u)[0]), flatten(expected)[0]))


def test_fourth_order_stencils_travel_too() -> None:
    def step(u: Field) -> Field:
        return diffuse.explicit(u, 0.02, 0.1, order=4)

    u = random_field("scalar", "open", 1, b=2)
    block = capture(step, u)
    for copied in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert same(copied(u), step(u))


def test_deep_copies_are_independent() -> None:
    block = capture(burgers, velocity())
    clone = copy.deepcopy(block)
    assert clone.step is block.step and clone.known[0] is not block.known[0]
    clone(velocity("open"))
    assert len(clone.known) == 2 and len(block.known) == 1
    u = velocity(seed=1)
    assert same(clone(u), block(u))
    assert not {b.data_ptr() for b in clone.buffers()} & {b.data_ptr() for b in block.buffers()}


def test_deep_copy_of_a_local_step_still_captures() -> None:
    clone = copy.deepcopy(capture(lambda u: u * 2.0, velocity()))
    assert same(clone(velocity("open")), velocity("open") * 2.0)


@pytest.mark.parametrize("move", ["double", "half", "to", "model"])
def test_precision_of_a_block_is_that_of_its_inputs(move: str) -> None:
    block = capture(burgers, velocity())
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
    assert graph.signature == [(torch.Size([2, 6, 5]), torch.float32, torch.device("meta"))]
    (out,) = block.native(torch.empty(2, 6, 5, device="meta"))
    assert out.device.type == "meta" and out.shape == (2, 6, 5)
    assert {str(n.kwargs["device"]) for n in graph.module.graph.nodes if n.kwargs.get("device")} <= {"meta"}


def test_blocks_work_inside_a_step() -> None:
    """A captured step may itself be part of a step to capture."""
    inner = capture(burgers, velocity())

    def twice(u: Field) -> Field:
        return inner(inner(u))

    u = velocity(seed=3)
    assert same(capture(twice, velocity())(u), burgers(burgers(u)))


def test_other_precision_of_phiflow_does_not_matter() -> None:
    block = capture(burgers)
    u = velocity()
    with math.precision(64):
        after = block(u)
    assert after.values.dtype.precision == 32
    assert same(after, burgers(u))


def test_numbers_as_batch_of_one_signature() -> None:
    nu = math.wrap(torch.tensor([0.01, 0.1]), batch("b"))
    u = velocity()
    assert same(capture(viscous)(u, nu), viscous(u, nu))
