"""Ctrl-C and SIGTERM wait for the end of an update."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Inside, the first SIGINT or SIGTERM is kept until the function that this gives is called, which raises it.

    SIGINT becomes a `KeyboardInterrupt`, SIGTERM a `SystemExit(143)`, which also lets `finally` clauses run. A second
    signal does not wait. Handlers that the program has set itself stay, and so do those of other threads than the main one.
    """
    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise _error(number)

    def check() -> None:
        if received:
            raise _error(received[0])

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    replaced = [number for number, handler in usual.items() if main and signal.getsignal(number) is handler]
    for number in replaced:
        signal.signal(number, keep)
    try:
        yield check
    finally:
        for number in replaced:
            signal.signal(number, usual[number])
    check()


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
