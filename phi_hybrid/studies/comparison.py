"""Studies: several trainings of a solver, compared on held-out data over several seeds."""

from __future__ import annotations

import math
import os
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from phi_hybrid.bridge import flatten, unflatten
from phi_hybrid.bridge.checks import require, require_callable, require_count, require_instance, require_number
from phi_hybrid.data import Trajectories, require_writable
from phi_hybrid.errors import NonFiniteError, SolveError, StateError
from phi_hybrid.evaluation import Evaluation, evaluate
from phi_hybrid.evaluation.metrics import Metric, as_metric
from phi_hybrid.steps import Step
from phi_hybrid.studies.result import Rows, Run, StudyResult
from phi_hybrid.studies.stage import Stage, alike
from phi_hybrid.training import TaskError, parallel_map
from phi_hybrid.training.checks import shared_trajectories

Solvers = Mapping[str, Step | Callable[[int], Step]]
Data = tuple[Trajectories, Trajectories] | Callable[[int], tuple[Trajectories, Trajectories]]


def study(
    solvers: Solvers,
    data: Data,
    methods: Mapping[str, Sequence[Stage]],
    *,
    folder: str | os.PathLike[str],
    seeds: int | Iterable[int] = 1,
    budget: float = 1.0,
    steps: int | None = None,
    metrics: Mapping[str, Metric] = MappingProxyType({}),
    summary: Callable[[Evaluation], Rows] = Evaluation.summary,
    extra: Callable[[Mapping[str, Step], Trajectories], Rows] | None = None,
    dt: float = 1.0,
) -> StudyResult:
    """Trains solvers by several methods with several seeds, and compares them on held-out trajectories.

        start = ph.studies.Stage(ph.Unrolled(1), updates=1500, lr=2e-3)
        found = ph.study(
            {"source": source, "hybrid": lambda seed: ph.HybridSolver(source, res_net(2, 2, [32, 32]))},
            reference_data,  # seed → training, test
            {f"{n} steps": [start, ph.studies.Stage(ph.Unrolled(n), 600)] for n in (1, 16)},
            seeds=5,
            folder="out/study",
        )
        print(found.table(["mae", "seconds"]))

    Every stage is saved while it goes on. A study that was interrupted goes on where it was when it is called again.
    Methods that begin with equal stages share them: they are trained once. A training that fails, by a NaN or by a linear
    solve, counts like a rollout that fails in its first step, with a warning, and the others go on. Under `torchrun` the seeds are shared out among
    the processes.

    Args:
        solvers: name → step that is evaluated as it is, such as the bare physics, or function `seed -> solver` to train.
            torch's generator is seeded before each call.
        data: training and held-out trajectories, or a function `seed -> (training, test)`.
        methods: name → stages, one after the other.
        folder: for checkpoints, metrics.json, table.md and figures.
        seeds: their number, 0, 1, …, or the seeds.
        budget: multiple of all updates and times, e.g. 0.02 to try, 3 for a long version.
        steps: of the evaluation, all of the held-out trajectories by default.
        metrics: further ones, see `evaluate`.
        summary: numbers of an evaluation, e.g. `lambda e: e.summary((50,), (0.8,), dt=0.1)`.
        extra: further numbers, `(method → solver, held-out trajectories) -> method → metric → number`, e.g. of spectra.
        dt: time of one step, for the figures.

    Returns:
        Numbers of every method, `updates` and `seconds` of its training among them. With several solvers to train, methods
        are named `solver, method`.

    Raises:
        StateError: for wrong arguments, before anything is trained; for what `summary` and `extra` return, after it, when all
            trainings are kept.
        TaskError: if the work on some seeds failed, e.g. since the folder holds another study; the others are done.
    """
    solvers, methods = _named("solvers", solvers), _named("methods", methods)
    require(
        _is_pair(data) or callable(data), "data", data, "(training, test), or a function of the seed that returns them"
    )
    require_number("budget", budget, above=0)
    scaled = {m: _scaled(m, stages, budget) for m, stages in methods.items()}
    plan = Plan(solvers, data, scaled, Path(folder), steps, metrics)
    plan.require_distinct()
    require_writable("folder", plan.folder / "metrics.json")
    if steps is not None:
        require_count("steps", steps)
    for name, metric in metrics.items():
        as_metric(metric, f"metrics[{name!r}]")
    require_number("dt", dt, above=0)
    require_callable("summary", summary, "a function of an Evaluation, e.g. lambda e: e.summary((50,))")
    if extra is not None:
        require_callable("extra", extra, "a function of solvers and held-out trajectories")
    seeds = _numbered(seeds)

    def measure(found: dict[str, Step | None], test: Trajectories) -> tuple[Evaluation, dict[str, dict[str, float]]]:
        evaluation = evaluate({m: _failing if s is None else s for m, s in found.items()}, test, steps, metrics=metrics)
        more = {} if extra is None else extra({m: s for m, s in found.items() if s is not None}, test)
        _require_rows("extra", more, found)
        failed = {row: {key: math.inf for own in more.values() for key in own} for row, s in found.items() if s is None}
        numbers = summary(evaluation)
        _require_rows("summary", numbers, found, all_of_them=True)
        rows = {row: {**own, **{**failed, **more}.get(row, {})} for row, own in numbers.items()}
        return evaluation, {row: {key: float(number) for key, number in own.items()} for row, own in rows.items()}

    def run(seed: int) -> Run:
        return plan.run(seed, measure)

    try:
        runs = parallel_map(run, seeds)
    except TaskError as error:
        first, text = next(iter(error.failed.items()))
        count = f" ({len(error.failed)} of {len(seeds)} seeds did)" if len(seeds) > 1 else ""
        message = f"seed {seeds[first]} failed{count}: {text}"
        raise TaskError(message, error.results, error.failed) from None
    result = StudyResult(dict(zip(seeds, runs)), plan.solver)
    if int(os.environ.get("RANK", 0)) == 0:  # the first process, under torchrun
        result.save(plan.folder, dt)
    return result


_SPENT = {"updates": lambda history: len(history["loss"]), "seconds": lambda history: history["seconds"]}


@dataclass(frozen=True)
class Plan:
    """What is done with every seed."""

    solvers: Solvers
    data: Data
    methods: Mapping[str, Sequence[Stage]]
    folder: Path
    steps: int | None
    metrics: Mapping[str, Metric]
    made: dict[int, weakref.ref] = field(default_factory=dict)
    """Place in memory → parameters of the solvers so far, as long as they exist."""

    def require_distinct(self) -> None:
        """Raises StateError for rows of one name, trainings that share files but not functions, and nothing to train."""
        fixed = [name for name, solver in self.solvers.items() if isinstance(solver, Step)]
        require(len(fixed) < len(self.solvers), "solvers", fixed, "at least one function seed -> solver, to be trained")
        for row in set(fixed) & set(self.trainings):
            raise StateError(
                f"{row!r} is a solver and a method: give them different names, which are the rows of the table"
            )
        trained = len(self.solvers) - len(fixed)
        if len(self.trainings) < trained * len(self.methods):
            raise StateError(f"solvers and methods share rows of the table: {[*self.trainings]}; give them other names")
        known: dict[Path, tuple[str, Sequence[Stage]]] = {}
        for row, (name, stages) in self.trainings.items():
            for n in range(1, len(stages) + 1):
                other, same = known.setdefault(self.file(name, stages[:n], 0), (row, stages[:n]))
                if not alike(tuple(same), tuple(stages[:n])):
                    raise StateError(
                        f"{other!r} and {row!r} differ in an object that has the same text in both, so that their checkpoints "
                        "would be one: give its class a __repr__ with its settings, e.g. make it a dataclass"
                    )

    def checked_data(self, seed: int) -> tuple[Trajectories, Trajectories]:
        """Training and held-out trajectories, with a warning if they share some.

        Raises:
            StateError: for a function that returns something else.
        """
        data = self.data(seed) if callable(self.data) else self.data
        require(_is_pair(data), f"data({seed})", data, "a tuple of trajectories to train on and held-out ones")
        if shared := shared_trajectories(*data):
            warnings.warn(
                f"seed {seed}: {shared} of the held-out trajectories are trained on, so that the table does not show whether "
                "others are learned; hold some out, data.split(0.8)",
                stacklevel=2,
            )
        return data

    def require_long(self, training: Trajectories, test: Trajectories) -> None:
        """Raises DataError for trajectories that are shorter than the windows of a stage, StateError than the evaluation."""
        for stages in self.methods.values():
            for stage in stages:
                training.windows(stage.objective.steps)
        if self.steps is not None:
            require(self.steps <= test.steps, "steps", self.steps, f"at most {test.steps}, those of the held-out data")

    @property
    def trainings(self) -> dict[str, tuple[str, Sequence[Stage]]]:
        """Row of the table → name of the solver, stages."""
        trained = [name for name, solver in self.solvers.items() if not isinstance(solver, Step)]
        named = (lambda solver, method: method) if len(trained) == 1 else (lambda solver, method: f"{solver}, {method}")
        return {named(s, m): (s, stages) for s in trained for m, stages in self.methods.items()}

    def run(self, seed: int, measure: Callable[[dict[str, Step], Trajectories], tuple[Evaluation, Rows]]) -> Run:
        """Trains all that is to be trained, and evaluates it."""
        training, test = self.checked_data(seed)
        self.require_long(training, test)
        found: dict[str, Step | None] = {n: solver for n, solver in self.solvers.items() if isinstance(solver, Step)}
        if found:  # metrics that fail do so before hours of training
            evaluate(found, test, 1, metrics=self.metrics)
        spent, histories, failures = {name: {"updates": 0, "seconds": 0.0} for name in found}, {}, {}
        for row in self.trainings:
            own: dict[Path, dict[str, Any]] = {}
            try:
                found[row] = self.train(row, seed, training, own)
            except (NonFiniteError, SolveError) as error:
                warnings.warn(f"{row}, seed {seed}: the training has failed: {error}", RuntimeWarning, stacklevel=2)
                failures[row], found[row] = str(error), None
            spent[row] = {key: sum(count(h) for h in own.values()) for key, count in _SPENT.items()}
            if own:
                histories[row] = tuple(own.values())
        if all(solver is None for solver in found.values()):
            raise StateError(
                f"every training with seed {seed} has failed, so that nothing is left to compare: {failures}"
            )
        evaluation, numbers = measure(found, test)
        return Run({row: {**numbers[row], **spent[row]} for row in spent}, evaluation, histories, failures)

    def train(self, row: str, seed: int, data: Trajectories, histories: dict[Path, dict[str, Any]]) -> Step:
        """The solver of a row in its stages, whose histories are added by file; stages that are complete are read."""
        name, stages = self.trainings[row]
        solver = self.untrained(name, seed)
        for n, stage in enumerate(stages, 1):
            file = self.file(name, stages[:n], seed)
            label = f"seed {seed}, {row}, stage {n} of {len(stages)}"
            try:
                histories[file] = stage.train(solver, data, seed, file, label)
            except StateError as error:
                if "is of another" not in str(error):
                    raise
                raise StateError(f"{error}. Choose another folder for this study, or delete {file}") from error
        return solver

    def solver(self, row: str, seed: int) -> Step:
        """The solver of a row of the table, its weights read from the file of its last stage."""
        if row not in self.trainings:
            return self.solvers[row]
        name, stages = self.trainings[row]
        solver = self.untrained(name, seed)
        weights = torch.load(self.file(name, stages, seed), next(solver.parameters()).device, weights_only=True)
        solver.load_state_dict(weights["solver"])
        return solver

    def untrained(self, name: str, seed: int) -> Step:
        """A solver with its first weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                solver = self.solvers[name](seed)
            except Exception as error:
                raise StateError(
                    f"solvers[{name!r}]({seed}) failed: {error}. Give a function seed -> solver, or a step to evaluate as it "
                    "is; PhiFlow code becomes one by ph.capture"
                ) from error
        expected = "a step with parameters to train, e.g. seed -> HybridSolver(physics, network())"
        require_instance(f"solvers[{name!r}](seed)", solver, Step, expected)
        self.require_new(name, solver)
        return solver

    def require_new(self, name: str, solver: Step) -> None:
        """Raises StateError for weights of an earlier solver, from which a training would go on."""
        for key, parameter in solver.named_parameters():
            if not parameter.requires_grad:
                continue
            earlier = self.made.get(id(parameter))
            if earlier is not None and earlier() is parameter:
                raise StateError(
                    f"solvers[{name!r}] returns {key} for a second training, which would go on from the first: make the "
                    "network, and what else is trained, within the function"
                )
            self.made[id(parameter)] = weakref.ref(parameter)

    def file(self, name: str, stages: Sequence[Stage], seed: int) -> Path:
        """Checkpoint of the last one of these stages."""
        digest = zlib.crc32(f"[{', '.join(stage.text for stage in stages)}]".encode())
        return self.folder / f"seed_{seed}" / f"{name}_{len(stages)}_{digest:08x}.pt"


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Trajectories) for part in data)


def _failing(state: Any, *inputs: Any, **keywords: Any) -> Any:
    """What is evaluated in the place of a solver whose training has failed."""
    tensors, layout = flatten(state)
    return unflatten(layout, tuple(math.nan * tensor for tensor in tensors))


def _require_rows(name: str, found: Any, expected: Iterable[str], all_of_them: bool = False) -> None:
    """Raises StateError for results that are not named by the rows of the table."""
    rows = set(expected)
    fits = isinstance(found, Mapping) and all(isinstance(own, Mapping) for own in found.values()) and {*found} <= rows
    fits = fits and (not all_of_them or {*found} == rows)
    require(fits, f"{name}(…)", found, f"row → metric → number, with rows {sorted(rows)}; the trainings are kept")


def _named(name: str, value: Any) -> Mapping[str, Any]:
    valid = isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)
    require(valid, name, value, "a mapping from names, with at least one")
    return value


def _scaled(method: str, stages: Any, budget: float) -> tuple[Stage, ...]:
    valid = isinstance(stages, Sequence) and bool(stages) and all(isinstance(s, Stage) for s in stages)
    require(valid, f"methods[{method!r}]", stages, "stages in a list, e.g. [Stage(Unrolled(1), 1000)]")
    return tuple(stage.scaled(budget) for stage in stages)


def _numbered(seeds: Any) -> list[int]:
    require_instance(
        "seeds", seeds, Iterable if not isinstance(seeds, int) else int, "a number of seeds, or e.g. range(3)"
    )
    seeds = list(range(seeds) if isinstance(seeds, int) else seeds)
    valid = bool(seeds) and all(type(s) is int for s in seeds) and len(set(seeds)) == len(seeds)
    require(valid, "seeds", seeds, "at least one whole number, each once, e.g. range(3)")
    return seeds
