"""Two chemicals, several initial states side by side, coefficients by keyword."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


@jit_compile
def step(u, v, du, dv, f, k, dt):
    uvv = u * v**2
    su = du * field.laplace(u) - uvv + f * (1 - u)
    sv = dv * field.laplace(v) + uvv - (f + k) * v
    return u + dt * su, v + dt * sv


def start():
    noise = CenteredGrid(Noise(scale=10, smoothness=1.5), x=24, y=20) * 0.2 + 0.2
    spot = CenteredGrid(lambda x: math.exp(-0.5 * math.sum((x - 11) ** 2) / 9), x=24, y=20)
    rings = CenteredGrid(lambda x: math.cos(math.vec_length(x - 11) / 2), x=24, y=20) * 0.4
    u = stack([noise, spot, rings], batch("initial"))
    return u, u


CORAL = {"du": 0.17, "dv": 0.07, "f": 0.055, "k": 0.063, "dt": 0.6}
KINDS = {"Reaction–diffusion": Kind(step, start, CORAL)}


def test_values() -> None:
    check_values(KINDS["Reaction–diffusion"])


def test_trajectory_with_substeps() -> None:
    """`iterate` as users call it, with the block in place of the step."""
    from cases.gallery import assert_same, exactly

    import phi_hybrid as ph

    state = KINDS["Reaction–diffusion"].arguments()
    block = ph.capture(step)
    captured = iterate(block, batch(time=3), *state, f_kwargs=dict(CORAL), substeps=4)
    with exactly():
        assert_same(captured, iterate(step, batch(time=3), *state, f_kwargs=dict(CORAL), substeps=4), 0.0)
    assert captured[0].shape.get_size("time") == 4 and block._captures == 1


def test_derivatives_by_all_coefficients() -> None:
    check_derivatives(KINDS["Reaction–diffusion"], **{k: v for k, v in CORAL.items() if k != "dt"})
