"""Independent trainings, such as members of an ensemble and studies of parameters, spread over the processes of `torchrun`."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import distributed

from phi_hybrid.bridge.checks import require_callable, require_instance
from phi_hybrid.training.processes import each_alone, join_group

_PATIENCE = datetime.timedelta(days=365)
"""Time that a process waits for the slowest one; half an hour, torch's default, is less than many trainings take."""


class TaskError(RuntimeError):
    """Some calls of a `parallel_map` failed.

    Attributes:
        results: of all calls in order, `None` for those that failed.
        failed: number of each call that failed → its error as text.
    """

    def __init__(self, message: str, results: list[Any], failed: dict[int, str]) -> None:
        super().__init__(message)
        self.results = results
        self.failed = failed


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """`[function(item) for item in items]`, shared out among the processes that `torchrun` has started.

    Process r of n takes the items r, r + n, r + 2·n, …; a `Trainer` that is made in the function trains alone, without
    sharing its windows, and every process gets all results, in order. Started without `torchrun`, the one process takes
    all items. The processes wait for the slowest, so put long trainings first.

        ensemble = ph.Ensemble(ph.training.parallel_map(train_member, range(8)))  # 8 seeds

    Args:
        function: called with one item; seeds its own random numbers, and gives each item a checkpoint of its own.
        items: the same in all processes, e.g. seeds, or tuples of parameters.

    Returns:
        The results, which must be able to be pickled if there are several processes; a solver whose physics is captured from
        a function at the top of a module is.

    Raises:
        TaskError: when all calls have ended, if some have failed; it has the results of the others.
        StateError: if `function` cannot be called.
    """
    require_callable("function", function, "a function of one item, e.g. parallel_map(train_member, range(8))")
    require_instance("items", items, Iterable, "a sequence, e.g. range(8)")
    items = list(items)
    rank, count = join_group(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found = {n: _call(function, items[n]) for n in range(rank, len(items), count)}
    if count > 1:
        found = _exchanged(found, count)
    failed = {n: error for n, (_, error) in sorted(found.items()) if error is not None}
    results = [found[n][0] for n in range(len(items))]
    if failed:
        first = next(iter(failed))
        raise TaskError(
            f"{len(failed)} of {len(items)} calls failed, the first with items[{first}] = {items[first]!r}: {failed[first]}. "
            "The error has the results of the others in `results`",
            results,
            failed,
        )
    return results


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, str | None]:
    """Result, and what went wrong."""
    try:
        with each_alone():
            return function(item), None
    except Exception as error:  # the other items go on
        return None, f"{type(error).__name__}: {error}"


def _exchanged(own: dict[int, tuple[Any, str | None]], count: int) -> dict[int, tuple[Any, str | None]]:
    """What all processes have found."""
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    gathered: list[Any] = [None] * count
    distributed.all_gather_object(gathered, {n: _packed(result, error) for n, (result, error) in own.items()}, group)
    distributed.destroy_process_group(group)
    return {n: (pickle.loads(result), error) for part in gathered for n, (result, error) in part.items()}


def _packed(result: Any, error: str | None) -> tuple[bytes, str | None]:
    try:
        return pickle.dumps(result), error
    except Exception as reason:
        return pickle.dumps(None), (
            f"its result, {type(result).__name__}, cannot be sent to the other processes ({reason}): return something that can "
            "be pickled, e.g. solver.state_dict()"
        )
