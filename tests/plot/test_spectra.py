import numpy as np
import pytest
from cases.plots import frames_of, line, vector_of
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Noise, StaggeredGrid, batch, channel, math, spatial, tensor

import phi_hybrid as ph
from phi_hybrid.plot import energy_spectrum, errors, spectrum


def noise(names, sizes, box, components):
    values = np.random.default_rng(len(names)).normal(size=(2, *sizes, len(components)))
    values = tensor(values, batch("time"), spatial(*names), channel(vector=components))
    return CenteredGrid(values, PERIODIC, Box(**box), **dict(zip(names, sizes))), values.numpy(
        ["time", *names, "vector"]
    )


def shells(values, spacing, longest):
    """E(k) of an array (time, x, …, components) mode by mode, also of incomplete shells."""
    axes = tuple(range(1, values.ndim - 1))
    power = 0.5 * np.mean(np.sum(np.abs(np.fft.fftn(values, axes=axes, norm="forward")) ** 2, -1), 0)
    k = np.meshgrid(*[np.fft.fftfreq(n, d) for n, d in zip(power.shape, spacing)], indexing="ij")
    return np.bincount(np.rint(longest * np.sqrt(sum(part**2 for part in k))).astype(int).ravel(), power.ravel())


@pytest.mark.parametrize(
    "names, sizes, box, complete",
    [
        ("x", (15,), {"x": 3.0}, 8),
        ("xy", (8, 8), {"x": 1.0, "y": 1.0}, 5),
        ("xy", (8, 6), {"x": 4.0, "y": 1.0}, 5),
        ("xyz", (4, 5, 6), {"x": 1.0, "y": 2.0, "z": 3.0}, 4),
    ],
)
def test_energies_of_complete_shells(names, sizes, box, complete):
    """Against NumPy; all shells together hold ½⟨|u|²⟩ (Parseval)."""
    field, values = noise(list(names), sizes, box, list(names))
    wavenumber, energy = energy_spectrum(field)
    expected = shells(values, [box[n] / s for n, s in zip(names, sizes)], max(box.values()))
    assert expected.sum() == pytest.approx(0.5 * (values**2).sum(-1).mean(), rel=1e-5)
    assert len(energy) == complete
    np.testing.assert_allclose(energy, expected[:complete], rtol=1e-5)
    np.testing.assert_allclose(wavenumber, 2 * np.pi / max(box.values()) * np.arange(complete))


def test_energy_of_one_sine():
    x = (np.arange(32) + 0.5) / 32 * 5
    wavenumber, energy = energy_spectrum(line(3 * np.sin(2 * np.pi * 4 * x / 5)[None], length=5.0))
    peak = energy.argmax()
    assert wavenumber[peak] == pytest.approx(2 * np.pi * 4 / 5)
    assert energy[peak] == pytest.approx(0.5 * 3**2 / 2) and energy.sum() == pytest.approx(energy[peak])


def test_diagonal_modes_belong_to_the_shell_of_their_length():
    field = CenteredGrid(
        lambda p: math.cos(3 * p.vector["x"] + 4 * p.vector["y"]), PERIODIC, Box(x=2 * np.pi, y=2 * np.pi), x=16, y=16
    )
    wavenumber, energy = energy_spectrum(field)
    assert wavenumber[energy.argmax()] == pytest.approx(5) and energy.max() == pytest.approx(0.25, rel=1e-4)


def test_staggered_faces_are_not_damped():
    def shear(p):
        return vector_of(x=math.sin(6 * p.vector["x"]), y=math.sin(6 * p.vector["x"]))

    grid = StaggeredGrid(shear, PERIODIC, Box(x=2 * np.pi, y=2 * np.pi), x=16, y=16)
    assert energy_spectrum(grid)[1].sum() == pytest.approx(0.5, rel=1e-4)


def test_uniform_fields_hold_only_the_mean_flow():
    energy = energy_spectrum(CenteredGrid(2, PERIODIC, x=4, y=4))[1]
    assert energy[0] == pytest.approx(2) and energy[1:].max() < 1e-12


def test_average_over_samples_and_choice_of_one():
    x = (np.arange(16) + 0.5) / 16
    one = np.sin(2 * np.pi * 2 * x)
    field = line(np.stack([[one], [3 * one]]))
    mean = spectrum(field).axes[0].get_lines()[0].get_ydata()
    second = spectrum(field, example=1).axes[0].get_lines()[0].get_ydata()
    assert np.nanmax(mean) == pytest.approx((0.25 + 2.25) / 2) and np.nanmax(second) == pytest.approx(2.25)


def test_non_finite_samples_are_left_out_and_counted():
    x = (np.arange(16) + 0.5) / 16
    bad = np.stack([[np.sin(2 * np.pi * x)], [np.nan * x]])
    ax = spectrum({"a": line(bad), "b": line(bad[1])}).axes[0]
    assert np.nanmax(ax.get_lines()[0].get_ydata()) == pytest.approx(0.25)
    notes = [text.get_text() for text in ax.texts]
    assert "a: 1 of 2 non-finite" in notes and "b: 1 of 1 non-finite" in notes


def test_parts_and_wrong_arguments():
    x = (np.arange(16) + 0.5) / 16
    state = {"velocity": line(np.ones((1, 16))), "smoke": line(np.sin(2 * np.pi * 2 * x)[None])}
    for trajectories in (state, {"a": state}):
        drawn = spectrum(trajectories, part="smoke").axes[0].get_lines()[0]
        assert np.nanmax(drawn.get_ydata()) == pytest.approx(0.25)
    with pytest.raises(ph.StateError, match="periodic fields, but this one has the boundaries x- constant"):
        energy_spectrum(line(np.ones((1, 8)), boundary=0))
    periodic = frames_of(CenteredGrid(1, PERIODIC, x=4), 2)
    with pytest.raises(ph.StateError, match=r"frame index \[2\]"):
        spectrum(periodic, frame=2)
    with pytest.raises(ph.StateError, match="example = 5"):
        spectrum(line(np.ones((2, 1, 8))), example=5)


def test_the_reference_is_black_and_the_others_keep_the_colours_of_other_figures():
    state = frames_of(CenteredGrid(Noise(), PERIODIC, x=16), 1)
    names = ["source", "hybrid"]
    drawn = spectrum({"truth": state, **{name: state for name in names}}, reference="truth").axes[0].get_lines()
    expected = errors({name: np.ones((1, 3)) for name in names}).axes[0].get_lines()
    assert {x.get_label(): x.get_color() for x in drawn} == {
        "truth": "#222222",
        **{x.get_label(): x.get_color() for x in expected},
    }
    with pytest.raises(ph.StateError, match="unknown reference 'trut'"):
        spectrum({"truth": state}, reference="trut")
