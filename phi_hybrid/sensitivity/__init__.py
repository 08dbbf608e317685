"""Floor 8: whether a simulator is fit for training through it: gradients, jumps, growth, and the lines to blame."""

from phi_hybrid.sensitivity.check import check_gradients
from phi_hybrid.sensitivity.differences import SIZES, Agreement
from phi_hybrid.sensitivity.growth import USEFUL, Curve, Growth
from phi_hybrid.sensitivity.operations import Operation
from phi_hybrid.sensitivity.result import ArgumentCheck, Break, GradientCheck

__all__ = [
    "Agreement",
    "ArgumentCheck",
    "Break",
    "Curve",
    "GradientCheck",
    "Growth",
    "Operation",
    "SIZES",
    "USEFUL",
    "check_gradients",
]
