"""Engines: ways to compute Jᵀ·f(J·Jᵀ)·g. All give the same result, at different cost.

| engine | largest array | time |
|---|---|---|
| `Dense` | J, m·P numbers | SVD of J |
| `Gram` | K = J·Jᵀ, m², and J up to a bound | m vector–Jacobian products per group of parameters, eigenvectors of K |
| `ParameterGram` | G = Jᵀ·J, P² | m vector–Jacobian products, eigenvectors of G |

`Structured` and `GolubKahan` are in modules of their own, `Automatic` chooses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from phi_hybrid.bridge.checks import require_count, require_instance
from phi_hybrid.errors import StateError
from phi_hybrid.optim.eigenvectors import eigh, eigh_bytes, eigh_flops
from phi_hybrid.optim.filters import Filter
from phi_hybrid.optim.jacobian import Jacobian

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Update:
    """Direction of a step with the singular values that led to it."""

    direction: list[torch.Tensor]
    """Jᵀ·f(J·Jᵀ)·g, like the parameters."""
    singular_values: torch.Tensor
    """σ in descending order, `(min(m, P),)`; of iterative engines, those they have found."""
    kept: int
    """Number of singular values with f(σ²) > 0."""
    error: float = 0.0
    """‖error of the direction‖ / ‖direction‖, as iterative engines estimate it."""

    @property
    def norm(self) -> float:
        """‖direction‖."""
        return float(sum(d.detach().double().square().sum() for d in self.direction) ** 0.5)


@dataclass(frozen=True)
class Cost:
    """Estimate of an update's needs.

    Args:
        bytes: memory besides the graph.
        seconds: time; good to a factor of a few.
    """

    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.bytes / MIB:.1f} MiB, about {self.seconds:.1g} s an update"


class Engine:
    """Base class of engines, frozen dataclasses with `update`, `cost` and, where they do not suit every Jacobian, `mismatch`."""

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        """Jᵀ·f(scale·J·Jᵀ)·g for g = `cotangent`, `(m,)`."""
        raise NotImplementedError

    def cost(self, jacobian: Jacobian) -> Cost:
        """Estimate of an update's needs."""
        raise NotImplementedError

    def mismatch(self, jacobian: Jacobian, filter: Filter) -> str | None:
        """Reason why an update would be wrong, with the way out; `None` if it would not."""
        return None

    def suits(self, jacobian: Jacobian, filter: Filter) -> bool:
        """Permission for `Automatic` to choose this engine."""
        return self.mismatch(jacobian, filter) is None

    def chosen(self, jacobian: Jacobian, filter: Filter) -> Engine:
        """This engine.

        Raises:
            StateError: if it would give a wrong update, or needs more memory than there is.
        """
        name = type(self).__name__
        if reason := self.mismatch(jacobian, filter):
            raise StateError(f"{name} cannot be used: {reason}")
        needed, there = self.cost(jacobian).bytes, _available(jacobian.outputs.device)
        if needed > there:
            raise StateError(
                f"{name} needs {needed / GIB:.1f} GiB for {jacobian.rows} outputs and {jacobian.columns} parameters, this "
                f"machine has {there / GIB:.1f} GiB; use engine=Automatic(), a smaller batch or fewer outputs"
            )
        return self


@dataclass(frozen=True)
class Dense(Engine):
    """Singular value decomposition of J itself: the reference, and the only way to cutoffs below about 1e-7.

    Args:
        precision: torch dtype that J is decomposed in; `torch.float64` by default.
        chunk: number of rows of J that are computed at once.
    """

    precision: torch.dtype = torch.float64
    chunk: int = 256

    def __post_init__(self) -> None:
        require_instance("precision", self.precision, torch.dtype, "a torch dtype, e.g. torch.float64")
        require_count("chunk", self.chunk)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        full = jacobian.rows_of(self.chunk, self.precision).mul_(scale**0.5)
        left, values, right = torch.linalg.svd(full, full_matrices=False)
        weights = filter(values**2, kappa)
        # Jᵀ·U·f·Uᵀ·g without the quotient of a small σ by itself
        flat = right.mT @ (values / scale**0.5 * weights * (left.mT @ cotangent.to(full)))
        return Update(_shaped(flat, jacobian), values, int((weights > 0).sum()))

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns, size = jacobian.rows, jacobian.columns, torch.finfo(self.precision).bits // 8
        small = min(rows, columns)
        flops = (size / 8) * 8 * small**2 * max(rows, columns)
        return estimate(
            jacobian,
            size * (4 * rows * columns + 5 * small**2),
            -(-rows // self.chunk),
            rows,
            flops,
            min(self.chunk, rows),
        )


@dataclass(frozen=True)
class Gram(Engine):
    """Eigenvectors of K = J·Jᵀ in double precision; a J of many columns is computed group by group and forgotten.

    Args:
        chunk: number of rows of J that are computed at once.
        columns: number of columns of J that are held at once, as far as a single parameter does not have more.
    """

    chunk: int = 256
    columns: int = 50_000

    def __post_init__(self) -> None:
        require_count("chunk", self.chunk)
        require_count("columns", self.columns)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        gram = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=jacobian.outputs.device)
        if jacobian.columns > self.columns:
            self.add_to(gram, jacobian)
            return from_gram(gram, jacobian.transposed_times, jacobian, cotangent, filter, kappa, scale)
        rows = jacobian.rows_of(self.chunk)  # they fit: no need to go back through the physics with U·f·Uᵀ·g
        add_square(gram, rows)
        return from_gram(gram, lambda c: _shaped(rows.mT @ c, jacobian), jacobian, cotangent, filter, kappa, scale)

    def mismatch(self, jacobian: Jacobian, filter: Filter) -> str | None:
        """Complaint about a cutoff that K does not resolve."""
        return unresolved(jacobian.rows, filter)

    def add_to(self, gram: torch.Tensor, jacobian: Jacobian) -> None:
        """K += J·Jᵀ, `(m, m)`, in the lower triangle."""
        for group in jacobian.groups(self.columns):
            add_square(gram, jacobian.of(group).rows_of(self.chunk))

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns = jacobian.rows, jacobian.columns
        groups, held = -(-columns // self.columns), min(columns, self.columns)
        bytes = max(eigh_bytes(rows, jacobian.outputs.device), 8 * (rows * (rows + held) + 2 * self.chunk * held))
        flops = rows**2 * columns + eigh_flops(rows)
        calls = groups * -(-rows // self.chunk) + (columns > self.columns)
        return estimate(jacobian, bytes, calls, groups * rows, flops, min(self.chunk, rows))


@dataclass(frozen=True)
class ParameterGram(Engine):
    """Eigenvectors of G = Jᵀ·J in double precision, for fewer parameters than outputs.

    Args:
        chunk: number of rows of J that are computed, and held, at once.
    """

    chunk: int = 256

    def __post_init__(self) -> None:
        require_count("chunk", self.chunk)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        gram = torch.zeros(jacobian.columns, jacobian.columns, dtype=torch.float64, device=cotangent.device)
        gradient = torch.zeros(jacobian.columns, dtype=torch.float64, device=cotangent.device)
        own = jacobian.processes.own(cotangent).double()
        for part, rows in jacobian.chunks(self.chunk):
            gram.addmm_(rows.mT, rows)
            gradient.addmv_(rows.mT, own[part])
        gram, gradient = jacobian.processes.summed(gram), jacobian.processes.summed(gradient)
        squares, vectors = eigh(gram.mul_(scale))
        squares = squares.clamp_min(0)
        weights = filter(squares, kappa)
        flat = vectors @ (weights * (vectors.mT @ gradient))
        singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
        return Update(_shaped(flat, jacobian), singular, int((weights[-len(singular) :] > 0).sum()))

    def mismatch(self, jacobian: Jacobian, filter: Filter) -> str | None:
        """Complaint about a cutoff that G does not resolve."""
        return unresolved(jacobian.columns, filter)

    def cost(self, jacobian: Jacobian) -> Cost:
        rows, columns = jacobian.rows, jacobian.columns
        bytes = eigh_bytes(columns, jacobian.outputs.device) + 16 * min(self.chunk, rows) * columns
        flops = 2 * rows * columns**2 + eigh_flops(columns)
        return estimate(jacobian, bytes, -(-rows // self.chunk), rows, flops, min(self.chunk, rows))


def from_gram(
    gram: torch.Tensor,
    transposed_times: Callable[[torch.Tensor], list[torch.Tensor]],
    jacobian: Jacobian,
    cotangent: torch.Tensor,
    filter: Filter,
    kappa: float,
    scale: float,
) -> Update:
    """Jᵀ·f(scale·K)·g from the eigenvectors of the lower triangle of K, which is overwritten, and c ↦ Jᵀ·c."""
    squares, vectors = eigh(gram.mul_(scale))
    squares = squares.clamp_min(0)
    weights = filter(squares, kappa)
    direction = transposed_times(vectors @ (weights * (vectors.mT @ cotangent.double())))
    singular = squares.flip(0).sqrt()[: min(jacobian.rows, jacobian.columns)]
    return Update(direction, singular, int((weights[-len(singular) :] > 0).sum()))


def add_square(gram: torch.Tensor, rows: torch.Tensor, block: int = 512) -> None:
    """K += A·Aᵀ for A = `rows`, `(m, any)`, in the lower triangle."""
    for start in range(0, len(gram), block):
        stop = min(start + block, len(gram))
        gram[start:stop, :stop].addmm_(rows[start:stop], rows[:stop].mT)


def unresolved(size: int, filter: Filter) -> str | None:
    """Complaint about an rcond too small for eigenvectors of J·Jᵀ or Jᵀ·J of this size; `None` if it is not.

    Eigenvalues σ² have errors of up to √size·ε·σ_max², so that singular values below a few 1e-8·σ_max are only rounding.
    """
    least = 3 * (size**0.5 * torch.finfo(torch.float64).eps) ** 0.5
    if filter.rcond >= least:
        return None
    return (
        f"rcond = {filter.rcond:g} is less than {least:.1e}, below which eigenvectors of J·Jᵀ resolve nothing for "
        f"{size} rows; use a larger rcond, e.g. Smooth(1e-6, damping) to damp, or engine=Dense()"
    )


def _shaped(flat: torch.Tensor, jacobian: Jacobian) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in jacobian.parameters])
    return [part.view_as(p).to(p) for part, p in zip(parts, jacobian.parameters)]


# --- cost of an update ---

_NODE_SECONDS = 5e-6
"""Time to start one operation of a backward pass."""
_NODE_FLOPS = 3.0
"""Operations per output in one operation of a backward pass, through physics whose states are as large as its outputs."""
_FLOPS = {"cpu": 1e10, "cuda": 5e12}
"""Floating-point operations in double precision per second, on a CPU of a single thread. Orders of magnitude."""


def estimate(jacobian: Jacobian, bytes: float, calls: float, passes: float, flops: float, at_once: int = 0) -> Cost:
    """Cost from counts, the same for the same counts on one device.

    Args:
        jacobian: its graph is what backward passes go through.
        bytes: memory.
        calls: how often autograd is called, one call for several passes.
        passes: backward passes.
        flops: of linear algebra.
        at_once: backward passes that are made side by side, each with some of the layers' outputs.
    """
    device = jacobian.outputs.device.type
    rate = _FLOPS.get(device, _FLOPS["cuda"]) * (torch.get_num_threads() if device == "cpu" else 1)
    arithmetic = passes * 4 * jacobian.columns * jacobian.samples
    states = [z.numel() * z.element_size() for layer in jacobian.layers.values() for z in layer.outputs]
    bytes += 3 * at_once * max(states, default=0)
    nodes = _nodes(jacobian.outputs)
    physics = passes * nodes * _NODE_FLOPS * jacobian.outputs.numel()
    return Cost(int(bytes), calls * nodes * _NODE_SECONDS + (arithmetic + physics + flops) / rate)


def _available(device: torch.device) -> int:
    """Bytes of memory that the device has, on a GPU those that are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "win32":  # which does not say
        return 2**63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _nodes(outputs: torch.Tensor) -> int:
    """Number of operations in the graph of the outputs."""
    seen, stack = set(), [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return len(seen)
