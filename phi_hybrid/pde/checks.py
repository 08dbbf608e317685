"""Checks of parameters that all equations share."""

from __future__ import annotations

from numbers import Integral, Real

from phi.math import Tensor

from phi_hybrid.errors import StateError


def require(condition: bool, message: str) -> None:
    """Raises StateError with this message unless the condition holds."""
    if not condition:
        raise StateError(message)


def require_number(
    name: str, value: float | Tensor, *, positive: bool = False, nonzero: bool = False, way_out: str = ""
) -> None:
    """Raises StateError unless the value is a finite number, > 0 or other than 0 if so wanted; tensors pass unseen."""
    if isinstance(value, Tensor):
        return
    finite = isinstance(value, Real) and not isinstance(value, bool) and abs(value) < float("inf")
    allowed = finite and not (positive and value <= 0) and not (nonzero and value == 0)
    kind = " > 0" if positive else " other than 0" if nonzero else ""
    require(allowed, f"{name} = {value!r}: expected a finite number{kind}{way_out and '; ' + way_out}")


def require_count(name: str, value: int, least: int = 1) -> None:
    """Raises StateError unless the value is an integer that is large enough."""
    valid = isinstance(value, Integral) and not isinstance(value, bool) and value >= least
    require(valid, f"{name} = {value!r}: expected an integer of at least {least}")
