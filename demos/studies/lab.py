"""Laboratory of the studies: command line, seeds, training by Adam, tables, figures and metrics on disk."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.evaluation import Spread, Table
from phi_hybrid.studies import strict_json
from phi_hybrid.training import Objective

Options = argparse.Namespace
Rows = dict[str, dict[str, Any]]
"""Method → metric → number."""


def options(
    description: str,
    name: str,
    devices: Sequence[str] = ("cpu",),
    threads: int = 1,
    long: bool = True,
    **extra: dict[str, Any],
) -> argparse.Namespace:
    """Options of the command line; sets the number of threads.

    Args:
        description: text of `--help`.
        name: of the folder below out/.
        devices: on which the study runs.
        threads: of torch; a grid of 64 cells is too small to share.
        long: whether there is a long version.
        extra: further options, name → settings of `add_argument`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small version, a minute or two")
    parser.set_defaults(full=False)
    if long:
        size.add_argument(
            "--full", action="store_true", help="long version: more training, and what the text above says"
        )
    parser.add_argument("--seed", type=int, default=0, help="of data, initial weights and training")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from --seed on: median and spread")
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out") / name, help="folder for figures and metrics.json")
    for option, settings in extra.items():
        parser.add_argument(f"--{option}", **settings)
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    return chosen


def share(options: argparse.Namespace, quick: float) -> float:
    """Factor of the budget: of `--quick`, 3 for `--full`, else 1."""
    return quick if options.quick else 3 if options.full else 1


def study_settings(options: Options, quick: float) -> dict[str, Any]:
    """Seeds, folder and budget of `ph.study` by the command line; the budget of `--quick` is given."""
    seeds = range(options.seed, options.seed + options.seeds)
    return dict(seeds=seeds, folder=options.out, budget=share(options, quick))


def study(
    options: argparse.Namespace,
    run: Callable[[int], tuple[Rows, Callable[[], dict[str, Figure]]]],
    *columns: Sequence[str],
) -> list[Rows]:
    """Runs a study for every seed: tables, figures of the first seed, metrics.json.

    Args:
        options: of the command line.
        run: `seed -> metrics, draw`; `draw()` makes the figures by name.
        columns: metrics of each table.

    Returns:
        The metrics of every seed.
    """
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        metrics, draw = run(seed)
        per_seed.append(metrics)
        print(f"\nseed {seed}\n" + "\n\n".join(str(table([metrics], names)) for names in columns), flush=True)
        if seed == options.seed:
            save_figures(options.out, draw())
    if options.seeds > 1:
        print("\nmedian [smallest, largest]\n" + "\n\n".join(str(table(per_seed, names)) for names in columns))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)
    return per_seed


def noisy(stage: ph.studies.Stage, sigma: float) -> ph.studies.Stage:
    """The same stage, its windows starting from perturbed states; σ in standard deviations of the data."""
    return replace(stage, objective=replace(stage.objective, noise=ph.Noise(sigma)))


def against_source(evaluation: ph.evaluation.Evaluation) -> Rows:
    """Numbers of an evaluation, over ten steps, too, with the error over that of `source`: of all times, at the worst one."""
    rows, errors = evaluation.summary((10,)), {name: mae.mean(0) for name, mae in evaluation.mae.items()}
    for name, row in rows.items():
        row["/ source"] = row["mae"] / rows["source"]["mae"]
        row["worst time"] = float((errors[name] / errors["source"]).max())
    return rows


def table(per_seed: Sequence[Rows], columns: Sequence[str]) -> Table:
    """Numbers of the methods that have the first of these columns, with their spread over seeds; others are ∞, failures."""
    chosen = [{m: {c: row.get(c, math.inf) for c in columns} for m, row in run.items() if columns[0] in row}
              for run in per_seed]  # fmt: skip
    return Table.over_seeds(chosen) if len(chosen) > 1 else Table(chosen[0])


def write_metrics(folder: Path, per_seed: Sequence[Rows], seconds: float) -> None:
    """metrics.json: method → metric → median over seeds, the single seeds beside it, and the seconds of one seed."""
    metrics = {method: _median([run[method] for run in per_seed]) for method in per_seed[0]}
    extra = {"seeds": per_seed} if len(per_seed) > 1 else {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(strict_json({**metrics, **extra, "seconds": seconds}))


def _median(runs: list[Any]) -> Any:
    """Median of numbers, or of dicts of numbers entry by entry; entries that are not in all runs are left out."""
    if isinstance(runs[0], dict):
        return {key: _median([run[key] for run in runs]) for key in runs[0] if all(key in run for run in runs)}
    return Spread(tuple(runs)).median


def save_figures(folder: Path, figures: dict[str, Figure]) -> None:
    """Figures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=90)
        print(f"wrote {folder / name}.png")


# --- training ---


def adam(
    solver: ph.HybridSolver,
    data: ph.Trajectories,
    objective: Objective,
    updates: int,
    rate: float,
    batch: int,
    seed: int,
    **settings: Any,
) -> ph.Trainer:
    """Trainer with Adam, a rate that falls like a cosine over so many updates, and gradients clipped to length 1."""
    optimizer = torch.optim.Adam(solver.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=batch, clip=1.0, seed=seed, **settings)
    return ph.Trainer(solver, data, objective, **settings)


Stage = tuple[int, int, float, int]
"""Unrolled steps, updates, learning rate, batch size."""


def train(
    solver: ph.HybridSolver, data: ph.Trajectories, stages: Sequence[Stage], seed: int, name: str = "hybrid"
) -> dict[str, dict[str, Any]]:
    """Training of a solver in stages; returns the history of each, named by its unrolled steps."""
    histories = {}
    for n, (steps, updates, rate, batch) in enumerate(stages, 1):
        label = f"seed {seed}, {name}, stage {n} of {len(stages)}"
        trainer = adam(solver, data, ph.Unrolled(steps), updates, rate, batch, seed, label=label)
        histories[str(steps)] = trainer.fit(updates)
    return histories


def animate(trajectories: dict[str, Any], folder: Path, **show: Any) -> None:
    """Trajectories as rollout.gif, and as rollout.html with a slider over time."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("gif", "html"):
        print("wrote", ph.plot.animate(trajectories, folder / f"rollout.{suffix}", **show))


def costs(trainers: Mapping[int, ph.Trainer], updates: int = 10, repeats: int = 4) -> dict[str, float]:
    """Milliseconds of processor time per update by unrolled steps, the least of several, by turns."""
    least = dict.fromkeys(trainers, math.inf)
    for trainer in trainers.values():
        trainer.fit(2)
    for _ in range(repeats):
        for steps, trainer in trainers.items():
            began = time.process_time()
            trainer.fit(trainer.update + updates)
            least[steps] = min(least[steps], 1e3 * (time.process_time() - began) / updates)
    return {f"{steps} steps": ms for steps, ms in least.items()}
