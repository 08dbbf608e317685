"""Penalised channel flow: width of the mask, areas, gradient of the drag, and the disc of a benchmark."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable

import numpy as np
import pytest
import torch
from phi.torch.flow import math
from scipy.integrate import solve_ivp

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.pde.penalized_flow import Channel, polar_radius

torch.set_num_threads(1)
SHAPE = torch.tensor([0.1, 0.3, -0.1, 0.05], dtype=torch.float64)


def test_mask_of_this_width_does_not_displace_a_shear_flow() -> None:
    """ε² u'' = χ u extrapolates from far outside, where u' is constant, to u = 0 at d = 0."""

    def right(x: float, y: np.ndarray) -> list[float]:
        return [y[1], (1 - np.tanh(2 * x / 2.648228)) / 2 * y[0]]

    found = solve_ivp(right, (-12, 12), [1e-5, 1e-5], rtol=1e-9, atol=1e-14).y[:, -1]
    channel = Channel(32)
    assert abs(12 - found[0] / found[1]) < 1e-5
    assert channel.smoothing * channel.dx == pytest.approx(
        2.648228 * pymath.sqrt(channel.viscosity * channel.permeability)
    )


def test_area_and_smallest_radius_hold_for_all_coefficients() -> None:
    angle = torch.linspace(0, 2 * pymath.pi, 4001, dtype=torch.float64)
    radius = polar_radius(3 * SHAPE, angle)
    assert float(torch.trapezoid(radius**2, angle) / 2) == pytest.approx(pymath.pi / 4, rel=1e-6)
    assert float(radius.min()) >= 0.15
    with pytest.raises(ValueError, match="take a smaller one"):
        polar_radius(SHAPE, angle, smallest=0.6)


def solved(channel: Channel, tolerance: float = 1e-9) -> Callable:
    with math.precision(64):
        rest, (x, y) = channel.rest(), channel.points()
        bound = ph.capture(channel.step()).bind(rest, x)
        flow = bound.flatten(rest, x)[:2]
        points = list(zip(bound.flatten(rest, x)[2:], bound.flatten(rest, y)[2:]))

    def drag(coefficients: torch.Tensor) -> tuple[torch.Tensor, float]:
        mask = tuple(channel.body(coefficients, p) for p in points)
        state = ph.inverse.steady_state(bound.native, flow, mask, tolerance)
        return channel.drag(state[0], mask[0]).sum(), float(mask[0].detach().sum()) * channel.dx**2

    return drag


def test_gradient_of_the_drag_by_the_shape() -> None:
    """By central differences along one direction that changes all coefficients."""
    drag, at = solved(Channel(16), 1e-12), SHAPE.clone().requires_grad_()
    value, area = drag(at)
    value.backward()
    assert area == pytest.approx(pymath.pi / 4, rel=1e-6)
    direction = torch.tensor([0.5, -0.3, 1.0, 0.8], dtype=torch.float64)
    with torch.no_grad():
        slope = (drag(SHAPE + 1e-4 * direction)[0] - drag(SHAPE - 1e-4 * direction)[0]) / 2e-4
    assert float(at.grad @ direction) == pytest.approx(float(slope), rel=1e-4, abs=1e-5)
    assert abs(float(slope)) > 0.1


def test_drag_of_a_disc() -> None:
    """5.58 by Schäfer & Turek (1996), their disc 0.05 D off the centre line."""
    with torch.no_grad():
        assert float(solved(Channel(32))(0 * SHAPE)[0]) == pytest.approx(5.58, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_face_at_the_centre_of_the_body(dtype: torch.dtype) -> None:
    """Where the angle has no derivative; the shape does not depend on it there."""
    channel = Channel(39, height=5.0, centre=2.0)
    points = [flatten(p)[0][0].to(dtype) for p in channel.points()]
    assert torch.hypot(*points).min() == 0
    a = torch.tensor([0.1, 0.2], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(channel.body(a, points).square().sum(), a)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
