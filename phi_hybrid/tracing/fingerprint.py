"""What a step closes over, and a look at whether it is still the same: the constants of a graph must not grow stale."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from phi.math import Shape, Tensor

from phi_hybrid import _compat
from phi_hybrid.steps.face import Step

LARGEST_CONTAINER = 64
"""Entries up to which lists and dicts are looked at one by one; of longer ones the length is."""
LARGEST_ARRAY = 4096
"""Bytes of NumPy arrays up to which in-place writes are seen."""

_LIBRARIES = {"phi", "phiml", "torch", "numpy", "scipy", "phi_hybrid", "matplotlib", "h5py"} | sys.stdlib_module_names
_DATA = {"phi", "phiml", "phi_hybrid"}
"""Libraries whose objects a step may close over as data: everything in them counts."""
_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), frozenset)
_GONE = object()


class Fingerprint:
    """Names, containers, tensors and arrays that a step reads, with what they held when it was captured.

    Containers are compared by the identity of their entries, tensors by their version counter, small arrays by their bytes.
    Properties are not called, library code is not entered. In-place writes into larger NumPy arrays are not seen.
    """

    def __init__(self, step: Callable) -> None:
        self._entries: list[tuple[Any, Any, Any]] = []  # container, key, value
        self._cells: list[tuple[types.CellType, Any]] = []
        self._lengths: list[tuple[Any, int]] = []
        self._versions: list[tuple[torch.Tensor, tuple]] = []
        self._arrays: list[tuple[np.ndarray, bytes]] = []
        self._labels: dict[int, str] = {}
        _Survey(self).start(step)

    def holds(self) -> bool:
        """Tells if nothing has changed."""
        for container, key, value in self._entries:
            try:
                if container[key] is not value:
                    return self._holds_nevertheless()
            except (KeyError, IndexError):
                return False
        for cell, value in self._cells:
            if _contents(cell) is not value:
                return self._holds_nevertheless()
        for tensor, version in self._versions:
            if (tensor._version, tensor.requires_grad) != version:
                return False
        for container, length in self._lengths:
            if len(container) != length:
                return False
        return not self._arrays or all(array.tobytes() == content for array, content in self._arrays)

    def changes(self) -> list[str]:
        """Names of what has changed."""
        pairs = [((c, k), _entry(c, k), v) for c, k, v in self._entries] + [
            ((c,), _contents(c), v) for c, v in self._cells
        ]
        changed = [key for key, now, then in pairs if not _equal(now, then)]
        changed += [(t,) for t, version in self._versions if (t._version, t.requires_grad) != version]
        changed += [(c,) for c, length in self._lengths if len(c) != length]
        changed += [(a,) for a, content in self._arrays if a.tobytes() != content]
        return list(dict.fromkeys(self._label(key) for key in changed))

    def without_changes(self) -> None:
        """Stops looking at what has changed: notes that the step takes of itself."""
        self._entries = [(c, k, v) for c, k, v in self._entries if _equal(_entry(c, k), v)]
        self._cells = [(c, v) for c, v in self._cells if _equal(_contents(c), v)]
        self._versions = [(t, v) for t, v in self._versions if (t._version, t.requires_grad) == v]
        self._lengths = [(c, n) for c, n in self._lengths if len(c) == n]
        self._arrays = [(a, b) for a, b in self._arrays if a.tobytes() == b]

    def __deepcopy__(self, memo: dict) -> Fingerprint:
        return self  # copies of a block have the same step

    def __reduce__(self) -> tuple:
        return type(None), ()  # names and tensors of another process are others

    def _holds_nevertheless(self) -> bool:
        """Equal numbers are no change, whatever their identity, and are found by it the next time."""
        if self.changes():
            return False
        self._entries = [(c, k, c[k]) for c, k, _ in self._entries]
        self._cells = [(c, _contents(c)) for c, _ in self._cells]
        return True

    def _label(self, key: tuple) -> str:
        name = self._labels.get(id(key[0]), "an object")
        return name if len(key) == 1 else f"{name}[{key[1]!r}]" if not isinstance(key[1], str) else f"{name}{key[1]}"


class _Survey:
    """One walk through everything that is reachable from a step."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.found = fingerprint
        self.seen: dict[int, Any] = {}
        self.names: set[str] = set()
        """Of globals and attributes in the code seen so far."""
        self.holders: list[tuple[dict, str]] = []
        """Namespaces of modules, classes and objects of the user, of which only these names are read."""
        self.taken: set[tuple[int, str]] = set()

    def start(self, step: Callable) -> None:
        self.visit(step, "")
        while True:  # code found in one round may use names of namespaces met before
            before = len(self.taken)
            for namespace, label in list(self.holders):
                for name in self.names & namespace.keys():
                    if (id(namespace), name) not in self.taken:
                        self.taken.add((id(namespace), name))
                        self.entry(namespace, name, label)
            if len(self.taken) == before:
                return

    def entry(self, container: Any, key: Any, label: str) -> None:
        value = container[key]
        self.found._entries.append((container, key, value))
        self.found._labels.setdefault(id(container), label)
        self.visit(value, f"{label}{key}." if isinstance(key, str) else f"{label}[{key!r}].")

    def visit(self, value: Any, label: str) -> None:
        if isinstance(value, _IMMUTABLE) or id(value) in self.seen:
            return
        self.seen[id(value)] = value  # alive, so that no other object takes its number
        self.found._labels.setdefault(id(value), label.rstrip("."))
        if isinstance(value, torch.Tensor):
            if not value.is_inference():
                self.found._versions.append((value, (value._version, value.requires_grad)))
        elif isinstance(value, np.ndarray):
            if value.nbytes <= LARGEST_ARRAY and value.dtype != object:
                self.found._arrays.append((value, value.tobytes()))
        elif isinstance(value, (list, tuple, dict)):
            self.container(value, label)
        elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self.function(value, label)
        elif isinstance(value, (types.ModuleType, type)):
            if not _is_library(value if isinstance(value, types.ModuleType) else sys.modules.get(_home_of(value))):
                self.holders.append((value.__dict__, label))
        else:
            self.object(value, label)

    def container(self, value: list | tuple | dict, label: str) -> None:
        if not isinstance(value, tuple):
            self.found._lengths.append((value, len(value)))
        if len(value) <= LARGEST_CONTAINER:
            for key in value if isinstance(value, dict) else range(len(value)):
                self.entry(value, key, label)

    def function(self, value: Callable, label: str) -> None:
        if isinstance(value, types.MethodType):
            self.visit(value.__func__, label)
            self.visit(value.__self__, label)
            return
        if isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.visit(part, label)
            return
        if value.__globals__.get("__name__", "").split(".")[0] in _LIBRARIES:
            return
        self.code(value.__code__, value.__globals__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            self.found._cells.append((cell, _contents(cell)))
            self.found._labels.setdefault(id(cell), name)
            self.visit(_contents(cell), f"{name}.")
        for part in (value.__defaults__, value.__kwdefaults__, vars(value).get("__wrapped__")):
            self.visit(part, label)

    def code(self, code: types.CodeType, namespace: dict) -> None:
        """Globals and names of attributes that a function uses, and those of functions and comprehensions inside."""
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                self.names.add(name)
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in namespace:
                if (id(namespace), name) not in self.taken:
                    self.taken.add((id(namespace), name))
                    self.entry(namespace, name, "")
            elif instruction.opname == "IMPORT_NAME" and name in sys.modules:
                self.visit(sys.modules[name], f"{name}.")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.code(constant, namespace)

    def object(self, value: Any, label: str) -> None:
        if isinstance(value, Tensor):
            for native in _compat.natives_of(value):
                self.visit(native, label)
            return
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict) or isinstance(value, Shape):
            return
        if isinstance(value, torch.nn.Module):
            self.module(value, label)
        if isinstance(value, Step):  # a block or solver inside of the step: its graphs look after themselves
            for part in (vars(value).get("step"), *value.children()):
                self.visit(part, label)
            return
        kinds = [_home_of(base).split(".")[0] for base in type(value).__mro__]
        if inner := _compat.functions_under(value):
            for part in inner:
                self.visit(part, label)
        elif _DATA & set(kinds):
            for key in [k for k in own if not k.startswith("_")]:
                self.entry(own, key, label)
        elif kinds[0] not in _LIBRARIES:
            self.names.add("__call__")
            self.holders.append((own, label))
            for base in type(value).__mro__:
                self.visit(base, label)

    def module(self, value: torch.nn.Module, label: str) -> None:
        """Weights and modes of a network that is no part of the training."""
        for part in value.modules():
            self.entry(vars(part), "training", label)
            for tensors in (vars(part)["_parameters"], vars(part)["_buffers"]):
                for name in tensors:
                    self.entry(tensors, name, label)


def _home_of(kind: type) -> str:
    """Name of the module of a class; some classes written in C have a descriptor in its place."""
    return kind.__module__ if isinstance(kind.__module__, str) else "builtins"


def _is_library(module: types.ModuleType | None) -> bool:
    return module is None or module.__name__.split(".")[0] in _LIBRARIES


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _GONE


def _entry(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except (KeyError, IndexError):
        return _GONE


def _equal(now: Any, then: Any) -> bool:
    """The same object, or an equal constant: 0.0 and -0.0 are not, nan is."""
    if now is then:
        return True
    return type(now) is type(then) and isinstance(now, _IMMUTABLE) and repr(now) == repr(then)
