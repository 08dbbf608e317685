"""Results of evaluations: numbers per solver, trajectory and step, and the tables made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.bridge.checks import require, require_count, require_instance, require_number
from phi_hybrid.errors import StateError
from phi_hybrid.evaluation.quantities import time_of_decorrelation
from phi_hybrid.evaluation.table import Table

Measured = Mapping[str, torch.Tensor]
"""Solver → numbers."""


@dataclass(frozen=True)
class Evaluation:
    """Numbers over time of several solvers, from `evaluate`. Step 0 is the state after the first step.

    From the first non-finite state or failed linear solve on, errors of a trajectory are +∞ and correlations −∞, and so
    are all means over it: failure is not missing data. A metric that is not finite for a finite state is so for this
    step only.
    """

    values: Mapping[str, Measured]
    """Metric → solver → `(trajectory, step)`."""
    lifetime: Measured
    """Solver → number of steps before the first failure, `(trajectory,)`; all steps if there is none."""

    def __getitem__(self, metric: str) -> Measured:
        """Numbers of one metric, solver → `(trajectory, step)`.

        Raises:
            StateError: for a metric that was not measured.
        """
        if metric not in self.values:
            raise StateError(
                f"metric {metric!r} was not measured, only {list(self.values)}; add it with evaluate(…, metrics={{…}})"
            )
        return self.values[metric]

    @property
    def mae(self) -> Measured:
        """Mean absolute error ⟨|u − u*|⟩, in units of the state: solver → `(trajectory, step)`."""
        return self["mae"]

    @property
    def nrmse(self) -> Measured:
        """Relative error ‖u − u*‖₂ / ‖u*‖₂: solver → `(trajectory, step)`."""
        return self["nrmse"]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return next(iter(next(iter(self.values.values())).values())).shape[1]

    def until(self, steps: int) -> Evaluation:
        """Evaluation of the first `steps` steps.

        Raises:
            StateError: for more steps than there are.
        """
        require_count("steps", steps)
        self._check_horizons((steps,))
        return Evaluation(
            {m: {name: v[:, :steps] for name, v in found.items()} for m, found in self.values.items()},
            {name: lifetime.clamp(max=steps) for name, lifetime in self.lifetime.items()},
        )

    def select(self, trajectories: Any) -> Evaluation:
        """Evaluation of some of the trajectories: a slice, indices, or one boolean per trajectory.

        Raises:
            StateError: if there are none, or indices out of range.
        """
        return Evaluation(
            {m: {n: v[_indices(trajectories, len(v))] for n, v in found.items()} for m, found in self.values.items()},
            {n: v[_indices(trajectories, len(v))] for n, v in self.lifetime.items()},
        )

    def grouped(self, groups: Mapping[str, Any]) -> Evaluation:
        """Evaluation of every solver on every group of trajectories, as a solver of its own named `solver, group`.

        Args:
            groups: name → trajectories, as in `select`, e.g. `{'Re inside': re < 1600, 'Re outside': re >= 1600}`.

        Raises:
            StateError: if there are no groups, or one is empty.
        """
        named = isinstance(groups, Mapping) and bool(groups)
        require(named, "groups", groups, "a mapping from names to trajectories, e.g. {'inside': [0, 1]}")
        parts = {group: self.select(trajectories) for group, trajectories in groups.items()}

        def join(measured: Mapping[str, Measured]) -> Measured:
            return {f"{name}, {group}": found[name] for name in self.lifetime for group, found in measured.items()}

        return Evaluation(
            {metric: join({g: part.values[metric] for g, part in parts.items()}) for metric in self.values},
            join({g: part.lifetime for g, part in parts.items()}),
        )

    def time_to(self, threshold: float, metric: str = "correlation", dt: float = 1.0) -> Measured:
        """Time until a correlation falls below a threshold for the first time: solver → `(trajectory,)`.

        A correlation that never does counts with the time of the evaluation, so that a mean over trajectories is a
        lower bound then. A failed rollout has decorrelated when it failed.

        Args:
            threshold: correlation, e.g. 0.8 or 0.95.
            metric: name of the correlation, `correlation` by default.
            dt: time of one step, 1 by default.
        """
        require_number("threshold", threshold)
        require_number("dt", dt, above=0)
        found = {name: torch.from_numpy(time_of_decorrelation(v, threshold, dt)) for name, v in self[metric].items()}
        return {name: time.minimum(dt * self.lifetime[name]) for name, time in found.items()}

    def summary(
        self,
        horizons: Sequence[int] = (),
        thresholds: Sequence[float] = (),
        *,
        correlation: str = "correlation",
        dt: float = 1.0,
    ) -> dict[str, dict[str, float]]:
        """Means over trajectories and steps: solver → metric → number.

        Args:
            horizons: numbers n of steps, for further means `mae_n` over the first n; above all the horizon of training.
            thresholds: values of a correlation, for the mean time `time_to_0.8` until it falls below, see `time_to`.
            correlation: metric that the thresholds belong to, `correlation` by default.
            dt: time of one step, 1 by default.

        Returns:
            Every metric, and `blow_up` and `blow_up_n`, the fraction of trajectories that failed.

        Raises:
            StateError: for horizons out of range, an unknown metric, or two numbers of one name.
        """
        require_instance("horizons", horizons, Iterable, "numbers of steps in a tuple, e.g. (8,)")
        require_instance("thresholds", thresholds, Iterable, "correlations in a tuple, e.g. (0.8,)")
        self._check_horizons(horizons)
        times = {f"time_to_{t:g}": self.time_to(t, correlation, dt) for t in thresholds}
        spans = [("", self.steps), *((f"_{h}", h) for h in horizons)]
        result = {}
        for name, lifetime in self.lifetime.items():
            entries = [(m + end, found[name][:, :h]) for m, found in self.values.items() for end, h in spans]
            entries += [(key, found[name]) for key, found in times.items()]
            entries += [("blow_up" + end, lifetime < h) for end, h in spans]
            keys = [key for key, _ in entries]
            if len(set(keys)) < len(keys):
                twice = sorted({k for k in keys if keys.count(k) > 1})
                raise StateError(f"{twice} would stand for two numbers each: rename the metric or name a horizon once")
            result[name] = {key: float(values.double().mean()) for key, values in entries}
        return result

    def table(
        self,
        horizons: Sequence[int] = (),
        thresholds: Sequence[float] = (),
        *,
        correlation: str = "correlation",
        dt: float = 1.0,
    ) -> Table:
        """Summary as a table, one row per solver: `print` it, or take `.csv()`, `.markdown()`, `.select([…])`."""
        return Table(self.summary(horizons, thresholds, correlation=correlation, dt=dt))

    def over_time(self, metric: str = "mae") -> Table:
        """Mean over the trajectories at every step: one row per step, counted from 1, and one column per solver."""
        means = {name: values.mean(0).tolist() for name, values in self[metric].items()}
        return Table({str(n + 1): {name: mean[n] for name, mean in means.items()} for n in range(self.steps)})

    def curves(self, metric: str = "mae", start: float = 0.0) -> dict[str, torch.Tensor]:
        """A metric with its value for the first states in front, solver → `(trajectory, time)`, for `plot.errors`.

        Args:
            metric: its name, `mae` by default.
            start: value of the first states, 0 for errors, 1 for correlations.
        """
        return {name: torch.nn.functional.pad(v, (1, 0), value=start) for name, v in self[metric].items()}

    def _check_horizons(self, horizons: Sequence[int]) -> None:
        for horizon in horizons:
            require_count("horizon", horizon)
        out = [h for h in horizons if h > self.steps]
        if out:
            raise StateError(f"horizons {out}: the evaluation has {self.steps} steps; use 1 … {self.steps}")


def _indices(trajectories: Any, count: int) -> torch.Tensor:
    every = torch.arange(count)
    try:
        chosen = every[trajectories if isinstance(trajectories, slice) else torch.as_tensor(trajectories).reshape(-1)]
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(
            f"{trajectories!r} are no trajectories of {count}: give indices 0 … {count - 1}, a slice, or {count} "
            f"booleans ({error})"
        ) from None
    if not len(chosen):
        raise StateError(f"{trajectories!r} selects none of {count} trajectories")
    return chosen
