"""Linear solves and sparse products of a program ↔ JSON values and tensors. Factorisations are made anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from phi_hybrid.errors import DataError, StateError
from phi_hybrid.linear_solve import (
    CapacitanceMatrix,
    ConjugateGradient,
    FastDiagonalization,
    LinearSolve,
    Method,
    SparseFactorization,
    VaryingSolve,
)
from phi_hybrid.linear_solve.pattern import Pattern
from phi_hybrid.linear_solve.system import Csr, System
from phi_hybrid.tracing import SparseProduct

_METHODS = {m.__name__: m for m in (CapacitanceMatrix, ConjugateGradient, FastDiagonalization, SparseFactorization)}


def module_to_dict(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """JSON values and tensors of a module of a program."""
    if isinstance(module, SparseProduct):
        return {"kind": "sparse_product"}, {}
    common = {"method": _method_to_dict(module.method), "rel_tol": module.rel_tol, "abs_tol": module.abs_tol}
    if isinstance(module, LinearSolve):
        system = module.system
        arrays = {name: getattr(system.matrix, name) for name in ("indptr", "indices", "data")}
        common |= {"kind": "linear", "shape": list(system.shape), "tolerant": system.tolerates_imbalance}
    else:
        arrays = {"rows": module.pattern.rows, "columns": module.pattern.columns}
        common |= {"kind": "varying", "shape": list(module.pattern.shape), "tolerant": module.tolerates_imbalance}
    return common, {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def module_from_dict(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Inverse of `module_to_dict`.

    Raises:
        DataError: for matrices whose entries lie outside of them.
        Exception: of any kind for other nonsense.
    """
    if description["kind"] == "sparse_product":
        return SparseProduct()
    shape, tolerant = tuple(description["shape"]), description["tolerant"]
    _require(all(type(n) is int and n > 0 for n in shape) and tolerant in (None, False, True), shape)
    tolerances = float(description["rel_tol"]), float(description["abs_tol"])
    settings = _method_from_dict(description["method"]), *tolerances
    arrays, size = {name: t.numpy() for name, t in tensors.items()}, math.prod(shape)
    if description["kind"] == "linear":
        _require(bool(np.isfinite(arrays["data"]).all()) and len(arrays["indptr"]) == size + 1, shape)
        matrix = Csr((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(size, size))
        matrix.check_format(full_check=True)
        return LinearSolve(System(matrix, shape, bool(tolerant)), *settings)
    _require(description["kind"] == "varying", description["kind"])
    places = arrays["rows"] * size + arrays["columns"]
    inside = [bool(((a >= 0) & (a < size)).all()) for a in (arrays["rows"], arrays["columns"])]
    _require(all(inside) and bool((np.diff(places) > 0).all()), shape)
    return VaryingSolve(Pattern(arrays["rows"], arrays["columns"], shape), tolerant, *settings)


def _method_to_dict(method: Method | None) -> list | None:
    if method is not None and type(method) not in _METHODS.values():
        raise StateError(
            f"solver = {method}: a file knows {', '.join(_METHODS)} and None; capture the step with one of them"
        )
    return None if method is None else [type(method).__name__, asdict(method)]


def _method_from_dict(description: list | None) -> Method | None:
    return None if description is None else _METHODS[description[0]](**description[1])


def _require(valid: bool, found: Any) -> None:
    if not valid:
        raise DataError(f"holds a matrix {str(found)[:80]} whose entries lie outside of it")
