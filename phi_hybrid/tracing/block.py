"""`capture`: a PhiFlow step becomes a torch module without parameters."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require
from phi_hybrid.bridge.layout import Layout, TreeLayout, describe_leaves, unflatten
from phi_hybrid.errors import CaptureError, SolveError, StateError
from phi_hybrid.linear_solve import Method, Solves, checked_solves
from phi_hybrid.steps.arguments import argument_names_of, arguments_of
from phi_hybrid.steps.face import MAX_KNOWN, Call, Step, Tensors
from phi_hybrid.steps.plain import computing_like, flat_result, name_of, require_step, run_eager
from phi_hybrid.tracing.check import check_against_eager, seeded
from phi_hybrid.tracing.graph import CapturedGraph
from phi_hybrid.tracing.lines import user_line
from phi_hybrid.tracing.numbers import NumberInputs, Path, changed_numbers, with_inputs

RENEWALS = 8
"""Captures of one signature, because constants changed, after which a warning says so."""

_capturing = threading.RLock()
"""Captures run one after the other: torch's tracer and PhiML's precision are global."""


def capture(
    step: Callable[..., Any], *example: Any, compile: bool = False, check: bool = True, solver: Method | None = None
) -> PhysicsBlock:
    """Runs a PhiFlow step once under a tracer and keeps its torch graph: same numbers, no PhiFlow overhead.

    Values and reverse-mode derivatives are those of eager PhiFlow to the last bit (CPU, `compile=False`).
    The tensors in the arguments are inputs of the graph: values of fields, boundary values on torch, positions of bodies
    and particles. Python numbers are constants of it, and so is everything the step closes over, which is looked at on
    each call and captured anew where it changed. A new signature (shapes, batch dims, precision, device, boundaries,
    numbers) is captured by itself when it first occurs.

    Args:
        step: `state, *inputs -> state`, ordinary PhiFlow code; states are `Field`, `Tensor`, geometries, obstacles,
            classes that name their tensors to PhiML, or tuples, lists, dicts of them.
        *example: state and inputs to capture with, e.g. fields of shape `(batch, x, y, vector)`; none to capture later.
        compile: whether to compile the graph with inductor (first call takes 5-30 s, some 4 s where torch's cache
            on disk has the graph; equal to rounding, not to the bit).
        check: whether to compare each new graph with eager PhiFlow on perturbed values.
        solver: how to solve the linear systems in the step: `linear_solve.FastDiagonalization()`,
            `CapacitanceMatrix()`, `SparseFactorization()` or `ConjugateGradient(…)`. By default the structure of the matrix decides.

    Returns:
        `PhysicsBlock`, called like `step`.

    Raises:
        CaptureError: if the step takes values out of tensors, branches on them, draws random numbers outside of torch,
            seeds, or uses a trainable tensor from outside. Names the line and the way out.
        SolveError: if a linear solve fails for the example. The block raises it whenever a solve misses its tolerance.
        StateError: if the example does not fit together or the step fails in plain PhiFlow.
    """
    block = PhysicsBlock(step, compile=compile, check=check, solver=solver)
    if example:
        block.graph_for(*example)
    return block


class PhysicsBlock(Step):
    """A captured PhiFlow step: `torch.nn.Module` without parameters; see `capture`.

    Called with PhiFlow states it behaves like the step. `bind` gives its face on torch tensors, for autograd,
    `torch.func`, `torch.compile` and DDP.
    """

    def __init__(
        self, step: Callable[..., Any], *, compile: bool = False, check: bool = True, solver: Method | None = None
    ) -> None:
        super().__init__()
        require_step("step", step)
        known = solver is None or (not isinstance(solver, type) and callable(getattr(solver, "build", None)))
        require(known, "solver", solver, "a method of phi_hybrid.linear_solve, e.g. ConjugateGradient(), or None")
        self.step = step
        self.compile_graphs = compile
        self.check = check
        self.solves = Solves(solver)
        self.graphs = torch.nn.ModuleList()
        self._captures = self._renewals = 0
        self._changing: set[Path] = set()
        self._fixed: set[Path] = set()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """One step on PhiFlow states: `state, *inputs -> state`.

        Python floats among the arguments are constants of the graph; one that goes on changing becomes an input.
        """
        tensors, layout = self.flatten_call(args, keywords)
        native = self.known_for(layout, tensors)
        if native is None and (numbers := self._numbers_in(layout)) is not None:
            widened = numbers.insert(tensors)
            try:
                native, tensors = self.native_for(numbers.layout, widened), widened
            except (CaptureError, StateError):  # the step needs them as Python numbers
                self._fixed |= self._changing
        native = native or self.native_for(layout, tensors, (args, keywords))
        with checked_solves():
            return unflatten(native.output_layout, native(*tensors))

    def _numbers_in(self, layout: TreeLayout) -> NumberInputs | None:
        """Floats that changed since other calls, unless the step cannot have them as tensors."""
        self._changing |= changed_numbers(layout, (native.layout for native in self.known))
        return with_inputs(layout, self._changing - self._fixed)

    @property
    def compiles(self) -> bool:
        return self.compile_graphs

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments_of(self.step, args, keywords)

    @property
    def argument_names(self) -> tuple[str, ...]:
        return argument_names_of(self.step)

    def graph_for(self, *args: Any, **keywords: Any) -> CapturedGraph:
        """The graph for these PhiFlow arguments, captured if need be."""
        tensors, layout = self.flatten_call(args, keywords)
        return self.native_for(layout, tensors, (args, keywords))

    def remember(self, known: Sequence[CapturedGraph]) -> None:
        """Keeps these graphs as parts of the module, too, so that they move between devices with it."""
        super().remember(known)
        self.graphs = torch.nn.ModuleList(known)

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> CapturedGraph:
        with _capturing, torch.inference_mode(False), checked_solves():
            if not _compat.functorch_active():
                return self._capture(layout, tuple(t.detach().clone() for t in tensors), call)
            with _compat.outside_transformations():  # tracing needs plain tensors; their values do not matter to it
                tensors = tuple(torch.ones(t.shape, dtype=t.dtype, device=t.device) for t in tensors)
                return self._capture(layout, tensors, None)

    def _capture(self, layout: TreeLayout, tensors: Tensors, call: Call | None) -> CapturedGraph:
        plain = self._run_plain(layout, tensors, call)
        graph = CapturedGraph(self.step, layout, tensors, self.compile_graphs, self.solves)
        if self.check:
            try:
                check_against_eager(graph, self.step, tensors, self.solves, plain)
            except CaptureError as error:
                own = ", ".join(graph.fingerprint.changes())
                raise CaptureError(f"{error}{own and '. The step itself changes ' + own}") from None
        graph.fingerprint.without_changes()
        self._count(graph)
        return graph

    def _count(self, graph: CapturedGraph) -> None:
        """Warns where graphs hardly live longer than one call."""
        self._captures += 1
        stale = [g for g in self.known if g.signature == graph.signature and g.layout == graph.layout]
        self._renewals += bool(stale)
        reason = ""
        if stale and self._renewals % RENEWALS == 0:
            reason = f"what it closes over keeps changing: {', '.join(stale[0].fingerprint.changes())}"
        elif self._captures % MAX_KNOWN == 0:
            reason = "Python numbers among the arguments are constants of the graph"
        if reason:
            warnings.warn(
                f"this step was captured {self._captures} times, last for {describe_leaves(graph.layout)}; {reason}. Pass what "
                "changes from call to call as a tensor (phi.math.wrap), and keep batch sizes fixed",
                RuntimeWarning,
                stacklevel=5,
            )

    def _run_plain(self, layout: TreeLayout, tensors: Tensors, call: Call | None) -> tuple[Tensors, Layout]:
        """Result of plain PhiFlow for the arguments themselves, which a fault of the layout could not hide from."""
        try:
            if call is None:
                return seeded(run_eager, (self.step, layout, tensors, self.solves))
            with computing_like(tensors), self.solves.active():
                return seeded(flat_result, (self.step, self.arguments(*call)))
        except (CaptureError, SolveError, StateError):
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            if frames[-1].name == "__bool__":  # which PhiFlow's tensors do not have either
                raise CaptureError(
                    f"a Python condition (if, while, and, or, assert) on a tensor, at {user_line(frames)}. Way out: use "
                    "math.where instead of branches, or pass the value as a Python number."
                ) from error
            raise StateError(
                f"the step fails in plain PhiFlow for arguments of shape {describe_leaves(layout)}: "
                f"{type(error).__name__}: {error}, at {user_line(frames)}"
            ) from error

    def __repr__(self) -> str:
        return f"PhysicsBlock({name_of(self.step)})"  # not the graphs: it names settings of a training

    def __deepcopy__(self, memo: dict) -> PhysicsBlock:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update({k: v if k == "step" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return clone

    def __getstate__(self) -> dict[str, Any]:
        """A local function cannot be pickled: the graphs travel, new signatures need the step again."""
        state = dict(self.__dict__)
        try:
            pickle.dumps(self.step)
        except Exception:
            state["step"] = LostStep(self.step)
        return state


class _OldBlock:
    """Stands in for classes that files of version 0.1 look for in rooms that no longer exist."""

    def __new__(cls, *args: Any) -> _OldBlock:
        raise StateError(
            "this file holds a block of phi_hybrid 0.1, whose graphs no longer fit. Capture its step again: "
            "ph.capture(step, *example); weights and scales of solvers load from their state dicts"
        )


for _room in ("capture", "capture.block"):
    sys.modules.setdefault(f"phi_hybrid.{_room}", types.ModuleType(f"phi_hybrid.{_room}"))
sys.modules["phi_hybrid.capture.block"].PhysicsBlock = _OldBlock


class LostStep:
    """Stands for a step that could not be pickled together with its block."""

    def __init__(self, step: Callable) -> None:
        self.__qualname__ = name_of(step)
        parameters = inspect.signature(_compat.undecorated(step)).parameters.values()
        plain = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else None) for p in parameters]
        self.__signature__ = inspect.Signature(plain)  # by which calls are still understood

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        raise CaptureError(
            f"this block was unpickled without its step {self.__qualname__}, a local function, so it knows only the "
            "signatures captured before. Way out: define the step at module level, or call the block with this signature "
            "before pickling"
        )
