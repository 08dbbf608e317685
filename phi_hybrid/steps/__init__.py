"""Floor 3: steps with two faces, PhiFlow states and torch tensors, and their time loop."""

from phi_hybrid.steps.bound import Inputs, Repeatable, bind, flatten_arguments
from phi_hybrid.steps.face import BoundStep, NativeStep, Step
from phi_hybrid.steps.plain import PlainStep, as_step, known_step, require_step
from phi_hybrid.steps.time_loop import (
    all_finite,
    evaluation_mode,
    repeat,
    require_finite,
    rollout,
    unroll,
)

__all__ = [
    "BoundStep",
    "Inputs",
    "NativeStep",
    "PlainStep",
    "Repeatable",
    "Step",
    "all_finite",
    "as_step",
    "bind",
    "evaluation_mode",
    "flatten_arguments",
    "known_step",
    "repeat",
    "require_finite",
    "require_step",
    "rollout",
    "unroll",
]
