"""Jumps of values and of slopes along lines through state space, by bisection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from phi_hybrid.sensitivity.differences import Function, pull_back

REACH = 0.1
"""Lines reach so far to both sides of a point, in units of the root mean square of what is varied."""
PIECES = 16
"""Intervals that a line is scanned with."""
_HALF = 1.1 * 2 * REACH / PIECES
"""Half of an interval to begin with: a little more than a piece, since a jump may lie where two of them meet."""
_HALVINGS = 16
_SUSPECTS = 2
_JUMP, _KINK = 0.25, 1.5
"""Second differences over intervals of length ℓ are O(ℓ⁰) at jumps, O(ℓ) at kinks, O(√ℓ) at roots, O(ℓ²) elsewhere; these lie
between."""
JUMP, KINK = "jump", "kink"


@dataclass(frozen=True)
class Interval:
    """A short piece of a line, x ± ℓ·d, on which values or slopes jump.

    Attributes:
        kind: `JUMP` or `KINK`.
        size: of the jump, in units of the root mean square of the result; of a kink, the change of the slope.
        centre: x, `(coordinate)`.
        half: ℓ·d, `(coordinate)`.
    """

    kind: str
    size: float
    centre: torch.Tensor
    half: torch.Tensor


def breaks(f: Function, x: torch.Tensor, d: torch.Tensor, floor: float) -> list[Interval]:
    """Jumps and kinks of f on the line x + t·d, |t| ≤ `REACH`: of each kind the largest one that a scan sees.

    The scan compares second differences of neighbouring values with those of every other value: where f is smooth they
    are a quarter, at a kink a third or more, at a jump as large. What is no quarter is halved until it is certain. Where there
    are jumps, kinks beside them are of no interest.

    Args:
        f: real function of real coordinates.
        x: point, `(coordinate)`.
        d: direction, `(coordinate)`.
        floor: jumps of values up to this size are noise, as of a solver that stops at a tolerance.
    """
    t = torch.linspace(-REACH, REACH, PIECES + 1, dtype=x.dtype, device=x.device)
    values = torch.stack([f(x + s * d) for s in t])
    values = torch.where(values.isfinite().all(0), values, 0.0)
    fine, coarse = _bends(values), _bends(values[::2])
    rough = fine.abs().amax(0) > coarse.abs().amax(0) / 3
    zigzag = (-fine[1:] * fine[:-1]).clamp_min(0).sqrt()  # a jump bends values up and then down
    found: dict[str, Interval] = {}
    for sizes in (zigzag, fine.abs()):
        suspects = torch.where(rough & (sizes > floor), sizes, 0.0)
        for entry in suspects.amax(0).topk(min(_SUSPECTS, suspects.shape[1])).indices.tolist():
            place = int(fine[:, entry].abs().argmax()) + 1
            if suspects[:, entry].any():
                interval = _halved(f, x + t[place] * d, _HALF * d, entry, floor)
                if interval is not None and interval.size > getattr(found.get(interval.kind), "size", 0.0):
                    found[interval.kind] = interval
        if JUMP in found:
            break
    return list(found.values())


def missed(f: Function, x: torch.Tensor, d: torch.Tensor, w: torch.Tensor, jumps: bool) -> tuple[float, float]:
    """⟨w, Δf⟩ over the whole line less the integral of its derivative, which jumps take no part in, and ⟨w, Δf⟩ itself.

    Args:
        f: real function of real coordinates.
        x: middle of the line, `(coordinate)`.
        d: direction, `(coordinate)`.
        w: cotangent, `(entry)`.
        jumps: whether there are jumps on the line; else nothing is missed.
    """
    change = float(w @ (f(x + REACH * d) - f(x - REACH * d)))
    if not jumps:
        return 0.0, change
    middles = (torch.arange(PIECES, dtype=x.dtype) + 0.5) / PIECES * 2 - 1
    slopes = [float(pull_back(f, x + REACH * float(t) * d, w[None])[0] @ d) for t in middles]
    return change - 2 * REACH * sum(slopes) / PIECES, change


def _bends(values: torch.Tensor) -> torch.Tensor:
    return values.diff(n=2, dim=0)


def _halved(f: Function, centre: torch.Tensor, half: torch.Tensor, entry: int, floor: float) -> Interval | None:
    """The jump or kink of one entry inside of centre ± half, `None` if the function is smooth there."""
    low, middle, up = (float(f(centre + s * half)[entry]) for s in (-1, 0, 1))
    sizes = [abs(up - 2 * middle + low)]
    for _ in range(_HALVINGS):
        left, right = (float(f(centre + s * half)[entry]) for s in (-0.5, 0.5))
        thirds = [(low, left, middle), (left, middle, right), (middle, right, up)]  # one holds what lies at a border
        bends = [abs(c - 2 * b + a) for a, b, c in thirds]
        best = max(range(3), key=bends.__getitem__)
        if not bends[best] > floor:
            break
        low, middle, up = thirds[best]
        centre, half = centre + (best - 1) * half / 2, half / 2
        sizes.append(bends[best])
    levels = len(sizes) // 2
    if levels < 2:
        return None
    order = math.log2(sizes[-1 - levels] / sizes[-1]) / levels
    if order > _KINK:
        return None
    if order < _JUMP:
        return Interval(JUMP, abs(up - low), centre, half)
    return Interval(KINK, sizes[-1] / (_HALF * 0.5 ** (len(sizes) - 1)), centre, half)
