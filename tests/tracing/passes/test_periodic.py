from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.graphs import graph_of, rewritten
from torch.nn.functional import grid_sample

from phi_hybrid.tracing.passes.components import Components
from phi_hybrid.tracing.passes.periodic import Periodic
from phi_hybrid.tracing.passes.sampling import PeriodicSampler

A, B = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), torch.randn(2, 5, 6)


def pad(v: torch.Tensor, low: int, up: int, *axes: int) -> torch.Tensor:
    for axis in axes:
        n = v.shape[axis]
        parts = [v.narrow(axis, n - low, low)] * (low > 0) + [v] + [v.narrow(axis, 0, up)] * (up > 0)
        v = torch.cat(parts, axis)
    return v


def mean_of_neighbours(v: torch.Tensor) -> torch.Tensor:
    v = pad(v, 1, 0, 1)
    v = pad(v, 0, 1, 2)
    v = 0.5 * v[:, 1:] + 0.5 * v[:, :-1]
    return 0.25 * v[:, :, 1:] + 0.75 * v[:, :, :-1]


def laplacian(v: torch.Tensor) -> torch.Tensor:
    p = pad(v, 1, 1, 2, 1)
    return p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * p[:, 1:-1, 1:-1]


SHIFTS: dict[str, Callable] = {
    "difference": lambda a, b: (pad(a, 0, 1, 1)[:, 1:] - pad(a, 0, 1, 1)[:, :-1],),
    "mean of neighbours": lambda a, b: (mean_of_neighbours(a), mean_of_neighbours(b)),
    "laplacian": lambda a, b: (laplacian(a) * b,),
    "twice": lambda a, b: (laplacian(laplacian(a)),),
    "wide": lambda a, b: (pad(a, 4, 4, 1)[:, :5], pad(a, 4, 4, 1)[:, 8:], pad(a, 4, 4, 1)[:, 3:8]),
    "other operand is not padded": lambda a, b: (pad(a, 1, 0, 1)[:, :-1] + b, b - pad(a, 1, 0, 1)[:, :-1]),
    "broadcast operand": lambda a, b: (pad(a, 1, 0, 1)[:, :-1] * b[:, :1] * b[0, 0] + 1,),
    "permuted": lambda a, b: (pad(a.permute(0, 2, 1), 1, 0, 2).permute(0, 2, 1)[:, :-1] + b,),
    "unsqueezed": lambda a, b: (pad(a.unsqueeze(0), 1, 0, 2).squeeze(0)[:, :-1] + b,),
    "reshaped": lambda a, b: (pad(a, 1, 0, 1).reshape(2, 1, 6, 6, 1)[:, 0, :-1, :, 0] + b,),
    "one entry": lambda a, b: (pad(a, 1, 0, 1)[0, :-1],),
}
CATS: dict[str, Callable] = {
    "longer result": lambda a, b: (pad(a, 1, 1, 1), pad(a, 2, 1, 2, 1) * 2),
    "several times around": lambda a, b: (torch.cat([a, a, a[:, :2]], 1)[:, 3:],),
    "other order": lambda a, b: (torch.cat([a[:, :1], a, a[:, -1:]], 1),),
    "two tensors": lambda a, b: (torch.cat([a[:, -1:], b], 1),),
    "unlike slices": lambda a, b: (torch.cat([a[:, 4:, 1:], a[:, :, :-1]], 1),),
}
SLICES: dict[str, Callable] = {
    "stencil that needs no padding": lambda a, b: (a[:, 1:] - a[:, :-1], a[:, 1:] + b[:, 1:]),
    "steps": lambda a, b: (a[:, ::2] * 2,),
    "nothing": lambda a, b: (a[:, 5:], a[:, 3:2] * 2),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_paddings_become_shifts(name: str) -> None:
    found = rewritten(SHIFTS[name], Periodic, A, B)
    assert found["roll"] > 0 and found["cat"] == 0


@pytest.mark.parametrize("name", CATS)
def test_what_must_be_longer_is_concatenated(name: str) -> None:
    assert rewritten(CATS[name], Periodic, A, B)["cat"] > 0


@pytest.mark.parametrize("name", SLICES)
def test_other_slices_stay(name: str) -> None:
    found = rewritten(SLICES[name], Periodic, A, B)
    assert found["roll"] == found["cat"] == 0 and found["slice"] > 0


def sampled(values: torch.Tensor, x: torch.Tensor, y: torch.Tensor, shift: float = 1.0, mode: str = "border") -> tuple:
    """Interpolation of periodic values as PhiFlow does it."""
    n = torch.tensor([5.0, 6.0])
    points = (torch.stack([x, y], -1) % n + shift) * 2 / (n + 1) - 1
    return (grid_sample(pad(values, 1, 1, 2, 1)[:, None], points.flip(-1), padding_mode=mode, align_corners=True),)


@pytest.mark.parametrize(
    ("shift", "mode", "known"), [(1.0, "border", True), (0.5, "border", False), (1.0, "zeros", False)]
)
def test_interpolation_of_periodic_values_is_recognised(shift: float, mode: str, known: bool) -> None:
    """By its arithmetic: anything else stays what it was."""
    x, y = 30 * torch.rand(2, 7, 3, dtype=torch.float64) - 10, 30 * torch.rand(2, 7, 3, dtype=torch.float64) - 10
    values = A.double()
    graph = graph_of(lambda *t: sampled(*t, shift, mode), values, x, y)
    module = Periodic(Components(graph).run()).run()
    assert any(isinstance(m, PeriodicSampler) for m in module.modules()) == known
    torch.testing.assert_close(module(values, x, y), sampled(values, x, y, shift, mode), rtol=0, atol=1e-5)
