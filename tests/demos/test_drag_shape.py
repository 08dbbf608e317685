"""The demo of shapes: what a tunnel counts, and that each way finds less drag."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from drag_shape import DISC, LARGEST, Tunnel, by_adjoint, by_surrogate, without_gradients

from phi_hybrid.pde.penalized_flow import Channel

torch.set_num_threads(1)


def test_adjoint_reduces_the_drag_at_equal_area() -> None:
    tunnel = Tunnel(Channel(14))
    before = tunnel.drag(DISC)
    assert tunnel.solves == 1 and tunnel.steps == tunnel.forward_steps > 10
    by_adjoint(tunnel, 3, 0)
    assert tunnel.solves >= 3 and tunnel.steps > tunnel.forward_steps
    assert min(drag for _, drag, _ in tunnel.history) < 0.95 * before
    for mask in tunnel.mask(torch.as_tensor(tunnel.best)):
        assert float(mask.sum()) * tunnel.channel.dx**2 == pytest.approx(np.pi / 4, rel=1e-6)


@dataclass
class Bowl:
    """A tunnel whose drag is known: 3 + ‖a − a*‖² in units of the box, least at a*."""

    optimum: np.ndarray
    history: list = field(default_factory=list)

    @property
    def solves(self) -> int:
        return len(self.history)

    @property
    def best(self) -> np.ndarray:
        return min(self.history, key=lambda entry: entry[1])[2]

    def drag(self, a: np.ndarray) -> float:
        drag = 3 + float((((a - self.optimum) / LARGEST) ** 2).sum())
        self.history.append((self.solves, drag, np.array(a)))
        return drag


def bowl() -> Bowl:
    return Bowl(LARGEST * np.array([0.5, 0.3, -0.2, 0.0, 0.1, 0.0]))


def test_a_surrogate_knows_where_to_look() -> None:
    """Its first proposal is better than all shapes that it has learnt from."""
    tunnel = bowl()
    by_surrogate(tunnel, 18, 0)
    *learnt, (_, proposed, _) = tunnel.history
    assert len(learnt) == 17 and learnt[0][1] == pytest.approx(3.39)
    assert proposed < min(drag for _, drag, _ in learnt)


def test_search_without_gradients_finds_the_optimum() -> None:
    tunnel = bowl()
    without_gradients(tunnel, 40, 0)
    assert tunnel.solves <= 40 and min(drag for _, drag, _ in tunnel.history) < 3.02
