"""PhiFlow step → torch graph: trace, refuse what a graph cannot hold, fold constants."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import Layout, TreeLayout
from phi_hybrid.errors import CaptureError, SolveError
from phi_hybrid.linear_solve import Solves
from phi_hybrid.steps.plain import computing_like, run
from phi_hybrid.tracing.guard import Guard, is_random
from phi_hybrid.tracing.lines import user_line
from phi_hybrid.tracing.operators import GridSampler, SparseProduct

_aten = torch.ops.aten
_SEED = 8_071_506_243
"""Hardly one that a step sets."""


def trace(
    step: Callable, layout: TreeLayout, tensors: tuple[torch.Tensor, ...], solves: Solves
) -> tuple[torch.fx.GraphModule, Layout]:
    """Runs `step` once and returns the graph of its tensor operations with the layout of its result.

    Raises:
        CaptureError: if the graph could not give right numbers for other inputs; names the line and the way out.
    """
    guard = Guard(solves)
    output_layout: list[Layout] = []
    tensors = tuple(t.detach().clone() for t in tensors)

    def native(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with computing_like(inputs), guard.tracing():
            outputs, out = run(step, layout, inputs)
        output_layout.append(out)
        return outputs

    versions = [t._version for t in tensors]
    try:
        with torch.random.fork_rng(enabled=True):  # a capture must not shift the user's random numbers
            torch.manual_seed(_SEED)
            module = _compat.record(native, *tensors)
            if torch.initial_seed() != _SEED:
                raise CaptureError(
                    "the step seeds torch's random generator, which the graph would not do. Way out: seed before the call, or "
                    "pass the random numbers as an argument."
                )
    except Exception as error:
        if guard.error is not None or isinstance(error, (CaptureError, SolveError)):
            raise (guard.error or error) from None
        line = user_line(traceback.extract_tb(error.__traceback__))
        raise CaptureError(
            f"the step runs in PhiFlow but cannot be traced: {type(error).__name__}: {error}, at {line}. Way out: "
            "replace this operation, or use the step uncaptured"
        ) from error
    if guard.error is not None:  # the step caught it
        raise guard.error
    if [t._version for t in tensors] != versions:
        raise CaptureError("the step writes into one of its arguments. Way out: compute a new value instead.")
    _refuse_unsafe(module, guard)
    _replace_operators(module, guard)
    module.graph.eliminate_dead_code()  # among it operations that failed and for which PhiFlow then did others
    fold_constants(module)
    own_memory(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module, output_layout[0]


def _refuse_unsafe(module: torch.fx.GraphModule, guard: Guard) -> None:
    for node in module.graph.nodes:
        constant = getattr(module, node.target) if node.op == "get_attr" else None
        if constant is not None and constant.requires_grad:
            shape = tuple(constant.shape)
            raise CaptureError(
                f"the step uses a trainable tensor of shape {shape} that is not among its arguments; as a constant of "
                "the graph it would not be trained. Way out: keep networks outside of the physics (HybridSolver), or "
                "pass the tensor as an argument of the step."
            )
        if _shape_depends_on_values(node, guard):
            raise CaptureError(
                f"operation {node.target}: the shape of its result depends on values, so the graph would hold only for "
                "this example. Way out: use math.where or a mask instead of boolean indexing and nonzero."
            )


def _shape_depends_on_values(node: torch.fx.Node, guard: Guard) -> bool:
    if node.target is _aten.index.Tensor:  # harmless with integers and constant masks
        masks = [n for n in node.args[1] if n is not None and n.meta["val"].dtype == torch.bool]
        return any(guard.depends(n) for n in masks)
    tags = getattr(node.target, "tags", ())
    by_value = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
    return by_value and guard.depends(node)


def _replace_operators(module: torch.fx.GraphModule, guard: Guard) -> None:
    module.add_submodule("grid_sampler", GridSampler())
    module.add_submodule("sparse_product", SparseProduct())
    for node in module.graph.nodes:
        if node.target in (_aten.grid_sampler_2d.default, _aten.grid_sampler_3d.default):
            node.op, node.target = "call_module", "grid_sampler"
        elif node.target is torch.ops.phi_hybrid.csr_product.default:
            node.op, node.target = "call_module", "sparse_product"
        elif node.target is torch.ops.phi_hybrid.linear_solve.default:
            rhs, number, transposed = node.args
            _call_solve(node, f"linear_solve{number}", (rhs, transposed), guard.used_solves)
        elif node.target is torch.ops.phi_hybrid.varying_solve.default:
            values, rhs, _, _, number, transposed = node.args
            _call_solve(node, f"varying_solve{number}", (values, rhs, transposed), guard.used_solves)
        elif node.target is torch.ops.phi_hybrid.with_gradient.default:
            *arguments, number = node.args
            node.op, node.target, node.args = "call_module", f"custom_gradient{number}", tuple(arguments)
            module.add_submodule(node.target, guard.custom_gradients[number])
        elif node.target is torch.ops.phi_hybrid.detached.default:
            node.target = _aten.detach.default
        elif node.target is _aten.view.default:
            node.target = _aten.reshape.default  # a caller's tensors need not have the strides of the example
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])


def _call_solve(node: torch.fx.Node, name: str, args: tuple, solves: dict[str, torch.nn.Module]) -> None:
    """Puts a module in the place of a solve; most are not transposed, those of a backward pass in the step may be."""
    node.op, node.target, node.args = "call_module", name, args if args[-1] else args[:-1]
    node.graph.owning_module.add_submodule(name, solves[name])


def _changes_nothing(node: torch.fx.Node) -> bool:
    """PhiFlow permutes and reshapes at every turn, mostly to what is there already."""
    if node.target is _aten.permute.default:
        return list(node.args[1]) == list(range(len(node.args[1])))
    return node.target is _aten.reshape.default and node.meta["val"].shape == node.args[0].meta["val"].shape


def fold_constants(module: torch.fx.GraphModule) -> None:
    """Computes once what does not depend on the inputs and keeps it as non-persistent buffers."""
    graph, values = module.graph, {}
    fixed = in_place_targets(graph)
    for node in list(graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(module, node.target)
            continue
        constant = node.op in ("call_function", "call_module") and all(n in values for n in node.all_input_nodes)
        if constant and node not in fixed and not is_random(node):
            call = node.target if node.op == "call_function" else module.get_submodule(node.target)
            values[node] = call(*_lookup(node.args, values), **_lookup(node.kwargs, values))
    constants: dict[str, torch.Tensor] = {}
    for node in list(graph.nodes):
        users = [u for u in node.users if u not in values]
        if node in values and users and isinstance(values[node], torch.Tensor):
            name = f"constant{len(constants)}"
            constants[name] = values[node].detach().clone()
            with graph.inserting_before(node):
                attribute = graph.create_node("get_attr", name)
            node.replace_all_uses_with(attribute, delete_user_cb=lambda user: user not in values)
    for name, value in constants.items():
        module.register_buffer(name, value, persistent=False)
    graph.eliminate_dead_code()
    own = (n for n, _ in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)))
    for name in [n for n in own if n not in constants]:
        delattr(module, name)


def own_memory(graph: torch.fx.Graph) -> None:
    """Copies results that share memory with an argument, a constant or an earlier result: a caller may write into them."""
    output = graph.output_node()
    taken: set[torch.fx.Node] = {n for n in graph.nodes if n.op in ("placeholder", "get_attr")}
    results = []
    with graph.inserting_before(output):
        for result in output.args[0]:
            owner = owner_of_memory(result)
            results.append(graph.call_function(_aten.clone.default, (result,)) if owner in taken else result)
            taken.add(owner)
    output.args = (tuple(results),)


def owner_of_memory(node: torch.fx.Node) -> torch.fx.Node:
    """The node whose result this one is, or is a view of."""
    while node.target is operator.getitem or _is_view(node):
        node = node.args[0]
    return node


def _is_view(node: torch.fx.Node) -> bool:
    if node.target is _aten._unsafe_view.default:  # which says that it is none
        return True
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    return node.op == "call_function" and bool(returns) and returns[0].alias_info is not None


def in_place_targets(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Nodes that an in-place operation writes to, directly or through a view: not constants, even if nothing varies."""
    written: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            stack = [node, *node.all_input_nodes[:1]]
            while stack:
                top = stack.pop()
                if top not in written:
                    written.add(top)
                    stack += top.all_input_nodes[:1]
    return written


def _lookup(arguments: Any, values: dict) -> Any:
    return torch.fx.node.map_arg(arguments, lambda node: values[node])
