"""Lines of the user's code: where an operation of a graph, or an error, comes from."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from functools import lru_cache
from typing import NamedTuple

import torch

from phi_hybrid import _compat

_ROOM = os.path.dirname(__file__)
_LIBRARIES = (
    *(os.path.dirname(__import__(name).__file__) + os.sep for name in ("torch", "phi", "phiml", "numpy")),
    _ROOM + os.sep,
    *(os.path.join(os.path.dirname(_ROOM), room, "") for room in ("_compat", "bridge", "linear_solve", "steps")),
)
_TRACER = os.path.join(_ROOM, "tracer.py")


def user_line(frames: traceback.StackSummary | None = None) -> str:
    """Innermost line of the call stack that belongs to neither PhiFlow, torch nor the tracer."""
    for frame in reversed(frames or traceback.extract_stack()):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
    return "an unknown line"


class Line(NamedTuple):
    """A line of the user's code; `str(line)` is `file:number: text`."""

    file: str
    number: int

    def __str__(self) -> str:
        near = os.path.relpath(self.file)
        text = linecache.getline(self.file, self.number).strip()
        return f"{self.file if near.startswith(os.pardir) else near}:{self.number}{text and f': {text}'}"


def line_of(node: torch.fx.Node) -> Line | None:
    """The line of the step that a node of its graph comes from, `None` where none is known, as after unpickling."""
    return None if node.op == "placeholder" else node.meta.get("line")


def note_lines() -> None:
    """Notes at the nodes that were recorded since the last time which line of the step is being run."""
    graph = _compat.traced_graph()
    new = []
    for node in reversed(graph.nodes if graph else ()):
        if "line" in node.meta:
            break
        new.append(node)
    line = _line_of_step() if new else None
    for node in new:
        node.meta["line"] = line


def _line_of_step() -> Line | None:
    """Innermost line of the user's among those that the tracer is running."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _TRACER:
        if _is_users(frame.f_code.co_filename):
            return Line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


@lru_cache(maxsize=1024)
def _is_users(file: str) -> bool:
    return not file.startswith(_LIBRARIES) and not file.startswith("<")
