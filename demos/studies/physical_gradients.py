"""Find what physics has smoothed: networks that invert diffusion or Poisson's equation, trained in several ways.

The network sees y* and returns x, on 64² cells. Physics take out fine structures, so that plain gradients hardly see
them; physical gradients (Holl et al. 2022, arXiv 2109.15048) correct x by the inverse of the error of y. Physics in double,
network in single precision. All see the same samples for the same time, and are judged by ‖x − x*‖ and ‖P(x) − y*‖, both
relative, on held-out samples.
  heat      y* is what νt = 8 cells² of diffusion leave of rectangles, periodic; the inverse sharpens as far as noise allows
  poisson   y* = ∇⁻²x*, zero boundary; the inverse is ∇²

    python demos/studies/physical_gradients.py [--case NAME] [--quick | --full] [--seeds N] [--out DIR]
    python demos/studies/physical_gradients.py --case NAME --tune ENTRANT --seed 100    learning rates of one entrant
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from contest import (
    Phase,
    at_other_rates,
    batches,
    cosine,
    curves,
    distance_to,
    last,
    race,
    seconds_of,
    seconds_to_reach,
    uses_to_pay,
)
from matplotlib.figure import Figure
from phi.math import batch, precision, spatial, wrap
from phi.torch.flow import u_net

import phi_hybrid as ph
from phi_hybrid.optim import Chain, Closure, Gradient, LinearInverse, Link, SeparableNewton
from phi_hybrid.pde import heat, poisson

CELLS, SAMPLES, HELD_OUT, LOOKS = 64, 2048, 128, 15
VISCOSITY, TIME = 1.0, 8.0
NOISE = 1e-12
"""Of y, per cell: that of rounding in double precision; what has not drowned in it is sharpened."""

Operator = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Inversion:
    """Linear physics y = P(x) in double precision, samples `(sample, x, y)`, and a network y* ↦ x in single precision."""

    network: torch.nn.Module
    physics: Operator
    inverse: Operator
    """Δy ↦ Δx."""
    truth: torch.Tensor
    """x*, of training and then of held-out samples."""
    held_out: int

    @property
    def observed(self) -> torch.Tensor:
        """y* of all samples."""
        return self.physics(self.truth)


# --- ways to change x ---

ChainOf = Callable[[Inversion, torch.Tensor, torch.Tensor], Chain]
"""Task, y*, x* ↦ how the network's x is to be changed."""


def plain_gradient(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Differentiable physics: both links by their adjoint."""
    return Chain(Link(task.physics, Gradient()), Link(distance_to(observed), Gradient()), precision=torch.float64)


def physical_gradient(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Δx = P⁻¹(y* − P(x))."""
    inverse = Link(task.physics, LinearInverse(task.inverse))
    return Chain(inverse, Link(distance_to(observed), SeparableNewton()), precision=torch.float64)


def supervised(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Without physics, towards x*, which the others do not see."""
    return Chain(Link(distance_to(truth), Gradient()), precision=torch.float64)


def loss_of(chain: Chain, x: torch.Tensor) -> torch.Tensor:
    """Loss at the end of the chain, which line searches look at; its gradient is that of the proxy."""
    step = chain.update(x)
    proxy = step.proxy(x)
    return proxy + (step.loss.mean() - proxy).detach()


@dataclass(frozen=True)
class Entrant:
    """Ways to change x, each used until that share of the time is over, an optimizer of the network, and its rate."""

    chains: tuple[tuple[ChainOf, float], ...]
    rate: float
    batch: int = 16
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    schedule: Callable[[float], float] = cosine


LBFGS = partial(torch.optim.LBFGS, max_iter=10, history_size=20, line_search_fn="strong_wolfe")

ENTRANTS = {
    "adam": Entrant(((plain_gradient, 1.0),), 3e-3),
    "pg": Entrant(((physical_gradient, 1.0),), 1e-2),
    "pg_then_adam": Entrant(((physical_gradient, 0.85), (plain_gradient, 1.0)), 1e-2),
    "lbfgs": Entrant(((plain_gradient, 1.0),), 1.0, 128, LBFGS, lambda share: 1.0),
    "supervised": Entrant(((supervised, 1.0),), 1e-2),
}


def train(task: Inversion, entrant: Entrant, seconds: float, seed: int, looks: int = LOOKS) -> dict[str, list[float]]:
    """History of the errors on held-out samples."""
    observed, training = task.observed, len(task.truth) - task.held_out
    numbers = batches(torch.arange(training), entrant.batch, seed)

    def phase(chain_of: ChainOf) -> Callable[[float], None]:
        optimizer = entrant.optimizer(task.network.parameters(), entrant.rate)

        def update(share: float) -> None:
            optimizer.param_groups[0]["lr"] = entrant.rate * entrant.schedule(share)
            chosen = next(numbers)
            seen = observed[chosen]
            loss = partial(loss_of, chain_of(task, seen, task.truth[chosen]))
            optimizer.step(Closure(lambda: task.network(seen), loss, task.network.parameters()))

        return update

    phases: list[Phase] = [(partial(phase, chain_of), end) for chain_of, end in entrant.chains]
    return race(phases, lambda: errors(task, observed), seconds, looks)


def errors(task: Inversion, observed: torch.Tensor) -> dict[str, float]:
    """Relative distances of held-out samples, mean over them; infinite if the network fails."""
    truth, seen = task.truth[-task.held_out :], observed[-task.held_out :]
    with torch.no_grad():
        x = torch.cat([task.network(part) for part in seen.split(16)]).double()
        found = {"x": (x, truth), "y": (task.physics(x), seen)}
    return {name: float(relative(*pair).mean().nan_to_num(math.inf)) for name, pair in found.items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """‖a − b‖/‖b‖ of each sample."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


# --- results ---


def compete(
    start: Inversion, entrants: dict[str, Entrant], seconds: float, looks: int, seed: int
) -> tuple[lab.Rows, Callable]:
    """Copies of the same network, trained by every entrant; metrics, and figures to draw.

    `source` is the untrained network, `inverse` the inverse of the physics applied to y* without a network.
    """
    histories, shown, observed = {}, {}, start.observed
    rows = {"source": errors(start, observed), "inverse": errors(replace(start, network=start.inverse), observed)}
    for name, entrant in entrants.items():
        task = replace(start, network=copy.deepcopy(start.network))
        history = histories[name] = train(task, entrant, seconds, seed, looks)
        rows[name] = last(history) | break_even(start, history["y"][-1], history["seconds"][-1])
        shown[name] = task.network
    panels = [("seconds", "x"), ("updates", "x"), ("seconds", "y")]
    return rows, lambda: {"training": curves(histories, panels), "examples": pictures(start, shown)}


def break_even(
    task: Inversion, target: float, training_seconds: float, uses: int = 4, iterations: int = 1000
) -> dict[str, float]:
    """Uses after which the training is paid back, the other way being L-BFGS on x of each sample alone, from 0.

    Both are to have the same ‖y − y*‖; `alone_x` is ‖x − x*‖ of the other way. Without these entries, L-BFGS did not get
    there.
    """
    if not math.isfinite(target):
        return {}
    truths = task.truth[-task.held_out :][:uses].split(1)
    found = [alone(task, task.physics(truth), target, iterations) for truth in truths]
    seconds = sum(s for _, s in found) / uses
    if not math.isfinite(seconds):
        return {}
    distance = sum(float(relative(x, truth)) for (x, _), truth in zip(found, truths)) / uses
    pays = uses_to_pay(training_seconds, seconds - seconds_of(task.network, truths))
    return {"alone_x": distance, "alone_ms": 1e3 * seconds, "break_even": pays}


def alone(task: Inversion, seen: torch.Tensor, target: float, iterations: int) -> tuple[torch.Tensor, float]:
    """x of one sample, and the seconds until its ‖y − y*‖ is that small; infinite after too many iterations."""
    x = torch.zeros_like(seen, requires_grad=True)
    scale = 1e8 / float((seen**2).sum())  # torch drops curvatures below 1e-10
    closure = Closure(lambda: task.physics(x), lambda y: scale * distance_to(seen)(y).sum(), [x])
    seconds = seconds_to_reach(closure, 1e8 * target**2 / 2, iterations)
    return x.detach(), seconds


def pictures(task: Inversion, networks: dict[str, torch.nn.Module]) -> Figure:
    """y*, x*, and what every network makes of the last sample."""
    truth = task.truth[-1:]
    seen = task.physics(truth)
    with torch.no_grad():
        images = {"y*": seen, "x*": truth, **{name: network(seen) for name, network in networks.items()}}
    figure, axes = plt.subplots(1, len(images), figsize=(2.2 * len(images), 2.6), layout="constrained")
    for ax, (title, values) in zip(axes, images.items()):
        limit = float((seen if title == "y*" else truth).abs().max())
        ax.imshow(values[0].T, origin="lower", cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


# --- the two cases ---


class Scaled(torch.nn.Module):
    """A network between images `(sample, x, y)`, in single precision and in units of what it sees."""

    def __init__(self, network: torch.nn.Module, seen: float, zero_mean: bool = False) -> None:
        super().__init__()
        self.network, self.seen, self.zero_mean = network, seen, zero_mean

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        x = self.network((y[:, None] / self.seen).float())[:, 0]
        return x - x.mean((1, 2), keepdim=True) if self.zero_mean else x


def native(step: Callable, example: Any) -> Operator:
    """A captured operator on fields, as a function of torch tensors."""
    bound = ph.capture(step).bind(example)
    return lambda x: bound.native(x)[0]


def rectangles(count: int, seed: int) -> np.ndarray:
    """Rectangles of heat at random places, of random sizes and strengths, less their mean."""
    rng = np.random.default_rng(seed)
    cells = np.arange(CELLS)
    images = np.zeros((count, CELLS, CELLS))
    for image in images:
        for _ in range(rng.integers(2, 7)):
            width, centre = rng.uniform(3, 16, 2), rng.uniform(0, CELLS, 2)
            along = [np.abs((cells - c + CELLS / 2) % CELLS - CELLS / 2) < w / 2 for c, w in zip(centre, width)]
            image += rng.uniform(-1, 1) * np.outer(*along)
    images -= images.mean((1, 2), keepdims=True)
    return images / images.std()


def heat_task(seed: int) -> Inversion:
    """Diffusion on a periodic square, which keeps the mean: that of x* is 0."""
    values = rectangles(SAMPLES + HELD_OUT, seed)
    with precision(64):
        field = heat.square(CELLS).with_values(wrap(values, batch("sample"), spatial("x,y")))
        physics = native(heat.heat_step(TIME, VISCOSITY), field)
        inverse = native(heat.Sharpening(VISCOSITY, TIME, NOISE), field)
    return task_of(physics, inverse, torch.from_numpy(values), seed, periodic=True)


def poisson_task(seed: int) -> Inversion:
    """Potential of random sources with zero boundary."""
    with precision(64):
        sources = poisson.noise(poisson.square(CELLS), SAMPLES + HELD_OUT, seed)
        physics, inverse = native(poisson.solve, sources), native(poisson.laplace, sources)
        (truth,) = ph.bridge.flatten(sources)[0]
    return task_of(physics, inverse, truth, seed, periodic=False)


def task_of(physics: Operator, inverse: Operator, truth: torch.Tensor, seed: int, periodic: bool) -> Inversion:
    """The task with a U-net."""
    torch.manual_seed(seed)
    network = u_net(1, 1, levels=4, filters=8, batch_norm=False, periodic=periodic, use_res_blocks=True)
    return Inversion(Scaled(network, float(physics(truth).std()), periodic), physics, inverse, truth, HELD_OUT)


CASES = {
    "heat": (heat_task, list(ENTRANTS), 100.0),
    "poisson": (poisson_task, [name for name in ENTRANTS if name != "pg_then_adam"], 60.0),
}
"""Case → task of a seed, entrants, seconds."""


def main() -> None:
    which = dict(choices=list(CASES), default="heat")
    tune = dict(choices=list(ENTRANTS), help="this one alone, at a third, one and three times its learning rate")
    options = lab.options(__doc__, "physical_gradients", case=which, tune=tune)
    make, names, seconds = CASES[options.case]
    entrants = (
        at_other_rates(options.tune, ENTRANTS[options.tune])
        if options.tune
        else {name: ENTRANTS[name] for name in names}
    )
    seconds, looks = seconds * lab.share(options, 0.03), 3 if options.quick else LOOKS
    run = partial(compete, entrants=entrants, seconds=seconds, looks=looks)
    lab.study(options, lambda seed: run(make(seed), seed=seed), ["x", "y"], ["updates", "alone_x", "break_even"])


if __name__ == "__main__":
    main()
