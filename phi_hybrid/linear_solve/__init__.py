"""Floor 2: linear solves inside PhiFlow steps: chosen by the structure of the matrix, differentiable in every way."""

from phi_hybrid.linear_solve.capacitance import CapacitanceMatrix
from phi_hybrid.linear_solve.conjugate_gradient import ConjugateGradient
from phi_hybrid.linear_solve.factorization import SparseFactorization
from phi_hybrid.linear_solve.fast_diagonalization import FastDiagonalization
from phi_hybrid.linear_solve.flags import check_solves, checked_solves, first_failure, next_number, waits
from phi_hybrid.linear_solve.operator import LinearSolve, solve_numbered, solve_of
from phi_hybrid.linear_solve.plain import plain_solve
from phi_hybrid.linear_solve.quick import quick_solve
from phi_hybrid.linear_solve.solution import Method
from phi_hybrid.linear_solve.solves import Solves, by_parts, in_order, linear_solves
from phi_hybrid.linear_solve.varying import VaryingSolve, solve_varying, varying_of

__all__ = [
    "CapacitanceMatrix",
    "ConjugateGradient",
    "FastDiagonalization",
    "LinearSolve",
    "Method",
    "Solves",
    "SparseFactorization",
    "VaryingSolve",
    "by_parts",
    "check_solves",
    "checked_solves",
    "first_failure",
    "in_order",
    "linear_solves",
    "next_number",
    "plain_solve",
    "quick_solve",
    "solve_numbered",
    "solve_of",
    "solve_varying",
    "varying_of",
    "waits",
]
