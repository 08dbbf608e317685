"""The native face of a step on torch tensors, and steps that are bound to one layout."""

from __future__ import annotations

import pytest
import torch
from cases.small import equal, same
from cases.states import field_of, noise, random_field, random_leaves
from cases.steps import burgers
from phi.torch.flow import Field, batch, math, spatial

from phi_hybrid import PhysicsBlock, capture
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import StateError


def velocity(kind: str = "closed", seed: int = 0, **batches: int) -> Field:
    return random_field("staggered", kind, 2, seed=seed, **(batches or {"b": 2}))


@pytest.fixture(scope="module")
def block() -> PhysicsBlock:
    """It knows the layout of a closed box alone, in every batch size and precision that it has met."""
    return capture(burgers, velocity(), check=False)


@pytest.mark.smoke
def test_bound_steps_keep_their_layout() -> None:
    """Periodic and inflow grids store the same faces: the PhiFlow face looks at the layout, and each bound step computes
    its own, whatever was seen last."""
    states = {kind: velocity(kind) for kind in ("periodic", "inflow")}
    shapes = [[t.shape for t in flatten(u)[0]] for u in states.values()]
    assert shapes[0] == shapes[1]
    block = capture(burgers, check=False)
    bound = {kind: block.bind(u) for kind, u in states.items()}
    for kind in ("periodic", "inflow", "periodic"):
        u, expected = states[kind], burgers(states[kind])
        tensors = bound[kind].flatten(u)
        assert same(block(u), expected) and expected.boundary == u.boundary
        assert equal(bound[kind].native(*tensors), flatten(expected)[0])
        assert same(bound[kind].unflatten(bound[kind](*tensors)), expected)
    assert len(block.known) == 2
    with pytest.raises(StateError, match="boundary"):
        bound["inflow"].flatten(states["periodic"])
    for ambiguous in (lambda: block.native(*tensors), lambda: block.unflatten(tensors)):
        with pytest.raises(StateError, match=r"2 layouts.*bind\("):
            ambiguous()


def test_flatten_native_unflatten_is_forward() -> None:
    u = velocity("inflow", b=2, time=3)
    block = capture(burgers, check=False)
    after = block.unflatten(block.native(*block.flatten(u)))
    assert same(after, block(u)) and same(after, burgers(u))
    assert after.boundary == u.boundary and after.bounds == u.bounds


def test_native_face_takes_other_batch_sizes(block: PhysicsBlock) -> None:
    leaves = random_leaves("staggered", "closed", 2, (5,), seed=3)
    expected = burgers(field_of(leaves, "staggered", "closed", 2, ("b",)))
    natives = block.native(*leaves)
    assert equal(natives, flatten(expected)[0]) and same(block.unflatten(natives), expected)


def test_native_face_takes_other_precision(block: PhysicsBlock) -> None:
    leaves = random_leaves("staggered", "closed", 2, (2,), torch.float64)
    natives = block.native(*leaves)
    assert all(t.dtype == torch.float64 for t in natives)
    for a, b in zip(natives, block.native(*(t.float() for t in leaves))):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "kind"), [("scalar", "closed"), ("staggered", "periodic"), ("staggered", "open")]
)
def test_strided_tensors(placement: str, kind: str) -> None:
    leaves = random_leaves(placement, kind, 2, (3,))
    block = capture(burgers, field_of(leaves, placement, kind, 2, ("b",)), check=False)
    expected = block.native(*leaves)
    transposed = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in leaves]
    spread = [torch.stack([t, t + 1], -1)[..., 0] for t in leaves]
    repeated = [t[:1].expand(3, *t.shape[1:]) for t in leaves]
    for strided in (transposed, spread):
        assert not any(t.is_contiguous() for t in strided)
        assert equal(block.native(*strided), expected)
    assert equal([t[2] for t in block.native(*repeated)], [t[0] for t in expected])


def test_strided_tensors_where_the_step_joins_dims() -> None:
    step = lambda x: math.wrap(x.native("b,x").reshape(-1), spatial("x"))  # noqa: E731
    strided = noise(5, 3).T
    (found,) = capture(step, math.wrap(noise(3, 5), batch("b"), spatial("x"))).native(strided)
    assert torch.equal(found, strided.reshape(-1))


def test_native_does_not_write_to_its_inputs(block: PhysicsBlock) -> None:
    leaves = random_leaves("staggered", "closed", 2, (2,))
    before = [t.clone() for t in leaves]
    block.native(*leaves)
    assert equal(leaves, before)


def test_no_grad_and_inference_mode(block: PhysicsBlock) -> None:
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    expected = block.native(*leaves)
    assert all(t.requires_grad for t in expected)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = block.native(*leaves)
            assert not any(t.requires_grad for t in found) and equal(found, expected)


def test_first_capture_under_no_grad_is_differentiable_later() -> None:
    block = PhysicsBlock(burgers, check=False)
    with torch.no_grad():
        block(velocity())
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "closed", 2, (2,))]
    assert torch.autograd.grad(block.native(*leaves)[0].sum(), leaves)[0].any()
    assert len(block.known) == 1


def test_unknown_native_shapes() -> None:
    block = capture(burgers, velocity(), check=False)
    good = flatten(velocity())[0]
    for wrong in ((), good[:1], (*good, good[0]), tuple(t[0] for t in good), tuple(t[..., :-1] for t in good)):
        with pytest.raises(StateError, match=r"\(b=any, x=5, y=5\)"):
            block.native(*wrong)
    with pytest.raises(StateError, match=r"\(2, 5, 4\).*\(b=any, x=5, y=5\)"):
        block.unflatten(tuple(t[..., :-1] for t in good))
    with pytest.raises(StateError, match=r"bind\("):
        PhysicsBlock(burgers).native(*good)
