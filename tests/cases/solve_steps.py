"""Steps with linear solves at module level, so that blocks can be pickled and loaded in other processes."""

from __future__ import annotations

from phi.torch.flow import Field, Tensor, advect, diffuse, fluid

from cases.solves import obstacles, part_of


def flow(u: Field) -> Field:
    """Around an obstacle."""
    u = advect.semi_lagrangian(u, u, 0.05)
    return fluid.make_incompressible(u, obstacles("one"))[0]


def box(u: Field) -> Field:
    return fluid.make_incompressible(u + 0.1 * u * u)[0]


def moving(u: Field) -> Field:
    return fluid.make_incompressible(u + 0.1 * u * u, obstacles("moving"))[0]


def part(u: Field) -> Field:
    """The pressure vanishes in a corner, so that the matrix is not symmetric."""
    return fluid.make_incompressible(u + 0.1 * u * u, active=part_of(u))[0]


def several(u: Field) -> Field:
    """Two solves for two components, then one for the pressure, which is solved for twice."""
    u = diffuse.implicit(u, 0.1, 0.2)
    u, _ = fluid.make_incompressible(u)
    u, _ = fluid.make_incompressible(u + 0.1 * u * u)
    return u


def smoothed(u: Field) -> Field:
    """Of a centred field; refuses values that are not finite."""
    return diffuse.implicit(u, 0.1, 0.2)


def pushed(u: Field, push: Tensor) -> Field:
    return diffuse.implicit(u + push, 0.1, 0.2)


def squared(u: Field) -> Field:
    """Overflows float32 in the fourth step from 1e3 on: 1e3, 1e6, 1e12, 1e24, ∞."""
    return diffuse.implicit(u * u, 0.1, 0.2)
