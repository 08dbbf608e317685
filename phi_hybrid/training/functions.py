"""What the functions among settings do, in a form that can be compared in another process of the same Python version."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def description(settings: Any) -> str:
    """The same text for the same settings, in every process; of functions, too, with what they do and remember."""
    found = [(instructions(function), [*map(_text, remembered(function))]) for function in functions(settings)]
    return text(settings) + (text(found) if found else "")


def text(settings: Any) -> str:
    """Without places in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(settings))


def functions(value: Any, known: set[int] | None = None) -> Iterator[FunctionType]:
    """All functions in nested settings, each once, and those that they remember."""
    known = set() if known is None else known
    if id(value) in known:
        return
    known.add(id(value))
    if isinstance(value, FunctionType):
        yield value
    for part in remembered(value) if isinstance(value, FunctionType) else _parts(value):
        yield from functions(part, known)


def remembered(function: FunctionType) -> list[Any]:
    """Values that a function has from around it: of names outside of it, and defaults.

    Of global ones, numbers, texts and functions of the same module: what is imported is of another version at most.
    """
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            cells.append(None)
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *_global_values(function)]


def _global_values(function: FunctionType) -> list[Any]:
    around = function.__globals__
    found = [around[name] for name in sorted(_names(function.__code__)) if name in around]
    return [
        value
        for value in found
        if isinstance(value, _PLAIN) or (isinstance(value, FunctionType) and value.__module__ == function.__module__)
    ]


def _names(code: CodeType) -> set[str]:
    """Global names that a function reads; also those that functions within it do."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return own.union(*map(_names, inner))


def instructions(function: FunctionType) -> tuple[Any, ...]:
    """The same for the same text of a function, wherever it stands."""
    return _instructions(function.__code__)


def _instructions(code: CodeType) -> tuple[Any, ...]:
    constants = (_instructions(c) if isinstance(c, CodeType) else _ordered(c) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, tuple(constants)


def _ordered(constant: Any) -> Any:
    """Sets of constants are in another order in every process."""
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def _parts(value: Any) -> list[Any]:
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _text(value: Any) -> str:
    """Numbers and texts, also in settings; of lists, networks and others, which may change, only what they are."""
    if isinstance(value, _PLAIN):
        return repr(value)
    parts = [] if isinstance(value, (list, Mapping)) else _parts(value)
    return f"{type(value).__name__}({', '.join(map(_text, parts))})"
