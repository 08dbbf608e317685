"""Studies against trainers by hand; what is trained once, what is gone on with, and what fails."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal, forced_step, line, reference

import phi_hybrid as ph
from phi_hybrid.studies import Stage, StudyResult
from phi_hybrid.training import TaskError, Trainer

START = Stage(ph.Unrolled(1), 6, lr=3e-3, batch_size=4)
METHODS = {
    "one step": [START, Stage(ph.Unrolled(1), 4, batch_size=4)],
    "two steps": [START, Stage(ph.Unrolled(2), 4, batch_size=4)],
}


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module")
def data() -> tuple[ph.Trajectories, ph.Trajectories]:
    f = line(1, b=6, time=6)
    return ph.Trajectories.generate(ph.capture(reference), line(0, b=6), 6, (f,), progress=False).split(4)


def network(seed: int) -> SmallNet:
    return SmallNet(2, 1, 1, seed=seed)


def solvers(block: ph.PhysicsBlock) -> dict[str, Any]:
    return {"source": block, "hybrid": lambda seed: ph.HybridSolver(block, network(seed))}


def by_hand(block: ph.PhysicsBlock, training: ph.Trajectories, method: str, seed: int) -> ph.HybridSolver:
    solver = ph.HybridSolver(block, network(seed))
    for stage in METHODS[method]:
        optimizer = torch.optim.Adam(solver.parameters(), stage.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.updates)
        settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=4, clip=1.0, seed=seed)
        Trainer(solver, training, stage.objective, **settings).fit(stage.updates)
    return solver


@pytest.fixture(scope="module")
def found(block: ph.PhysicsBlock, data: tuple, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    folder = tmp_path_factory.mktemp("study")
    return ph.study(solvers(block), data, METHODS, folder=folder, seeds=2), folder


def test_a_study_is_trainings_and_evaluations_by_hand(block: ph.PhysicsBlock, data: tuple, found: tuple) -> None:
    result, _ = found
    for seed in (0, 1):
        own = {method: by_hand(block, data[0], method, seed) for method in METHODS}
        evaluation = ph.evaluate({"source": block, **own}, data[1])
        assert list(result.runs[seed].rows) == ["source", "one step", "two steps"]
        for row, numbers in evaluation.summary().items():
            assert {k: result.runs[seed].rows[row][k] for k in numbers} == numbers
    assert result.runs[0].rows["one step"]["mae"] != result.runs[1].rows["one step"]["mae"]
    assert result.runs[0].rows["two steps"]["updates"] == 10 and result.runs[0].rows["source"]["updates"] == 0
    assert result.runs[0].rows["two steps"]["seconds"] > 0


def test_solvers_are_those_that_were_evaluated(block: ph.PhysicsBlock, data: tuple, found: tuple) -> None:
    result, _ = found
    assert result.solver("source") is block
    again = ph.evaluate({"two steps": result.solver("two steps", 1)}, data[1]).summary()["two steps"]
    assert again["mae"] == result.runs[1].rows["two steps"]["mae"]
    with pytest.raises(ph.StateError, match="method = 'three steps'"):
        result.solver("three steps")
    with pytest.raises(ph.StateError, match="seed = 7"):
        result.evaluation(7)


def test_tables_figures_and_files(found: tuple) -> None:
    result, folder = found
    table = result.table(["mae", "updates"])
    values = [result.runs[seed].rows["two steps"]["mae"] for seed in (0, 1)]
    assert table.rows["two steps"]["mae"].values == tuple(values)
    assert result.curves()["source"].shape == (2 * 2, 7)
    stages = result.runs[0].histories
    assert {method: [len(h["loss"]) for h in own] for method, own in stages.items()} == dict.fromkeys(METHODS, [6, 4])
    assert stages["one step"][0] == stages["two steps"][0] and stages["one step"][1] != stages["two steps"][1]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["methods"]["two steps"]["mae"] == pytest.approx(sum(values) / 2)
    assert metrics["seeds"]["1"]["two steps"]["mae"] == values[1]
    assert "| two steps |" in (folder / "table.md").read_text()
    assert all((folder / f"{name}.png").stat().st_size > 5000 for name in ("errors", "training"))


def test_random_numbers_of_the_caller_go_on(found: tuple) -> None:
    before = torch.get_rng_state()
    first, second = (dict(found[0].solver("one step", seed).named_parameters()) for seed in (0, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_not_finite_is_null_in_json(found: tuple, tmp_path: Path) -> None:
    result, _ = found
    rows = {"source": {"mae": math.nan, "until": math.inf}}
    dataclasses.replace(result, runs={0: dataclasses.replace(result.runs[0], rows=rows, histories={})}).save(tmp_path)
    strict = json.JSONDecoder(parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    metrics = strict.decode((tmp_path / "metrics.json").read_text())
    assert metrics["methods"] == {"source": {"mae": None, "until": None}}
    assert metrics["seeds"]["0"]["source"] == {"mae": None, "until": None}


def test_equal_beginnings_are_trained_once_and_complete_stages_never_again(
    block: ph.PhysicsBlock, data: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, advance = [], Trainer._advance
    monkeypatch.setattr(Trainer, "_advance", lambda self: updates.append(1) or advance(self))
    first = ph.study(solvers(block), data, METHODS, folder=tmp_path)
    assert len(updates) == 6 + 4 + 4 and len(list((tmp_path / "seed_0").glob("*.pt"))) == 3
    again = ph.study(solvers(block), data, METHODS, folder=tmp_path)
    assert len(updates) == 14
    assert again.runs[0].rows == first.runs[0].rows  # the seconds, too
    more = {**METHODS, "three steps": [START, Stage(ph.Unrolled(3), 2, batch_size=4)]}
    ph.study(solvers(block), data, more, folder=tmp_path)
    assert len(updates) == 16


def test_an_interrupted_study_goes_on_where_it_was(
    block: ph.PhysicsBlock, data: tuple, found: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, advance = [], Trainer._advance

    def interrupted(self: Trainer) -> float:
        if len(updates) == 8:
            updates.append(0)
            raise KeyboardInterrupt
        updates.append(1)
        return advance(self)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ph.study(solvers(block), data, METHODS, folder=tmp_path)
    result = ph.study(solvers(block), data, METHODS, folder=tmp_path)
    assert sum(updates) == 14
    whole = found[0].runs[0]
    for row in METHODS:
        assert result.runs[0].rows[row]["mae"] == whole.rows[row]["mae"]
    curves, expected = result.runs[0].evaluation.curves(), whole.evaluation.curves()
    assert all(equal([curves[name]], [expected[name]]) for name in expected)


def test_other_data_in_the_same_folder_are_refused(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    one = {"one step": METHODS["one step"][:1]}
    ph.study(solvers(block), data, one, folder=tmp_path)
    with pytest.raises(TaskError, match=r"another training.*another folder.*seed_0"):
        ph.study(solvers(block), (data[1], data[0]), one, folder=tmp_path)


def test_time_and_budget(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    methods = {"timed": [Stage(ph.Unrolled(1), seconds=40.0, batch_size=4)], "counted": [START]}
    rows = ph.study(solvers(block), data, methods, folder=tmp_path, budget=0.005).runs[0].rows
    assert rows["counted"]["updates"] == 1
    assert 0.2 <= rows["timed"]["seconds"] and rows["timed"]["updates"] > 1
    again = ph.study(solvers(block), data, methods, folder=tmp_path, budget=0.005).runs[0].rows
    assert again == rows


def test_failed_trainings_are_infinite_and_the_others_go_on(
    block: ph.PhysicsBlock, data: tuple, tmp_path: Path
) -> None:
    class Breaks(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * math.inf

    two = {**solvers(block), "broken": lambda seed: ph.HybridSolver(block, Breaks(2, 1, 1))}
    with pytest.warns(RuntimeWarning, match="broken, start, seed 0: the training has failed"):
        result = ph.study(two, data, {"start": [START]}, folder=tmp_path, summary=lambda e: e.summary((), (0.8,)))
    rows = result.runs[0].rows
    assert list(rows) == ["source", "hybrid, start", "broken, start"]
    assert rows["broken, start"]["mae"] == math.inf and 0 < rows["hybrid, start"]["mae"] < 1
    assert list(result.runs[0].failures) == ["broken, start"]
    assert result.curves()["broken, start"][:, 1:].isinf().all() and result.curves()["hybrid, start"].isfinite().all()
    assert result.table().rows["broken, start"]["mae"] == math.inf
    worse = {"correlation": -1.0, "time_to_0.8": -1.0, "blow_up": 1.0}  # what is large is good, or bad
    for name, sign in worse.items():
        assert sign * rows["broken, start"][name] > sign * rows["hybrid, start"][name], name
    with pytest.raises(ph.StateError, match="training has failed"):
        result.solver("broken, start")


def test_nothing_is_left_if_every_training_fails(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    class Breaks(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * math.nan

    broken = {"broken": lambda seed: ph.HybridSolver(block, Breaks(2, 1, 1))}
    with pytest.warns(RuntimeWarning, match="has failed"), pytest.raises(TaskError, match="every training with seed 0"):
        ph.study(broken, data, {"start": [START]}, folder=tmp_path)


def test_data_of_every_seed_and_numbers_of_ones_own(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    asked = []

    def of_seed(seed: int) -> tuple:
        asked.append(seed)
        return data

    result = ph.study(
        solvers(block),
        of_seed,
        {"start": [START]},
        folder=tmp_path,
        seeds=[3, 5],
        steps=4,
        metrics={"energy": ph.metrics.Drift(ph.quantities.energy)},
        summary=lambda e: e.summary((2,)),
        extra=lambda found, test: {
            "start": {"weights": sum(p.numel() for p in found["start"].parameters()), "first": torch.tensor(0.5)}
        },
    )
    assert asked == [3, 5] and result.runs[5].evaluation.steps == 4
    assert {"mae_2", "energy", "updates"} <= set(result.runs[3].rows["start"])
    assert result.runs[3].rows["start"]["weights"] == sum(p.numel() for p in network(3).parameters())
    assert result.table().rows["start"]["first"].median == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solvers={}), "solvers"),
        (dict(data=None), "data"),
        (dict(data=(1, 2)), "data"),
        (dict(methods={"a": []}), r"methods\['a'\]"),
        (dict(methods={"a": [ph.Unrolled(1)]}), r"methods\['a'\]"),
        (dict(seeds=0), "seeds"),
        (dict(seeds=[1, 1]), "seeds"),
        (dict(seeds="12"), "seeds"),
        (dict(budget=0), "budget"),
        (dict(summary=3), "summary"),
        (dict(dt="a"), "dt"),
        (dict(steps=7), "steps = 7"),
        (dict(metrics={"x": 3}), r"metrics\['x'\]"),
        (dict(metrics={"mae": ph.metrics.MAE()}), r"metrics \['mae'\] are measured anyway"),
        (dict(metrics={"x": ph.metrics.Part("smoke", ph.metrics.MAE())}), "smoke"),
        (dict(methods={"source": [START]}), "'source' is a solver and a method"),
        (dict(solvers={"source": ph.capture(forced_step)}), "at least one function"),
        (dict(methods={"short": [START], "long": [Stage(ph.Unrolled(7), 4)]}), "7 steps"),
        (dict(solvers={"hybrid": lambda seed: 3}), r"solvers\['hybrid'\]"),
        (dict(solvers={"hybrid": "x"}), r"solvers\['hybrid'\]"),
        (dict(solvers={"hybrid": forced_step}), r"solvers\['hybrid'\]\(0\) failed: .* ph.capture"),
        (dict(data=lambda seed: 3), r"data\(0\) = 3"),
    ],
)
def test_wrong_arguments(block: ph.PhysicsBlock, data: tuple, tmp_path: Path, change: dict, message: str) -> None:
    """Before anything is trained."""
    arguments = dict(solvers=solvers(block), data=data, methods=METHODS, folder=tmp_path) | copy.copy(change)
    with pytest.raises((ph.StateError, TaskError), match=message):
        ph.study(**arguments)
    assert not list(tmp_path.rglob("*.pt"))


def test_names_that_make_one_row_of_two_trainings(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    several = {name: lambda seed: ph.HybridSolver(block, network(seed)) for name in ("a", "a, b")}
    with pytest.raises(ph.StateError, match="share rows of the table: .*'a, b, c'"):
        ph.study(several, data, {"b, c": [START], "c": [START]}, folder=tmp_path)


def test_a_network_that_is_made_once_cannot_be_trained_twice(
    block: ph.PhysicsBlock, data: tuple, tmp_path: Path
) -> None:
    net = network(0)
    once = {"source": block, "hybrid": lambda seed: ph.HybridSolver(block, net)}
    with pytest.raises(TaskError, match="returns network.* for a second training, which would go on from the first"):
        ph.study(once, data, METHODS, folder=tmp_path)
    frozen = network(0).requires_grad_(False)
    shared = {"hybrid": lambda seed: ph.HybridSolver(block, torch.nn.Sequential(network(seed), frozen, network(1)))}
    wide = [Stage(ph.Unrolled(1), 2, batch_size=4)]
    with pytest.raises(TaskError, match="channels"):  # a frozen part may be shared; this one does not fit
        ph.study(shared, data, {"a": wide, "b": wide}, folder=tmp_path / "frozen")


def test_held_out_trajectories_that_are_trained_on(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="seed 0: 4 of the held-out trajectories are trained on"):
        ph.study(solvers(block), (data[0], data[0]), {"a": [START]}, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(summary=lambda e: {"source": {"mae": 1.0}}), r"summary\(…\)"),
        (dict(summary=lambda e: 3), r"summary\(…\) = 3"),
        (dict(extra=lambda found, test: {"mass": {"a": 1.0}}), r"extra\(…\) = .*rows \['a', 'source'\]"),
    ],
)
def test_numbers_of_other_rows(block: ph.PhysicsBlock, data: tuple, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ph.study(solvers(block), data, {"a": [START]}, folder=tmp_path, **change)
    assert list(tmp_path.rglob("*.pt"))


def by_sgd(rate: float) -> list[Stage]:
    """By a function that differs in what it remembers."""
    return [Stage(ph.Unrolled(1), 2, optimizer=lambda p, lr: torch.optim.SGD(p, rate * lr))]


def test_methods_may_differ_in_a_function_alone(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    sgd = [[Stage(ph.Unrolled(1), 2, optimizer=partial(torch.optim.SGD, momentum=m))] for m in (0, 0, 0.9)]
    methods = {"fast": by_sgd(1.0), "again": by_sgd(1.0), "slow": by_sgd(1e-3)}
    methods |= {"plain": sgd[0], "plain, too": sgd[1], "heavy": sgd[2]}
    rows = ph.study(solvers(block), data, methods, folder=tmp_path).runs[0].rows
    assert rows["fast"]["mae"] == rows["again"]["mae"] != rows["slow"]["mae"]
    assert rows["plain"]["mae"] == rows["plain, too"]["mae"] != rows["heavy"]["mae"]


def test_a_function_that_was_changed_is_trained_anew(block: ph.PhysicsBlock, data: tuple, tmp_path: Path) -> None:
    fast, slow = (
        ph.study(solvers(block), data, {"sgd": by_sgd(rate)}, folder=tmp_path).runs[0].rows["sgd"]["mae"]
        for rate in (1.0, 1e-3)
    )
    assert fast != slow


class Silent:
    """An optimizer whose settings its text does not show."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, parameters: Iterable, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.rate * lr)


def test_methods_that_differ_in_an_object_of_one_text_are_refused(
    block: ph.PhysicsBlock, data: tuple, tmp_path: Path
) -> None:
    methods = {str(rate): [Stage(ph.Unrolled(1), 2, optimizer=Silent(rate))] for rate in (1.0, 1e-3)}
    with pytest.raises(ph.StateError, match="'1.0' and '0.001' differ in an object that has the same text"):
        ph.study(solvers(block), data, methods, folder=tmp_path)


def test_progress_bars_say_which_seed_method_and_stage(
    block: ph.PhysicsBlock, data: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ph.study(solvers(block), data, METHODS, folder=tmp_path, budget=0.2)
    bars = capsys.readouterr().err
    for label in ("one step, stage 1 of 2", "one step, stage 2 of 2", "two steps, stage 2 of 2"):
        assert f"seed 0, {label}: " in bars


def test_a_method_has_one_colour_in_all_figures(found: tuple) -> None:
    figures = found[0].figures()
    drawn = [{line.get_label(): line.get_color() for line in f.axes[0].get_lines()} for f in figures.values()]
    assert all(drawn[0][method] == drawn[1][method] for method in METHODS)
    assert len({drawn[0][name] for name in ("source", *METHODS)}) == 3
