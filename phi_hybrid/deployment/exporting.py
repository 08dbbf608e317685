"""Step → a program for torch alone, run from Python without this package or from C++."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.axes import Axis, position_of
from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.kinds import FieldLayout, TensorLayout
from phi_hybrid.bridge.layout import Layout, TreeLayout
from phi_hybrid.data import new_file, replacing
from phi_hybrid.deployment.program import Program
from phi_hybrid.deployment.recording import record, require_equal
from phi_hybrid.deployment.saving import example_of, first_entries, results_of, versions
from phi_hybrid.errors import CaptureError, SolveError, StateError
from phi_hybrid.linear_solve import LinearSolve, VaryingSolve, plain_solve
from phi_hybrid.steps import Step
from phi_hybrid.steps.face import Tensors
from phi_hybrid.tracing import fold_constants

DESCRIPTION = "phi_hybrid.json"
"""Name of the description inside of an exported program."""


@dataclass(frozen=True)
class TensorDescription:
    """One tensor that a program takes or returns.

    Attributes:
        name: where it stands, e.g. `velocity.x`.
        dims: names of its axes, in order.
        sizes: their sizes, `None` for the batch size, which is free.
        dtype: of the numbers, e.g. `float32`.
    """

    name: str
    dims: tuple[str, ...]
    sizes: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class ExportedStep:
    """Description of an exported program `(*state, *inputs) -> state` on tensors.

    Attributes:
        path: of the file.
        inputs: tensors that it takes: those of the state, then those of the inputs.
        outputs: tensors that it returns: those of the new state.
        compiled: whether it is machine code (`torch._inductor.aoti_load_package`) or a graph (`torch.export.load`).
        versions: of the packages that it was made with.
    """

    path: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    compiled: bool
    versions: dict[str, str]


def export(
    step: Step, state: Any, *inputs: Any, path: str | os.PathLike[str], compile: bool = False, **keywords: Any
) -> ExportedStep:
    """Writes one step as a program that runs in torch without PhiFlow and without this package, for any batch size.

    `torch.export.load(path).module()(*tensors)` is one step. Linear solves are inlined: fast diagonalisations as they are,
    factorisations as products with dense blocks. Checks of their residuals and right-hand sides are left out.

    Args:
        step: solver or block whose physics is captured; weights as they are now, evaluation mode.
        state: e.g. fields of shape `(batch, x, y, vector)`, as it occurs: the program is compared with the step on it.
        *inputs: further arguments; Python numbers are constants of the program.
        path: of the file, ending in `.pt2`.
        compile: whether to compile it ahead of time (AOTInductor, needs a C++ compiler), for `torch` without tracing or
            for C++. The description is then beside the file, as `path` with the ending `.json`.
        **keywords: inputs by name.

    Returns:
        Description of the tensors that the program takes and returns; it is in the file, too.

    Raises:
        StateError: for physics that was not captured.
        CaptureError: for solves that cannot be inlined (iterations, matrices that depend on the inputs, too many
            unknowns), for networks that look at values, and if the program computes other numbers than the step.
    """
    require_instance("step", step, Step, "a solver or a block: ph.export(solver, state, path='step.pt2')")
    require_instance("path", path, (str, os.PathLike), "the path of a file, e.g. 'step.pt2'")
    if not os.fspath(path).endswith(".pt2"):
        raise StateError(f"path = {os.fspath(path)!r}: expected a name that ends in .pt2, as torch wants it")
    layout, tensors, batching, batch = example_of(step, (state, *inputs), keywords)
    program = record(step, layout, tensors, batch)
    module = program.build(tensors[0].device, _plain_modules(program, tensors))
    fold_constants(module)  # inductor fails for some operations on constants without dims
    module.recompile()
    exported = _exported(module, program, tensors)
    first = first_entries(tensors, batching)
    with torch.no_grad():
        found = exported.module()(*first)
    require_equal(found, results_of(step, layout, first)["result"])
    description = ExportedStep(
        os.fspath(path),
        tuple(_described(_named_call(step, layout), first, batch)),
        tuple(_described(program.output_layout, found, batch)),
        compile,
        versions(),
    )
    _write(exported, description)
    return description


def _plain_modules(program: Program, tensors: Tensors) -> dict[str, torch.nn.Module]:
    """Solves of torch operations in the place of those of this package."""
    modules = {}
    for name, module in program.modules.items():
        if isinstance(module, VaryingSolve):
            raise CaptureError(
                "a linear solve whose matrix depends on state or inputs cannot leave this package, since a factorisation is "
                "made anew for each. Give the coefficient as a Python number, or let the step close over it; or use "
                "solver.save, which keeps it"
            )
        if isinstance(module, LinearSolve):
            try:
                directions = {entry.args[1] for entry in program.entries if entry.target == name}
                module = plain_solve(module, tensors[0].device, tensors[0].dtype, directions)
            except SolveError as error:
                raise CaptureError(
                    f"a linear solve cannot leave this package: {error}. Use a coarser grid, a box without obstacles, or "
                    "solver.save, which keeps the solve"
                ) from error
        modules[name] = module
    return modules


def _exported(module: torch.fx.GraphModule, program: Program, tensors: Tensors) -> torch.export.ExportedProgram:
    size = torch.export.Dim("batch", min=1, max=2**31 - 1)  # the largest number would be a special case for torch 2.6
    positions = [position_of(program.batch, axes) for axes in program.layout.leaves]
    shapes = tuple({} if p is None else {p: size} for p in positions)
    return torch.export.export(module, _several(tensors, positions), dynamic_shapes=shapes, strict=False)


def _several(tensors: Tensors, positions: list[int | None]) -> Tensors:
    """An example of more than one batch entry: torch takes sizes of 1 for constants."""
    return tuple(t if p is None else torch.cat([t, t, t], p) for t, p in zip(tensors, positions))


def _described(layout: Layout, tensors: Tensors, batch: str) -> Iterator[TensorDescription]:
    for name, axes, tensor in zip(leaf_names(layout), layout.leaves, tensors):
        sizes = tuple(None if a.name == batch else size for a, size in zip(axes, tensor.shape))
        yield TensorDescription(name, tuple(a.name for a in axes), sizes, str(tensor.dtype).removeprefix("torch."))


def _named_call(step: Step, layout: TreeLayout) -> TreeLayout:
    """The arguments of a call by the names that they have in the step."""
    names = [*step.argument_names[: len(layout.children) - len(layout.keywords)], *layout.keywords]
    known = len(set(names)) == len(layout.children)
    return TreeLayout(dict, tuple(names if known else range(len(layout.children))), layout.children)


def leaf_names(layout: Layout, prefix: str = "") -> Iterator[str]:
    """Where each tensor of a layout stands, e.g. `0.velocity.x` for a component of a staggered field."""
    if isinstance(layout, TreeLayout):
        for key, child in zip(layout.keys or range(len(layout.children)), layout.children):
            yield from leaf_names(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(layout, FieldLayout):
        yield from leaf_names(layout.values, prefix)
    elif isinstance(layout, TensorLayout) and layout.split is not None:
        labels = _labels(layout.split, len(layout.parts))
        yield from (f"{prefix}.{label}" if prefix else label for label in labels)
    else:
        yield from [prefix] * len(layout.leaves)


def _labels(split: Axis, count: int) -> list[str]:
    return list(split.labels or map(str, range(count)))


def _write(exported: torch.export.ExportedProgram, description: ExportedStep) -> None:
    told = {name: value for name, value in asdict(description).items() if name != "path"}
    text = json.dumps(told, indent=1)
    with replacing(description.path) as temporary:
        whole = f"{temporary}.pt2"  # the only ending that torch takes
        try:
            if description.compiled:
                _compat.compile_ahead(exported, whole)
            else:
                torch.export.save(exported, whole, extra_files={DESCRIPTION: text})
            os.replace(whole, temporary)
        finally:
            if os.path.exists(whole):
                os.unlink(whole)
    if description.compiled:
        with new_file(os.path.splitext(description.path)[0] + ".json") as file:
            file.write(text.encode())
