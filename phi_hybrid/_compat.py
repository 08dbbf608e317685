"""The only module that touches private PhiFlow, PhiML and torch names, or works around a defect there.

Importing it mends defects of PhiFlow on torch, for eager code as well as for captured code:

* `advect.semi_lagrangian` and `advect.mac_cormack` crash in 1D (`TorchBackend.grid_sample` handles 2D and 3D only);
* `Field.closest_values`, the limiter of `advect.mac_cormack`, looks half a cell beside the faces of staggered grids and
  crashes when their boundary holds a vector;
* advection on staggered grids in 1D returns values with a surplus `vector` dim;
* `diffuse.implicit` fails on staggered grids that are not periodic;
* linear functions cannot be traced next to a boundary with a floating-point value (walls at 1.0, inflow).

`tests/test_compat.py` has one test per workaround that fails as soon as upstream has mended the defect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from phi import math
from phi.field import Field
from phi.geom import UniformGrid
from phi.physics import diffuse
from phiml.backend import NUMPY
from phiml.backend.torch import TORCH
from phiml.backend.torch._torch_backend import TorchBackend
from phiml.math import _functional, _optimize, extrapolation
from phiml.math._functional import LinearFunction
from phiml.math._lin_trace import LinTracer
from phiml.math._ops import backend_for
from phiml.math._sparse import native_matrix
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import assemble_tree, disassemble_tree, tree_map, value_attributes, variable_attributes
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot

__all__ = [
    "TORCH",
    "assemble_field",
    "boundary_from_dict",
    "boundary_to_dict",
    "forward_mode_active",
    "functorch_active",
    "hooked_autograd_functions",
    "hooked_backend",
    "outside_transformations",
    "is_sparse",
    "without_tracing",
    "proxy_node",
]


# --- defects mended on import ---

_grid_sample_2d_3d = TorchBackend.grid_sample
_closest_values_centered = Field.closest_values
_with_values_as_given = Field.with_values
_implicit_on_one_grid = diffuse.implicit
_matrix_and_bias = _functional.matrix_and_bias_from_tracer
_pad_tracer_with_constant_type = LinTracer._pad


def _grid_sample(self: TorchBackend, grid: Any, coordinates: Any, extrapolation: str) -> Any:
    if coordinates.shape[-1] == 1:
        return NotImplemented  # torch samples images and volumes only; this selects PhiML's own interpolation
    return _grid_sample_2d_3d(self, grid, coordinates, extrapolation)


def _closest_values(self: Field, points: Any) -> PhiTensor:
    if not self.is_staggered:
        return _closest_values_centered(self, points)
    closest = {}
    for name in self.vector.item_names:
        faces = UniformGrid(self.resolution, self.bounds).stagger(name, *self.boundary.valid_outer_faces(name))
        position = faces.bounds.global_to_local(points[{"~vector": name}]) * faces.resolution - 0.5
        boundary = self.boundary[{"vector": name}]
        closest[name] = math.closest_grid_values(self.values[{"~vector": name}], position, boundary)
    return math.stack(closest, math.dual("vector"))


def _with_values(self: Field, values: Any, **kwargs: Any) -> Field:
    if isinstance(values, PhiTensor) and {"vector", "~vector"} <= set(values.shape.names) and self.is_staggered:
        values = values.vector[0] if self.spatial_rank == 1 else values  # sampling at faces leaves it there in 1D
    return _with_values_as_given(self, values, **kwargs)


def _implicit(field: Field, diffusivity: Any, dt: Any, *args: Any, **kwargs: Any) -> Field:
    if not field.is_staggered or field.values.shape.is_uniform:
        return _implicit_on_one_grid(field, diffusivity, dt, *args, **kwargs)
    components = {}
    for name in field.vector.item_names:
        faces = UniformGrid(field.resolution, field.bounds).stagger(name, *field.boundary.valid_outer_faces(name))
        component = Field(faces, field.values[{"~vector": name}], field.boundary[{"vector": name}])
        components[name] = _implicit_on_one_grid(component, diffusivity, dt, *args, **kwargs).values
    return field.with_values(math.stack(components, math.dual("vector")))


def _pad_tracer(self: LinTracer, boundary: extrapolation.Extrapolation, *args: Any, **kwargs: Any) -> LinTracer:
    if not isinstance(boundary, extrapolation.ConstantExtrapolation):
        return _pad_tracer_with_constant_type(self, boundary, *args, **kwargs)
    padded = _pad_tracer_with_constant_type(self, extrapolation.ZERO, *args, **kwargs)  # indices stay integers
    return dataclasses.replace(padded, _bias=boundary.pad(self._bias, *args, **kwargs))


LinTracer._pad = _pad_tracer
TorchBackend.grid_sample = _grid_sample
diffuse.implicit = _implicit
Field.closest_values = _closest_values
Field.with_values = _with_values


# --- what tracing needs to know and to intercept ---


def proxy_node(tensor: Any) -> torch.fx.Node | None:
    """The graph node that stands for `tensor` in the trace under way, `None` if it is not being traced."""
    mode = get_proxy_mode()
    if mode is None or not isinstance(tensor, torch.Tensor):
        return None
    slot = get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


without_tracing = disable_proxy_modes_tracing
"""Context manager: operations inside are executed but not recorded."""


@contextlib.contextmanager
def hooked_backend(is_input: Callable[[Any], bool], hooks: dict[str, Callable]) -> Iterator[None]:
    """While a step is traced: PhiFlow does not look at values of inputs, and `hooks` replace methods of its backend."""
    own_is_available = TORCH.is_available

    def is_available(tensor: Any) -> bool:
        return not is_input(tensor) and own_is_available(tensor)

    with (
        _replaced_methods(TORCH, {"is_available": is_available, **hooks}),
        plain_products(),
    ):
        yield


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """`math.safe_mul` without its custom gradient: same values, and the same gradients to rounding while finite."""
    with _replaced(_functional, "_safe_mul", lambda x, y: x * y):
        yield


@contextlib.contextmanager
def _replaced_methods(instance: Any, methods: dict[str, Callable]) -> Iterator[None]:
    previous = {name: vars(instance)[name] for name in methods if name in vars(instance)}
    vars(instance).update(methods)
    try:
        yield
    finally:
        for name in methods:
            delattr(instance, name)  # uncovers the methods of the class
        vars(instance).update(previous)


@contextlib.contextmanager
def hooked_autograd_functions(hook: Callable[[type], None]) -> Iterator[None]:
    """While a step is traced: `hook` is told of every `torch.autograd.Function` instead of running it. PhiML keeps those
    that `math.custom_gradient` made in an earlier call, so hooking its backend does not reach them."""
    original = torch.autograd.Function.__dict__["apply"]
    torch.autograd.Function.apply = classmethod(lambda cls, *args, **kwargs: hook(cls))
    try:
        yield
    finally:
        torch.autograd.Function.apply = original


# --- torch's transformation state, which has no public face ---


def functorch_active() -> bool:
    """Whether a `torch.func` transformation (vmap, grad, jvp, …) is under way."""
    return torch._C._functorch.maybe_current_level() is not None


@contextlib.contextmanager
def outside_transformations() -> Iterator[None]:
    """Suspends the `torch.func` transformations under way."""
    level, torch.autograd.forward_ad._current_level = torch.autograd.forward_ad._current_level, -1
    try:
        with temporarily_clear_interpreter_stack():
            yield
    finally:
        torch.autograd.forward_ad._current_level = level


def forward_mode_active() -> bool:
    """Whether tangents may be flowing, in `torch.func.jvp` and `jacfwd` or in `torch.autograd.forward_ad`."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return any(i.key() == torch._C._functorch.TransformType.Jvp for i in stack or ())


# --- PhiFlow and PhiML values ---


def assemble_field(geometry: Any, values: PhiTensor, boundary: extrapolation.Extrapolation) -> Field:
    """`Field(geometry, values, boundary)` without its shape check, which takes milliseconds on staggered grids."""
    field = object.__new__(Field)
    attributes = dict(geometry=geometry, values=values, boundary=boundary)
    for name, value in dict(attributes, variable_attrs=("values",), value_attrs=("values",)).items():
        object.__setattr__(field, name, value)
    return field


def is_sparse(tensor: PhiTensor) -> bool:
    """Whether `tensor` is a PhiML sparse tensor (coordinate or compressed)."""
    from phiml.math._sparse import is_sparse as phiml_is_sparse

    return phiml_is_sparse(tensor)


def boundary_to_dict(boundary: extrapolation.Extrapolation) -> dict:
    """JSON description of a boundary condition. Unlike `Extrapolation.to_dict` it keeps vector values and their names."""
    if isinstance(boundary, extrapolation.ConstantExtrapolation):
        value = boundary.value
        if any(getattr(native, "requires_grad", False) for native in value._natives()):
            raise ValueError(
                f"boundary value {boundary} is a trainable tensor, which would be frozen as a constant; set the values "
                "at the boundary inside the step from an argument"
            )
        if not value.shape:
            return {"constant": value.numpy().item()}
        if value.shape.names != ("vector",):
            raise ValueError(
                f"boundary value of shape {value.shape}: only numbers and vectors are supported; use one boundary for "
                "all batch entries"
            )
        return {"vector": {k: value.vector[k].numpy().item() for k in value.shape.get_item_names("vector")}}
    if isinstance(boundary, extrapolation._MixedExtrapolation):
        return {"sides": {side: boundary_to_dict(b) for side, b in boundary.ext.items()}}
    if isinstance(boundary, extrapolation._NormalTangentialExtrapolation):
        return {"normal": boundary_to_dict(boundary.normal), "tangential": boundary_to_dict(boundary.tangential)}
    description = boundary.to_dict()
    if set(description) != {"type"}:
        raise ValueError(
            f"boundary {boundary} ({type(boundary).__name__}) is not supported; use constants, PERIODIC, "
            "ZERO_GRADIENT or another of PhiFlow's primitive boundaries, per side if need be"
        )
    return {"primitive": description["type"]}


def boundary_from_dict(description: dict) -> extrapolation.Extrapolation:
    """Inverse of `boundary_to_dict`."""
    if "constant" in description:
        return extrapolation.ConstantExtrapolation(description["constant"])
    if "vector" in description:
        return extrapolation.ConstantExtrapolation(math.vec(**description["vector"]))
    if "sides" in description:
        return extrapolation._MixedExtrapolation({s: boundary_from_dict(b) for s, b in description["sides"].items()})
    if "normal" in description:
        return extrapolation.combine_by_direction(
            boundary_from_dict(description["normal"]), boundary_from_dict(description["tangential"])
        )
    return extrapolation.from_dict({"type": description["primitive"]})


# --- linear solves ---


class MatrixStandIn:
    """Travels in place of a backend's matrix from PhiML's assembly to the solver of its backend."""

    def __init__(self, matrix: PhiTensor, singular: bool) -> None:
        self.matrix = matrix
        self.singular = singular


@contextlib.contextmanager
def hooked_solves(
    solve: Callable[[MatrixStandIn, torch.Tensor, Any, Any], torch.Tensor],
    leave: Callable[[PhiTensor], bool] = lambda matrix: False,
) -> Iterator[None]:
    """Inside, `solve(matrix, rhs, rel_tol, abs_tol)` takes every linear solve of PhiFlow on torch, with its derivatives.

    `rhs` has shape `(batch, row)`, the result `(batch, column)`; `SolveTape`s are not told. PhiML assembles the matrix, in
    float64 whatever the precision of the state, and prepares the right-hand side. A function that is not compiled is
    turned into a matrix first. A rank deficiency is told to `solve` instead of bordering the matrix with ones. Matrices
    for which `leave` is true stay with PhiFlow.
    """
    hooks = _SolveHooks(solve, leave)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "(?s).*Rank deficiency|.*rank-deficient")  # which is what `solve` looks after
        for name, hook in hooks.by_name.items():
            stack.enter_context(_replaced(_optimize, name, hook))
        stack.enter_context(_replaced(LinearFunction, "sparse_matrix_and_bias", hooks.matrix_and_bias))
        stack.enter_context(_replaced(_functional, "matrix_and_bias_from_tracer", _matrix_and_bias_of_any_size))
        yield


class _SolveHooks:
    """Functions that take the place of those of `phiml.math._optimize`, and the originals behind them."""

    def __init__(self, solve: Callable[..., torch.Tensor], leave: Callable[[PhiTensor], bool]) -> None:
        self.solve, self.leave = solve, leave
        self.latest: MatrixStandIn | None = None  # of the solve under way
        self.by_name = {
            "attach_gradient_solve": self.attach,
            "native_matrix": self.native_matrix,
            "compute_preconditioner": lambda *args, **kwargs: None,
            "_linear_solve_forward": self.solve_forward,
        }
        self.originals = {name: getattr(_optimize, name) for name in self.by_name}
        in_own_precision = LinearFunction.sparse_matrix_and_bias

        def matrix_and_bias(function: LinearFunction, x: Any, *args: Any, **kwargs: Any) -> tuple[PhiTensor, PhiTensor]:
            precision = math.get_precision()
            with math.precision(64):
                matrix, bias = in_own_precision(function, tree_map(math.to_float, x), *args, **kwargs)
            return matrix, math.cast(bias, math.DType(float, precision))

        self.matrix_and_bias = matrix_and_bias

    def attach(self, forward: Callable, auxiliary_args: str, matrix_adjoint: bool) -> Callable:
        """The solve without PhiML's gradient, for matrices as for functions."""
        plain = self.originals["attach_gradient_solve"](forward, auxiliary_args, matrix_adjoint)

        def with_matrix(y: Any, arguments: math.Solve, matrix: PhiTensor) -> Any:
            foreign = backend_for(*disassemble_tree(y, cache=False)[1], matrix) is not TORCH
            if foreign or self.leave(matrix):
                return plain(y, arguments, matrix)
            self.latest = MatrixStandIn(matrix, bool((math.wrap(arguments.rank_deficiency or 0) > 0).any))
            try:
                return forward(y, math.copy_with(arguments, rank_deficiency=0), matrix)
            finally:
                self.latest = None

        def with_function(y: Any, arguments: math.Solve, f_args: tuple, f_kwargs: dict) -> Any:
            if backend_for(*disassemble_tree(y, cache=False)[1]) is not TORCH:
                return plain(y, arguments, f_args, f_kwargs=f_kwargs)
            function = math.jit_compile_linear(inspect.getclosurevars(forward).nonlocals["f"])
            return math.solve_linear(function, y, arguments, *f_args, f_kwargs=f_kwargs)

        return with_function if "f_kwargs" in auxiliary_args else with_matrix

    def native_matrix(self, matrix: PhiTensor, backend: Any) -> Any:
        """The stand-in, where a hooked solve asks for it."""
        if self.latest is not None and backend is TORCH:
            return self.latest
        return self.originals["native_matrix"](matrix, backend)

    def solve_forward(self, y: Any, arguments: math.Solve, matrix: Any, columns: tuple, rows: tuple, *rest: Any) -> Any:
        """From PhiML's right-hand side to `solve`, and back to a tree like `x0`."""
        if not isinstance(matrix, MatrixStandIn):
            return self.originals["_linear_solve_forward"](y, arguments, matrix, columns, rows, *rest)
        reduce_x, reduce_y, expand_x, _ = (f or (lambda t: t) for f in rest[3:])
        arguments = arguments.with_defaults("solve")
        if arguments.preprocess_y is not None:
            y = arguments.preprocess_y(y, *arguments.preprocess_y_args)
        rhs = reduce_y(*disassemble_tree(y, cache=False, attr_type=value_attributes)[1])
        tree, (x0,) = disassemble_tree(arguments.x0, cache=False, attr_type=variable_attributes)
        rows, columns = rhs.shape.only(rows, reorder=True), reduce_x(x0).shape.only(columns, reorder=True)
        batches = rhs.shape.without(rows) & reduce_x(x0).shape.without(columns)
        tolerances = (math.min(t, math.shape).native() for t in (arguments.rel_tol, arguments.abs_tol))
        x = self.solve(matrix, TORCH.as_tensor(rhs.native([batches, rows])), *tolerances)
        x = expand_x(math.reshaped_tensor(x, [batches, columns]))
        return assemble_tree(tree, [x], attr_type=variable_attributes)


def _matrix_and_bias_of_any_size(tracer: Any, auto_compress: bool = True) -> tuple[PhiTensor, PhiTensor]:
    """PhiML compresses rows with 32-bit indices into the dense matrix, which overflow from 256² cells on."""
    small = tracer.shape.volume * tracer._source.shape.volume < 2**31
    return _matrix_and_bias(tracer, auto_compress=auto_compress and small)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def matrix_values(matrix: PhiTensor) -> tuple[torch.Tensor, ...]:
    """The native tensors that hold the values of a sparse or dense matrix."""
    values = matrix._values if is_sparse(matrix) else matrix
    return tuple(t for t in values._natives() if isinstance(t, torch.Tensor))


def varies(matrix: PhiTensor) -> bool:
    """Whether a matrix carries gradients, or differs along a batch dim, which sparse ones keep among rows and columns."""
    same_dims = set(math.non_dual(matrix).names) == set(math.dual(matrix).as_channel().names)
    return not same_dims or bool(math.batch(matrix)) or any(map(_has_derivatives, matrix_values(matrix)))


def _has_derivatives(tensor: torch.Tensor) -> bool:
    dual = torch.autograd.forward_ad._current_level >= 0 and torch.autograd.forward_ad.unpack_dual(tensor)
    return tensor.requires_grad or bool(dual and dual.tangent is not None)


def matrix_to_scipy(matrix: PhiTensor) -> scipy.sparse.csr_matrix:
    """Float64 copy; rows and columns run over the primal and the dual dims of `matrix`, the last one fastest."""
    with math.precision(64):  # native values come in the global precision
        native = native_matrix(matrix, NUMPY)
    return scipy.sparse.csr_matrix(native).astype(np.float64)


def matrix_dims(matrix: PhiTensor) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names and sizes of the dims that rows and columns run over, as in `matrix_to_scipy`."""
    rows, columns = math.non_batch(matrix).non_dual, math.dual(matrix).as_channel()
    return list(zip(rows.names, rows.sizes)), list(zip(columns.names, columns.sizes))
