"""Mean and spread of an ensemble, and scores of how far the spread can be trusted.

Members are states with a batch dim `member`, e.g. `ensemble.rollout(u0, 100)`; the truth is one without, e.g. a
reference trajectory. A calibrated ensemble is one whose members and truth could be exchanged for each other. Scores are
over all values of a state, which are real; of several parts, score one at a time: `crps(members["smoke"], truth["smoke"])`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from phi.math import Tensor, batch, spatial, sqrt, wrap
from scipy.special import stdtrit

from phi_hybrid.bridge.checks import require, require_number
from phi_hybrid.bridge.dims import MEMBER
from phi_hybrid.bridge.layout import Layout, batch_sizes, flatten, position_of, unflatten, without
from phi_hybrid.errors import StateError
from phi_hybrid.steps.time_loop import all_finite

Dims = str | Sequence[str]

Leaf = tuple[torch.Tensor, torch.Tensor, list[str]]
"""Members with their dim first, truth, and the names of the other dims."""


def mean(members: Any) -> Any:
    """Mean ū = ⟨uᵢ⟩ of the members: a state without the dim `member`."""
    return _reduced(members, lambda u: u.mean(0), least=1)


def spread(members: Any) -> Any:
    """Standard deviation s = √(Σᵢ (uᵢ − ū)²/(M − 1)) of M members: a state without the dim `member`."""
    return _reduced(members, lambda u: u.std(0), least=2)


def rescale(members: Any, factor: float) -> Any:
    """Members ū + a·(uᵢ − ū), which have another spread about the same mean.

    Args:
        members: state `(member, …)`.
        factor: a ≥ 0, e.g. from `covering_scale`.

    Raises:
        StateError: for a factor that is negative or not finite.
    """
    require_number("factor", factor, least=0, way_out="e.g. covering_scale(…)")
    tensors, layout = _members(members, least=1)
    scaled = []
    for tensor, axes in zip(tensors, layout.leaves):
        middle = tensor.mean(position_of(MEMBER, axes), keepdim=True)
        scaled.append(middle + factor * (tensor - middle))
    return unflatten(layout, scaled)


def covering_scale(members: Any, truth: Any, level: float = 0.9) -> float:
    """Scale a of the spread for which the intervals of `coverage` hold exactly the share `level` of the truth.

    The simplest recalibration, of one number, with `rescale` (split conformal prediction, Lei et al. 2018, doi
    10.1080/01621459.2017.1307116). Fit it to validation data, never to those that are reported; coverages of other
    levels tell whether the errors are distributed as the spread says. 1/`spread_skill` sets the mean squares right
    instead, which a few large errors rule.

    Args:
        members: state `(member, …)`.
        truth: the same without `member`.
        level: share between 0 and 1, 0.9 by default.

    Raises:
        StateError: also if so much of the truth lies where the spread is zero, e.g. in the common initial state.
    """
    ratios = []
    for u, true, _ in _leaves(members, truth):
        error = (true - u.mean(0)).abs().double()
        ratios.append(torch.where(error > 0, error / _reach(u, level), 0).flatten())
    pooled = torch.cat(ratios)
    enough = math.ceil(level * len(pooled) * (1 - 1e-12))  # 0.55 · 100 is more than 55 in floating point
    scale = float(pooled.kthvalue(enough).values)
    if not math.isfinite(scale):
        raise StateError(
            f"no scale covers {level:.0%} of the truth, because the spread is zero at too many values: leave the "
            "initial state out, trajectory.time[1:], and give members that differ"
        )
    return scale


def skill(members: Any, truth: Any, along: Dims = ()) -> Tensor:
    """Root mean square error √⟨(ū − u*)²⟩ of the mean of the members, `(*along)`; arguments as for `spread_skill`."""
    return sqrt(_mean(_leaves(members, truth, least=1), lambda u, true: (u.mean(0) - true).square(), along))


def expected_skill(members: Any, along: Dims = ()) -> Tensor:
    """Error √⟨(1 + 1/M)·s²⟩ that the spread announces, `(*along)`.

    The factor is due to the mean of M members only: of a calibrated ensemble it is √(1 + 1/M) s away from the truth
    (Fortin et al. 2014, doi 10.1175/JHM-D-14-0008.1).
    """
    tensors, layout = _members(members)
    _require_real(tensors)
    leaves = [_leaf(tensor, tensor, axes) for tensor, axes in zip(tensors, layout.leaves)]
    return sqrt(_mean(leaves, lambda u, _: (1 + 1 / len(u)) * u.var(0), along))


def spread_skill(members: Any, truth: Any, along: Dims = ()) -> Tensor:
    """Spread–skill ratio √⟨(1 + 1/M)·s²⟩ / √⟨(ū − u*)²⟩, `(*along)`: 1 if calibrated, below 1 if overconfident.

    Args:
        members: state `(member, time, trajectory, x, vector)`.
        truth: the same without `member`.
        along: dims to keep, e.g. `('time',)`; the means are over all others, over everything by default.

    Raises:
        StateError: for fewer than two members, values that are complex or not finite, states of two kinds, or an unknown
            dim.
    """
    return expected_skill(members, along) / skill(members, truth, along)


def crps(members: Any, truth: Any, along: Dims = ()) -> Tensor:
    """Continuous ranked probability score ⟨|uᵢ − u*|⟩ − Σᵢⱼ |uᵢ − uⱼ| / (2M(M − 1)), `(*along)`; smaller is better.

    The energy form of Gneiting & Raftery 2007 (doi 10.1198/016214506000001437), fair to small ensembles (Ferro 2014,
    doi 10.1002/qj.2270): its expectation does not depend on M. In units of the state; of one member it is the mean
    absolute error. Arguments as for `spread_skill`.
    """
    return _mean(_leaves(members, truth, least=1), _crps, along)


def _crps(members: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    count = len(members)
    error = (members - truth).abs().mean(0)
    if count == 1:
        return error
    weights = 2 * torch.arange(count, dtype=members.dtype, device=members.device) - count + 1
    distances = torch.tensordot(weights, members.sort(0).values, 1)  # Σ over pairs i < j of |uᵢ − uⱼ|
    return error - distances / (count * (count - 1))


def coverage(members: Any, truth: Any, level: float, along: Dims = ()) -> Tensor:
    """Share of the truth inside the central prediction intervals ū ± t·s·√(1 + 1/M), `(*along)`: `level` if calibrated.

    t is Student's quantile of M − 1 degrees of freedom, so that the intervals hold for any number of members if these
    are normally distributed. Other arguments as for `spread_skill`.

    Args:
        level: nominal share between 0 and 1, e.g. 0.9.
    """

    def inside(u: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return ((true - u.mean(0)).abs() <= _reach(u, level)).to(u.dtype)

    return _mean(_leaves(members, truth), inside, along)


def _reach(members: torch.Tensor, level: float) -> torch.Tensor:
    """Half the width t·s·√(1 + 1/M) of the prediction interval."""
    require_number("level", level, above=0)
    require(level < 1, "level", level, "the nominal share of an interval, between 0 and 1, e.g. 0.9")
    count = len(members)
    return float(stdtrit(count - 1, (1 + level) / 2)) * math.sqrt(1 + 1 / count) * members.std(0)


def rank_histogram(members: Any, truth: Any) -> Tensor:
    """Share of the truth with 0, 1, …, M members below it, `(rank,)` (Hamill 2001).

    Flat if calibrated, high at both ends if overconfident. Ties count half below. Arguments as for `spread_skill`.
    """
    leaves = _leaves(members, truth, least=1)
    count = len(leaves[0][0])
    counts = torch.zeros(count + 1, dtype=torch.float64)
    for own, true, _ in leaves:
        below, tied = (own < true).sum(0), (own == true).sum(0)
        # of an odd number of ties, the one in the middle counts in both ranks
        for half in (tied // 2, (tied + 1) // 2):
            counts += torch.bincount((below + half).flatten().cpu(), minlength=count + 1)
    return wrap(counts / counts.sum(), spatial("rank"))


def _reduced(members: Any, reduce: Callable[[torch.Tensor], torch.Tensor], least: int) -> Any:
    tensors, layout = _members(members, least)
    found = [reduce(t.movedim(position_of(MEMBER, axes), 0)) for t, axes in zip(tensors, layout.leaves)]
    return unflatten(without(layout, MEMBER), found)


def _members(members: Any, least: int = 2) -> tuple[tuple[torch.Tensor, ...], Layout]:
    tensors, layout = flatten(members)
    sizes = [None if p is None else t.shape[p] for t, p in zip(tensors, _positions(layout))]
    if not sizes or None in sizes or min(sizes) < least:
        raise StateError(
            f"expected members along a batch dim '{MEMBER}' of at least {least}, got sizes {sizes}: pass what "
            "ensemble.rollout(…) returned"
        )
    return tensors, layout


def _positions(layout: Layout) -> list[int | None]:
    return [position_of(MEMBER, axes) for axes in layout.leaves]


def _leaves(members: Any, truth: Any, least: int = 2) -> list[Leaf]:
    own, layout = _members(members, least)
    true, true_layout = flatten(truth)
    if without(layout, MEMBER) != true_layout:
        raise StateError(
            f"members and truth differ in kind: {without(layout, MEMBER).difference(true_layout)}. They take the same "
            f"dims but for '{MEMBER}'"
        )
    sizes, true_sizes = (batch_sizes(*state) for state in ((own, layout), (true, true_layout)))
    if {**sizes, **true_sizes} != sizes:
        raise StateError(
            f"members of batch sizes {sizes} and truth of {true_sizes} do not fit: compare the same times and trajectories, e.g. "
            "truth.time[1:] if the members lack the initial state"
        )
    _require_real((*own, *true))
    if not all_finite((*own, *true)):
        raise StateError(
            "members or truth hold NaN or infinity, to which no score applies: leave failed members and trajectories "
            "out, or end before they fail, e.g. members.time[:50]"
        )
    return [_leaf(u, t.to(u), axes) for u, t, axes in zip(own, true, layout.leaves)]


def _require_real(tensors: Sequence[torch.Tensor]) -> None:
    if kinds := sorted({str(t.dtype) for t in tensors if not (t.is_floating_point() or t.is_complex())}):
        raise StateError(
            f"members or truth hold {', '.join(kinds)}, whose scores would be rounded: convert them to floating point"
        )
    if kinds := sorted({str(t.dtype) for t in tensors if t.is_complex()}):
        raise StateError(
            f"members or truth hold {', '.join(kinds)}, but scores compare real numbers: score real and imaginary part one at "
            "a time, e.g. crps(field.real(members), field.real(truth))"
        )


def _leaf(members: torch.Tensor, truth: torch.Tensor, axes: tuple) -> Leaf:
    return members.movedim(position_of(MEMBER, axes), 0), truth, [a.name for a in axes if a.name != MEMBER]


def _mean(leaves: Sequence[Leaf], score: Callable, along: Dims) -> Tensor:
    """Mean of a score over all values that differ in other dims than those kept."""
    along = (along,) if isinstance(along, str) else tuple(along)
    require(len({*along}) == len(along), "along", along, "each dim once, e.g. ('time', 'trajectory')")
    total, count = 0.0, 0
    for members, truth, names in leaves:
        unknown = [name for name in along if name not in names]
        if unknown:
            raise StateError(f"along = {along}: there is no dim {unknown}, only {names}")
        values = score(members.double(), truth.double())
        others = [i for i, name in enumerate(names) if name not in along]
        values = values.sum(others) if others else values
        if count and values.shape != total.shape:
            raise StateError(
                f"along = {along}: components differ in size there, {tuple(total.shape)} and {tuple(values.shape)}, as faces of a "
                "closed box do; score one component, or members.at_centers()"
            )
        total, count = total + values, count + members[0].numel() // values.numel()
    kept = [name for name in leaves[0][2] if name in along]
    result = (total / count).permute([kept.index(name) for name in along])
    return wrap(result, batch(*along)) if along else wrap(result)
