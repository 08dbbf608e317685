"""J·Jᵀ without J, from layer inputs and output sensitivities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phi_hybrid.optim import eigen
from phi_hybrid.optim.cost import Cost, estimate
from phi_hybrid.optim.engines import Gram, Update, from_gram
from phi_hybrid.optim.factors import Factor
from phi_hybrid.optim.jacobian import Jacobian, products
from phi_hybrid.optim.layers import Layer
from phi_hybrid.optim.spectrum import Filter


@dataclass(frozen=True)
class Structured:
    """K = J·Jᵀ layer by layer from inputs and sensitivities of `Linear` and `Conv` layers, others by rows of J.

    The samples of a batch must not influence each other: then one backward pass serves an output of all samples at once,
    d_y passes instead of b·d_y. HIG compares one gradient with autograd in every
    update.

    Args:
        chunk: outputs of each sample whose sensitivities are computed at once.
        rest: for parameters of other layers.
        tolerance: largest relative error of that gradient.

    Raises:
        StateError: in an update by HIG, if they do, or if the weights of a layer are used outside of it.
    """

    chunk: int = 64
    rest: Gram = Gram()
    tolerance: float = 1e-3

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        factors, others = self._parts(jacobian)
        total = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=cotangent.device)
        if others:
            self.rest.add_to(total, jacobian.of(others))
        self._fill(jacobian, factors)
        for factor in factors:
            factor.add_to(total, jacobian.processes)
        return from_gram(total, jacobian, cotangent, filter, kappa, scale)

    def applies(self, jacobian: Jacobian) -> bool:
        """Whether there are layers to go by, and they explain this Jacobian."""
        return bool(self._parts(jacobian)[0]) and self.mismatch(jacobian) is None

    def mismatch(self, jacobian: Jacobian) -> str | None:
        """Why K would be wrong for this Jacobian, the same on all processes; `None` if it would not.

        To be asked in every update: behind a last layer of zeros, where networks often begin, nothing is felt yet of samples
        that influence each other.
        """
        reason = self._mismatch(jacobian, self._parts(jacobian)[0])
        found = jacobian.processes.summed(torch.tensor(float(reason is not None), device=jacobian.outputs.device))
        return reason or ("another process has found samples that influence each other" if found else None)

    def cost(self, jacobian: Jacobian) -> Cost:
        factors, others = self._parts(jacobian)
        rows, per_sample = jacobian.rows, jacobian.outputs.numel() // jacobian.samples
        rest = self.rest.cost(jacobian.of(others)) if others else Cost(0, 0.0)
        sensitivities = 8 * jacobian.samples * min(self.chunk, per_sample)
        held = 8 * rows**2 + sum(
            f.bytes * jacobian.processes.size + 2 * sensitivities * f.layer.applications * f.layer.units
            for f in factors
        )
        flops = sum(f.flops(rows) for f in factors) + eigen.flops_of(rows)
        own = estimate(
            jacobian,
            max(eigen.bytes_of(rows, jacobian.outputs.device), held, rest.bytes),
            per_sample / self.chunk + 1,
            per_sample,
            flops,
        )
        return Cost(own.bytes, own.seconds + rest.seconds)

    def _parts(self, jacobian: Jacobian) -> tuple[list[Factor], list[torch.Tensor]]:
        """Of layers, and the parameters besides."""
        layers = _usable(jacobian)
        covered = {id(p) for layer in layers for p in layer.parameters}
        factors = [Factor(layer, jacobian.outputs.numel(), jacobian.samples) for layer in layers]
        return factors, [p for p in jacobian.parameters if id(p) not in covered]

    def _fill(self, jacobian: Jacobian, factors: list[Factor]) -> None:
        states = [z for factor in factors for z in factor.layer.outputs]
        if not states:
            return
        per_sample = jacobian.outputs.numel() // jacobian.samples
        for start in range(0, per_sample, self.chunk):
            part = slice(start, min(start + self.chunk, per_sample))
            chosen = torch.arange(part.start, part.stop, device=jacobian.outputs.device)
            seeds = torch.nn.functional.one_hot(chosen, per_sample).to(jacobian.outputs)
            seeds = seeds[:, None].expand(-1, jacobian.samples, -1).reshape(len(chosen), -1)
            back = iter(products(jacobian.outputs, states, seeds))
            for factor in factors:
                factor.fill(part, [next(back) for _ in factor.layer.outputs])

    def _mismatch(self, jacobian: Jacobian, factors: list[Factor]) -> str | None:
        """Why the layers do not explain the gradient of a random product of the outputs of some samples; `None` if they do."""
        if not factors:
            return None
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(jacobian.samples, generator=generator) % 2 == 0
        signs = torch.randint(
            0, 2, (jacobian.samples, jacobian.outputs.numel() // jacobian.samples), generator=generator
        )
        seed = ((2 * signs - 1) * chosen[:, None]).flatten().to(jacobian.outputs)
        states = [z for factor in factors for z in factor.layer.outputs]
        weights = [p for factor in factors for p in factor.layer.parameters]
        back = torch.autograd.grad(jacobian.outputs, (*states, *weights), seed, retain_graph=True, allow_unused=True)
        whole = iter([torch.zeros_like(x) if g is None else g for g, x in zip(back, (*states, *weights))])
        deltas = [[next(whole) for _ in factor.layer.outputs] for factor in factors]
        for factor, delta in zip(factors, deltas):
            silent = sum(float(d[~chosen.to(d.device)].double().square().sum()) for d in delta)
            if silent > 1e-12 * sum(float(d.double().square().sum()) for d in delta):
                return "the samples of the batch influence each other"
            for expected, found in zip([next(whole) for _ in factor.layer.parameters], factor.gradient(delta)):
                if (found - expected).norm() > self.tolerance * expected.norm():
                    return f"the weights of {factor.layer.module} are used outside of it, or its output is changed in place"
        return None


def _usable(jacobian: Jacobian) -> list[Layer]:
    """Layers whose calls all have the samples in front, and whose weights belong to them alone."""
    wanted = {id(p) for p in jacobian.parameters}
    layers = [layer for layer in jacobian.layers.values() if any(id(p) in wanted for p in layer.parameters)]
    return [
        layer
        for layer in layers
        if not layer.half_shared
        and all(z.requires_grad and z.shape[0] == jacobian.samples for z in layer.outputs)
        and all(a.shape[0] == jacobian.samples and a.ndim >= layer.least_dims for a in layer.inputs)
        and all(id(p) in wanted for p in layer.parameters)
    ]
