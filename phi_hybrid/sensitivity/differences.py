"""Finite differences that know their own error, beside reverse and forward mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve import checked_solves

Function = Callable[[torch.Tensor], torch.Tensor]
"""ℝⁿ → ℝᵐ, differentiable."""

SIZES = tuple(10.0**-k for k in range(2, 10))
"""Step sizes h, in units of the root mean square of what is varied. Neighbours differ by a factor of ten."""
_NOISE_SPACING, _NOISE_POINTS, _NOISE_ORDER = 1e-12, 7, 4
RESOLVED = 1e-6
"""Relative errors that matter: those of training in float32, 1.2e-7, and a little more."""


@dataclass(frozen=True)
class Slope:
    """Directional derivative f'(x)·d by central differences, and what is known of its error, all `(entry)`.

    D(h) = (f(x + h·d) − f(x − h·d)) / 2h, G(h) = (f(x + h·d) − 2·f(x) + f(x − h·d)) / h

    D differs from the derivative by O(h²) and by the noise of f over h. Each entry takes the h at which D differs least
    from its two neighbours; that difference is at least the larger one of the two errors. G, the difference of the
    one-sided slopes, is O(h) where f is smooth, and does not shrink with h at a kink.
    """

    central: torch.Tensor
    """D for every h, `(size, entry)`."""
    value: torch.Tensor
    error: torch.Tensor
    """Bound of the error: the truncation and noise that were seen; at a kink also half the difference of the slopes."""
    kinked: torch.Tensor
    """Entries with a kink closer to x than every usable h."""


def slope(f: Function, x: torch.Tensor, d: torch.Tensor) -> Slope:
    """Derivative of f at x along d."""
    middle = f(x)
    pairs = [(f(x + h * d), f(x - h * d)) for h in SIZES]
    h = torch.tensor(SIZES, dtype=x.dtype, device=x.device)[:, None]
    central = torch.stack([(up - low) for up, low in pairs]) / (2 * h)
    gap = torch.stack([(up - middle) - (middle - low) for up, low in pairs]).abs() / h
    rounding = noise(f, x, d) / h
    change = (central[1:] - central[:-1]).abs()
    error = torch.maximum(change[1:], change[:-1]) + rounding[1:-1]
    error = torch.where(error.isfinite(), error, torch.inf)
    best = error.argmin(0, keepdim=True)

    def chosen(values: torch.Tensor) -> torch.Tensor:
        return values.gather(0, best).squeeze(0)

    lasting = (gap[1:-1] > gap[:-2] / 3) & (gap[1:-1] > 20 * rounding[1:-1])
    kinked = chosen(lasting)
    bound = 3 * chosen(error) + torch.where(kinked, chosen(gap[1:-1]) / 2, 0.0)
    return Slope(central, chosen(central[1:-1]), bound, kinked)


def noise(f: Function, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the noise in f, `(entry)`, by differences of order k of closely spaced values.

    σ² = (k!)² / (2k)! · ⟨(Δᵏf)²⟩; an entry has at least the average noise. J. J. Moré, S. M. Wild, SIAM J. Sci. Comput.
    33 (2011) 1292–1314.
    """
    values = torch.stack([f(x + n * _NOISE_SPACING * d) for n in range(_NOISE_POINTS)])
    k = _NOISE_ORDER
    factor = math.factorial(k) ** 2 / math.factorial(2 * k)
    sigma = (factor * values.diff(n=k, dim=0).square().mean(0)).sqrt()
    unit = torch.finfo(values.dtype).eps * values[0].abs()
    finite = sigma[sigma.isfinite()]
    return torch.maximum(sigma, unit).clamp_min(float(finite.square().mean().sqrt()) if finite.numel() else 0.0)


@dataclass(frozen=True)
class Agreement:
    """One direction: how far reverse and forward mode are from finite differences, relative to these."""

    reverse: float
    """|⟨w, f'd⟩ − ⟨f'ᵀw, d⟩| / ‖w·f'd‖ for a random w that is zero at kinks."""
    forward: float
    """‖f'd − D‖ / ‖D‖, f'd by forward mode and D by differences, over the entries without kinks; NaN where torch has no forward mode."""
    wrong_reverse: bool
    """Tells if the difference is more than the differences' own error allows."""
    wrong_forward: bool
    curve: tuple[float, ...]
    """The difference of reverse mode for every step size of `SIZES`, kinks included."""
    zero: bool
    """Tells if no entry depends on x along d by more than the error of the differences."""


def agreement(f: Function, x: torch.Tensor, d: torch.Tensor, w: torch.Tensor, forward: bool) -> Agreement:
    """Compares the derivatives of f at x along d.

    Args:
        f: real function of real coordinates.
        x: point, `(coordinate)`.
        d: direction, `(coordinate)`.
        w: cotangent, `(entry)`.
        forward: whether there is a forward mode.
    """
    found = slope(f, x, d)
    known = found.error.isfinite()
    value, bound = (torch.where(known, t, 0.0) for t in (found.value, found.error))
    safe = torch.where(known & ~found.kinked, w, 0.0)
    tangent = push_forward(f, x, d) if forward else None
    full, smooth = pull_back(f, x, torch.stack([w, safe]))
    pulled = float(smooth @ d)
    scale = max(float((safe * value).norm()), float((safe.abs() * bound).norm()))
    size = scale or abs(pulled)
    reverse = abs(float(safe @ value) - pulled)
    allowed = float(safe.abs() @ bound)
    forward_error, wrong_forward = math.nan, False
    if tangent is not None:
        off = torch.where(known, (tangent - value).abs(), 0.0)
        largest = max(float(value.norm()), float(torch.where(known, tangent, 0.0).norm()))
        forward_error = _ratio(float(torch.where(found.kinked, 0.0, off).norm()), largest)
        wrong_forward = not _ratio(float((off - bound).clamp_min(0).norm()), largest) <= RESOLVED
    whole, along = float((w * value).norm()), float(full @ d)
    curve = tuple(_ratio(abs(float(w @ c) - along), whole or abs(along)) for c in found.central)
    wrong = not _ratio(max(reverse - allowed, 0.0), size) <= RESOLVED
    zero = bool((value.abs() <= bound).all()) and not wrong and not wrong_forward
    if zero:
        return Agreement(0.0, 0.0 if forward else math.nan, False, False, curve, True)
    return Agreement(_ratio(reverse, size), forward_error, wrong, wrong_forward, curve, False)


def pull_back(f: Function, x: torch.Tensor, cotangents: torch.Tensor) -> torch.Tensor:
    """f'(x)ᵀw for every row w of the cotangents, `(row, coordinate)`; zero where f does not depend on x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        result = f(x)
    if not result.requires_grad:
        return x.new_zeros(len(cotangents), len(x))
    rows = []
    for w in cotangents:
        try:
            with checked_solves():
                (row,) = torch.autograd.grad(result, x, w, retain_graph=True, allow_unused=True)
        except SolveError:  # what comes back to a linear solve is not finite
            row = torch.full_like(x, math.nan)
        rows.append(torch.zeros_like(x) if row is None else row)
    return torch.stack(rows)


def push_forward(f: Function, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """f'(x)·d in forward mode, `(entry)`."""
    try:
        with checked_solves():
            return torch.func.jvp(f, (x,), (d,))[1]
    except SolveError:
        return torch.full_like(f(x), math.nan)


def has_forward_mode(f: Function, x: torch.Tensor) -> bool:
    """Tells if torch can push tangents through f; functions with a gradient of their own have none."""
    try:
        torch.func.jvp(f, (x,), (torch.ones_like(x),))
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf if a else 0.0
