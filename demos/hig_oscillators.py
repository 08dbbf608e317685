"""Train a network to control coupled oscillators, with half-inverse gradients and with other optimizers.

The network sees a state and returns the forces on the last oscillator that are to bring the chain back to that state after
all steps (Schnell et al. 2022; Thuerey et al., Physics-based Deep Learning). The linear chain has 24 steps of 0.5, the
nonlinear one 96 of 0.125. Every optimizer gets the same time. Loss: Σ|y − y*|², mean over the samples.

    python demos/hig_oscillators.py [--nonlinear] [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import arguments, require_device, save_figures, write_metrics
from phi.math import batch, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, Cutoff
from phi_hybrid.pde.oscillators import Oscillators, nonlinear_oscillators

SAMPLES, HELD_OUT = 4096, 1024


@dataclass(frozen=True)
class Case:
    """One chain, its network and its budgets."""

    chain: Oscillators
    activation: type[torch.nn.Module]
    hig_batch: int
    adam_batch: int
    adam_rate: float
    seconds: float


LINEAR = Case(Oscillators(), torch.nn.Tanh, hig_batch=32, adam_batch=256, adam_rate=3e-3, seconds=20)
NONLINEAR = Case(nonlinear_oscillators(), torch.nn.ReLU, hig_batch=128, adam_batch=512, adam_rate=1e-3, seconds=60)


class Control:
    """The task: states, the network, and what the chain does with its output."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        states = case.chain.random_states(SAMPLES + HELD_OUT, seed)
        self.block = ph.capture(case.chain.controlled)
        self.block.flatten(states, zeros(batch(time=case.chain.steps, trajectory=SAMPLES + HELD_OUT)))
        (whole,) = ph.bridge.flatten(states)[0]
        self.training, self.held_out = whole.float().split([SAMPLES, HELD_OUT])
        torch.manual_seed(seed)
        layers, width = [], 2 * case.chain.count
        for _ in range(3):
            layers += [torch.nn.Linear(width, 20), case.activation()]
            width = 20
        self.network = torch.nn.Sequential(*layers, torch.nn.Linear(width, case.chain.steps))

    def final(self, states: torch.Tensor) -> torch.Tensor:
        """The state that the chain ends in, `(sample, oscillators, phase)`."""
        return self.block.native(states, self.network(states.flatten(1)).T)[0]

    def closure(self, states: torch.Tensor) -> Closure:
        return Closure(lambda: self.final(states), lambda y: loss(y, states))

    @torch.no_grad()
    def losses(self) -> tuple[float, float]:
        """On all training and on held-out states."""
        return float(loss(self.final(self.training), self.training)), float(
            loss(self.final(self.held_out), self.held_out)
        )


def loss(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((y - target) ** 2).flatten(1).sum(1).mean()


def train(control: Control, optimizer: torch.optim.Optimizer, size: int, seconds: float, seed: int) -> dict[str, list]:
    """Epochs until the time is over; loss over time and updates. Time for looking at the loss does not count."""
    history: dict[str, list] = {"seconds": [], "updates": [], "loss": [], "held_out": []}
    generator, used, updates = torch.Generator().manual_seed(seed), 0.0, 0
    while used < seconds:
        began = time.perf_counter()
        for chosen in torch.randperm(SAMPLES, generator=generator).split(size):
            closure = control.closure(control.training[chosen])
            optimizer.step(closure if isinstance(optimizer, HIG) else backward(closure, optimizer))
            updates += 1
        used += time.perf_counter() - began
        for key, value in zip(history, (used, updates, *control.losses())):
            history[key].append(value)
        if not math.isfinite(history["loss"][-1]):
            break
    return history


def backward(closure: Closure, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    def first_order() -> torch.Tensor:
        optimizer.zero_grad()
        value = closure.loss(closure.outputs())
        value.backward()
        return value

    return first_order


def optimizers(case: Case) -> dict[str, tuple[Callable[[torch.nn.Module], torch.optim.Optimizer], int]]:
    """Name → optimizer of a network, size of a batch."""
    return {
        "adam": (lambda net: torch.optim.Adam(net.parameters(), case.adam_rate), case.adam_batch),
        "gauss_newton": (lambda net: HIG(net, 1.0, 1.0, Cutoff(1e-6), per_sample=False), case.hig_batch),
        "hig": (lambda net: HIG(net, 1.0, 0.5, Cutoff(1e-6), per_sample=False), case.hig_batch),
    }


def run(case: Case, seed: int) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    metrics, histories = {}, {}
    control = Control(case, seed)
    first = control.losses()
    metrics["source"] = {"loss": first[0], "held_out": first[1]}
    for name, (make, size) in optimizers(case).items():
        control = Control(case, seed)
        optimizer = make(control.network)
        history = histories[name] = train(control, optimizer, size, case.seconds, seed)
        metrics[name] = {key: history[key][-1] for key in ("loss", "held_out", "updates", "seconds")}
        metrics[name]["ms_per_update"] = 1e3 * history["seconds"][-1] / history["updates"][-1]
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics[name].items()))
        if name == "hig":
            histories["singular values"] = optimizer.last.singular_values
    return metrics, histories


def figures(histories: dict[str, Any], out: Any) -> None:
    spectrum = histories.pop("singular values")
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, history in histories.items():
        for ax, over in zip(axes, ("seconds", "updates")):
            (line,) = ax.loglog(history[over], history["loss"], label=name)
            ax.loglog(history[over], history["held_out"], ":", color=line.get_color())
            ax.set(xlabel=over, ylabel="loss (dotted: held out)")
    axes[2].semilogy(spectrum / spectrum[0])
    axes[2].set(xlabel="number", ylabel="σ / σ_max, last update of hig")
    axes[0].legend()
    figure.tight_layout()
    save_figures(out, {"training": figure})


def main() -> None:
    parser = arguments(__doc__, "hig_oscillators")
    parser.add_argument("--nonlinear", action="store_true", help="cubic springs, 96 steps")
    options = parser.parse_args()
    require_device(options.device)
    torch.set_num_threads(1)  # the networks are too small to share
    case = NONLINEAR if options.nonlinear else LINEAR
    seconds = case.seconds / 4 if options.quick else 3 * case.seconds if options.full else case.seconds
    case = Case(**{**vars(case), "seconds": seconds})
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"seed {seed}")
        metrics, histories = run(case, seed)
        per_seed.append(metrics)
        if seed == options.seed:
            figures(histories, options.out)
    if options.seeds > 1:
        print(
            ph.Table.over_seeds([{k: v for k, v in m.items() if k != "source"} for m in per_seed], ["loss", "held_out"])
        )
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
