"""J·Jᵀ without J, from layer inputs and output sensitivities."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phi_hybrid.bridge.checks import require_count, require_instance, require_number
from phi_hybrid.optim.eigenvectors import eigh_bytes, eigh_flops
from phi_hybrid.optim.engines import (
    Cost,
    Engine,
    Gram,
    Update,
    add_square,
    estimate,
    from_gram,
    unresolved,
)
from phi_hybrid.optim.filters import Filter
from phi_hybrid.optim.jacobian import Jacobian, Processes, products
from phi_hybrid.optim.layers import Layer


@dataclass(frozen=True)
class Structured(Engine):
    """Gram matrix K = J·Jᵀ from inputs a and sensitivities δ of `Linear` and `Conv` layers, others by rows of J.

    K[(i, p), (j, q)] = Σ_ts (a_it·a_js + 1)(δ_ipt·δ_jqs) over all applications t, s of a layer. The samples of a batch must
    not influence each other: then one backward pass serves an output of all samples at once, d_y passes instead of b·d_y.
    HIG compares one gradient with autograd in every update.

    Args:
        chunk: number of outputs of each sample whose sensitivities are computed at once.
        rest: engine for parameters of other layers.
        tolerance: largest relative error of that gradient; 1e-3 by default.

    Raises:
        StateError: in an update by HIG, if they do, or if the weights of a layer are used outside of it.
    """

    chunk: int = 64
    rest: Gram = Gram()
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_count("chunk", self.chunk)
        require_instance("rest", self.rest, Gram, "an engine Gram(…)")
        require_number("tolerance", self.tolerance, least=0)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        factors, others = self._parts(jacobian)
        total = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=cotangent.device)
        if others:
            self.rest.add_to(total, jacobian.of(others))
        self._fill(jacobian, factors)
        for factor in factors:
            factor.add_to(total, jacobian.processes)
        return from_gram(total, jacobian.transposed_times, jacobian, cotangent, filter, kappa, scale)

    def suits(self, jacobian: Jacobian, filter: Filter) -> bool:
        """Permission for `Automatic`: there are layers to go by, and they explain this Jacobian."""
        return bool(self._parts(jacobian)[0]) and super().suits(jacobian, filter)

    def mismatch(self, jacobian: Jacobian, filter: Filter) -> str | None:
        """Reason why K would be wrong, the same on all processes; `None` if it would not.

        To be asked in every update: behind a last layer of zeros, where networks often begin, nothing is felt yet of samples
        that influence each other.
        """
        if reason := unresolved(jacobian.rows, filter):
            return reason
        reason = self._mismatch(jacobian, self._parts(jacobian)[0])
        found = jacobian.processes.summed(torch.tensor(float(reason is not None), device=jacobian.outputs.device))
        if not found:
            return None
        return f"{reason or 'another process has found samples that influence each other'}. Use engine=Gram()"

    def cost(self, jacobian: Jacobian) -> Cost:
        factors, others = self._parts(jacobian)
        rows, per_sample = jacobian.rows, jacobian.outputs.numel() // jacobian.samples
        rest = self.rest.cost(jacobian.of(others)) if others else Cost(0, 0.0)
        sensitivities = 8 * jacobian.samples * min(self.chunk, per_sample)
        held = 8 * rows**2 + sum(
            f.bytes * jacobian.processes.size + 2 * sensitivities * f.layer.applications * f.layer.units
            for f in factors
        )
        flops = sum(f.flops(rows) for f in factors) + eigh_flops(rows)
        own = estimate(
            jacobian,
            max(eigh_bytes(rows, jacobian.outputs.device), held, rest.bytes),
            -(-per_sample // self.chunk) + 2,  # the comparison with autograd, and the update itself
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
        """Reason why layers do not explain the gradient of a random product of outputs of some samples; `None` if they do."""
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
        and all(a.shape[0] == jacobian.samples and a.ndim >= layer.least_dims for a in layer.arguments)
        and all(id(p) in wanted for p in layer.parameters)
    ]


# --- a layer's part of J·Jᵀ ---

_BLOCK = 512
"""Rows of K that are worked on at once."""


@dataclass
class Factor:
    """Numbers that are held of one layer until its part of K is formed.

    Args:
        layer: recorded layer.
        rows: m of this process.
        samples: b of this process.
    """

    layer: Layer
    rows: int
    samples: int

    def __post_init__(self) -> None:
        layer = self.layer
        self.weight = layer.module.weight.requires_grad
        self.bias = layer.module.bias is not None and layer.module.bias.requires_grad
        t, units, inputs = layer.applications, layer.units, layer.inputs_per_unit
        self.by_products = t**2 * units < units * inputs + t * units * inputs / self.rows
        self.width = t * units if self.by_products else units * (inputs * self.weight + self.bias)
        self._held: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return 8 * self.rows * self.width

    def flops(self, rows: int) -> float:
        """Of forming K with this many rows in all."""
        t, units, inputs = self.layer.applications, self.layer.units, self.layer.inputs_per_unit
        if self.by_products:
            return rows**2 * t**2 * units
        return rows**2 * self.width + 2 * rows * t * units * inputs

    def fill(self, outputs: slice, deltas: list[torch.Tensor]) -> None:
        """Takes in δ of some outputs p, one tensor `(output, sample, …)` for each call of the layer."""
        delta = self.layer.sensitivities(deltas)  # (sample, output, application, unit)
        if self._held is None:
            self._inputs = self.layer.inputs()
            self._held = delta.new_empty(self.samples, self.rows // self.samples, self.width)
        if self.by_products:
            self._held[:, outputs] = delta.flatten(2)
            return
        parts = []
        if self.weight:
            parts.append(torch.einsum("iptu,itk->ipuk", delta, self._inputs).flatten(2))
        if self.bias:
            parts.append(delta.sum(2))
        self._held[:, outputs] = torch.cat(parts, 2)

    def gradient(self, deltas: list[torch.Tensor]) -> list[torch.Tensor]:
        """Σ_it δ_it ⊗ a_it and Σ_it δ_it for δ of one product of the outputs, like the parameters of the layer."""
        delta = self.layer.sensitivities([d[None] for d in deltas])[:, 0]
        weight = torch.einsum("itu,itk->uk", delta, self.layer.inputs()).view_as(self.layer.module.weight)
        return [weight] * self.weight + [delta.sum((0, 1))] * self.bias

    def add_to(self, gram: torch.Tensor, processes: Processes) -> None:
        """Adds the layer's part to the lower triangle of K, and lets go of what was held."""
        held, self._held = processes.gathered(self._held), None
        if self.by_products:
            self._add_products(gram, processes.gathered(self._inputs), held)
        else:
            add_square(gram, held.flatten(0, 1), _BLOCK)

    def _add_products(self, gram: torch.Tensor, inputs: torch.Tensor, held: torch.Tensor) -> None:
        samples, outputs, applications = *held.shape[:2], inputs.shape[1]
        delta = held.view(samples * outputs, applications, -1)
        step = max(1, _BLOCK // outputs)
        for start in range(0, samples, step):
            stop = min(start + step, samples)
            rows, columns = slice(start * outputs, stop * outputs), slice(0, stop * outputs)
            block = gram[rows, columns].view(stop - start, outputs, stop, outputs)
            for t in range(applications):
                for s in range(applications):
                    products = inputs[start:stop, t] @ inputs[:stop, s].mT if self.weight else 0.0
                    weights = torch.as_tensor(products + float(self.bias), dtype=gram.dtype, device=gram.device)
                    weights = weights.expand(stop - start, stop)[:, None, :, None]
                    block.addcmul_((delta[rows, t] @ delta[columns, s].mT).view_as(block), weights)
