"""Optimizers side by side: equal starts, failures, break-even."""

from __future__ import annotations

import math
from pathlib import Path

import common
import contest
import pytest
import torch
from contest import Entrant, Task

from phi_hybrid.optim import HIG


def task(target: float = 1.0) -> Task:
    """Controls of three numbers are to sum up to the state times `target`, which a linear network can learn."""
    torch.manual_seed(0)
    states = torch.randn(24, 2)
    return Task(
        torch.nn.Linear(2, 3),
        lambda controls, x: controls.sum(1, keepdim=True),
        lambda y, x: ((y - target * x.sum(1, keepdim=True)) ** 2).mean(),
        *states.split([16, 8]),
    )


def descent(rate: float, batch: int = 4) -> Entrant:
    return Entrant(lambda net: torch.optim.SGD(net.parameters(), rate), batch)


def gauss_newton(rate: float = 1.0) -> Entrant:
    return Entrant(lambda net: HIG(net, rate, 1.0, progress=False), 4)


def test_training_reduces_the_loss_and_keeps_its_history() -> None:
    history, last = contest.train(task(), descent(0.05), 0.3, seed=0)
    assert history["loss"][-1] < 1e-3 * history["loss"][0] and history["held_out"][-1] < 1e-3 * history["held_out"][0]
    assert history["seconds"][0] == history["updates"][0] == 0 and history["seconds"][-1] >= 0.3
    assert len({len(column) for column in history.values()}) == 1
    assert 2 < len(history["loss"]) <= contest.LOOKS + 2 and last is None


def test_updates_longer_than_a_look_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_timed_update", lambda *args: 1.0)
    history, _ = contest.train(task(), descent(0.05), 3.5, seed=0)
    assert history["updates"] == [0, 1, 2, 3, 4]


def test_all_start_from_the_same_network() -> None:
    start = task()
    before = [p.detach().clone() for p in start.network.parameters()]
    _, drawn = contest.compete(start, {"descent": descent(0.05), "gauss_newton": gauss_newton()}, 0.05, seed=0)
    assert all(torch.equal(p, b) for p, b in zip(start.network.parameters(), before))
    assert len({history["loss"][0] for history, _ in drawn.values()}) == 1


def test_the_warm_up_does_not_train() -> None:
    start = task()
    before = [p.detach().clone() for p in start.network.parameters()]
    contest._warm_up(start, gauss_newton())
    assert all(torch.equal(p, b) for p, b in zip(start.network.parameters(), before))


@pytest.mark.parametrize("diverging", [descent(1e3), gauss_newton(1e30)], ids=["first_order", "hig"])
def test_a_diverging_entrant_is_stopped_and_the_others_go_on(
    diverging: Entrant, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    entrants = {"diverging": diverging, "descent": descent(0.05)}
    metrics, drawn = contest.compete(task(), entrants, 0.3, seed=0)
    assert metrics["diverging"]["loss"] == metrics["diverging"]["held_out"] == math.inf
    assert metrics["diverging"]["seconds"] < 0.3 and "break_even" not in metrics["diverging"]
    assert f"stopped after {metrics['diverging']['updates']} updates" in capsys.readouterr().out
    assert metrics["descent"]["loss"] < 1e-3
    contest.figure(drawn).savefig(tmp_path / "figure.png")
    common.write_metrics(tmp_path, [metrics], 1.0)
    assert "inf" in common.seed_table([metrics], ["loss"])


def test_break_even_is_training_time_by_time_saved() -> None:
    found = contest.break_even(task(), 1e-6, training_seconds=5.0)
    assert found["direct_seconds"] > 0
    assert found["break_even"] >= 5.0 / found["direct_seconds"]  # the network takes time as well


def test_break_even_with_a_network_as_slow_as_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_direct_seconds", lambda *args: 0.0)
    assert contest.break_even(task(), 1e-6, 5.0)["break_even"] == math.inf


def test_no_break_even_where_the_search_does_not_get_there() -> None:
    assert contest.break_even(task(), -1.0, 5.0, iterations=20) == {}


@pytest.mark.parametrize("failed", [math.inf, math.nan])
def test_no_break_even_with_a_network_that_failed(failed: float) -> None:
    assert contest.break_even(task(), failed, 5.0) == {}


def test_batches_are_whole_and_depend_on_the_seed_only() -> None:
    x = torch.arange(10)
    first, again, other = (contest.batches(x, 4, seed) for seed in (0, 0, 1))
    drawn = [next(first) for _ in range(6)]
    assert all(len(part) == 4 for part in drawn)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again))
    assert not all(torch.equal(a, b) for a, b in zip(drawn, other))
