"""What tracing needs to know of torch and PhiML, and to intercept there."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from phiml.backend.torch import TORCH
from phiml.math import _functional
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode

from phi_hybrid._compat.faces import faces_laid_out_once
from phi_hybrid._compat.recorder import current_recorder, recording_paused
from phi_hybrid._compat.replacement import current, replaced


def proxy_node(tensor: Any) -> torch.fx.Node | None:
    """The graph node that stands for `tensor` in the trace under way, `None` if it is not being traced."""
    recorder = current_recorder()
    if recorder is None or not isinstance(tensor, torch.Tensor):
        return None
    return recorder.nodes.get(tensor)


def traced_graph() -> torch.fx.Graph | None:
    """The graph of the trace under way, `None` outside of one."""
    recorder = current_recorder()
    return None if recorder is None else recorder.graph


def is_tracing() -> bool:
    """Tells if a trace is under way, here or in torch (`make_fx`, `torch.export`)."""
    if torch.compiler.is_compiling():  # which cannot look into what follows
        return False
    return current_recorder() is not None or get_proxy_mode() is not None


def argument_names(operator: Any) -> set[str]:
    """Names of the arguments of a torch operator, e.g. `torch.ops.aten.add.Tensor`."""
    return {argument.name for argument in operator._schema.arguments}


def is_mutable(operator: Any) -> bool:
    """Tells if a torch operator writes into an argument."""
    return operator._schema.is_mutable


@contextlib.contextmanager
def without_tracing() -> Iterator[None]:
    """Context in which operations are executed but not recorded."""
    with recording_paused(), disable_proxy_modes_tracing():
        yield


@contextlib.contextmanager
def hooked_backend(is_input: Callable[[Any], bool], hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """While a step is traced: PhiFlow does not look at values of inputs, and `hooks` replace methods of its backend."""
    own_is_available, own_jacobian = current(TORCH, "is_available"), current(TORCH, "jacobian")

    def is_available(tensor: Any) -> bool:
        return not is_input(tensor) and own_is_available(tensor)

    def jacobian(f: Callable, wrt: tuple | list, *args: Any, **kwargs: Any) -> Callable:
        def evaluate(*natives: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results = own_jacobian(f, wrt, *args, **kwargs)(*natives)
            return *results[: -len(wrt)], *(g.detach() for g in results[-len(wrt) :])  # as PhiML's, without a graph

        return evaluate

    with contextlib.ExitStack() as stack:
        for name, hook in {"is_available": is_available, "jacobian": jacobian, **hooks}.items():
            stack.enter_context(replaced(TORCH, name, hook))
        stack.enter_context(plain_products())
        stack.enter_context(fresh_gradients())
        stack.enter_context(faces_laid_out_once())
        yield


@contextlib.contextmanager
def fresh_gradients() -> Iterator[None]:
    """Functions of `math.gradient` neither use nor keep what PhiML prepared for arguments of the same shapes."""
    own = current(_functional.GradientFunction, "__call__")

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        kept = function.traces, function.recorded_mappings
        function.traces, function.recorded_mappings = {}, {}
        try:
            return own(function, *args, **kwargs)
        finally:
            function.traces, function.recorded_mappings = kept

    with replaced(_functional.GradientFunction, "__call__", call):
        yield


@contextlib.contextmanager
def unavailable(unknown: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Context in which PhiML does not look at the values of some tensors, as if they were traced."""
    own = current(TORCH, "is_available")
    with replaced(TORCH, "is_available", lambda tensor: not unknown(tensor) and own(tensor)):
        yield


@contextlib.contextmanager
def tensors_on(device: torch.device) -> Iterator[None]:
    """Context in which PhiML takes torch tensors to this device before it computes with them, as it does with arrays."""
    own = current(TORCH, "as_tensor")

    def as_tensor(x: Any, convert_external: bool = True) -> Any:
        found = own(x, convert_external)
        return found.to(device) if isinstance(found, torch.Tensor) and found.device != device else found

    with replaced(TORCH, "as_tensor", as_tensor):
        yield


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """`math.safe_mul` without its custom gradient: same values, and the same gradients to rounding while finite."""
    with replaced(_functional, "_safe_mul", lambda x, y: x * y):
        yield


@contextlib.contextmanager
def hooked_autograd_functions(hook: Callable[..., Any]) -> Iterator[None]:
    """While a step is traced: `hook(function, *args)` runs in place of `torch.autograd.Function.apply`, except for torch's
    own functions and ours. PhiML keeps those that `math.custom_gradient` made in an earlier call, so hooking its backend
    does not reach them."""
    own = current(torch.autograd.Function, "apply")

    def apply(function: type, *args: Any, **kwargs: Any) -> Any:
        known = function.__module__.startswith(("torch.", "phi_hybrid."))
        return own(function, *args, **kwargs) if known else hook(function, *args, **kwargs)

    with replaced(torch.autograd.Function, "apply", apply):
        yield


def compile_ahead(exported: torch.export.ExportedProgram, path: str) -> None:
    """Writes machine code of an exported program; torch documents this entry, underscore or not."""
    from torch import _inductor as inductor

    inductor.aoti_compile_and_package(exported, package_path=path)


def compile_apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function whose code others share, too: before `isolate_recompiles`, torch counts their compilations together."""
    apart = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    return torch.compile(function, dynamic=False, **apart)


def is_compiled(module: torch.nn.Module) -> bool:
    """Tells if a module is `torch.compile(module)`, or was compiled by `module.compile()`."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


# --- torch's transformation state, which has no public face ---


def runs_as_it_is() -> bool:
    """Tells if operations are executed here and now: no compiler, trace or transformation is under way."""
    return not (torch.compiler.is_compiling() or is_tracing() or functorch_active() or forward_mode_active())


def functorch_active() -> bool:
    """Tells if a `torch.func` transformation (vmap, grad, jvp, …) is under way."""
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
    """Tells if tangents may be flowing, in `torch.func.jvp` and `jacfwd` or in `torch.autograd.forward_ad`."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return any(i.key() == torch._C._functorch.TransformType.Jvp for i in stack or ())
