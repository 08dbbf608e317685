"""While a step is traced, nothing may take a value out of a tensor that depends on the inputs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from phi_hybrid import _compat
from phi_hybrid.errors import CaptureError
from phi_hybrid.linear_solve import LinearSolve, Solves, VaryingSolve, by_parts, in_order, solve_numbered, solve_varying
from phi_hybrid.tracing.custom_gradient import TracedFunction, forget
from phi_hybrid.tracing.lines import note_lines, user_line
from phi_hybrid.tracing.operators import csr_product, detached, pad_circular

_TAKES_VALUE = {
    torch.Tensor.item: "item()",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.__array__: "conversion to a NumPy array",
    torch.Tensor.__bool__: "a Python condition (if, while, and, or, assert)",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__index__: "use as a Python index",
    torch.equal: "torch.equal()",
    torch.allclose: "torch.allclose()",
    torch.is_nonzero: "is_nonzero()",
}

_DETACHES = torch.Tensor.detach, torch.detach, torch.Tensor.data.__get__


class Guard(TorchFunctionMode):
    """Refuses operations that would bake a value of this trace's inputs into the graph, naming the user's line."""

    def __init__(self, solves: Solves) -> None:
        super().__init__()
        self.solves = solves
        self.used_solves: dict[str, LinearSolve | VaryingSolve] = {}
        self.custom_gradients: dict[int, torch.nn.Module] = {}
        self.error: CaptureError | None = None
        self._depends: dict[torch.fx.Node, bool] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = self._call(func, args, kwargs)
        note_lines()
        return result

    def _call(self, func: Any, args: tuple, kwargs: dict | None) -> Any:
        if func in _TAKES_VALUE and args:
            if any(self.is_input(a) for a in args):
                self.refuse(
                    f"{_TAKES_VALUE[func]} takes a value out of a tensor that depends on the step's inputs",
                    "use math.where instead of branches, keep numbers as tensors, or pass the value as a Python number",
                )
            with _compat.without_tracing():
                return func(*args, **(kwargs or {}))
        if isinstance((kwargs or {}).get("generator"), torch.Generator):
            self.refuse(
                "the step draws from a torch.Generator of its own, whose state the graph would share with it",
                "draw from torch's own generator, or pass the random numbers as an argument",
            )
        if func in _DETACHES and self.is_input(args[0]):
            with torch.no_grad():
                return detached(args[0])
        if func is torch.nn.functional.pad:
            padded = _pad(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {})) if padded is None else padded
        return func(*args, **(kwargs or {}))

    def is_input(self, tensor: Any) -> bool:
        """Whether `tensor` depends on the inputs (or on random numbers) of the trace under way."""
        node = _compat.proxy_node(tensor)
        return node is not None and self.depends(node)

    def depends(self, node: torch.fx.Node) -> bool:
        """Whether a graph node depends on the inputs or on random numbers."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._depends:
                stack.pop()
            elif top.op == "placeholder" or is_random(top):
                self._depends[stack.pop()] = True
            elif unknown := [n for n in top.all_input_nodes if n not in self._depends]:
                stack += unknown
            else:
                self._depends[stack.pop()] = any(self._depends[n] for n in top.all_input_nodes)
        return self._depends[node]

    def refuse(self, reason: str, advice: str) -> NoReturn:
        self.error = self.error or CaptureError(f"{reason}, at {user_line()}. Way out: {advice}.")
        raise self.error

    def linear_solve(
        self, matrix: _compat.MatrixStandIn, rhs: torch.Tensor, rel_tol: Any, abs_tol: Any
    ) -> torch.Tensor:
        if any(self.is_input(t) for t in (rel_tol, abs_tol)):
            self.refuse("a linear solve whose tolerance depends on the step's inputs", "give it as a Python number")
        if matrix.entries is not None:
            module, values = self.solves.varying_for(matrix, rel_tol, abs_tol)
            self.used_solves[f"varying_solve{module.number}"] = module
            places = module.places(values.device)
            return by_parts(lambda b: solve_varying(values, b, *places, module.number, False), rhs)
        with _compat.without_tracing():
            module, order = self.solves.module_for(matrix, rel_tol, abs_tol)
        self.used_solves[f"linear_solve{module.number}"] = module
        return in_order(by_parts(lambda b: solve_numbered(b, module.number, False), rhs), order)

    def sparse_product(self, columns: Any, row_pointers: Any, values: Any, shape: tuple, dense: Any) -> torch.Tensor:
        values, dense = _compat.TORCH.auto_cast(values, dense, bool_to_int=True, int_to_float=True)
        columns, row_pointers = (_compat.TORCH.as_tensor(t) for t in (columns, row_pointers))
        return csr_product(columns, row_pointers, values, shape[0], dense)

    def autograd_function(self, function: type[torch.autograd.Function], *args: Any) -> Any:
        """One call of a function with a gradient of its own."""
        call = TracedFunction(function, args)
        result = call.run()
        self.custom_gradients[call.number] = call.module(self.is_input) or self.refuse(
            f"a function with a custom gradient ({function.__name__}) whose way back uses tensors of the step that it was "
            "not given",
            "pass them to the function, or keep them with ctx.save_for_backward",
        )
        note_lines()
        return result

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Everything that must hold while the step runs under the tracer."""
        python_state, numpy_state = random.getstate(), np.random.get_state()
        hooks = {"mul_csr_dense": self.sparse_product}
        with (
            _compat.hooked_solves(self.linear_solve),
            _compat.hooked_backend(self.is_input, hooks),
            _compat.hooked_autograd_functions(self.autograd_function),
            self,
        ):
            try:
                yield
            finally:
                forget(self.custom_gradients)
        drawn = not _same(np.random.get_state(), numpy_state) or random.getstate() != python_state
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if drawn:
            raise CaptureError(
                "the step draws random numbers from NumPy or Python, which the graph would freeze. "
                "Way out: use math.random_normal, math.random_uniform or torch's generators, which stay random."
            )


def is_random(node: torch.fx.Node) -> bool:
    """Whether a graph node draws from torch's generator."""
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _pad(
    values: torch.Tensor, widths: tuple, mode: str = "constant", value: float | None = None
) -> torch.Tensor | None:
    return pad_circular(values, tuple(widths)) if mode == "circular" else None


def _same(a: tuple, b: tuple) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b))
