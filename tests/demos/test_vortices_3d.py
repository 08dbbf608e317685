"""The study of vortices in three dimensions: its solver against an exact flow, its states, its methods."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import vortices_3d as vortices
from cases.small import equal
from phi.field import Field
from phi.math import dual, spatial, stack, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

torch.set_num_threads(1)
SMALL = vortices.Case(fine=8, coarse=4, spin_up=1, steps=10, training=4, updates=20, filters=(2,))


def abc_flow(cells: int) -> Field:
    """(sin z + cos y, sin x + cos z, sin y + cos x): u × (∇×u) = 0, so that it decays as exp(−νt) and keeps its shape."""
    edge = 2 * np.pi / cells
    face, centre = np.arange(cells) * edge, (np.arange(cells) + 0.5) * edge
    components = {}
    for name, other, third in (("x", "y", "z"), ("y", "z", "x"), ("z", "x", "y")):
        axes = {name: face, other: centre, third: centre}
        at = dict(zip("xyz", np.meshgrid(*[axes[d] for d in "xyz"], indexing="ij")))
        components[name] = wrap(torch.as_tensor(np.sin(at[third]) + np.cos(at[other])).float(), spatial("x,y,z"))
    return vortices.random_flow(cells, 1, 0).trajectory[0].with_values(stack(components, dual("vector")))


@pytest.mark.ci
def test_a_flow_whose_vorticity_is_its_velocity_decays_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arnold, Beltrami and Childress's solution of the Navier–Stokes equations; errors are of first order in the time step."""
    errors, start = [], abc_flow(16)
    for steps in (5, 10):
        monkeypatch.setattr(vortices, "DT", 0.5 / steps)
        found = flatten(ph.repeat(vortices.physics(16), start, steps))[0]
        exact = [np.exp(-vortices.VISCOSITY * 0.5) * t for t in flatten(start)[0]]
        errors.append(max(float((f - e).abs().max()) for f, e in zip(found, exact)))
    assert errors[1] < 0.025 and 0.4 < errors[1] / errors[0] < 0.6, errors


def test_random_flows_are_free_of_divergence_and_differ() -> None:
    flow = vortices.random_flow(16, 2, 0)
    assert ph.quantities.largest_divergence(flow) < 1e-5
    one, other = (flatten(flow.trajectory[n])[0] for n in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    for values in (one, other):
        assert float(torch.stack([t.square().mean() for t in values]).mean()) == pytest.approx(1, rel=1e-4)


def test_vorticity_along_z_of_a_known_flow() -> None:
    """ω_z = cos x + sin y of the flow above, up to errors of second order, at the edges of the cells."""
    edge = 2 * np.pi / 32
    x = np.arange(32) * edge
    found = vortices.vorticity_along_z(abc_flow(32)).values.numpy("x,y,z")[:, :, 0]
    np.testing.assert_allclose(found, np.cos(x)[:, None] + np.sin(x), atol=5e-3)


@pytest.mark.ci
def test_methods_make_equal_updates_and_are_measured_against_the_source(tmp_path: Path) -> None:
    options = Namespace(seed=0, seeds=1, out=tmp_path, quick=True, full=False)
    found, alone = vortices.trained(SMALL, options)
    rows = found.runs[0].rows
    assert set(rows) == {"source", *SMALL.methods()} and set(alone.runs[0].rows) == {"source", "network_alone"}
    assert {rows[m]["updates"] for m, (_, times) in vortices.METHODS.items() if times == 1} == {1}
    assert rows["source"]["/ source"] == rows["source"]["worst time"] == 1
    assert rows["unrolled_4"]["/ source"] == pytest.approx(rows["unrolled_4"]["mae"] / rows["source"]["mae"])


def test_the_recipe_is_among_what_is_tuned() -> None:
    case = vortices.Case()
    methods, candidates = case.methods(), case.candidates()
    assert {
        m: candidates[c] for m, c in (("one_step", "1 steps, rate 0.005"), ("unrolled_4", "4 steps, rate 0.005"))
    } == {m: methods[m] for m in ("one_step", "unrolled_4")}
    assert methods["noise"] in candidates.values()


def test_an_untrained_correction_is_the_source() -> None:
    _, test = vortices.reference_data(SMALL, 0)
    source = vortices.physics(SMALL.coarse)
    solver = ph.HybridSolver(source, vortices.correction(SMALL))
    own, bare = (flatten(ph.repeat(step, test.initial_state, 3))[0] for step in (solver, source))
    assert equal(own, bare)
