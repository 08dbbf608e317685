"""A forced step on a line, and trajectories to learn from."""

from __future__ import annotations

import pytest
from cases.small import forced_data, forced_step

import phi_hybrid as ph


@pytest.fixture(scope="session")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="session")
def data() -> ph.Trajectories:
    return forced_data()
