"""Products with a constant sparse matrix, which PhiFlow uses for its fourth-order stencils."""

from __future__ import annotations

import torch

from phi_hybrid import _compat


@torch.library.custom_op("phi_hybrid::csr_product", mutates_args=())
def csr_product(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    """Stands for the product while tracing; `SparseProduct` takes its place in the graph."""
    return _multiply(columns, row_pointers, values, rows, dense)


@csr_product.register_fake
def _(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    return dense.new_empty(dense.shape[0], rows, dense.shape[2], dense.shape[3])


class SparseProduct(torch.nn.Module):
    """y = A·x for A in compressed-row form, bit for bit as PhiFlow computes it; by gathers under transformations.

    Shapes: `columns` and `values` `(batch, entry)` and `(batch, entry, channel)`, `row_pointers` `(batch, row + 1)`,
    `dense` `(batch, column, channel, rhs)`, result `(batch, row, channel, rhs)`.
    """

    def forward(
        self, columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
    ) -> torch.Tensor:
        transformed = torch.compiler.is_compiling() or _compat.functorch_active() or _compat.forward_mode_active()
        multiply = _multiply_by_gather if transformed else _multiply
        return multiply(columns, row_pointers, values, rows, dense)


def _multiply(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    result = []
    for b in range(values.shape[0]):
        products = []
        for c in range(values.shape[2]):
            entries = values[b, :, c].contiguous()
            matrix = torch.sparse_csr_tensor(row_pointers[b], columns[b], entries, (rows, dense.shape[1]))
            products.append(torch.sparse.mm(matrix, dense[b, :, c, :]))
        result.append(torch.stack(products, 1))
    return torch.stack(result)


def _multiply_by_gather(
    columns: torch.Tensor, row_pointers: torch.Tensor, values: torch.Tensor, rows: int, dense: torch.Tensor
) -> torch.Tensor:
    result = []
    for b in range(values.shape[0]):
        counts = row_pointers[b].diff()
        row_of = torch.repeat_interleave(torch.arange(rows, device=dense.device), counts, output_size=values.shape[1])
        terms = values[b].unsqueeze(-1) * dense[b].index_select(0, columns[b])
        start = torch.zeros_like(terms[:1]).repeat(rows, 1, 1)  # inductor miscompiles index_add to an expanded tensor
        result.append(start.index_add(0, row_of, terms))
    return torch.stack(result)
