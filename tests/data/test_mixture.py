"""Mixtures of data sets: which windows they draw, how often, and in what order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import equal, faces, forced_step, line
from torch.utils.data import DataLoader

import phi_hybrid as ph
from phi_hybrid.data import Batch, Mixture


def make(trajectories: int, steps: int, seed: int) -> ph.Trajectories:
    """Forced states on a line; a force with time."""
    inputs = (line(seed + 1, b=trajectories, time=steps),)
    return ph.Trajectories.generate(ph.capture(forced_step), line(seed, b=trajectories), steps, inputs, progress=False)


@pytest.fixture(scope="module")
def short() -> ph.Trajectories:
    """12 windows of 2 steps."""
    return make(4, 4, 0)


@pytest.fixture(scope="module")
def long() -> ph.Trajectories:
    """18 windows of 2 steps."""
    return make(2, 10, 2)


def drawn(windows: Any, batches: int, size: int, seed: int = 0) -> list[int]:
    """Numbers of the windows in the first batches."""
    first = torch.stack([windows[n].states[0].flatten() for n in range(len(windows))])
    rows = [row for number in range(batches) for row in windows.shuffled(number, size, seed).states[0].flatten(1)]
    return [int((first == row).all(1).nonzero()) for row in rows]


def same_batch(a: Batch, b: Batch) -> bool:
    return equal(a.states, b.states) and equal(a.inputs, b.inputs) and (a.layouts, a.scale) == (b.layouts, b.scale)


@pytest.mark.parametrize("entry", [lambda d: d, lambda d: (0.3, d)])
def test_a_mixture_of_one_set_is_that_set(entry: Callable, short: ph.Trajectories) -> None:
    mixture = Mixture({"all": entry(short)})
    mixed, own = mixture.windows(2), short.windows(2)
    assert len(mixture) == len(short) and len(mixed) == len(own) and mixture.scale == short.scale
    for number in range(9):
        assert same_batch(mixed.shuffled(number, 5, 3), own.shuffled(number, 5, 3))
    assert all(same_batch(mixed[n], own[n]) for n in (0, 7, -1))


def test_windows_of_two_sets_one_after_the_other(short: ph.Trajectories, long: ph.Trajectories) -> None:
    windows = Mixture({"short": short, "long": long}).windows(2)
    own = [w[n] for w in (short.windows(2), long.windows(2)) for n in range(len(w))]
    assert len(windows) == len(own) == 30
    for window, expected in zip([windows[n] for n in range(30)], own):
        assert equal(window.states, expected.states) and equal(window.inputs, expected.inputs)
    gathered = windows.gather(torch.tensor([29, 3, 12, 11, 3]))
    for row, number in enumerate([29, 3, 12, 11, 3]):
        assert torch.equal(gathered.states[0][row], own[number].states[0][0])
        assert torch.equal(gathered.inputs[0][row], own[number].inputs[0][0])
    for beyond in (30, -31):
        with pytest.raises(IndexError):
            windows[beyond]
    batches = list(DataLoader(windows, batch_size=8, collate_fn=windows.collate))
    assert torch.equal(torch.cat([b.states[0] for b in batches]), torch.cat([w.states[0] for w in own]))


def test_the_scale_is_that_of_all_values(short: ph.Trajectories, long: ph.Trajectories) -> None:
    mixture = Mixture({"short": short, "long": long})
    values = np.concatenate([d.states[0].double().numpy().ravel() for d in (short, long)])
    assert mixture.scale == pytest.approx([np.std(values, ddof=1)])
    assert {mixture.windows(3).shuffled(0, 4, 0).scale, mixture.windows(3)[0].scale} == {mixture.scale}


def test_every_window_counts_the_same(short: ph.Trajectories, long: ph.Trajectories) -> None:
    mixture = Mixture({"short": short, "long": long})
    assert mixture.shares(2) == {"short": 12 / 30, "long": 18 / 30}
    numbers = drawn(mixture.windows(2), 20, 3)
    for epoch in (numbers[:30], numbers[30:]):
        assert sorted(epoch) == list(range(30)) != epoch
    assert numbers[:30] != numbers[30:]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2, 0.5), (1.0, 9.0)])
def test_weights_are_shares_of_what_is_drawn(
    weights: tuple[float, float], short: ph.Trajectories, long: ph.Trajectories
) -> None:
    mixture = Mixture({"short": (weights[0], short), "long": (weights[1], long)})
    share, epochs = weights[0] / sum(weights), 40
    assert mixture.shares(2) == pytest.approx({"short": share, "long": 1 - share})
    numbers = drawn(mixture.windows(2), epochs * 6, 5)
    counts = [sum(n < 12 for n in numbers[30 * e : 30 * e + 30]) for e in range(epochs)]
    assert all(abs(count - 30 * share) < 1 for count in counts)
    assert abs(np.mean(counts) / 30 - share) < 4 * 0.5 / 30 / epochs**0.5
    for epoch in range(epochs):
        seen = Counter(numbers[30 * epoch : 30 * epoch + 30])
        for own in (range(12), range(12, 30)):
            often = [seen[n] for n in own]
            assert max(often) - min(often) <= 1
    every = Counter(numbers)
    for own, part in ((range(12), share), (range(12, 30), 1 - share)):
        expected = 30 * epochs * part / len(own)
        assert all(abs(every[n] - expected) < 5 * max(1, expected) ** 0.5 for n in own)


def test_a_small_share_is_drawn_in_some_epochs(short: ph.Trajectories, long: ph.Trajectories) -> None:
    windows = Mixture({"rare": (0.1, short), "long": (9.9, long)}).windows(2)
    rare = sum(n < 12 for n in drawn(windows, 300, 10))
    assert abs(rare - 30) < 5 * 30**0.5


def test_sets_without_a_weight_beside_others_have_weight_one(short: ph.Trajectories, long: ph.Trajectories) -> None:
    mixture = Mixture({"short": short, "long": (2.0, long)})
    assert mixture.weights == {"short": 1.0, "long": 2.0} and mixture.shares(1)["long"] == pytest.approx(2 / 3)
    assert Mixture({"short": short, "long": long}).weights is None
    assert "short: 1 × Trajectories(4 of 4" in repr(mixture) and "long: 2 ×" in repr(mixture)


def test_batches_depend_on_number_and_seed_alone(short: ph.Trajectories, long: ph.Trajectories) -> None:
    sets = {"short": short, "long": (3, long)}
    expected = Mixture(sets).windows(2).shuffled(17, 4, 5)
    torch.manual_seed(1)
    windows = Mixture(sets).windows(2)
    for number, seed in ((3, 5), (17, 6), (0, 0)):
        assert not same_batch(windows.shuffled(number, 4, seed), expected)
    assert same_batch(windows.shuffled(17, 4, 5), expected)


def test_sets_shorter_than_the_windows_are_named(short: ph.Trajectories, long: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=r"5 steps .*\{'short': 4\}.*1 … 4"):
        Mixture({"short": short, "long": long}).windows(5)
    with pytest.raises(ph.DataError, match="0 steps"):
        Mixture({"short": short}).windows(0)


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (lambda d: {}, "sets = {}"),
        (lambda d: [d, d], r"sets = \[Traj.*a mapping"),
        (lambda d: {1: d}, "name of a set = 1"),
        (lambda d: {"a": (0, d)}, "weight of 'a' = 0: .*> 0"),
        (lambda d: {"a": ("2", d)}, "weight of 'a'"),
        (lambda d: {"a": (d, 2.0)}, "weight of 'a'"),
        (lambda d: {"a": d.states[0]}, r"sets\['a'\] = tensor"),
        (lambda d: {"a": Mixture({"b": d})}, r"sets\['a'\] = Mixture"),
        (lambda d: {"a": d, "b": d.with_inputs()}, r"sets\['b'\] .*sets\['a'\]: inputs: tuple of 0"),
        (
            lambda d: {"a": d, "b": ph.Trajectories.generate(lambda u: u, faces("open", 0, b=2), 4, progress=False)},
            r"sets\['b'\] .* states: ",
        ),
    ],
)
def test_what_is_no_mixture(sets: Callable, named: str, short: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=named):
        Mixture(sets(short))
