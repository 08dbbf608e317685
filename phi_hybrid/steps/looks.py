"""When a time loop looks at its states: after every step on the CPU, after several on other devices, which are waited for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve import first_failure, next_number, waits
from phi_hybrid.steps.face import Tensors

LOOK_EVERY = 16
"""Steps between two looks on a device that the host would have to wait for."""


class Looks:
    """Solves and states of a time loop that have not been looked at yet.

    Args:
        device: of the states.
        last: number of the last step, from 1.
        check: whether states are looked at.
    """

    def __init__(self, device: torch.device, last: int, check: bool) -> None:
        self.every = LOOK_EVERY if waits(device) else 1
        self._last, self._check = last, check
        self._begun, self._finite = [next_number()], []

    @property
    def done(self) -> bool:
        """Whether everything has been looked at."""
        return not self._finite

    def after(self, step: int, state: Tensors) -> int | None:
        """Number of the first step whose state is not finite; `None` if there is none, or it is no time to look.

        Args:
            step: number of the step, from 1, once for each.
            state: after the step.

        Raises:
            SolveError: of the first solve that has failed, with the number of its step in `step`.
        """
        self._finite.append(finite(state) if self._check else None)
        self._begun.append(next_number())
        return None if len(self._finite) < self.every and step < self._last else self._look(step)

    def cause(self, step: int, error: SolveError) -> tuple[int | None, SolveError]:
        """What failed first where a step raises: number of an earlier step whose state is not finite, or else an error."""
        if error.step is not None:
            return None, error
        error.step = step
        try:
            return self._look(step - 1), error
        except SolveError as earlier:
            return None, earlier

    def _look(self, step: int) -> int | None:
        first, bad = step - len(self._finite) + 1, None
        if self._check and self._finite:
            values = torch.stack(self._finite).tolist()
            bad = next((first + n for n, fine in enumerate(values) if not fine), None)
        failed = first_failure(self._begun[0])
        if failed:
            number, error = failed
            error.step = first + sum(begun <= number for begun in self._begun) - 1
            if bad is None or error.step <= bad:
                raise error
        self._begun, self._finite = self._begun[-1:], []
        return bad


def finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Whether no tensor holds NaN or infinity, as a bool `()` on their device."""
    flags = [torch.isfinite(t).all() for t in tensors]
    return flags[0] if len(flags) == 1 else torch.stack(flags).all() if flags else torch.tensor(True)
