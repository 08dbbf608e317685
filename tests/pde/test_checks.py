"""Wrong parameters of all equations: each error names the argument, its value and what was expected."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from functools import partial

import pytest

import phi_hybrid as ph
from phi_hybrid.pde import burgers, heat, smoke
from phi_hybrid.pde.kuramoto_sivashinsky import kuramoto_sivashinsky_step
from phi_hybrid.pde.navier_stokes import Wake, navier_stokes_step
from phi_hybrid.pde.oscillators import Oscillators
from phi_hybrid.pde.penalized_flow import Channel
from phi_hybrid.pde.quantum import Well

SHARPENING = partial(heat.Sharpening, **dict(viscosity=8.0, time=1.0, noise=1e-15))
CASES = [
    (partial(burgers.burgers_step, viscosity=0.1), "dt", "0.1"),
    (partial(burgers.burgers_step, 0.1), "viscosity", pymath.nan),
    (partial(burgers.burgers_step, 0.1, 0.1), "substeps", 2.0),
    (partial(heat.heat_step, viscosity=0.1), "dt", None),
    *[(SHARPENING, name, v) for name in ("viscosity", "time", "noise", "signal") for v in (0, -1.0, pymath.inf)],
    *[(kuramoto_sivashinsky_step, "dt", v) for v in (0.0, -0.1, pymath.inf)],
    *[(partial(kuramoto_sivashinsky_step, 0.1), "substeps", v) for v in (0, 1.5)],
    (partial(kuramoto_sivashinsky_step, 0.1), "scheme", "etd1"),
    (partial(navier_stokes_step, 0.1), "substeps", 0),
    (partial(navier_stokes_step, 0.1), "drag", pymath.nan),
    *[(Wake, name, 0.0) for name in ("width", "length", "diameter", "speed")],
    (partial(smoke.smoke_step, 0.1), "buoyancy", "1"),
    *[(Oscillators, name, v) for name in ("count", "steps") for v in (0, 2.0)],
    *[(Oscillators, name, v) for name in ("coupling", "cubic", "gain") for v in (pymath.nan, "1")],
    *[(make, "dt", v) for make in (Oscillators, Well) for v in (0.0, pymath.inf)],
    *[(Well, "points", v) for v in (2, 16.0)],
    (Well, "steps", 0),
    *[(Well, "length", v) for v in (0.0, pymath.inf)],
    *[(Channel, "cells", v) for v in (0, 8.5)],
    *[(partial(Channel, 8), name, -1.0) for name in ("height", "aspect", "centre", "reynolds", "smoothing")],
]


@pytest.mark.parametrize(("make", "name", "value"), CASES)
def test_wrong_parameters(make: Callable, name: str, value: object) -> None:
    with pytest.raises(ph.StateError, match=f"{name} = {value!r}: expected"):
        make(**{name: value})


def test_no_noise_at_all_has_a_way_out() -> None:
    with pytest.raises(ph.StateError, match="noise = 0: .* take that of rounding"):
        SHARPENING(noise=0)
