"""Cases of `compare_transport.py`: equation, uncorrected solver, network, budgets.

The equations are in `transport_equations.py`; *chaos* is Kuramoto–Sivashinsky on half the cells and with a scheme of
first order, see `comparison_cases.py`. Learning rates and σ have the smallest validation error on seed 1000
(`compare_transport.py --tune`), which is used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comparison_cases
import torch
import transport_equations as equations
from phi.torch.flow import res_net
from transport_equations import Pair

import phi_hybrid as ph


@dataclass(frozen=True)
class Case:
    """One equation."""

    data: Callable[[int], Pair]
    """Seed → training and test trajectories."""
    source: Callable[[], ph.PhysicsBlock]
    channels: tuple[int, int]
    """Of the network, in and out."""
    dt: float
    early: int
    """Steps of a second, shorter comparison."""
    unrolled: tuple[int, int]
    rate: float
    """Learning rate behind the shared training, one step; see above."""
    unrolled_rate: float
    """Of unrolled trainings."""
    sigma: float
    """Noise in standard deviations of the data; see above."""
    long: float = 4.4
    """Updates of `one_step_long` over those of the others: the processor time of the longest unrolling by `--tune`."""
    coupling: Any = ph.Additive()
    inside: Case | None = None
    """The same, where the network sets the unknown inside of the step."""
    features: Callable[[], tuple[Any, ...]] = tuple
    pretraining: int = 600
    updates: int = 250

    def scaled(self, budget: float) -> Case:
        """The case with so many times the updates."""
        return replace(self, pretraining=round(budget * self.pretraining), updates=round(budget * self.updates))

    def hybrid(self, source: ph.PhysicsBlock, coupling: Any | None = None) -> ph.HybridSolver:
        """The source with a network of three residual blocks of 32 filters."""
        network = res_net(*self.channels, [32, 32, 32], in_spatial=1, periodic=True)
        return ph.HybridSolver(source, network, coupling or self.coupling, features=self.features())


def chaos_data(seed: int) -> Pair:
    """Training and test trajectories of `comparison_cases.KS`."""
    data = comparison_cases.KS.data(seed)
    return data.training, data.test


DRIFT = Case(
    equations.drift_data,
    lambda: equations.drift_with(equations.diffusivity()),
    channels=(4, 1),
    dt=equations.DRIFT_DT,
    early=50,
    unrolled=(4, 8),
    rate=3e-4,
    unrolled_rate=3e-4,
    sigma=1e-3,
    features=equations.places,
)
FLUX = replace(
    DRIFT,
    data=equations.drift_data_with_guess,
    source=lambda: ph.capture(equations.drift),
    channels=(5, 1),
    coupling=ph.coupling.Parameter(1, lambda guess, output: guess * torch.exp(output)),
)

CASES = {
    "diffusivity": replace(DRIFT, inside=FLUX),
    "reaction": Case(
        equations.reaction_data,
        lambda: ph.capture(equations.reaction(equations.caricature)),
        channels=(2, 2),
        dt=equations.EXCITED_DT,
        early=50,
        unrolled=(4, 8),
        rate=1e-3,
        unrolled_rate=3e-3,
        sigma=1e-4,
    ),
    "chaos": Case(
        chaos_data,
        comparison_cases.KS.source,
        channels=(2, 1),
        dt=comparison_cases.KS_DT,
        early=12,
        unrolled=(4, 8),
        rate=1e-3,
        unrolled_rate=1e-3,
        sigma=1e-4,
        coupling=comparison_cases.KS.coupling,
        pretraining=1000,
        updates=300,
    ),
}
