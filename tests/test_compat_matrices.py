"""Workarounds for matrices of linear functions: one test each that fails once upstream has mended the defect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases.solves import noise, relative_error
from phi.geom import build_mesh
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Solve,
    Tensor,
    batch,
    channel,
    diffuse,
    extrapolation,
    instance,
    math,
    spatial,
    wrap,
)
from phiml.math import _functional, _ops
from phiml.math._lin_trace import LinTracer

from phi_hybrid import _compat
from phi_hybrid.linear_solve import Solves

ANTISYMMETRIC = extrapolation.ANTISYMMETRIC


@pytest.fixture(autouse=True)
def double_precision() -> object:
    with math.precision(64):
        yield


# --- antisymmetric boundaries ---


def diffused(u: Field) -> Field:
    return diffuse.implicit(u, 0.3, 0.7, Solve("CG", 1e-12, 1e-12))


def test_upstream_antisymmetric_padding_negates_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinTracer, "_pad", _compat.defects._pad_tracer_with_constant_type)
    with pytest.raises(ValueError):
        diffused(CenteredGrid(wrap(noise(6), spatial("x")), ANTISYMMETRIC))


@pytest.mark.parametrize("sides", ["both", "one"])
def test_implicit_diffusion_beside_antisymmetric_boundaries(sides: str) -> None:
    boundary = {"both": ANTISYMMETRIC, "one": {"x-": ANTISYMMETRIC, "x+": ZERO_GRADIENT}}[sides]
    u = CenteredGrid(wrap(noise(2, 6), batch("b"), spatial("x")), boundary, x=6)
    laplacian = np.eye(6, k=1) + np.eye(6, k=-1) - 2 * np.eye(6)
    laplacian[0, 0] -= 1  # the neighbour outside is −u₀
    laplacian[-1, -1] += {"both": -1, "one": 1}[sides]
    expected = np.linalg.solve(np.eye(6) - 0.21 * laplacian, noise(2, 6).numpy().T).T
    assert relative_error(diffused(u).values.native("b,x"), expected) < 1e-10


# --- constant boundaries beside coefficients that are not known ---


def pattern_size(boundary: object) -> int:
    """Of implicit diffusion on 4 × 3 cells with a trainable viscosity."""
    u, nu = CenteredGrid(0, boundary, x=4, y=3), wrap(torch.tensor(0.3, requires_grad=True))
    solves = Solves()
    with solves.active():
        diffuse.implicit(u, nu, 0.7)
    (module,) = solves._known.values()
    return len(module.rows)


def test_upstream_matrices_have_entries_for_cells_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinTracer, "_pad", _compat.defects._pad_tracer_with_constant_type)
    assert pattern_size(extrapolation.ZERO) > 12 + 2 * (3 * 3 + 4 * 2)


@pytest.mark.parametrize(("boundary", "size"), [(0, 46), (1.5, 46), (ZERO_GRADIENT, 46), (PERIODIC, 60)], ids=str)
def test_patterns_hold_neighbours_only(boundary: object, size: int) -> None:
    assert pattern_size(boundary) == size


# --- meshes ---


def heat(values: Tensor, conductivity: Tensor) -> Tensor:
    sides = {"x-": 1, "x+": ZERO_GRADIENT, "y": ZERO_GRADIENT, "obstacle": ZERO_GRADIENT}
    mesh = build_mesh(Box(x=1, y=1), x=5, y=4, obstacles=Box(x=0.4, y=0.4))
    t = Field(mesh, math.expand(values, instance(mesh)), sides)
    return diffuse.implicit(t, conductivity, 0.1, Solve("scipy-direct", 1e-9, 1e-9), correct_skew=False).values


def test_upstream_linear_functions_on_meshes_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_functional, "when_available", _compat.defects._when_available_outside)
    with pytest.raises(RuntimeError, match="when_available"):
        heat(wrap(0.5), wrap(0.3))


@pytest.mark.parametrize("bins", [_compat.defects._bins_of_default_backend, _ops.bins], ids=["upstream", "mended"])
def test_bins_of_coefficients_with_gradients(bins: Callable) -> None:
    """While linear functions are traced, NumPy is the default."""
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    places = wrap(np.array([[1], [0], [1]]), instance("entries"), channel(idx="x"))
    with math.NUMPY:
        found = bins(wrap(x, instance("entries")), places, instance, bins=spatial(x=2), bin_dim=batch("twins"))
    np.testing.assert_array_equal(found.numpy("x,twins"), [[2, 0], [1, 3]])
    if bins is _ops.bins:
        (gradient,) = torch.autograd.grad((found.native("x,twins") ** 2).sum(), x)
        assert torch.equal(gradient, 2 * x)
    else:
        assert found.default_backend.name == "numpy"


def test_implicit_heat_on_a_mesh() -> None:
    """(1 − 0.1·κ·L)·result = before, with L and its offset from the explicit operator; and the derivative by κ."""
    sides = {"x-": 1, "x+": ZERO_GRADIENT, "y": ZERO_GRADIENT, "obstacle": ZERO_GRADIENT}
    mesh = build_mesh(Box(x=1, y=1), x=5, y=4, obstacles=Box(x=0.4, y=0.4))

    def change(values: np.ndarray) -> np.ndarray:
        t = Field(mesh, wrap(values, instance(mesh)), sides)
        return diffuse.differential(t, 1.0, correct_skew=False).values.numpy("cells")

    count = instance(mesh).volume
    offset = change(np.zeros(count))
    operator = np.stack([change(e) - offset for e in np.eye(count)], 1)

    def expected(conductivity: float) -> np.ndarray:
        rhs = 0.5 + 0.1 * conductivity * offset
        return np.linalg.solve(np.eye(count) - 0.1 * conductivity * operator, rhs)

    conductivity = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with Solves().active():
        found = heat(wrap(0.5), wrap(conductivity)).native("cells")
    assert relative_error(found.detach(), expected(0.3)) < 1e-10
    (gradient,) = torch.autograd.grad((found**2).sum(), conductivity)
    ends = [(expected(0.3 + h) ** 2).sum() for h in (1e-5, -1e-5)]
    assert gradient.item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
