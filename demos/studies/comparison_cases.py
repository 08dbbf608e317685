"""Experiments that `compare_training.py` compares methods on: data, uncorrected solver, network, budgets.

Learning rates are those with the smallest validation error on seed 1000 (`--tune`), which is used for nothing else;
pre-computed corrections and replacement take the rate of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from flows import LINE
from phi.math import batch, wrap
from phi.torch.flow import advect, diffuse, res_net

import phi_hybrid as ph
from phi_hybrid.pde import burgers
from phi_hybrid.pde import kuramoto_sivashinsky as ks


@dataclass(frozen=True)
class Data:
    """Trajectories that methods are trained on, tuned on and judged by."""

    training: ph.Trajectories
    validation: ph.Trajectories
    test: ph.Trajectories
    """Unseen initial states (and forces, or lengths), longer than the comparison."""
    unseen: Mapping[str, ph.Trajectories] = field(default_factory=dict)
    """Name → parameters that do not occur in training."""


@dataclass(frozen=True)
class Case:
    """One experiment."""

    name: str
    data: Callable[[int], Data]
    """Made from a seed."""
    source: Callable[[], ph.PhysicsBlock]
    network: Callable[[], torch.nn.Module]
    horizon: int
    """Steps of the comparison; the test data is longer."""
    early: int
    """Steps of a second, shorter comparison."""
    unrolled: tuple[int, int]
    """Steps of the shorter and the longer unrolled training."""
    pretraining: int
    updates: int
    batch: int
    sigmas: tuple[float, ...]
    """Noise levels tried, in standard deviations of the data."""
    rate: float
    """Initial learning rate, found by `--tune` on validation data of another seed …"""
    rates: Mapping[str, float] = field(default_factory=dict)
    """… and that of methods for which another one was found."""
    coupling: Any = ph.Additive()
    pretraining_rate: float = 2e-3
    precomputing: int = 100
    """Iterations in which the pre-computed corrections are found."""


# --- forced Burgers, 512 → 64 cells ---


def burgers_data(seed: int) -> Data:
    """Five random waves as force, as initial state: 16 trajectories for training, 4 for validation, 16 for the test."""
    fine = LINE.physics(512)

    def generate(count: int, steps: int, part: int, strength: float = 1.0) -> ph.Trajectories:
        return LINE.waves(count, 10 * seed + part, amplitude=0.5 * strength, steps=steps, fine=fine)

    unseen = {"half the force": generate(8, 199, 3, 0.5), "twice the force": generate(8, 199, 4, 2.0)}
    return Data(generate(16, 199, 0), generate(4, 199, 1), generate(16, 5 * 199, 2), unseen)


def small_network() -> torch.nn.Module:
    """Three residual blocks of 32 filters on a periodic line."""
    return res_net(2, 1, [32, 32, 32], in_spatial=1, periodic=True)


BURGERS = Case(
    name="burgers",
    data=burgers_data,
    source=partial(LINE.physics, 64),
    network=small_network,
    horizon=199,
    early=50,
    unrolled=(4, 16),
    pretraining=1500,
    updates=600,
    batch=16,
    sigmas=(1e-3, 3e-3, 1e-2, 3e-2),
    rate=6e-3,
    rates={"pushforward": 1.2e-2, "nog_4": 1.2e-2},
)


def burgers_schemes() -> dict[str, ph.PhysicsBlock]:
    """Coarse solvers that differ in their discretisation only, for the same reference."""
    substeps = burgers.diffusion_substeps(LINE.viscosity, LINE.dt, LINE.length / 64, 1)
    advections = {
        "semi-Lagrangian": advect.semi_lagrangian,
        "MacCormack": advect.mac_cormack,
        "upwind": burgers.upwind,
        "central": lambda u, velocity, dt: u + dt * advect.finite_difference(u, velocity),
    }
    diffusions = {"explicit": None, "implicit": diffuse.implicit}
    return {
        f"{a}, {d}": ph.capture(burgers.burgers_step(LINE.dt, LINE.viscosity, substeps, advections[a], diffusions[d]))
        for d in diffusions
        for a in advections
    }


# --- Kuramoto–Sivashinsky, ETDRK2 on 96 cells → ETD1 on 48 ---

KS_DT, KS_LENGTHS = 0.5, (0.9, 1.3)


def ks_generator(seed: int) -> Callable[[np.ndarray, int, int], ph.Trajectories]:
    """`(lengths in units of 16π, frames, part of the data) -> trajectories` on the attractor, coarsened."""
    fine = ph.capture(ks.kuramoto_sivashinsky_step(KS_DT, substeps=10))
    settle = ph.capture(ks.kuramoto_sivashinsky_step(10.0, substeps=50))

    def generate(lengths: np.ndarray, steps: int, part: int) -> ph.Trajectories:
        stretch = wrap(torch.as_tensor(lengths, dtype=torch.float32), batch("trajectory"))
        initial = ks.initial_states(ks.line(96), len(lengths), 10 * seed + part)
        initial = ph.repeat(settle, initial, 15, stretch)
        return ph.Trajectories.generate(fine, initial, steps, (stretch,), coarsen=2, metadata={"dt": KS_DT})

    return generate


def ks_data(seed: int) -> Data:
    """Lengths 0.9 … 1.3 of 16π on the attractor, 16 trajectories for training; 0.8 and 1.4 are never seen."""
    generate = ks_generator(seed)

    def between(count: int) -> np.ndarray:
        return np.linspace(*KS_LENGTHS, count)

    unseen = {"length 0.8": generate(np.full(8, 0.8), 12, 3), "length 1.4": generate(np.full(8, 1.4), 12, 4)}
    return Data(generate(between(16), 200, 0), generate(between(8), 12, 1), generate(between(33)[1::2], 60, 2), unseen)


KS = Case(
    name="ks",
    data=ks_data,
    source=lambda: ph.capture(ks.kuramoto_sivashinsky_step(KS_DT, substeps=2, scheme=ks.etd1)),
    network=small_network,
    horizon=12,
    early=4,
    unrolled=(4, 8),
    pretraining=3000,
    updates=1200,
    batch=16,
    sigmas=(1e-4, 1e-3, 1e-2),
    rate=1e-3,
    coupling=ph.coupling.Parallel(),
)

CASES = {case.name: case for case in (BURGERS, KS)}
