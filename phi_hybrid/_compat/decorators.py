"""Functions under PhiML's decorators."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from phiml.math._functional import CustomGradientFunction, GradientFunction, JitFunction, LinearFunction

from phi_hybrid._compat.replacement import replaced


@contextlib.contextmanager
def undecorated_calls() -> Iterator[None]:
    """Functions under `@jit_compile` run as they are: TorchScript would freeze what the solves inside return."""
    with replaced(JitFunction, "__call__", lambda function, *args, **kwargs: function.f(*args, **kwargs)):
        yield


def undecorated(step: Callable[..., Any]) -> Callable[..., Any]:
    """The function under `@jit_compile`, whose signature and name tell more."""
    while isinstance(step, (JitFunction, LinearFunction)):
        step = step.f
    return step


def functions_under(value: Any) -> list[Callable[..., Any]]:
    """The user's functions under one of PhiML's decorators, none for anything else."""
    decorated = isinstance(value, (JitFunction, LinearFunction, GradientFunction, CustomGradientFunction))
    return [part for part in (value.f, vars(value).get("gradient")) if part is not None] if decorated else []
