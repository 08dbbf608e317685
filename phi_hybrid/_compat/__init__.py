"""Floor 0: the only room that touches private PhiFlow, PhiML and torch names, or works around a defect there."""

from phiml.backend.torch import TORCH

from phi_hybrid._compat import defects as defects
from phi_hybrid._compat import grid_defects as grid_defects
from phi_hybrid._compat import tensor_defects as tensor_defects
from phi_hybrid._compat.decorators import functions_under, undecorated
from phi_hybrid._compat.defects import distinct_boundary_values
from phi_hybrid._compat.faces import faces_laid_out_once
from phi_hybrid._compat.matrices import MatrixEntries, matrix_dims, matrix_to_scipy
from phi_hybrid._compat.objects import (
    assemble_object,
    attributes_of,
    constants_of,
    is_fixed,
    is_object,
    is_object_tensor,
    state_of,
)
from phi_hybrid._compat.recorder import record
from phi_hybrid._compat.solves import MatrixStandIn, hooked_solves
from phi_hybrid._compat.tracing import (
    argument_names,
    compile_ahead,
    compile_apart,
    forward_mode_active,
    functorch_active,
    hooked_autograd_functions,
    hooked_backend,
    is_compiled,
    is_mutable,
    is_tracing,
    outside_transformations,
    plain_products,
    proxy_node,
    runs_as_it_is,
    tensors_on,
    traced_graph,
    without_tracing,
)
from phi_hybrid._compat.values import (
    assemble_field,
    boundary_from_dict,
    boundary_to_dict,
    is_sparse,
    natives_of,
    parts_of_boundary,
    sides_in_order,
)

__all__ = [
    "MatrixEntries",
    "MatrixStandIn",
    "TORCH",
    "argument_names",
    "assemble_field",
    "assemble_object",
    "attributes_of",
    "boundary_from_dict",
    "boundary_to_dict",
    "compile_ahead",
    "compile_apart",
    "constants_of",
    "distinct_boundary_values",
    "faces_laid_out_once",
    "forward_mode_active",
    "functions_under",
    "functorch_active",
    "hooked_autograd_functions",
    "hooked_backend",
    "hooked_solves",
    "is_compiled",
    "is_fixed",
    "is_mutable",
    "is_object",
    "is_object_tensor",
    "is_sparse",
    "is_tracing",
    "matrix_dims",
    "matrix_to_scipy",
    "natives_of",
    "outside_transformations",
    "parts_of_boundary",
    "plain_products",
    "proxy_node",
    "record",
    "runs_as_it_is",
    "sides_in_order",
    "state_of",
    "tensors_on",
    "traced_graph",
    "undecorated",
    "without_tracing",
]
