"""Train networks whose output goes into physics, with half-inverse gradients and with other optimizers, in equal time.

Half-inverse gradients: Schnell et al. 2022 (arXiv 2203.10131). The cases are theirs:
  oscillators   forces on the last of two oscillators bring the chain back to the state that the network sees, after 24
                steps of 0.5 (Thuerey et al., Physics-based Deep Learning); `nonlinear`: cubic springs, 96 steps of 0.125
  poisson       a right-hand side f on 8×8 cells ↦ u, judged by ∇²u
  quantum       the field over 384 steps that brings a particle from the ground state into a superposition
Losses are means over the samples of Σ|y − y*|², or of 1 − |⟨ψ, ψ*⟩|².

    python demos/studies/half_inverse_gradients.py [--case NAME] [--quick | --full] [--seeds N] [--out DIR]
    python demos/studies/half_inverse_gradients.py --case NAME --tune ENTRANT --seed 100    learning rates of one optimizer
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lab
import torch
from contest import batches, cosine, curves, last, race, require_finite, seconds_of, seconds_to_reach, uses_to_pay
from phi.math import batch, expand, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, GolubKahan, Smooth
from phi_hybrid.pde import poisson
from phi_hybrid.pde.oscillators import Oscillators, nonlinear_oscillators
from phi_hybrid.pde.quantum import Well

LOOKS = 40


@dataclass(frozen=True)
class Task:
    """A network whose output goes into physics, y = physics(network(x), x), and states to train it with."""

    network: torch.nn.Module
    physics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """`(y, x) -> scalar`, a mean over the samples."""
    training: torch.Tensor
    held_out: torch.Tensor

    def closure(self, x: torch.Tensor) -> Closure:
        """Face of the samples x for an optimizer."""
        outputs, loss = lambda: self.physics(self.network(x), x), lambda y: self.loss(y, x)
        return Closure(outputs, loss, tuple(self.network.parameters()))

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Losses of training samples, as many as are held out, and of the held-out ones."""
        parts = {"loss": self.training[: len(self.held_out)], "held_out": self.held_out}
        return {name: float(self.loss(self.physics(self.network(x), x), x)) for name, x in parts.items()}

    def anew(self) -> Task:
        """The same task with a copy of the network."""
        return replace(self, network=copy.deepcopy(self.network))

    def to(self, device: str) -> Task:
        """The task on a device."""
        states = {"training": self.training.to(device), "held_out": self.held_out.to(device)}
        return replace(self, network=self.network.to(device), **states)


@dataclass(frozen=True)
class Entrant:
    """An optimizer of a network, its batch size, and the factor of its learning rate by the share of the time used."""

    make: Callable[[torch.nn.Module], torch.optim.Optimizer]
    batch: int
    schedule: Callable[[float], float] = lambda share: 1.0


@dataclass(frozen=True)
class Case:
    """A task, its entrants and its budget."""

    task: Callable[[int], Task]
    """Of a seed."""
    entrants: dict[str, Entrant]
    seconds: float
    quick: float
    """Share of the time of `--quick`."""


def adam(rate: float, batch: int) -> Entrant:
    """Adam at a constant rate."""
    return Entrant(lambda net: torch.optim.Adam(net.parameters(), rate), batch)


def falling(entrant: Entrant) -> Entrant:
    """The same at a rate that falls like a cosine to zero over the time."""
    return replace(entrant, schedule=cosine)


def hig(rate: float, kappa: float, rcond: float, batch: int) -> Entrant:
    """Half-inverse gradients as in the paper; κ = 1 is Gauss–Newton."""
    return Entrant(lambda net: HIG(net, rate, kappa, rcond, per_sample=False, progress=False), batch)


def matrix_free(rate: float, kappa: float, rcond: float, batch: int) -> Entrant:
    """Half-inverse gradients without J·Jᵀ, which has 16384² entries for 256 samples of 64 outputs."""
    make = partial(HIG, lr=rate, kappa=kappa, rcond=Smooth(rcond), engine=GolubKahan(0.1), progress=False)
    return Entrant(make, batch)


def perceptron(widths: list[int], activation: type[torch.nn.Module]) -> list[torch.nn.Module]:
    """Layers from the first width to the last, no activation after it."""
    layers: list[torch.nn.Module] = []
    for before, width in zip(widths[:-1], widths[1:]):
        layers += [torch.nn.Linear(before, width), activation()]
    return layers[:-1]


def squares(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Σ|y − x|², mean over the samples."""
    return ((y - x) ** 2).flatten(1).sum(1).mean()


def oscillators(chain: Oscillators, activation: type[torch.nn.Module], seed: int) -> Task:
    """State ↦ forces that bring the chain back to it; 4096 states for training and 1024 held out."""
    states = chain.random_states(4096 + 1024, seed)
    bound = ph.capture(chain.controlled).bind(states.trajectory[:2], zeros(batch(time=chain.steps, trajectory=2)))
    torch.manual_seed(seed)
    network = perceptron([2 * chain.count, 20, 20, 20, chain.steps], activation)
    return Task(
        torch.nn.Sequential(torch.nn.Flatten(), *network),
        lambda controls, start: bound.native(start, controls.T)[0],
        squares,
        *ph.bridge.flatten(states)[0][0].float().split([4096, 1024]),
    )


def laplacian(seed: int) -> Task:
    """Right-hand side ↦ solution of Poisson's equation with zero boundary; 8192 for training and 1024 held out."""
    right_hand_sides = poisson.noise(poisson.square(8), 8192 + 1024, seed)
    bound = ph.capture(poisson.laplace).bind(right_hand_sides.trajectory[:2])
    torch.manual_seed(seed)
    network = perceptron([64, 64, 128, 64, 64], torch.nn.Tanh)
    return Task(
        torch.nn.Sequential(torch.nn.Flatten(), *network, torch.nn.Unflatten(1, (8, 8))),
        lambda u, f: bound.native(u)[0],
        squares,
        *ph.bridge.flatten(right_hand_sides)[0][0].float().split([8192, 1024]),
    )


def infidelity(psi: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − |⟨ψ, ψ*⟩|² of wave functions and of targets `(sample, 28)`, real parts before imaginary ones; the mean."""
    overlap = (torch.complex(*target.chunk(2, 1)).conj() * psi).sum(1)
    return 1 - (overlap.real**2 + overlap.imag**2).mean()


def superposition(seed: int) -> Task:
    """Superposition of the second and the third eigenstate ↦ field; 4096 for training and 128 held out."""
    well = Well()
    targets = well.superpositions(4096 + 128, seed)
    ground = expand(well.eigenstate(1), batch(trajectory=2)), zeros(batch(time=well.steps, trajectory=2))
    bound = ph.capture(well.controlled).bind(*ground)
    first, (whole,) = bound.flatten(*ground)[0][:1], ph.bridge.flatten(targets)[0]
    torch.manual_seed(seed)
    return Task(
        torch.nn.Sequential(*perceptron([2 * whole.shape[1], 20, 20, 20, well.steps], torch.nn.Tanh)),
        lambda field, target: bound.native(first.to(target.device).expand(len(target), -1), field.T)[0],
        infidelity,
        *torch.cat([whole.real, whole.imag], 1).split([4096, 128]),
    )


CASES = {
    "oscillators": Case(
        partial(oscillators, Oscillators(), torch.nn.Tanh),
        {"adam": adam(3e-3, 1024), "adam_falling": falling(adam(3e-2, 1024)), "gauss_newton": hig(1.0, 1.0, 1e-6, 32), "hig": hig(1.0, 0.5, 1e-6, 32)},
        seconds=20,
        quick=0.25,
    ),
    # a rate of 1, as in the paper, takes four times as long; Gauss–Newton needs the larger cutoff
    "nonlinear": Case(
        partial(oscillators, nonlinear_oscillators(), torch.nn.ReLU),
        {"adam": adam(3e-3, 128), "adam_falling": falling(adam(1e-2, 128)), "gauss_newton": hig(4.0, 1.0, 1e-3, 128), "hig": hig(4.0, 0.5, 1e-6, 128)},
        seconds=60,
        quick=0.25,
    ),
    # exact engines do worse with the smaller batches that they can take
    "poisson": Case(
        laplacian,
        {"adam": adam(5e-4, 256), "adam_falling": falling(adam(1.5e-3, 256)), "gauss_newton": matrix_free(0.5, 1.0, 3e-3, 256), "hig": matrix_free(0.1, 0.5, 1e-2, 256)},
        seconds=150,
        quick=0.08,
    ),
    # the paper's rate of 0.5 and cutoff of 1e-5 take longer than Adam at its best rate
    "quantum": Case(
        superposition,
        {"adam": adam(1e-2, 32), "adam_falling": falling(adam(3e-2, 32)), "gauss_newton": hig(4.0, 1.0, 1e-3, 16), "hig": hig(4.0, 0.5, 1e-3, 16)},
        seconds=100,
        quick=0.05,
    ),
}  # fmt: skip


def train(task: Task, entrant: Entrant, seconds: float, seed: int) -> tuple[dict[str, list[float]], Any]:
    """History of a training, and the last update of optimizers that keep it."""
    optimizer, stream = entrant.make(task.network), batches(task.training, entrant.batch, seed)
    (group,) = optimizer.param_groups
    rate = group["lr"]

    def update(share: float) -> None:
        group["lr"] = rate * entrant.schedule(share)
        require_finite(float(optimizer.step(task.closure(next(stream)))))

    def set_up() -> Callable[[float], None]:
        copied = task.anew()  # what is captured and allocated once is no part of the training
        entrant.make(copied.network).step(copied.closure(task.training[: entrant.batch]))
        return update

    clock = time.perf_counter if task.training.is_cuda else time.process_time
    return race([(set_up, 1.0)], task.losses, seconds, LOOKS, clock), getattr(optimizer, "last", None)


def compete(start: Task, entrants: dict[str, Entrant], seconds: float, seed: int) -> tuple[lab.Rows, Callable]:
    """Copies of the same network, trained by every entrant; metrics, and figures to draw."""
    metrics, histories, spectra = {"source": start.losses()}, {}, {}
    for name, entrant in entrants.items():
        task = start.anew()
        histories[name], update = train(task, entrant, seconds, seed)
        if update is not None:
            spectra[name] = update.singular_values
        row = metrics[name] = last(histories[name])
        row["ms_per_update"] = 1e3 * row["seconds"] / max(row["updates"], 1)
        row |= break_even(task, row["held_out"], row["seconds"])
    panels = [("seconds", "loss"), ("updates", "loss")]
    return metrics, lambda: {"training": curves(histories, panels, spectra)}


def break_even(
    task: Task, target: float, training_seconds: float, uses: int = 4, iterations: int = 400
) -> dict[str, float]:
    """Uses after which the training is paid back, the other way being L-BFGS on the controls of each sample anew.

    Both are to have the network's held-out loss. Without an entry `break_even`, the network failed or L-BFGS did not
    get there; it is infinite if L-BFGS is as fast as the network.
    """
    samples = task.held_out[:uses].split(1)
    direct = [direct_seconds(task, x, target, iterations) for x in samples] if math.isfinite(target) else [math.inf]
    mean = sum(direct) / len(direct)
    if not math.isfinite(mean):
        return {}
    saved = mean - seconds_of(task.network, samples)
    return {"direct_seconds": mean, "break_even": uses_to_pay(training_seconds, saved)}


def direct_seconds(task: Task, x: torch.Tensor, target: float, iterations: int) -> float:
    """Seconds until L-BFGS has found controls of so low a loss; infinite if it does not."""
    with torch.no_grad():
        like = task.network(x)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))  # 0 may be a saddle
    controls = (0.1 * noise).to(like).requires_grad_()
    closure = Closure(lambda: task.physics(controls, x), lambda y: task.loss(y, x), [controls])
    return seconds_to_reach(closure, target, iterations)


def at_other_rates(entrant: Entrant, factors: Sequence[float] = (1 / 3, 1.0, 3.0)) -> dict[str, Entrant]:
    """The same entrant, with its learning rate multiplied."""

    def multiplied(factor: float) -> Entrant:
        return replace(entrant, schedule=lambda share: factor * entrant.schedule(share))

    return {f"rate × {factor:.2g}": multiplied(factor) for factor in factors}


def main() -> None:
    choice = dict(choices=list(CASES), default="oscillators")
    entrants = list(CASES["oscillators"].entrants)
    tune = dict(choices=entrants, help="this optimizer alone, at a third, one and three times its learning rate")
    options = lab.options(__doc__, "half_inverse_gradients", ["cpu", "cuda"], case=choice, tune=tune)
    case = CASES[options.case]
    entrants = at_other_rates(case.entrants[options.tune]) if options.tune else case.entrants
    seconds = case.seconds * lab.share(options, case.quick)

    def run(seed: int) -> tuple[lab.Rows, Callable]:
        return compete(case.task(seed).to(options.device), entrants, seconds, seed)

    lab.study(options, run, ["loss", "held_out"], ["updates", "ms_per_update", "break_even"])


if __name__ == "__main__":
    main()
