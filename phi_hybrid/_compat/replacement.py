"""Functions of other packages, replaced for a while, in one thread only."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ClassMethodDescriptorType
from typing import Any

_CLASS_METHODS = classmethod, ClassMethodDescriptorType
"""Written in Python, and in C as `torch.autograd.Function.apply` since torch 2.14."""
_lock = threading.Lock()
_standing: dict[tuple[int, str], _Replacement] = {}


class _Replacement:
    """Stands at the place of a function while any thread replaces it; threads that do not still reach the original."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.users = owner, name, 0
        self.own = vars(owner).get(name)  # None: the class of an instance has it
        self.original = _function(owner, name)
        self.stacks = threading.local()

    def install(self) -> None:
        def dispatch(*args: Any, **kwargs: Any) -> Any:
            stack = self.stack
            return (stack[-1] if stack else self.original)(*args, **kwargs)

        setattr(self.owner, self.name, classmethod(dispatch) if isinstance(self.own, _CLASS_METHODS) else dispatch)

    def remove(self) -> None:
        if self.own is None:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.own)

    @property
    def stack(self) -> list[Callable]:
        if not hasattr(self.stacks, "hooks"):
            self.stacks.hooks = []
        return self.stacks.hooks


def current(owner: Any, name: str) -> Callable:
    """The function that this thread reaches now: the one a hook may call that takes its place."""
    standing = _standing.get((id(owner), name))
    if standing is None:
        return _function(owner, name)
    return standing.stack[-1] if standing.stack else standing.original


def _function(owner: Any, name: str) -> Callable:
    own = vars(owner).get(name)
    if isinstance(own, ClassMethodDescriptorType):
        return lambda cls, *args, **kwargs: own.__get__(None, cls)(*args, **kwargs)
    return own.__func__ if isinstance(own, classmethod) else getattr(owner, name)


@contextlib.contextmanager
def replaced(owner: Any, name: str, hook: Callable) -> Iterator[None]:
    """In this thread, `hook` takes the place of a function of a module or class, or of a method of an instance.

    Nothing of it is left once the last thread is out.
    """
    key = id(owner), name
    with _lock:
        if key not in _standing:
            _standing[key] = _Replacement(owner, name)
            _standing[key].install()
        standing = _standing[key]
        standing.users += 1
    standing.stack.append(hook)
    try:
        yield
    finally:
        standing.stack.pop()
        with _lock:
            standing.users -= 1
            if standing.users == 0:
                standing.remove()
                del _standing[key]
