"""Checks at the door: errors that name a value of the wrong kind or size, what was expected, and the way out."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from phi_hybrid.errors import StateError

LONGEST = 100
"""Characters of a value that a message shows."""


def require(valid: bool, name: str, value: Any, expected: str) -> None:
    """Raises StateError unless the value is valid.

    Args:
        valid: result of a check of `value`.
        name: name of the argument.
        value: what was given for it; classes are shown as such.
        expected: what it should have been, with an example.
    """
    if not valid:
        text = f"the class {value.__name__}" if isinstance(value, type) else " ".join(repr(value).split())
        raise StateError(f"{name} = {text if len(text) <= LONGEST else text[:LONGEST] + '…'}: expected {expected}")


def require_instance(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """Raises StateError unless the value is an instance of `kind`."""
    require(isinstance(value, kind), name, value, expected)


def require_callable(name: str, value: Any, expected: str) -> None:
    """Raises StateError unless the value can be called; a class is no function."""
    require(callable(value) and not isinstance(value, type), name, value, expected)


def require_count(name: str, value: Any, least: int | None = 1, way_out: str = "") -> None:
    """Raises StateError unless the value is an integer, ≥ `least` if there is one; neither 4.0 nor True is an integer."""
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    bound = "" if least is None else f" ≥ {least}"
    require(
        integer and (least is None or value >= least), name, value, f"an integer{bound}{way_out and '; ' + way_out}"
    )


def require_number(
    name: str, value: Any, least: float = -math.inf, above: float = -math.inf, way_out: str = ""
) -> None:
    """Raises StateError unless the value is a finite real number, ≥ `least` and > `above`; True is none."""
    valid = isinstance(value, Real) and not isinstance(value, bool) and least <= value < math.inf and value > above
    bound = f" > {above:g}" if above > -math.inf else f" ≥ {least:g}" if least > -math.inf else ""
    require(valid, name, value, f"a finite number{bound}{way_out and '; ' + way_out}")


def require_arguments(name: str, function: Callable, *arguments: str) -> None:
    """Raises StateError if a function cannot be called with these arguments by position, as far as its signature tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of compiled code
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise StateError(
            f"{name} is called with ({', '.join(arguments)}), which {function!r} does not take: {error}; let it take these"
        ) from error


def require_path(name: str, value: Any) -> None:
    """Raises StateError unless the value can be the path of a file."""
    text = str(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else ""
    require(text != "" and "\0" not in text, name, value, "the path of a file")
