"""When it is looked at whether solves have succeeded: on the CPU at once, on other devices later and together.

A look makes the host wait until a device has done all it was given. One after every solve would leave the device idle while
the host prepares what comes next, so that there a solve leaves its verdict on the device.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from phi_hybrid.errors import SolveError

AT_ONCE = frozenset({"cpu"})
"""Kinds of devices on which a look costs nothing."""

MOST = 4096
"""Verdicts that wait at most; the one after these is a look."""


@dataclass(frozen=True)
class Verdict:
    """A condition on one solve that nobody has looked at yet."""

    number: int
    """Verdicts are counted in the order in which they were given."""
    passed: torch.Tensor
    """bool, `()`, on the device of the solve."""
    figures: tuple[torch.Tensor, ...]
    """Numbers for the message, likewise."""
    error: Callable[..., SolveError]

    def failure(self) -> SolveError:
        """The error, with its figures."""
        return self.error(*(f.cpu() for f in self.figures))


_numbers = itertools.count()
_waiting: list[Verdict] = []
"""Of the whole process: gradients on GPUs are computed in threads of torch's own, whose caller is not known."""


def waits(device: torch.device) -> bool:
    """Tells if verdicts on this device wait."""
    return device.type not in AT_ONCE


def demand(
    passed: torch.Tensor, figures: Callable[[], tuple[torch.Tensor, ...]], error: Callable[..., SolveError]
) -> None:
    """Raises `error(*figures())` unless a condition holds: here and now on the CPU, at the next look elsewhere.

    Args:
        passed: bool, `()`.
        figures: tensors that the message is made of, small ones, since they may be kept.
        error: called with these tensors on the CPU.
    """
    if not waits(passed.device):
        if not passed:
            raise error(*figures())
        return
    if len(_waiting) >= MOST:
        check_solves()
    _waiting.append(Verdict(next(_numbers), passed, figures(), error))


def check_solves() -> None:
    """Raises the error of the first linear solve that has failed on a device other than the CPU since the last look.

    Training, rollouts, evaluation, calls on PhiFlow states and all else that returns numbers do so themselves. Code that
    repeats `native` on a GPU calls it where it can wait for the device, e.g. once per update.

    Raises:
        SolveError: with the figures of the first solve that has failed; those of later ones are dropped.
    """
    if failed := first_failure():
        raise failed[1]


def first_failure(since: int = 0) -> tuple[int, SolveError] | None:
    """Looks at the verdicts from this number on, which wait no longer: number and error of the first that failed."""
    looked = [v for v in _waiting if v.number >= since]
    _waiting[:] = [v for v in _waiting if v.number < since]
    if not looked:
        return None
    device = looked[0].passed.device
    passed = torch.stack([v.passed.to(device) for v in looked]).tolist()  # the host waits here, once
    return next(((v.number, v.failure()) for v, fine in zip(looked, passed) if not fine), None)


def next_number() -> int:
    """Number that verdicts from now on begin at."""
    return next(_numbers)


@contextlib.contextmanager
def checked_solves() -> Iterator[None]:
    """Context at whose end the solves in it are looked at, also where the body fails, which they may be the cause of.

    Raises:
        SolveError: as `check_solves`.
    """
    start = next_number()
    try:
        yield
    except Exception as error:
        if failed := first_failure(start):
            raise failed[1] from error
        raise
    except BaseException:  # an interruption: what they belong to is given up
        _waiting[:] = [v for v in _waiting if v.number < start]
        raise
    if failed := first_failure(start):
        raise failed[1]
