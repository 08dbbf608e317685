"""Wrong uses and what is said about them: lists of cases for one test each, and small solvers and data to misuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from phi.field import Field

import phi_hybrid as ph
from cases.small import line

Case = tuple[str, Callable[[], Any], type[Exception], str]
"""What is wrong, the call, the error, and a pattern of what its message names."""


def each(cases: Sequence[Case]) -> Any:
    """Decorator of a test `(call, error, named)` that is run for every case."""
    names = [case[0] for case in cases]
    assert len({*names}) == len(names)
    return pytest.mark.parametrize(("call", "error", "named"), [case[1:] for case in cases], ids=names)


def damped(u: Field) -> Field:
    return 0.9 * u


def decaying(trajectories: int = 4, **line_settings: Any) -> ph.Trajectories:
    """Six steps of `damped`."""
    return ph.Trajectories.generate(damped, line(0, b=trajectories, **line_settings), 6, progress=False)


def hybrid(physics: Callable = damped, network: torch.nn.Module | None = None, **settings: Any) -> ph.HybridSolver:
    """A solver with one convolution."""
    return ph.HybridSolver(physics, torch.nn.Conv1d(1, 1, 1) if network is None else network, **settings)


def trainer(solver: Any = None, data: Any = None, objective: Any = None, **settings: Any) -> ph.Trainer:
    """A training of it, with Adam unless `optimizer(parameters)` is another one."""
    solver = hybrid() if solver is None else solver
    optimizer = settings.pop("optimizer", torch.optim.Adam)(solver.parameters())
    scheduler = settings.pop("scheduler", lambda optimizer: None)(optimizer)
    settings = {"optimizer": optimizer, "scheduler": scheduler, "progress": False, **settings}
    return ph.Trainer(solver, data or decaying(), objective or ph.Unrolled(2), **settings)
