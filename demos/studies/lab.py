"""What the demos share: command line, training, figures and metrics on disk, tables over seeds."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch

import phi_hybrid as ph
from phi_hybrid.evaluation.table import Spread, Table


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """Options that every demo takes; add its own before parsing."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small version, under a minute")
    parser.add_argument("--full", action="store_true", help="long version, three times the training")
    parser.add_argument("--seed", type=int, default=0, help="of data, initial weights and training")
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds, from --seed on; prints median and spread"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out") / name, help="folder for figures and metrics.json")
    return parser


def train(
    solver: ph.HybridSolver, data: ph.Trajectories, steps: int, updates: int, lr: float, batch: int, seed: int
) -> dict[str, Any]:
    """Adam with a cosine schedule; returns the history."""
    optimizer = torch.optim.Adam(solver.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    settings = dict(optimizer=optimizer, scheduler=schedule, batch_size=batch, clip=1.0, seed=seed)
    return ph.Trainer(solver, data, ph.Unrolled(steps), **settings).fit(updates)


def train_methods(
    start: ph.HybridSolver,
    data: ph.Trajectories,
    methods: dict[str, tuple[int, int]],
    updates: int,
    batch: int,
    seed: int,
    long: int = 0,
) -> tuple[dict[str, ph.HybridSolver], dict[str, Any]]:
    """Trains copies of one solver, each over other numbers of steps in the first and the second half of its updates.

    With `long`, one more of so many one-step updates, to compare at equal time. Returns solvers and histories.
    """
    solvers, histories = {}, {}
    for method, unrolled in methods.items():
        solvers[method] = copy.deepcopy(start)
        for steps, lr in zip(unrolled, (1e-3, 5e-4)):
            half = train(solvers[method], data, steps, updates // 2, lr, batch, seed)
            histories[f"{method}, {steps}"] = half
    if long:
        solvers["one_step_long"] = copy.deepcopy(start)
        histories["one_step_long"] = train(solvers["one_step_long"], data, 1, long, 5e-4, 2 * batch, seed)
    return solvers, histories


def write_metrics(folder: Path, per_seed: list[dict[str, dict[str, float]]], seconds: float) -> None:
    """metrics.json: method → metric → median over seeds, the single seeds beside it, and the seconds of one seed."""
    metrics = {method: _median([run[method] for run in per_seed]) for method in per_seed[0]}
    extra = {"seeds": per_seed} if len(per_seed) > 1 else {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({**metrics, **extra, "seconds": seconds}, indent=1) + "\n")


def _median(runs: list[Any]) -> Any:
    """Of numbers, or of dicts of numbers entry by entry; entries that are not in all runs are left out."""
    if isinstance(runs[0], dict):
        return {key: _median([run[key] for run in runs]) for key in runs[0] if all(key in run for run in runs)}
    return Spread(tuple(runs)).median


def seed_table(per_seed: list[dict[str, dict[str, float]]], metrics: list[str]) -> str:
    """Median [smallest, largest] over the seeds, one row per method."""
    return Table.over_seeds(per_seed, metrics).text()


def save_figures(folder: Path, figures: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=90)
        print(f"wrote {folder / name}.png")


def require_cpu(device: str) -> None:
    """For demos that are not written for other devices, so that they do not run elsewhere than asked."""
    if device != "cpu":
        raise SystemExit(f"--device {device}: this demo runs on the CPU only; leave --device out")


def require_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device; use --device cpu")
