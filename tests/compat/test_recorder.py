"""The recorder of torch operations: the graph that `make_fx` gives, and no compiler loaded for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from phi_hybrid import _compat

OUTSIDE = torch.arange(4.0)


def in_place(x: torch.Tensor) -> list[torch.Tensor]:
    y = x.clone()
    y[1:3].mul_(2)
    y.add_(x)
    return [y]


def several_results(x: torch.Tensor) -> list[torch.Tensor]:
    first, *_, last = x.reshape(2, 2).unbind(1)
    values, indices = x.sort()
    return [first * last, values, indices]


def literals(x: torch.Tensor) -> list[torch.Tensor]:
    counter = torch.tensor([1.0, 2.0])
    counter += 1
    return [x[:2] * counter, OUTSIDE * x]


def gradient_inside(x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.detach().requires_grad_()
    return list(torch.autograd.grad((leaf**3).sum(), leaf))


@torch.library.custom_op("phi_hybrid::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def custom_operator(x: torch.Tensor) -> list[torch.Tensor]:
    return [doubled(x) * x]


@pytest.mark.parametrize("f", [in_place, several_results, literals, gradient_inside, custom_operator])
def test_it_records_what_make_fx_records(f: Callable) -> None:
    graph, reference = _compat.record(f, torch.rand(4)), make_fx(f)(torch.rand(4))
    operations = [[n.target for n in g.graph.nodes if n.op == "call_function"] for g in (graph, reference)]
    assert operations[0] == operations[1]
    x = torch.rand(4)
    for a, b, c in zip(graph(x), reference(x), f(x), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_nodes_know_shape_strides_and_precision() -> None:
    graph = _compat.record(lambda x: [x.t().double(), *x.split(1)], torch.rand(2, 3))
    values = {n.name: n.meta["val"] for n in graph.graph.nodes if n.op == "call_function"}
    transposed = values["_to_copy"]
    assert transposed.shape == (3, 2) and transposed.stride() == (1, 3) and transposed.dtype == torch.float64
    assert [v.shape for v in values["split"]] == [(1, 3), (1, 3)]


def test_a_value_of_a_constant_is_known_and_that_of_an_argument_is_not() -> None:
    two = torch.tensor(2)
    assert torch.equal(_compat.record(lambda x: [x[two]], torch.arange(4))(torch.arange(4))[0], two)
    with pytest.raises(RuntimeError, match="depends on the inputs"):
        _compat.record(lambda x: [x[: x.argmax()]], torch.arange(4))
    with pytest.raises(RuntimeError, match="depends on the inputs"):
        _compat.record(lambda x: [x[torch.randint(4, ())]], torch.arange(4))


def test_operations_are_taken_apart_for_tensors_without_autograd() -> None:
    with torch.inference_mode():
        matrix = torch.rand(3, 3)
    graph = _compat.record(lambda x: [torch.matmul(matrix, x)], torch.rand(3))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [torch.ops.aten.mv.default]


def test_a_class_of_tensors_is_refused() -> None:
    class Own(torch.Tensor):
        pass

    with pytest.raises(TypeError, match="Own"):
        _compat.record(lambda x: [x * torch.ones(2).as_subclass(Own)], torch.rand(2))


def test_a_recorder_does_not_see_what_another_one_records() -> None:
    inner = []

    def f(x: torch.Tensor) -> list[torch.Tensor]:
        inner.append(_compat.record(lambda y: [y.sin()], x))
        return [x.cos()]

    outer = _compat.record(f, torch.rand(2))
    for graph, name in ((outer, "cos"), (inner[0], "sin")):
        assert [n.name for n in graph.graph.nodes if n.op == "call_function"] == [name]


def test_what_is_executed_only_leaves_no_node() -> None:
    outer, nodes = torch.ones(2), []

    def f(x: torch.Tensor) -> list[torch.Tensor]:
        nodes.append((_compat.proxy_node(x), _compat.proxy_node(outer), _compat.proxy_node(3)))
        assert _compat.is_tracing()
        with _compat.without_tracing():
            assert not _compat.is_tracing() and _compat.proxy_node(x) is None
            outer * 7.0
        return [x + 1]

    graph = _compat.record(f, torch.zeros(2)).graph
    traced, constant, number = nodes[0]
    assert traced.op == "placeholder" and constant is None and number is None
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [torch.ops.aten.add.Tensor]
    assert _compat.proxy_node(outer) is None and not _compat.is_tracing()


def test_torchs_tracer_counts_as_a_trace() -> None:
    seen = []
    make_fx(lambda x: seen.append(_compat.is_tracing()) or x + 1)(torch.zeros(2))
    assert seen == [True]


CAPTURE = """
import sys
from phi.torch.flow import PERIODIC, Noise, StaggeredGrid, advect, diffuse, fluid
import phi_hybrid as ph

def step(v):
    return fluid.make_incompressible(diffuse.explicit(advect.semi_lagrangian(v, v, 0.1), 0.01, 0.1))[0]

v = StaggeredGrid(Noise(), PERIODIC, x=8, y=8)
ph.capture(step, v)(v)
print(*sorted({"sympy", "torch._dynamo", "torch._inductor"} & sys.modules.keys()))
"""


def test_a_capture_with_its_check_loads_no_compiler() -> None:
    run = subprocess.run([sys.executable, "-c", CAPTURE], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == ""
