"""Map of update rules: which training of a small network wins in equal time, over families of problems with dials.

The network sees y* = P(x*) and returns x; the loss is ½‖P(x) − y*‖², all in double precision. Dials are the condition
number of ∂P/∂x, the number of outputs of a sample, and the steps into which the time of the physics is cut, its cost.
  heat         initial state of a periodic line: diffusion damps its finest mode by the condition number; P is linear
  burgers      the same, advected by itself as well; P is not linear, and is inverted by Gauss–Newton
  oscillators  four forces on the last of two oscillators: the weaker their spring, the less the first one feels
All trainings have the processor time of as many updates of Adam, and the best of three rates for that family and size on
another seed. Every run is a line of runs_*.jsonl; those that are there are not repeated.

    python demos/studies/rules_map.py [--family NAME] [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lab
import torch
from contest import batches, cosine, distance_to, last, race, require_finite
from rules_figure import draw, verdicts
from rules_problems import SIZES, TRAINING, Problem, Task, problems, task_of

from phi_hybrid.optim import HIG, Chain, Closure, Gradient, HalfInverse, Link
from phi_hybrid.studies import strict_json

UPDATES, TUNING_SEED = 800, 100

# --- methods ---


@dataclass(frozen=True)
class Method:
    """An optimizer of the network, and the chain that tells it how x should change; without one it sees y."""

    rates: tuple[float, ...]
    optimizer: Callable[[torch.nn.Module, float], torch.optim.Optimizer]
    chain: Callable[[Task, torch.Tensor], Chain] | None = None
    rows: int | None = None
    """Outputs of a mini-batch; without a number it has 32 samples."""

    def closure(self, task: Task, seen: torch.Tensor) -> Closure:
        """What the optimizer is to look at."""
        weights = task.network.parameters()
        if self.chain is not None:
            return Closure(lambda: task.guess(seen), self.chain(task, seen).proxy, weights)
        return Closure(lambda: task.physics(task.guess(seen)), lambda y: distance_to(seen)(y).mean(), weights)

    def batch(self, problem: Problem) -> int:
        """Samples of a mini-batch."""
        return 32 if self.rows is None else self.rows // problem.outputs


def adam(network: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """Adam in its fastest form."""
    return torch.optim.Adam(network.parameters(), rate, fused=True)


def physical(task: Task, seen: torch.Tensor) -> Chain:
    """Δx = P⁻¹(y* − P(x)); the gradient of ½‖y − y*‖² is its whole Newton step."""
    return Chain(Link(task.physics, task.inverse), Link(distance_to(seen), Gradient()))


def half_physics(task: Task, seen: torch.Tensor) -> Chain:
    """Half-inverse of the physics alone."""
    return Chain(Link(task.physics, HalfInverse()), Link(distance_to(seen), Gradient()))


FIRST_ORDER = 3e-3, 1e-2, 3e-2
METHODS = {
    "adam": Method(FIRST_ORDER, adam),
    "physical": Method(FIRST_ORDER, adam, physical),
    "half_physics": Method(FIRST_ORDER, adam, half_physics),
    "hig": Method((0.3, 1.0, 3.0), partial(HIG, kappa=0.5, rcond=1e-6, progress=False), rows=256),
    "gauss_newton": Method((0.25, 0.5, 1.0), partial(HIG, kappa=1.0, rcond=1e-3, progress=False), rows=256),
}


def train(problem: Problem, name: str, rate: float, seed: int, seconds: float) -> dict[str, float]:
    """Errors on held-out samples after the training."""
    method, task = METHODS[name], task_of(problem, seed)
    numbers = batches(torch.arange(TRAINING), method.batch(problem), seed)

    def set_up() -> Callable[[float], None]:
        return updates(method, task, numbers, rate)

    updates(method, replace(task, network=copy.deepcopy(task.network)), numbers, rate)(0.0)  # warms up
    return last(race([(set_up, 1.0)], task.errors, seconds, 1))


def updates(method: Method, task: Task, numbers: Any, rate: float) -> Callable[[float], None]:
    """`update(share of the time)`, at a rate that falls like a cosine."""
    optimizer = method.optimizer(task.network, rate)

    def update(share: float) -> None:
        optimizer.param_groups[0]["lr"] = rate * cosine(share)
        require_finite(float(optimizer.step(method.closure(task, task.observed[next(numbers)]))))

    return update


def measured(problem: Problem) -> dict[str, float]:
    """Processor seconds of an update of Adam, cost of the physics in units of the network's, and condition number."""
    task = task_of(problem, TUNING_SEED)
    alone = replace(task, physics=lambda x: x)
    with_physics, without = (min(seconds_of(way) for _ in range(5)) for way in (task, alone))
    jacobians = torch.autograd.functional.jacobian(lambda x: task.physics(x).sum(0), task.truth[:5]).transpose(0, 1)
    condition = median(torch.linalg.cond(jacobians).tolist())
    return {"seconds": with_physics, "cost": with_physics / without - 1, "condition": condition}


def seconds_of(task: Task, count: int = 10) -> float:
    """Mean processor time of an update of Adam."""
    update = updates(METHODS["adam"], task, batches(torch.arange(TRAINING), 32, 0), 0.0)
    update(0.0)
    began = time.process_time()
    for _ in range(count):
        update(0.0)
    return (time.process_time() - began) / count


# --- all runs ---


class Runs:
    """Runs on disk, one JSON object a line, which are made when they are asked for first; processes may share the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done: dict[str, dict[str, Any]] = {run["key"]: run for run in map(json.loads, lines)}

    def get(self, key: str, make: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """The run of this name."""
        if key not in self.done:
            self.done[key] = {"key": key, **make()}
            with self._path.open("a") as file:
                file.write(json.dumps(self.done[key]) + "\n")
            print(self.done[key], flush=True)
        return self.done[key]

    def measured(self, problem: Problem) -> dict[str, Any]:
        """Time of an update of Adam, cost, and condition number."""
        return self.get(str(problem), lambda: measured(problem))

    def trained(self, problem: Problem, method: str, rate: float, seed: int, count: int) -> dict[str, Any]:
        """Errors after the time of so many updates of Adam."""
        seconds = count * self.measured(problem)["seconds"]
        make = partial(train, problem, method, rate, seed, seconds)
        return self.get(f"{problem} {method} rate={rate:g} seed={seed}", make)

    def rate(self, problem: Problem, method: str, count: int) -> float:
        """The best of the method's for this family and size, at a condition number of 100, on another seed."""
        like = replace(problem, condition=1e2)
        return min(METHODS[method].rates, key=lambda rate: self.trained(like, method, rate, TUNING_SEED, count)["y"])


def rows(chosen: list[Problem], runs: Runs, seeds: range, count: int) -> dict[str, dict[str, Any]]:
    """Problem → what was measured of it, and method → errors of every seed; all problems with one seed before the next."""
    found = {str(problem): {**runs.measured(problem), "methods": {m: [] for m in METHODS}} for problem in chosen}
    for seed in seeds:
        for problem in chosen:
            for method in METHODS:
                rate = runs.rate(problem, method, count)
                found[str(problem)]["methods"][method].append(runs.trained(problem, method, rate, seed, count))
    return found


def main() -> None:
    options = lab.options(__doc__, "rules_map", family=dict(choices=list(SIZES), help="one family only"))
    chosen = problems([options.family] if options.family else list(SIZES))
    if options.quick:
        chosen = [problem for problem in chosen if problem.condition == 1e2 and problem.steps == 1]
    count = round(UPDATES * lab.share(options, 0.02))
    runs = Runs(options.out / f"runs_{count}.jsonl")
    found = rows(chosen, runs, range(options.seed, options.seed + options.seeds), count)
    (options.out / "metrics.json").write_text(strict_json(found))
    for error in ("y", "x"):
        print(f"\n{error}: best method, its error, the second's in units of that, and whether no seeds overlap")
        print("\n".join(f"{name:50}{verdict}" for name, verdict in verdicts(found, error).items()))
    lab.save_figures(options.out, {"map": draw(found)})


if __name__ == "__main__":
    main()
