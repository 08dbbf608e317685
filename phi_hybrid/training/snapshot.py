"""A training as it was before an update, to go back to when the update is interrupted or fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Snapshot:
    """Weights, buffers, modes, and states of optimizer and scheduler, kept in memory.

    Args:
        solver: whose `state_dict` is kept.
        optimizer: likewise.
        scheduler: likewise, if there is one.
    """

    def __init__(self, solver: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any = None) -> None:
        self._parts = [part for part in (optimizer, scheduler) if part is not None]
        self._solver = solver
        self._weights: dict[str, Any] = {}
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._states: list[Any] = []
        self._modes: list[tuple[torch.nn.Module, bool]] = []

    @torch.no_grad()
    def take(self, again: bool = False) -> None:
        """Keeps what there is now, in place of what was kept.

        Args:
            again: the solver holds the same tensors as at the last time, with other values; faster.
        """
        if again and self._pairs:
            for own, live in self._pairs:
                own.copy_(live)
        else:
            live = self._solver.state_dict()
            self._weights = copied(live)
            self._pairs = [(own, live[name]) for name, own in self._weights.items() if isinstance(own, torch.Tensor)]
        self._modes = [(module, module.training) for module in self._solver.modules()]
        self._states = [copied(part.state_dict()) for part in self._parts]

    def restore(self) -> None:
        """Puts back what was kept."""
        for module, training in self._modes:  # a validation may have been interrupted
            module.training = training
        self.restore_weights()
        for part, state in zip(self._parts, self._states):
            part.load_state_dict(copied(state))

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Puts back weights and buffers alone, in place, so that what is bound to them stays so."""
        live = self._solver.state_dict()
        for name, value in self._weights.items():
            if isinstance(value, torch.Tensor) and live[name].shape == value.shape:
                live[name].copy_(value)
        if any(not isinstance(v, torch.Tensor) and v != live[n] for n, v in self._weights.items()):
            self._solver.load_state_dict(self._weights)


def copied(value: Any) -> Any:
    """A copy of nested tuples, lists and dicts, with copies of the tensors in them; all else is taken as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)([copied(entry) for entry in value])
    return value


def lengths_of(history: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of all lists in nested dicts."""
    return {key: lengths_of(entry) if isinstance(entry, Mapping) else len(entry) for key, entry in history.items()}


def shorten(history: dict[str, Any], lengths: Mapping[str, Any]) -> None:
    """Cuts all lists back to lengths they had before, and drops those that were not there."""
    for key in list(history):
        if key not in lengths:
            del history[key]
        elif isinstance(history[key], Mapping):
            shorten(history[key], lengths[key])
        else:
            del history[key][lengths[key] :]
