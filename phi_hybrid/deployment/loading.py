"""File → step, without the code that it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.layout import Layout, TreeLayout, batch_names, describe_leaves
from phi_hybrid.deployment.batching import Batching
from phi_hybrid.deployment.comparison import Saved, fill, require_alike
from phi_hybrid.deployment.container import read_container
from phi_hybrid.deployment.encoding import decode
from phi_hybrid.deployment.operators import is_in_place
from phi_hybrid.deployment.program import Program
from phi_hybrid.errors import DataError, StateError
from phi_hybrid.steps import Step, rollout
from phi_hybrid.steps.face import Call, Signature, Tensors, signature_of
from phi_hybrid.tracing import owner_of_memory


def load(path: str | os.PathLike[str], into: Step | None = None) -> Step:
    """Loads a solver that `solver.save` wrote: without its code as a step, or into a solver made of that code.

    Nothing in the file is executed; the operators that it names are taken from a list. What it computes for the example in
    the file is compared with what it computed where it was saved.

    Args:
        path: of the file.
        into: solver that takes weights, scales, features and boundaries, made of the same physics, network and coupling.
            It stays as it is unless all fits.

    Returns:
        `into`, or a `LoadedStep`, `state, *inputs -> state`, which can be rolled out, differentiated by state and inputs,
        and be the physics of another solver, but not be trained.

    Raises:
        DataError: if the file is missing, damaged, truncated, foreign or malicious, or computes other numbers here.
        StateError: if it does not fit `into`, naming the differences.
    """
    require_instance("into", into, (Step, type(None)), "a solver made of the same physics and network, or None")
    header, tensors = read_container(path)
    try:
        saved = _saved(header, tensors)
        step = LoadedStep(saved.program, saved.settings, header["parameters"], saved.versions)
        require_alike(step, saved)
    except DataError as error:
        raise DataError(f"{os.fspath(path)} {error}; take another copy of it, or save the solver again") from None
    except Exception as error:  # whatever Python and torch make of nonsense with a right checksum
        raise DataError(
            f"{os.fspath(path)} is no saved solver ({type(error).__name__}: {error}); save the solver again"
        ) from error
    if into is None:
        return step
    fill(into, saved)
    return into


def _saved(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Saved:
    program = decode(header["program"], tensors)
    _require_pure(program)
    state = {name: tensors.get(f"state/{name}", program.constants.get(name)) for name in header["state"]}
    if None in state.values():
        raise DataError("lacks weights that it lists")
    return Saved(
        program,
        {**state, **header["others"]},
        _named("buffer/", tensors),
        dict(header["settings"]),
        {str(k): str(v) for k, v in header["versions"].items()},
        *(tuple(_named(kind, tensors).values()) for kind in ("example/", "result/", "physics/")),
    )


def _named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _require_pure(program: Program) -> None:
    """Raises DataError for programs that write into their arguments or constants."""
    for node in program.build(torch.device("cpu")).graph.nodes:
        if node.op == "call_function" and is_in_place(node.target) and node.args:
            if owner_of_memory(node.args[0]).op in ("placeholder", "get_attr"):
                raise DataError("writes into its arguments or constants, which no saved solver does")


@dataclass(frozen=True)
class _NativeProgram:
    """A program for one layout and signature of a call."""

    layout: TreeLayout
    output_layout: Layout
    signature: Signature
    module: torch.fx.GraphModule
    batching: Batching
    merged_layout: Layout

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        if self.batching.source == self.batching.target:
            return self.module(*tensors)
        merged, sizes = self.batching.merge(tensors)
        return self.batching.split(self.module(*merged), self.merged_layout, sizes)

    together: ClassVar[int] = 1

    def is_fresh(self) -> bool:
        return True


class LoadedStep(Step):
    """A saved step, `state, *inputs -> state`, for the domain, boundaries, numbers and precision it was saved with.

    Batch dims may have any names and sizes. It has no parameters; devices are those of the states.

    Attributes:
        program: what it computes.
        description: coupling, choices and features of the solver that was saved.
        parameter_names: names of state and inputs, where they are known.
        versions: of the packages that it was saved with.
    """

    def __init__(
        self, program: Program, description: Mapping[str, Any], parameters: Sequence[str], versions: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.program, self.description = program, dict(description)
        self.parameter_names, self.versions = tuple(map(str, parameters)), dict(versions)

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True, **keywords: Any) -> Any:
        """Trajectory u₀ … u_steps with a batch dim `time` of size `steps + 1`; see `phi_hybrid.rollout`."""
        return rollout(self, state, steps, *inputs, check=check, **keywords)

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs by keyword take the places that they had when the step was saved."""
        args, rest = list(args), dict(keywords)
        positional = len(self.program.layout.children) - len(self.program.layout.keywords)
        for name in self.parameter_names[len(args) : positional]:
            if name in rest:
                args.append(rest.pop(name))
        return tuple(args), rest

    @property
    def argument_names(self) -> tuple[str, ...]:
        return self.parameter_names

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> _NativeProgram:
        own = self.program.layout
        batched = [bool(batch_names(child)) for child in own.children]
        if len(layout.children) != len(batched) or layout.keywords != own.keywords:
            raise StateError(
                f"this step was saved for {len(batched)} arguments {self.parameter_names or ''}, got {len(layout.children)}; "
                "pass state and inputs as they were when it was saved"
            )
        batching = Batching.of(layout, self.program.batch, batched)
        if batching.target != own:
            raise StateError(
                f"this step was saved for other arguments, first as in the file, then as given: {own.difference(batching.target)}. Save it again with such an "
                "example: solver.save(path, state, *inputs)"
            )
        given = tuple(t.dtype for t in tensors)
        if given != self.program.dtypes:
            raise StateError(
                f"this step was saved for {self.program.dtypes}, got {given} in {describe_leaves(layout)}; convert them, e.g. "
                "with phi.math.to_float"
            )
        output = batching.result_layout(self.program.output_layout, self.program.batch)
        module = self.program.build(tensors[0].device)
        return _NativeProgram(layout, output, signature_of(tensors), module, batching, self.program.output_layout)

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.description.items() if value not in (None, ""))
        return f"{settings}; for {describe_leaves(self.program.layout)}"
