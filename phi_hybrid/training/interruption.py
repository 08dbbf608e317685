"""Ctrl-C and SIGTERM wait for the end of an update."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Signals:
    """Signals that have come and wait."""

    def __init__(self) -> None:
        self.received: list[int] = []

    @property
    def pending(self) -> bool:
        """Whether there is one."""
        return bool(self.received)

    def raise_pending(self) -> None:
        """Raises the first one, if there is one."""
        if self.received:
            raise _error(self.received[0])


@contextlib.contextmanager
def deferred_signals() -> Iterator[Signals]:
    """Inside, the first SIGINT or SIGTERM is kept until it is asked for, at the end at the latest.

    SIGINT becomes a `KeyboardInterrupt`, SIGTERM a `SystemExit(143)`, which also lets `finally` clauses run. A second
    signal does not wait. Handlers that the program has set itself stay, and so do those of other threads than the main one.
    """
    signals = Signals()

    def keep(number: int, frame: FrameType | None) -> None:
        signals.received.append(number)
        if len(signals.received) > 1:
            raise _error(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    replaced = [number for number, handler in usual.items() if main and signal.getsignal(number) is handler]
    for number in replaced:
        signal.signal(number, keep)
    try:
        yield signals
    finally:
        for number in replaced:
            signal.signal(number, usual[number])
    signals.raise_pending()


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
